"""The learners of dreams on worlds that can be computed by hand: losses, gradients, weights, and learning itself."""

import itertools

import pytest
import tabular
import torch
from torch import nn

from wmrl.controllers.mlp import MLP
from wmrl.nn.policies import OneHot
from wmrl.spec import Actions, Step
from wmrl.trainers.actor_critic import ActorCritic
from wmrl.trainers.imagine import imagine
from wmrl.trainers.returns import lambda_return, step_weights
from wmrl.trainers.reward import Reward
from wmrl.trainers.value import Value

CPU, DISCOUNT, H = torch.device("cpu"), 0.9, 3
SMALL = {"critic_layers": 1, "critic_units": 16, "discount": DISCOUNT}
BRISK = {"actor_learning_rate": 0.02, "critic_learning_rate": 0.02, "slow_every": 1, "slow_fraction": 0.2, **SMALL}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Scripted(nn.Module):
    """A table of logits (S, A) that acts as it is told: row n takes the actions script[:, n]."""

    actions = Actions(2, True)
    looks_at = "features"

    def __init__(self, logits: torch.Tensor, script: torch.Tensor) -> None:
        super().__init__()
        self.logits, self.script = nn.Parameter(logits), script

    def initial(self, batch: int):
        return torch.zeros(batch, dtype=torch.long)

    def policy(self, view, memory):
        policy = OneHot(view @ self.logits)
        told = nn.functional.one_hot(self.script[memory[0]], 2).float()
        policy.sample = lambda rng=None: told
        return policy, memory + 1


def exact(table: tabular.Table, logits: torch.Tensor, start: int, last: torch.Tensor) -> torch.Tensor:
    """The expected discounted reward of H steps from `start`, then `last` (S,) values, of a softmax policy."""
    policy = logits.softmax(-1)
    v = last
    for _ in range(H):
        after = torch.einsum("sat,t->sa", table.moves, table.cont * v)
        v = (policy * (table.reward + DISCOUNT * after)).sum(-1)
    return v[start]


def worlds() -> list[tabular.Table]:
    deadly = tabular.chain()
    paid = tabular.chain()
    paid.reward, paid.cont = torch.tensor([[0.3, -0.2], [1.0, 0.0], [0.1, 0.7]]), torch.ones(3)
    return [deadly, paid]


@pytest.mark.parametrize("table", worlds(), ids=["terminal", "immediate reward"])
@pytest.mark.parametrize("start", [0, 1])
def test_the_expected_reinforce_gradient_is_the_gradient_of_the_expected_return(table, start):
    """All 2^H action sequences, each a start that weighs as much as it is likely."""
    script = torch.tensor(list(itertools.product([0, 1], repeat=H))).T  # (H, 2^H)
    logits = torch.randn(3, 2, generator=rng())
    controller = Scripted(logits.clone(), script)
    learner = ActorCritic(horizon=H, lambda_=1.0, entropy=0.0, reduce="sum", **SMALL).learner(controller, (3,), CPU)
    starts = torch.eye(3)[start].expand(script.shape[1], 3)
    dream = imagine(tabular.world_of(table), controller, starts, H, rng=rng(), through=False)
    likely = dream.log_prob.sum(0).exp().detach()
    actor, _, _ = learner.losses(dream, likely)
    (got,) = torch.autograd.grad(actor, controller.logits)
    theta = logits.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(-exact(table, theta, start, learner.slow(torch.eye(3))), theta)
    torch.testing.assert_close(got, wanted.detach(), atol=1e-5, rtol=1e-4)
    assert got.abs().max() > 1e-3


class Line(nn.Module):
    """A point x is pushed by the action: x' = x + a / 2; reward -x'^2 - a^2 / 10, likelier ends far away."""

    feature_shape = (1,)

    def __init__(self) -> None:
        super().__init__()
        self.push = nn.Parameter(torch.tensor(0.5))

    def imagine(self, state, action, *, rng, temperature=1.0):
        after = state + self.push * action
        return Step(after, -(after.square() + 0.1 * action.square())[:, 0], torch.exp(-0.1 * after.square())[:, 0])

    def features(self, state):
        return state


def test_the_dynamics_gradient_is_that_of_finite_differences():
    """The policy ignores what it sees (its weights are 0), so that the return depends on it through actions alone."""
    world, starts = tabular.world_of(Line()), torch.tensor([[0.3], [-0.8]])
    controller = MLP((1,), Actions(1, False), layers=0, policy="normal").requires_grad_(False)
    controller.net[0].weight.zero_()
    learner = Value(horizon=H, lambda_=0.7, entropy=0.0, reduce="sum", critic_layers=1, critic_units=8).learner(
        controller, (1,), CPU
    )
    bias, weight = controller.net[0].bias, torch.tensor([1.0, 0.5])
    dream = imagine(world, controller, starts, H, rng=rng(), through=True)
    weights = step_weights(weight, 0.99 * dream.cont).detach()

    @torch.no_grad()
    def objective() -> torch.Tensor:
        again = imagine(world, controller, starts, H, rng=rng(), through=True)
        returns = lambda_return(again.reward, 0.99 * again.cont, learner.slow(again.views), 0.7)
        return (weights * returns).sum() / weight.sum()

    (got,) = torch.autograd.grad(learner.losses(dream, weight)[0], bias)
    for i in range(2):
        sides = []
        for step in (1e-2, -1e-2):
            bias.data[i] += step
            sides.append(objective())
            bias.data[i] -= step
        torch.testing.assert_close(-got[i], (sides[0] - sides[1]) / 2e-2, atol=1e-3, rtol=1e-2)


def test_terminal_starts_contribute_nothing():
    table = tabular.chain()
    controller = MLP((3,), table.actions, layers=1, units=8)
    learner = ActorCritic(horizon=H, **SMALL).learner(controller, (3,), CPU)
    networks = [*controller.parameters(), *learner.critic.parameters()]
    dream = imagine(tabular.world_of(table), controller, torch.eye(3), H, rng=rng(), through=False)
    alone = dream._replace(**{name: getattr(dream, name)[:, :2] for name in dream._fields})
    some = learner.losses(dream, torch.tensor([1.0, 1.0, 0.0]))
    few = learner.losses(alone, torch.ones(2))
    got, wanted = (torch.autograd.grad(a + c, networks, retain_graph=True) for a, c, _ in (some, few))
    torch.testing.assert_close(got, wanted)
    actor, critic, _ = learner.losses(dream, torch.zeros(3))
    assert actor == 0 and critic == 0


def test_states_behind_an_end_weigh_nothing():
    """From state 1, action 1 ends the episode: what is dreamt behind it must not teach the critic."""
    script = torch.ones(H, 1, dtype=torch.long)
    controller = Scripted(torch.zeros(3, 2), script)
    learner = ActorCritic(horizon=H, reduce="sum", **SMALL).learner(controller, (3,), CPU)
    dream = imagine(tabular.world_of(tabular.chain()), controller, torch.eye(3)[1:2], H, rng=rng(), through=False)
    _, critic, _ = learner.losses(dream, torch.ones(1))
    first = (
        0.5 * (learner.critic(torch.eye(3)[1]) - 1).square() / H
    )  # the reward of the last step, and nothing after it
    torch.testing.assert_close(critic, first)


@pytest.mark.parametrize("gradient", ["reinforce", "dynamics", "mix"])
def test_only_actor_and_critic_take_gradients(gradient):
    table = tabular.chain()
    world = tabular.world_of(table).requires_grad_(True)  # even if its caller forgot to freeze it
    controller = MLP((3,), table.actions, layers=1, units=8)
    learner = ActorCritic(horizon=H, gradient=gradient, slow_every=100, **SMALL).learner(controller, (3,), CPU)
    slow = [p.clone() for p in learner.slow.parameters()]
    before = [p.clone() for p in (*controller.parameters(), *learner.critic.parameters())]
    learner.update(world, torch.eye(3)[:2], torch.ones(2), rng=rng())
    after = [*controller.parameters(), *learner.critic.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(slow, learner.slow.parameters(), strict=True))
    assert table.moves.grad is None and all(p.grad is None for p in learner.slow.parameters())


def test_without_the_world_in_the_graph_only_log_probabilities_have_gradients():
    table = tabular.chain()
    world, controller = tabular.world_of(table).requires_grad_(True), MLP((3,), table.actions, layers=1, units=8)
    apart, through = (
        imagine(world, controller, torch.eye(3), H, rng=rng(), through=through) for through in (False, True)
    )
    assert [x.requires_grad for x in apart] == [False, False, True, True, False, False]
    assert all(x.requires_grad for x in through)
    torch.testing.assert_close([x.detach() for x in apart], [x.detach() for x in through])
    grads = [torch.autograd.grad(x.log_prob.sum(), controller.net[0].weight)[0] for x in (apart, through)]
    torch.testing.assert_close(*grads)  # actions are given there, even where they are in the graph


def test_a_mix_has_its_shares_of_both_gradients_and_entropy_is_sought_where_states_weigh():
    table = tabular.chain()
    controller, weight = MLP((3,), table.actions, layers=1, units=8), torch.tensor([1.0, 0.5, 0.0])
    dream = imagine(tabular.world_of(table), controller, torch.eye(3), H, rng=rng(), through=True)
    slow = ActorCritic(horizon=H, **SMALL).learner(controller, (3,), CPU).slow

    def gradients(**how):
        learner = ActorCritic(horizon=H, **{"entropy": 0.0, **how}, **SMALL).learner(controller, (3,), CPU)
        learner.slow = slow
        loss = learner.losses(dream, weight)[0]
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, controller.parameters(), retain_graph=True)])

    apart, through = gradients(), gradients(gradient="dynamics")
    torch.testing.assert_close(gradients(gradient="mix", mix=0.3), 0.7 * apart + 0.3 * through)
    weights = step_weights(weight, DISCOUNT * dream.cont.detach())
    sought = (weights * dream.entropy).sum() / (H * weight.sum())
    wanted = torch.autograd.grad(-0.4 * sought, controller.parameters(), retain_graph=True)
    torch.testing.assert_close(gradients(entropy=0.4) - apart, torch.cat([g.flatten() for g in wanted]))


def test_the_slow_critic_follows_every_so_many_updates():
    table = tabular.chain()
    learner = ActorCritic(horizon=H, **{**SMALL, "slow_every": 3, "slow_fraction": 0.5}).learner(
        MLP((3,), table.actions, layers=1, units=8), (3,), CPU
    )
    first = learner.slow.net[0].weight.clone()
    for k in range(3):
        assert torch.equal(learner.slow.net[0].weight, first)
        learner.update(tabular.world_of(table), torch.eye(3)[:2], torch.ones(2), rng=rng(k))
    torch.testing.assert_close(learner.slow.net[0].weight, (first + learner.critic.net[0].weight) / 2)


@pytest.mark.parametrize(("normalize", "factor"), [("none", 10.0), ("percentile", 1.0), ("advantage", 1.0)])
def test_normalised_actor_gradients_do_not_depend_on_the_scale_of_rewards(normalize, factor):
    table, grads = tabular.chain(), []
    for scale in (1e3, 1e4):
        torch.manual_seed(0)
        controller = MLP((3,), table.actions, layers=1, units=8)
        how = ActorCritic(horizon=H, entropy=0.0, normalize=normalize, critic="two-hot", **SMALL)
        learner = how.learner(controller, (3,), CPU)
        dream = imagine(tabular.world_of(table), controller, torch.eye(3).repeat(50, 1), H, rng=rng(), through=False)
        learner.range += torch.tensor([0.0, scale])
        loss = learner.losses(dream._replace(reward=scale * dream.reward), torch.ones(150))[0]
        grads.append(torch.autograd.grad(loss, controller.net[0].weight)[0])
    torch.testing.assert_close(factor * grads[0], grads[1], rtol=1e-3, atol=1e-5)


def test_hard_ends_round_the_chance_to_go_on():
    table = tabular.chain()
    table.cont = torch.tensor([0.7, 0.7, 0.2])
    controller = MLP((3,), table.actions, layers=1, units=8)
    dream = imagine(tabular.world_of(table), controller, torch.eye(3), H, rng=rng(), through=False)
    table.cont = table.cont.round()
    rounded = imagine(tabular.world_of(table), controller, torch.eye(3), H, rng=rng(), through=False)
    learners = [
        ActorCritic(horizon=H, hard_ends=hard, **SMALL).learner(controller, (3,), CPU) for hard in (True, False)
    ]
    learners[1].critic, learners[1].slow = learners[0].critic, learners[0].slow
    got, wanted = learners[0].losses(dream, torch.ones(3)), learners[1].losses(rounded, torch.ones(3))
    torch.testing.assert_close(got[:2], wanted[:2])


@pytest.mark.parametrize(
    "trainer",
    [
        ActorCritic(horizon=5, **BRISK),
        ActorCritic(horizon=5, gradient="mix", mix=0.5, critic="two-hot", normalize="percentile", **BRISK),
        Value(
            horizon=5,
            discount=DISCOUNT,
            actor_learning_rate=0.02,
            critic_learning_rate=0.02,
            critic_units=16,
            slow_fraction=0.2,
        ),
        Reward(horizon=5, learning_rate=0.02),
    ],
    ids=["reinforce", "mix", "value", "reward"],
)
def test_the_policy_of_the_chain_becomes_optimal(trainer):
    torch.manual_seed(1)
    table = tabular.chain()
    world, controller = tabular.world_of(table), MLP((3,), table.actions, layers=1, units=16)
    learner = trainer.learner(controller, (3,), CPU)
    starts = torch.eye(3).repeat(10, 1)
    for k in range(100):
        learner.update(world, starts, 1 - starts[:, 2], rng=rng(k))
    chances = controller.policy(torch.eye(3), ())[0].log_probs.exp()
    assert chances[:2, 1].min() > 0.9
    if isinstance(trainer, ActorCritic | Value) and trainer.discount == DISCOUNT:
        wanted = tabular.values(table, chances.detach(), DISCOUNT)
        torch.testing.assert_close(learner.critic(torch.eye(3))[:2], wanted[:2], atol=0.1, rtol=0)


def test_losses_are_float32_under_autocast_and_the_update_is_nearly_the_same():
    table, after = tabular.chain(), []
    for lowered in (False, True):
        torch.manual_seed(0)
        controller = MLP((3,), table.actions, layers=2, units=32)
        learner = ActorCritic(horizon=H, critic="two-hot", **SMALL).learner(controller, (3,), CPU)
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            metrics = [
                learner.update(tabular.world_of(table), torch.eye(3), torch.ones(3), rng=rng(k)) for k in range(3)
            ]
        assert all(x.dtype == torch.float32 for x in metrics[-1].values())
        after.append(metrics[-1]["losses/critic"])
    torch.testing.assert_close(*after, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("how", [Reward(horizon=H), Reward(horizon=H, discount=1.0)], ids=["usual", "published"])
def test_a_dreamt_reward_counts_less_the_later_it_comes(how):
    table, starts = tabular.chain(), torch.eye(3)[:2].repeat(20, 1)
    world, controller = tabular.world_of(table), MLP((3,), table.actions, layers=1, units=8)
    dream = imagine(world, controller, starts, H, rng=rng(), through=False)
    sums = [(step_weights(torch.ones(40), c * dream.cont) * dream.reward).sum() / 40 for c in (0.99, 1.0)]
    told = how.learner(controller, (3,), CPU).update(world, starts, torch.ones(40), rng=rng())["dream/return"]
    torch.testing.assert_close(told, sums[how.discount == 1])
    assert sums[0] < sums[1]


def test_value_is_an_actor_critic_that_follows_the_dynamics_and_hands_its_keywords_on():
    how = Value(clip=3.0, batch=7, critic_layers=2).same()
    assert (how.gradient, how.slow_every, how.critic_activation) == ("dynamics", 1, "relu")
    assert (how.actor_clip, how.critic_clip, how.batch, how.critic_layers) == (3.0, 3.0, 7, 2)
