"""Random policies: distributions as published, streams that depend on the episode's seed alone."""

import itertools

import numpy as np
import pytest

from wmrl import seeding
from wmrl.data import policies
from wmrl.data.policies import BLOCK, Brown, Held, White
from wmrl.errors import ConfigError
from wmrl.pipeline import Generate
from wmrl.spec import Actions

BOX, BUTTONS = Actions(3, False), Actions(4, True)
LOW, HIGH = np.array([-1.0, 0, 0]), np.array([1.0, 1, 1])
OBS = np.zeros((1, 3, 8, 8), np.uint8)


def play(policy, seeds, steps):
    actions = [policy.begin(np.zeros((len(seeds), 3, 8, 8), np.uint8), seeds)]
    actions += [policy.step(OBS) for _ in range(steps - 1)]
    return np.stack(actions, 1)


def native(action):
    return LOW + (action + 1) / 2 * (HIGH - LOW)


ALL = {
    "brown": lambda: Brown(BOX, LOW, HIGH),
    "white": lambda: White(BOX),
    "held": lambda: Held(BOX, 5),
    "white one-hot": lambda: White(BUTTONS),
    "held one-hot": lambda: Held(BUTTONS),
}


@pytest.mark.parametrize("name", ALL)
def test_an_episode_is_the_same_whatever_marches_beside_it(name):
    steps = 2 * BLOCK + 10
    together = play(ALL[name](), [5, 6, 7], steps)
    assert together.dtype == np.float32
    alone = [play(ALL[name](), [seed], steps)[0] for seed in (5, 6, 7)]
    assert np.array_equal(together, np.stack(alone))
    assert not np.array_equal(together[0], together[1])


@pytest.mark.parametrize("name", ALL)
def test_dropped_rows_change_nothing(name):
    whole = play(ALL[name](), [1, 2, 3, 4], 30)
    policy = ALL[name]()
    policy.begin(OBS, [1, 2, 3, 4])
    policy.keep(np.array([1, 3]))
    assert np.array_equal(policy.step(OBS), whole[[1, 3], 1])
    policy.keep(np.array([1]))
    assert np.array_equal(policy.step(OBS), whole[[3], 2])


def test_brown_is_the_published_walk():
    """In the environment's units: a uniform start, steps of sqrt(1/50) on each coordinate, clipped to the box."""
    seed, steps = 11, BLOCK + 50
    walk = native(play(Brown(BOX, LOW, HIGH), [seed], steps)[0].astype(np.float64))
    rng = seeding.rng(seed, "policy")
    at = rng.uniform(LOW, HIGH)
    draws = rng.standard_normal((2 * BLOCK, 3))
    for t in range(steps):
        assert walk[t] == pytest.approx(at, abs=1e-6)
        at = np.clip(at + np.sqrt(1 / 50) * draws[t], LOW, HIGH)


def test_brown_has_the_published_moments():
    walks = native(play(Brown(BOX, LOW, HIGH), list(range(200)), 400).astype(np.float64))
    assert walks.min(axis=(0, 1)) == pytest.approx(LOW) and walks.max(axis=(0, 1)) == pytest.approx(HIGH)
    first = walks[:, 0]
    assert first.mean(0) == pytest.approx((LOW + HIGH) / 2, abs=0.12)
    steps = np.diff(walks, axis=1)
    inside = (walks[:, :-1] > LOW + 0.45) & (walks[:, :-1] < HIGH - 0.45)  # three deviations from any bound
    for axis in range(3):
        assert steps[..., axis][inside[..., axis]].std() == pytest.approx(0.1414, rel=0.05)
    stuck = ((walks == LOW) | (walks == HIGH)).mean()
    assert stuck > 0.1, "clipped, not reflected: walks stick to the bounds"


def test_white_is_uniform_and_independent():
    actions = play(White(BOX), list(range(50)), 400)
    assert actions.min() < -0.99 and actions.max() > 0.99
    assert actions.mean() == pytest.approx(0, abs=0.02) and actions.std() == pytest.approx(1 / np.sqrt(3), abs=0.01)
    after, before = actions[:, 1:].ravel(), actions[:, :-1].ravel()
    assert abs(np.corrcoef(after, before)[0, 1]) < 0.02
    counts = play(White(BUTTONS), list(range(50)), 400).sum((0, 1))
    assert counts.sum() == 20_000 and np.abs(counts - 5000).max() < 300


@pytest.mark.parametrize("hold", [1, 3, 10])
def test_held_actions_last_uniformly_long(hold):
    actions = play(Held(BOX, hold), list(range(20)), 1000)
    runs = [len(list(group)) for row in actions for _, group in itertools.groupby(row[:, 0].tolist())]
    counts = np.bincount(runs, minlength=hold + 1)[1:]
    assert len(counts) == hold, "no action is held longer"
    assert counts / counts.sum() == pytest.approx(np.full(hold, 1 / hold), abs=0.03)


@pytest.mark.parametrize("name", ["white one-hot", "held one-hot"])
def test_discrete_actions_are_one_hot(name):
    actions = play(ALL[name](), [1, 2], 300)
    assert set(np.unique(actions)) == {0.0, 1.0} and (actions.sum(-1) == 1).all()


def test_brown_refuses_buttons_and_names_what_works():
    with pytest.raises(ConfigError, match="discrete: use held or white"):
        policies.make(Generate(policy="brown"), BUTTONS)
    with pytest.raises(ConfigError, match="no bounds"):
        Brown(BOX, LOW, np.array([1, np.inf, 1]))


def test_make_follows_the_pipeline():
    assert isinstance(policies.make(Generate(policy="white"), BUTTONS), White)
    held = policies.make(Generate(policy="held", hold=4), BOX)
    assert isinstance(held, Held) and held.hold == 4
    brown = policies.make(Generate(), BOX, LOW, HIGH)
    assert isinstance(brown, Brown) and brown.high.tolist() == [1, 1, 1]
    with pytest.raises(ConfigError, match="no random policy"):
        policies.make(Generate(policy="controller"), BOX)
