"""The RSSM: sizes, steps and sequences, episodes that begin mid-window, what rewards depend on."""

import contextlib
import dataclasses

import pytest
import torch

from wmrl.config import build
from wmrl.controllers.mlp import MLP
from wmrl.dynamics import DYNAMICS, rssm
from wmrl.dynamics.rssm import RSSM, RSSMState
from wmrl.errors import ConfigError
from wmrl.spec import Actions, Batch, Space, tree_map
from wmrl.trainers.critic import Critic

MINATAR = {"depth": 16, "embedding": 200, "units": 100, "dyn_scale": 0.08, "rep_scale": 0.02, "continue_scale": 5.0}
SMALL = {"variables": 3, "classes": 4, "deterministic": 8, "hidden": 8, "units": 8, "layers": 1, "blocks": 2}
KINDS = [{}, {"state": "gaussian", "cell": "layer-norm"}, {"cell": "block", "norm": "rms", "unimix": 0.01}]
kinds = pytest.mark.parametrize("more", KINDS, ids=["gru", "layer-norm", "block"])
B, T, Z = 3, 6, 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def make(**more) -> RSSM:
    torch.manual_seed(0)
    return build(DYNAMICS, {"kind": "rssm", **SMALL, **more}, "dynamics", Space((Z,)), Actions(2, False))


def some_batch(t: int = T) -> Batch:
    g = seeded(1)
    ends = torch.zeros(B, t)
    ends[0, -1] = 1
    obs, action = torch.randn(B, t + 1, Z, generator=g), torch.rand(B, t, 2, generator=g) * 2 - 1
    return Batch(obs, action, torch.randn(B, t, generator=g), ends, torch.ones(B, t))


@pytest.mark.parametrize(
    ("channels", "actions", "sizes", "whole", "actor", "learnt"),
    [
        (4, 3, (603_200, 228_728, 639_092, 80_401), 1_631_822, 80_603, 1_792_826),  # Breakout
        (4, 5, (603_600, 228_728, 639_092, 80_401), 1_632_222, 80_805, 1_793_428),  # Asterix
        (7, 3, (603_200, 229_160, 639_527, 80_401), 1_632_689, 80_603, 1_793_693),  # Freeway
        (10, 6, (603_800, 229_592, 639_962, 80_401), 1_634_156, 80_906, 1_795_463),  # Seaquest
        (6, 4, (603_400, 229_016, 639_382, 80_401), 1_632_600, 80_704, 1_793_705),  # Space Invaders
        (3, 3, (603_200, 228_584, 638_947, 80_401), 1_631_533, 80_603, 1_792_537),  # Breakout, the ball's trail hidden
    ],
)
def test_it_has_the_published_minatar_agents_number_of_parameters(channels, actions, sizes, whole, actor, learnt):
    model = RSSM(Space((channels, 10, 10)), Actions(actions, True), **MINATAR)
    assert (
        sum(count(part) for part in (model.recurrence, model.prior, model.posterior)),
        *map(count, (model.encoder, model.decoder, model.reward)),
    ) == sizes
    assert count(model.goes_on) == sizes[3] and count(model) == whole
    assert model.feature_shape == (600,)
    controller = MLP((600,), Actions(actions, True), layers=3, units=100)
    critic = Critic((600,), kind="gaussian", layers=3, units=100, activation="elu", norm="none")
    assert count(controller) == actor and count(model) + count(controller) + count(critic) == learnt


@kinds
def test_step_by_step_it_draws_the_states_of_a_sequence(more):
    model, batch, rng = make(**more), some_batch(), seeded(3)
    whole = model.states(batch.obs, batch, rng=seeded(3))
    state = model.start(batch.obs[:, 0], rng=rng)
    for t in range(T + 1):
        tree_map(lambda x, y, t=t: torch.testing.assert_close(x[:, t], y) or x, whole, state)
        if t < T:
            state = model.observe(state, batch.action[:, t], batch.obs[:, t + 1], rng=rng)
    learnt = model.learn(batch.obs, batch, rng=seeded(3))[2]
    assert learnt.deter.equal(whole.deter.detach()) and not learnt.stoch.requires_grad


@kinds
def test_the_gradients_of_its_loss_are_those_of_plain_layers(more, monkeypatch):
    model, batch = make(**more), some_batch()
    batch = dataclasses.replace(batch, first=torch.zeros(B, T + 1).index_fill(1, torch.tensor([2]), 1))

    def gradients():
        total = model.learn(batch.obs, batch, rng=seeded(3))[0]
        return torch.autograd.grad(total, list(model.parameters()))

    behind_the_loop = gradients()
    monkeypatch.setattr(rssm, "unrolled", lambda module, steps: contextlib.nullcontext())
    torch.testing.assert_close(behind_the_loop, gradients())
    assert sum(g.abs().sum() > 0 for g in behind_the_loop) == len(behind_the_loop)


@kinds
def test_an_episode_that_begins_mid_window_is_a_window_of_its_own(more):
    model, batch, cut = make(**more, observation="scaled").train(), some_batch(), 3
    batch.first, batch.mask = torch.zeros(B, T + 1), batch.mask.clone()
    batch.first[:, cut], batch.mask[:, cut - 1] = 1, 0
    parts = [
        Batch(batch.obs[:, a : b + 1], *(x[:, a:b] for x in (batch.action, batch.reward, batch.terminated, batch.mask)))
        for a, b in ((0, cut - 1), (cut, T))
    ]
    both = [model.states(part.obs, part) for part in parts]
    whole = model.states(batch.obs, batch)
    tree_map(lambda x, a, b: torch.testing.assert_close(x, torch.cat([a, b], 1)) or x, whole, *both)
    _, metrics, _ = model.learn(batch.obs, batch)
    each = [model.learn(part.obs, part)[1] for part in parts]
    for name, weights in (("kl", (2, 3)), ("reward", (2, 3)), ("observation", (3, 4))):
        expected = sum(w * m[name] for w, m in zip(weights, each, strict=True)) / sum(weights)
        torch.testing.assert_close(metrics[name], expected)


def test_no_state_knows_what_comes_after_it():
    model, batch = make(), some_batch()
    before = model.states(batch.obs, batch, rng=seeded(2))
    batch.obs[:, 4:] += 3
    batch.action[:, 3:] = 0
    after = model.states(batch.obs, batch, rng=seeded(2))
    for x, y in zip(before, after, strict=True):
        assert x[:, :4].equal(y[:, :4])
    assert not before.deter[:, 4].equal(after.deter[:, 4])


@pytest.mark.parametrize(("outcomes", "changes"), [("arrival", True), ("published", False)])
def test_only_the_published_reward_does_not_know_the_action(outcomes, changes):
    model, state = make(outcomes=outcomes), RSSMState(torch.randn(B, 8), torch.randn(B, 12))
    told = [model.imagine(state, torch.full((B, 2), a), rng=seeded(5)) for a in (-1.0, 1.0)]
    assert (not told[0].reward.equal(told[1].reward)) == changes == (not told[0].cont.equal(told[1].cont))
    assert not told[0].state.deter.equal(told[1].state.deter)
    batch = some_batch()
    batch.action[:, -1] += 0.5  # nothing but the last state follows from it
    losses = [model.learn(some_batch().obs, b, rng=seeded(5))[1]["reward"] for b in (some_batch(), batch)]
    assert (losses[0] != losses[1]) == changes


@pytest.mark.parametrize(("scale", "taught"), [("dyn_scale", "prior"), ("rep_scale", "encoder")])
def test_each_scale_of_the_kl_teaches_its_side_alone(scale, taught):
    off = dict.fromkeys(("observation_scale", "reward_scale", "continue_scale", "dyn_scale", "rep_scale"), 0.0)
    model, batch = make(**{**off, scale: 1.0}), some_batch(1)
    model.learn(batch.obs, batch, rng=seeded(1))[0].backward()
    assert any(p.grad is not None and p.grad.any() for p in getattr(model, taught).parameters())
    if scale == "rep_scale":
        assert not any(p.grad is not None and p.grad.any() for p in model.prior.parameters())
    free = make(**{**off, scale: 1.0, "free_nats": 99.0})
    free.learn(batch.obs, batch, rng=seeded(1))[0].backward()
    assert not any(p.grad is not None and p.grad.any() for p in free.parameters())


def test_the_prior_is_not_taught_at_first_rows():
    model, batch = make(), some_batch(2)
    batch.first = torch.zeros(B, 3)
    batch.first[:, 1], batch.mask[:, 0] = 1, 0
    kl = model.learn(batch.obs, batch)[1]["kl"]
    states, parameters = model._filter(batch.obs, batch, None)
    q, p = model.space.parts(parameters[:, 2]), model.space.parts(model.prior(states.deter[:, 2]))
    torch.testing.assert_close(kl, model.space.kl(q, p).mean())


def test_log_prob_bounds_what_many_draws_of_the_prior_say():
    model, batch = make(observation="scaled", variables=1, classes=3).eval(), some_batch()
    state, action, seen = model.start(batch.obs[:, 0]), batch.action[:, 0], batch.obs[:, 1]
    deter = model._advance(state, action)
    p, total = model.space.parts(model.prior(deter))[0].squeeze(1), []
    for k in range(3):  # all draws that there are
        one = torch.eye(3)[k].expand(B, 3)
        total.append(p[:, k] + model.decoder.log_prob(model.decoder(torch.cat([deter, one], -1)), seen))
    exact = torch.logsumexp(torch.stack(total), 0)
    torch.testing.assert_close(model.log_prob(state, action, seen), exact, atol=0.25, rtol=0)


def test_it_has_a_density_of_vectors_alone():
    assert hasattr(make(), "log_prob") and not hasattr(make(observation="symlog"), "log_prob")
    assert not hasattr(RSSM(Space((4, 10, 10)), Actions(3, True), **SMALL), "log_prob")


def test_wrong_settings_are_one_line():
    for more in ({"hidden": 0}, {"dyn_scale": -1.0}, {"cell": "block", "blocks": 3}):
        with pytest.raises(ConfigError, match="dynamics: "):
            make(**more)
