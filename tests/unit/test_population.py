"""A population's rollouts in one lane and in two: the same scores, and an error in either lane ends both."""

import threading
import time
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from wmrl import interrupts, population
from wmrl.controllers.linear import Linear
from wmrl.errors import Stopped, UserError
from wmrl.population import Rollouts
from wmrl.rollout import Policy
from wmrl.seeding import rng
from wmrl.spec import Actions
from wmrl.trainers.grounds import Scores

P, SEEDS = 5, np.array([3, 4, 5, 6, 11, 17])
CELLS = np.array([(p, s) for p in range(P) for s in range(len(SEEDS))])
PARAMETERS = rng("parameters").normal(size=(P, 3))
PATIENCE = 30.0
"""Seconds after which a lane that waits in vain gives up; no test that passes waits for long."""


class Outcome(NamedTuple):
    obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class Game:
    """Seed s lasts 3 + s % 5 steps; observations are seed and time, the reward is 1 + the action."""

    def __init__(self) -> None:
        self.waves = 0

    def reset(self, seeds):
        self.waves += 1
        self.seeds, self.t = np.array(seeds), np.zeros(len(seeds), int)
        return self._obs(np.arange(len(seeds)))

    def step(self, action, ids):
        self.t[ids] += 1
        over = self.t[ids] >= 3 + self.seeds[ids] % 5
        return Outcome(self._obs(ids), 1 + action[:, 0], over & (self.seeds[ids] % 2 == 0), over)

    def _obs(self, ids):
        return np.stack([self.seeds[ids], self.t[ids]], -1).astype(np.float32) / 10


class Met(Game):
    """Begins its first wave when the other lane begins one, so that neither plays all of them."""

    def __init__(self, meet: threading.Barrier) -> None:
        super().__init__()
        self.meet = meet

    def reset(self, seeds):
        if not self.waves:
            self.meet.wait()
        return super().reset(seeds)


class Flat(Game):
    """Ten steps of one reward: below zero, there is no new best return after the first."""

    def __init__(self, reward: float) -> None:
        super().__init__()
        self.reward = reward

    def step(self, action, ids):
        out = super().step(action, ids)
        return out._replace(reward=np.full(len(ids), self.reward), terminated=ids < 0, truncated=self.t[ids] >= 10)


class Endless(Met):
    """Nothing but a halt ends it."""

    deadline = float("inf")

    def step(self, action, ids):
        self.deadline = min(self.deadline, time.monotonic() + PATIENCE)
        assert time.monotonic() < self.deadline, "nobody halted this lane"
        return super().step(action, ids)._replace(terminated=ids < 0, truncated=ids < 0)


class Failing(Met):
    """In its first step, something happens."""

    def __init__(self, meet: threading.Barrier, happens: Any) -> None:
        super().__init__(meet)
        self.happens = happens

    def step(self, action, ids):
        self.happens()
        return super().step(action, ids)


class Seeing:
    """An actor whose policy is shown the observations as they are."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def begin(self, obs, seeds):
        self.policy.begin(len(obs), seeds)
        return self.step(obs)

    def step(self, obs):
        return self.policy.act(torch.from_numpy(obs)).numpy()

    def keep(self, index):
        self.policy.keep(torch.from_numpy(index))


def score(*games: Any, scores: Scores | None = None, **how: Any) -> Scores:
    """The population's scores: one lane for each game, at most eight rows in a wave."""
    controller = Linear((2,), Actions(1, False)).requires_grad_(False)
    scores = Scores.empty(P, len(SEEDS)) if scores is None else scores
    Rollouts(games, Seeing, controller, 8, torch.device("cpu"))(PARAMETERS, SEEDS, CELLS, scores, **how)
    return scores


def by_hand(p: int, seed: int) -> float:
    """The return of one rollout."""
    a, b, c = PARAMETERS[p]
    return sum(1 + np.tanh(a * seed / 10 + b * t / 10 + c) for t in range(3 + seed % 5))


@pytest.fixture
def meet() -> threading.Barrier:
    return threading.Barrier(2, timeout=PATIENCE)


def test_two_lanes_score_as_one_and_as_by_hand(meet) -> None:
    games, seen = [Met(meet), Met(meet)], []
    one = score(Game())
    two = score(*games, after_wave=lambda: seen.append(1))
    np.testing.assert_array_equal(two.returns, one.returns)
    np.testing.assert_array_equal(two.steps, one.steps)
    np.testing.assert_allclose(one.returns, [[by_hand(p, int(s)) for s in SEEDS] for p in range(P)], rtol=1e-5)
    np.testing.assert_array_equal(one.steps, np.tile(3 + SEEDS % 5, (P, 1)))
    assert games[0].waves + games[1].waves == len(seen) == 4 and min(games[0].waves, games[1].waves) >= 1


def test_two_lanes_play_only_what_is_missing(meet) -> None:
    games, whole = [Met(meet), Met(meet)], score(Game())
    part = Scores(whole.returns.copy(), whole.steps.copy())
    part.returns[1:, 3:], part.steps[1:, 3:] = np.nan, 0  # in the last three of four waves
    score(*games, scores=part)
    np.testing.assert_array_equal(part.returns, whole.returns)
    assert games[0].waves + games[1].waves == 3


@pytest.mark.parametrize("lanes", [1, 2])
def test_hopeless_rollouts_are_given_up_where_that_is_asked_for(lanes: int) -> None:
    for abort, steps in ((0, 10), (3, 4), (20, 10)):  # the first step is a new best return, those after it are not
        scores = score(*[Flat(-1.0) for _ in range(lanes)], abort=abort)
        assert (scores.steps == steps).all() and (scores.returns == -steps).all()


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("reward", [np.nan, np.inf])
def test_returns_that_are_not_finite_end_it_and_are_not_noted(lanes: int, reward: float) -> None:
    scores = Scores.empty(P, len(SEEDS))
    with pytest.raises(UserError, match="not finite numbers"):
        score(*[Flat(reward) for _ in range(lanes)], scores=scores)
    assert not scores.played.any()


@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_in_either_lane_comes_out_and_halts_the_other(meet, broken: int) -> None:
    def fail() -> None:
        raise UserError("the engine died")

    before, scores = threading.active_count(), Scores.empty(P, len(SEEDS))
    games = [Endless(meet), Failing(meet, fail)]
    with pytest.raises(UserError, match="the engine died"):
        score(*games[:: 1 if broken else -1], scores=scores)
    assert threading.active_count() == before and not scores.played.any()


@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_in_either_lane_stops_both_and_is_what_comes_out(meet, asked: int, monkeypatch) -> None:
    games = [Endless(meet), Failing(meet, lambda: monkeypatch.setattr(interrupts, "_pending", 15))]
    with pytest.raises(Stopped) as stopped:
        score(*games[:: 1 if asked else -1])
    assert stopped.value.code == 128 + 15


def test_an_interruption_of_the_caller_halts_the_lanes(monkeypatch) -> None:
    def wait(*lanes: Any, **how: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(population, "wait", wait)
    alone = threading.Barrier(1)
    games, began = [Endless(alone), Endless(alone)], time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        score(*games)
    assert time.monotonic() - began < PATIENCE / 2
