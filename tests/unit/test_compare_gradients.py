"""Gradients of dreamt rewards against the horizon, where they are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from wmrl.comparison import comparison, gradients, measures, plots, results
from wmrl.comparison.heldout import HeldOut
from wmrl.data.codes import Codes
from wmrl.spec import Actions, Space, Step
from wmrl.trainers.imagine import imagine
from wmrl.world import WorldModel

HOW = measures.How(seed=3, device="cpu", tick=lambda: None)
A, B, C = 0.9, 0.5, 2.0
EPISODES, STEPS, WARM = 4, 60, 8


class Plain(nn.Module):
    """A representation whose code is the latent."""

    latent = Space((1,))

    def draw(self, code, *, sample, rng=None):
        return code


class Linear(nn.Module):
    """x' = A x + B u; the state that an action leads to gives C x'. Rewards may hang on nothing, too."""

    feature_shape = (1,)

    def __init__(self, gives=lambda x: C * x[:, 0]):
        super().__init__()
        self.gives = gives

    def start(self, latent, *, rng=None):
        return latent

    def observe(self, state, action, latent, *, rng=None):
        return latent

    def imagine(self, state, action, *, rng=None, temperature=1.0):
        x = A * state + B * action
        return Step(x, self.gives(x), torch.ones(len(x)))

    def features(self, state):
        return state


@pytest.fixture
def held():
    """Windows whose latents are all different, so that no two dreams are one; the last ends within its warm-up."""
    codes, lengths = np.random.default_rng(0), np.array([STEPS] * (EPISODES - 1) + [WARM - 1])
    start = np.concatenate([[0], np.cumsum(lengths + 1)])
    rows = int(start[-1])
    columns = {"code": codes.normal(size=(rows, 1)).astype(np.float32), "action": np.zeros((rows, 1), np.float32)}
    columns |= {"reward": np.zeros(rows, np.float32), "terminated": np.zeros(rows, bool)}
    window = np.repeat(np.arange(EPISODES), 6)
    first = np.where(window < EPISODES - 1, np.arange(len(window)), 0)
    episodes = SimpleNamespace(actions=Actions(1, False))
    return HeldOut(episodes, np.arange(EPISODES), lengths, window, first, 40, WARM), Codes(start, lengths, columns)


def measured(world, held, monkeypatch, *, starts=gradients.STARTS, rows=5):
    monkeypatch.setattr(gradients, "STARTS", starts)
    monkeypatch.setattr(gradients, "ROWS", rows)
    return gradients.norms(world, *held, HOW)


def test_a_linear_world_has_the_gradients_of_its_closed_form(held, monkeypatch):
    found, episode = measured(WorldModel(Plain(), Linear()), held, monkeypatch)
    assert episode.tolist() == [0] * 6 + [1] * 6 + [2] * 6, "the episode that ends in its warm-up is left out"
    steps = np.array(gradients.HORIZONS)
    for name, true in {
        "action_last": C * B * A ** (steps - 1.0),
        "action_mean": C * B * (1 - A**steps) / (1 - A) / steps,
    }.items():
        assert found[name] == pytest.approx(np.tile(true, (18, 1)), rel=1e-4)


def test_gradients_at_the_actor_are_those_that_trainers_take_of_each_dream(held, monkeypatch):
    monkeypatch.setattr(gradients, "HORIZONS", (1, 3, 6))
    world = WorldModel(Plain(), Linear(lambda x: torch.sin(3 * x[:, 0])))
    found, _ = measured(world, held, monkeypatch, starts=3, rows=3)  # each 8th window
    windows, codes = held
    assert len(found["actor_mean"]) == 3
    actor = gradients.fresh_actor((1,), Actions(1, False), HOW)
    at = codes.start[windows.window] + windows.first + WARM
    starts = torch.from_numpy(codes.columns["code"][at[::8]])
    rng = HOW.rng("gradient actor", 0)  # this world draws nothing
    reward = imagine(world, actor, starts, 6, rng=rng, through=True).reward  # (H, N)
    for k, h in enumerate((1, 3, 6)):
        for name, told in {"actor_mean": reward[:h].mean(0), "actor_last": reward[h - 1]}.items():
            for i in range(3):
                grads = torch.autograd.grad(told[i], list(actor.parameters()), retain_graph=True)
                norm = torch.cat([g.flatten() for g in grads]).norm().item()
                assert norm > 0 and found[name][i, k] == pytest.approx(norm, rel=1e-4)


def test_rewards_that_no_action_changes_have_no_gradients(held, monkeypatch):
    flat = WorldModel(Plain(), Linear(lambda x: torch.ones(len(x))))
    assert measured(flat, held, monkeypatch) is None


def test_a_reward_that_comes_before_its_action_counts_has_a_gradient_of_zero(held, monkeypatch):
    class Late(Linear):
        def imagine(self, state, action, *, rng=None, temperature=1.0):
            return super().imagine(state, action)._replace(reward=C * state[:, 0])

    found, _ = measured(WorldModel(Plain(), Late()), held, monkeypatch)
    assert not found["action_last"][:, 0].any() and found["action_last"][:, 1] == pytest.approx(C * B, rel=1e-4)


def test_gradients_that_explode_are_told(monkeypatch):
    norms = {name: np.ones((3, len(gradients.HORIZONS))) for name in gradients.NAMES}
    monkeypatch.setattr(gradients, "norms", lambda *held: (norms, np.arange(3)))
    work, subject = SimpleNamespace(held=None, how=None), SimpleNamespace(world=None)
    tame, wild = results.Findings(subject), results.Findings(subject)
    comparison._gradients(tame, None, work)
    norms["actor_last"][:, -1] = np.inf
    comparison._gradients(wild, None, work)
    assert (tame.diverged, wild.diverged) == (False, True)
    assert wild.numbers["actor_last_50"] is None and wild.numbers["actor_last_35"].value == 1


def test_what_is_zero_everywhere_has_no_logarithm_to_draw():
    model = results.Findings(SimpleNamespace(store="here", shares=True, bare=False))
    model.curves = {"action_last": ([1.0, 2.0], [0.0, 0.0]), "actor_last": ([1.0, 2.0], [0.0, 1.0])}
    assert plots._lines([model], "action_last", "dreamt steps", log=True) == ""
    assert plots._lines([model], "actor_last", "dreamt steps", log=True).startswith("<svg")


def test_a_median_bears_dreams_that_explode_and_resamples_episodes():
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(12), 5)
    each = np.exp(rng.normal(size=60) + 2 * rng.normal(size=12)[episode])
    exploded = np.where(np.arange(60) % 20 == 0, np.inf, each)
    found = results.median(exploded, episode)
    assert found.value == np.sort(exploded)[29]
    drawn = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(episode == e) for e in rng.integers(0, 12, 12)])
        drawn.append(np.sort(exploded[rows])[29])
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert np.log([found.low, found.high]) == pytest.approx(np.log([low, high]), abs=0.25)
    assert results.median(np.full(4, np.inf), np.arange(4)) is None and results.median(each[:0], episode[:0]) is None
