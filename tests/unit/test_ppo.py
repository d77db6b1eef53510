"""PPO on dreams: advantages, clipping, when an update ends, and that it learns."""

import copy

import line_world
import pytest
import tabular
import torch
from torch import nn

from wmrl.controllers.mlp import MLP
from wmrl.errors import ContractError
from wmrl.precision import autocast
from wmrl.seeding import generator
from wmrl.spec import Actions
from wmrl.trainers.imagine import Imagined
from wmrl.trainers.ppo import PPO, Learner, Rows, orders

SMALL = {"critic_layers": 1, "critic_units": 16, "horizon": 6, "minibatches": 4}


def learner(actions: Actions = line_world.Line.actions, shape: int = 1, **how) -> Learner:
    torch.manual_seed(0)
    controller = MLP((shape,), actions, layers=1, units=16).requires_grad_(False)
    return PPO(**{**SMALL, **how}).learner(controller, (shape,), torch.device("cpu"))


def update(it: Learner, k: int = 0, world=None, count: int = 64) -> dict:
    x = line_world.starts(count)
    return it.update(world or line_world.world(), x, torch.ones(count), rng=generator("test", k))


def dream(horizon: int, rows: int) -> Imagined:
    rng = torch.Generator().manual_seed(1)
    views, action = torch.randn(horizon + 1, rows, 1, generator=rng), torch.randn(horizon, rows, 1, generator=rng)
    numbers = [torch.rand(horizon, rows, generator=rng) for _ in range(4)]
    return Imagined(views, action, *numbers)


def test_advantages_are_the_nested_sums_of_gae_and_keep_what_an_end_pays() -> None:
    horizon, rows, gamma, mix = 5, 3, 0.9, 0.7
    it, made = learner(discount=gamma, lambda_=mix), dream(horizon, rows)
    made.cont[2] = 0  # state 3 is the end: its reward counts, nothing behind it does
    weight = torch.tensor([1.0, 0.0, 1.0])
    with torch.no_grad():
        value = it.critic(made.views)
    found = it.rows(made, weight)
    for h in range(horizon):
        for n in range(rows):
            advantage, reach, alive = 0.0, 1.0, float(weight[n])
            for k in range(h, horizon):
                go_on = gamma * made.cont[k, n]
                advantage += reach * (made.reward[k, n] + go_on * value[k + 1, n] - value[k, n])
                reach *= mix * go_on
            for k in range(h):
                alive *= float(made.cont[k, n])
            row = h * rows + n
            torch.testing.assert_close(found.advantage[row], advantage)
            torch.testing.assert_close(found.target[row], advantage + value[h, n])
            torch.testing.assert_close(float(found.weight[row]), alive)
            assert torch.equal(found.view[row], made.views[h, n]) and torch.equal(found.action[row], made.actions[h, n])


@pytest.mark.parametrize(
    ("advantage", "moved", "pushes"), [(1, 0.2, False), (1, -0.2, True), (-1, -0.2, False), (-1, 0.2, True)]
)
def test_a_ratio_that_left_the_clip_on_the_good_side_gives_no_gradient(advantage, moved, pushes) -> None:
    it = learner(normalize=False, entropy=0.0, critic_scale=0.0, clip_ratio=0.1)
    view, action = torch.tensor([[0.3]]), torch.tensor([[0.2]])
    with torch.no_grad():
        now = it.controller.policy(view, ())[0].log_prob(action)
    row = Rows(view, action, now - moved, torch.tensor([float(advantage)]), torch.zeros(1), torch.ones(1))
    loss, metrics = it.losses(row)
    loss.backward()
    assert any(bool(p.grad.abs().sum() > 0) for p in it.controller.parameters()) == pushes
    ratio = torch.tensor(moved).exp()
    torch.testing.assert_close(metrics["losses/kl"], ratio - 1 - moved)
    torch.testing.assert_close(loss.detach(), -torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage))


def test_steps_that_do_not_count_change_nothing() -> None:
    it, made = learner(), dream(4, 6)
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    full, few = it.rows(made, weight), it.rows(Imagined(*(x[:, :3] for x in made)), weight[:3])
    for a, b in zip(it.losses(full), it.losses(few), strict=True):
        torch.testing.assert_close(a, b)
    nothing, _ = it.losses(it.rows(made, torch.zeros(6)))
    assert bool(nothing.isfinite())


def test_every_epoch_takes_every_row_once_in_an_order_that_the_generator_decides() -> None:
    def drawn(key: int) -> list[torch.Tensor]:
        return list(orders(10, 2, 3, generator("order", key)))

    parts = drawn(0)
    assert [len(part) for part in parts] == [4, 3, 3] * 2
    first, second = torch.cat(parts[:3]), torch.cat(parts[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10)) and not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(parts, drawn(0), strict=True))
    assert not torch.equal(torch.cat(parts), torch.cat(drawn(1)))
    assert [len(part) for part in orders(2, 1, 5, generator("few"))] == [1, 1]


def test_all_epochs_end_once_the_policy_is_too_far_from_the_one_that_dreamt() -> None:
    free, bound = learner(learning_rate=0.01, target_kl=0.0), learner(learning_rate=0.01, target_kl=1e-4)
    assert update(free)["losses/steps"] == 3 * 4 and update(free, 1)["losses/steps"] == 12
    taken = float(update(bound)["losses/steps"])
    assert 1 <= taken < 12


def test_no_gradient_reaches_the_world() -> None:
    it, world = learner(), line_world.world()
    update(it, world=world)
    assert [p.grad for p in world.parameters()] == [None]


def test_it_learns_in_bfloat16_too() -> None:
    it = learner()
    before = [p.clone() for p in it.controller.parameters()]
    with autocast("bf16", "cpu"):
        update(it)
    assert all(not torch.equal(a, b) for a, b in zip(before, it.controller.parameters(), strict=True))


def test_what_was_saved_goes_on_with_the_same_bits() -> None:
    one, other = learner(), learner()
    update(one)
    other.restore(copy.deepcopy(one.state()))
    for k in (1, 2):
        found, again = update(one, k), update(other, k)
        assert all(torch.equal(found[name], again[name]) for name in found)
    both = zip([*one.controller.parameters(), *one.critic.parameters()], other.step.parameters, strict=True)
    assert all(torch.equal(a, b) for a, b in both)
    with pytest.raises(ContractError, match="--noreload"):
        learner(critic_units=8).restore(one.state())


def test_it_finds_the_way_to_a_reward_that_comes_with_the_end() -> None:
    table = tabular.chain()
    it = learner(table.actions, 3, discount=0.9, learning_rate=0.01, minibatches=2)
    begin = torch.eye(3).repeat(20, 1)
    weight = 1 - begin[:, 2]
    for k in range(20):
        it.update(tabular.world_of(table), begin, weight, rng=generator("chain", k))
    policy = it.controller.policy(torch.eye(3), ())[0].log_probs.detach().exp()
    assert (policy[:2, 1] > 0.9).all()
    best = tabular.values(table, nn.functional.one_hot(torch.ones(3, dtype=torch.long), 2).float(), 0.9)
    torch.testing.assert_close(it.critic(torch.eye(3))[:2].detach(), best[:2].detach(), atol=0.2, rtol=0)


def test_it_learns_continuous_actions() -> None:
    it, world = learner(learning_rate=3e-3, discount=0.9, clip_ratio=0.2), line_world.world()
    assert line_world.distance(world, it.controller) > 0.3
    for k in range(12):
        update(it, k, world)
    assert line_world.distance(world, it.controller) < 0.15


def test_numbers_that_make_no_sense_are_refused() -> None:
    for wrong in ({"epochs": 0}, {"minibatches": 0}, {"lambda_": 1.1}, {"clip_ratio": 0.0}, {"target_kl": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PPO(**wrong)
