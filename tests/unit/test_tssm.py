"""TSSM: windows and steps are one thing, nothing sees what it may not, and each loss teaches what it should."""

import pytest
import torch
from torch import Tensor

from wmrl.dynamics.tssm import TSSM, TSSMState
from wmrl.errors import ContractError
from wmrl.spec import Actions, Batch, Space, tree_map

B, T = 3, 9
layouts = pytest.mark.parametrize("layout", ["stack", "concat", "add"])
SMALL = {"variables": 4, "classes": 4, "width": 16, "blocks": 2, "heads": 2, "feedforward": 32}
SMALL |= {"context": 16, "reach": 4, "units": 16, "layers": 1}


def model(space: tuple[int, ...] = (5,), **more) -> TSSM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TSSM(Space(space), Actions(2, False), **{**SMALL, **more})


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def windows(crossing: bool = False) -> tuple[Tensor, Batch]:
    obs, action = torch.randn(B, T + 1, 5, generator=seeded(1)), torch.rand(B, T, 2, generator=seeded(2)) * 2 - 1
    reward, mask, first = torch.randn(B, T, generator=seeded(3)), torch.ones(B, T), torch.zeros(B, T + 1)
    if crossing:  # row 1 begins an episode at row 4, row 2 another at 8
        first[1, 4] = first[2, 8] = 1
        mask[1, 3] = mask[2, 7] = 0
    return obs, Batch(None, action, reward, torch.zeros(B, T), mask, first=first if crossing else None)


def walk(dynamics: TSSM, obs: Tensor, batch: Batch) -> TSSMState:
    """The likeliest states, one by one, told the rewards."""
    state = dynamics.start(obs[:, 0])
    states = [state]
    for t in range(T):
        state = dynamics.observe(state, batch.action[:, t], obs[:, t + 1], reward=batch.reward[:, t])
        if batch.first is not None:
            fresh = dynamics.start(obs[:, t + 1])
            state = tree_map(
                lambda new, old, t=t: torch.where(
                    (batch.first[:, t + 1] > 0).view(-1, *[1] * (new.ndim - 1)), new, old
                ),
                fresh,
                state,
            )
        states.append(state)
    return tree_map(lambda *each: torch.stack(each, 1), *states)


@layouts
@pytest.mark.parametrize("positions", ["relative", "rotary"])
@pytest.mark.parametrize("crossing", [False, True], ids=["one episode", "crossing"])
def test_the_states_of_a_window_are_those_of_steps(layout, positions, crossing):
    """And so is what they dream next, beyond the reach of the past and across the ends of episodes."""
    dynamics = model(layout=layout, positions=positions)
    obs, batch = windows(crossing)
    whole, stepped = dynamics.states(obs, batch), walk(dynamics, obs, batch)
    for name in ("z", "h", "reward", "seen"):
        torch.testing.assert_close(getattr(whole, name), getattr(stepped, name), atol=1e-5, rtol=1e-5)
    action = torch.ones(B * (T + 1), 2)
    dreams = [dynamics.imagine(tree_map(lambda x: x.flatten(0, 1), s), action) for s in (whole, stepped)]
    torch.testing.assert_close(dreams[0].state.h, dreams[1].state.h, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dreams[0][1:], dreams[1][1:], atol=1e-5, rtol=1e-5)


def test_learning_tells_the_loss_and_the_states():
    for more in ({}, {"actions_only": True}, {"dropout": 0.3}):
        dynamics, (obs, batch) = model(state="gaussian", **more), windows()
        total, metrics, states = dynamics.learn(obs, batch, rng=seeded(5))
        loss, parts = dynamics.loss(obs, batch, rng=seeded(5))
        assert total.equal(loss) and metrics == parts
        tree_map(lambda x: x if not x.requires_grad else pytest.fail("a state is in the graph"), states)
        torch.testing.assert_close(states.h, walk_of(dynamics, states.z, batch), atol=1e-5, rtol=1e-5)


def test_dropout_acts_in_training_alone():
    (obs, batch), plain, dropped = windows(), model(state="gaussian"), model(state="gaussian", dropout=0.3)
    for training, same in ((True, False), (False, True)):
        losses = [m.train(training).loss(obs, batch, rng=seeded(5))[0] for m in (plain, dropped)]
        assert losses[0].equal(losses[1]) == same


def walk_of(dynamics: TSSM, z: Tensor, batch: Batch) -> Tensor:
    """The transformer's outputs (B, T + 1, d) where these states were drawn, eyes open."""
    past, out = dynamics.trunk.empty(z[:, 0]), [torch.zeros(B, dynamics.trunk.width)]
    reward = torch.nn.functional.pad(batch.reward, (1, 0))
    for t in range(T):
        tokens = dynamics.tokens(z[:, t], batch.action[:, t], reward[:, t], torch.ones(B))
        y, past = dynamics.trunk.step(past, tokens)
        out.append(y[:, -1])
    return torch.stack(out, 1)


@layouts
@pytest.mark.parametrize("what", ["obs", "action", "reward"])
def test_changing_the_future_changes_nothing_before_it(layout, what):
    dynamics, (obs, batch) = model(layout=layout), windows()
    before = dynamics.states(obs, batch)
    {"obs": obs, "action": batch.action, "reward": batch.reward}[what][:, 5:] *= -2
    after = dynamics.states(obs, batch)
    row = 7 if what == "reward" else 6  # the first that took it in: a reward comes with row 6, and is read by step 6
    assert before.h[:, :row].equal(after.h[:, :row]) and before.z[:, :5].equal(after.z[:, :5])
    assert not torch.isclose(before.h[:, row:], after.h[:, row:]).all(-1).any()


def test_a_dream_remembers_the_steps_before_it():
    dynamics, (obs, batch) = model(), windows()
    states = dynamics.states(obs, batch)
    now, alone = (tree_map(lambda x: x[:, 6], states), dynamics.start(obs[:, 6]))
    assert now.z.equal(alone.z)
    action = batch.action[:, 6]
    assert not torch.isclose(dynamics.imagine(now, action).state.h, dynamics.imagine(alone, action).state.h).all()


def test_a_step_reads_the_reward_that_came_with_its_state():
    """The one told, the model's own guess where none was, in a dream its own prediction."""
    dynamics, (obs, batch) = model(), windows()
    state, action = dynamics.start(obs[:, 0]), batch.action[:, 0]
    told, guessed = (
        dynamics.observe(state, action, obs[:, 1], **more) for more in ({"reward": torch.full((B,), 9.0)}, {})
    )
    assert told.reward.tolist() == [9.0] * B
    torch.testing.assert_close(guessed.reward, dynamics.reward(torch.cat([guessed.z, guessed.h], -1)))
    step = dynamics.imagine(state, action)
    assert step.state.reward.equal(step.reward)
    after = [dynamics.imagine(s, action).state.h for s in (told, guessed)]
    assert not torch.isclose(*after).all()


def gradients(dynamics: TSSM, through: str) -> list[float]:
    """Of the last dreamt reward, with respect to each action of a dream."""
    state = dynamics.start(windows()[0][:, 0])
    actions = [torch.zeros(B, 2, requires_grad=True) for _ in range(3)]
    dreamt = []
    for action in actions:
        step = dynamics.imagine(state, action, rng=seeded(0))
        dreamt.append(step.state)
        state = step.state
    of = actions if through == "actions" else [s.z for s in dreamt[:-1]]
    reached = torch.autograd.grad(step.reward.sum(), of, allow_unused=True)
    return [0.0 if g is None else float(g.abs().sum()) for g in reached]


def test_with_actions_only_gradients_reach_actions_but_pass_no_dreamt_state():
    for only in (False, True):
        dynamics = model(state="gaussian", actions_only=only, reward="gaussian")
        assert all(g > 0 for g in gradients(dynamics, "actions"))
        assert [g > 0 for g in gradients(dynamics, "states")] == [not only, not only]


def test_with_actions_only_eyes_close_at_some_step_of_each_window():
    dynamics, (_, batch) = model(actions_only=True), windows()
    eyes = dynamics._eyes(batch, seeded(0))
    assert eyes[:, 0].all() and (eyes.diff(dim=1) <= 0).all(), "they do not open again"
    many = Batch(None, *(x.repeat(100, *[1] * (x.ndim - 1)) for x in (batch.action, *[batch.reward] * 3)))
    count = torch.stack([dynamics._eyes(many, seeded(k)).sum(1) for k in range(9)]).flatten().long().bincount()
    assert count[0] == 0 and len(count) == T + 1 and count[1:].float().std() < 0.05 * count.sum() / T
    assert model()._eyes(batch, seeded(0)).all()


@pytest.mark.parametrize(("objective", "reached"), [("kl", True), ("published", False)])
def test_the_published_encoder_learns_from_its_reconstructions_alone(objective, reached):
    dynamics, (obs, batch) = model(objective=objective, observation_scale=0.0, free_nats=0.0), windows()
    dynamics.loss(obs, batch, rng=seeded(0))[0].backward()
    weight = dynamics.posterior.weight.grad
    assert (weight is not None and bool(weight.abs().sum() > 0)) == reached
    assert dynamics.prior[-1].weight.grad.abs().sum() > 0


def test_the_prior_and_the_encoder_learn_from_shares_of_the_kl():
    obs, batch = windows()

    def reached(**scales: float) -> list[float]:
        off = {"observation_scale": 0.0, "reward_scale": 0.0, "continue_scale": 0.0, "free_nats": 0.0}
        dynamics = model(**off, **scales)
        dynamics.loss(obs, batch, rng=seeded(0))[0].backward()
        return [float(p.grad.norm()) for p in (dynamics.prior[-1].weight, dynamics.posterior.weight)]

    assert reached(dyn_scale=1.0, rep_scale=0.0)[0] > 0 and reached(dyn_scale=0.0, rep_scale=1.0)[0] == 0
    assert reached(dyn_scale=0.0, rep_scale=1.0)[1] > 0
    dynamics = model(free_nats=1e6, observation_scale=0.0, reward_scale=0.0, continue_scale=0.0)
    dynamics.loss(obs, batch, rng=seeded(0))[0].backward()
    assert not dynamics.prior[-1].weight.grad.any(), "free nats teach nothing"


def test_rewards_and_ends_belong_to_the_state_that_has_consumed_the_action():
    """What no state could know before is learnt: the reward is the action itself, seen in no observation."""
    dynamics = model(layout="add", state="gaussian", blocks=1, reward_scale=10.0)
    optimizer = torch.optim.Adam(dynamics.parameters(), 1e-2)
    for k in range(80):
        action = torch.rand(32, T, 2, generator=seeded(k)) * 2 - 1
        zero = torch.zeros(32, T)
        batch = Batch(None, action, action[..., 0], (action[..., 1] > 0).float(), zero + 1)
        loss, metrics = dynamics.loss(torch.zeros(32, T + 1, 5), batch, rng=seeded(k))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["reward"] < 0.05 and metrics["termination"] < 0.3  # chance: 0.33 and 0.69


@pytest.mark.parametrize(
    ("space", "dtype", "more"),
    [
        ((3, 64, 64), torch.uint8, {"depth": 4}),
        ((3, 32, 32), torch.uint8, {"depth": 4}),
        ((4, 10, 10), torch.bool, {"depth": 4, "observation": "bernoulli"}),
        ((5,), torch.float32, {"observation": "scaled"}),
    ],
)
def test_pictures_grids_and_vectors_are_seen_and_drawn(space, dtype, more):
    dynamics = model(space, **more)
    obs = (torch.rand(2, 4, *space, generator=seeded(0)) * (255 if dtype == torch.uint8 else 1.5)).to(dtype)
    zero = torch.zeros(2, 3)
    batch = Batch(obs, torch.zeros(2, 3, 2), zero, zero, zero + 1)
    loss, _, states = dynamics.learn(obs, batch, rng=seeded(0))
    loss.backward()
    drawn = dynamics.latent(states)
    assert drawn.shape == obs.shape
    if len(space) == 3:
        assert drawn.min() >= 0 and drawn.max() <= 1


def test_states_of_many_windows_cost_little_before_they_are_taken():
    """Their pasts are views of what the pass kept."""
    dynamics, (obs, batch) = model(), windows()
    keys = dynamics.states(obs, batch).past.keys[0]
    assert keys.shape == (B, T + 1, 3, 3, 16)
    assert keys.untyped_storage().nbytes() == 4 * B * (T + 3) * 3 * 16


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"context": 1}, "context must be at least 2, got 1"),
        ({"heads": 3}, "heads must divide the width"),
        ({"dropout": 1.0}, "dropout must be at least 0 and less than 1, got 1.0"),
        ({"rep_scale": -1.0}, "rep_scale must be at least 0, got -1.0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(more, words):
    with pytest.raises(ValueError, match=words):
        model(**more)


def test_tokens_are_no_observations_for_it():
    with pytest.raises(ContractError, match="tokens"):
        TSSM(Space((16,), vocab=8), Actions(2, False))
