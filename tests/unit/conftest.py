"""A toy game and untrained parts for it, for tests of stages that play and show episodes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_rollouts
from torch import nn

from wmrl import artifact, config, evaluation, interrupts, scoring
from wmrl.controllers import CONTROLLERS
from wmrl.dynamics import DYNAMICS
from wmrl.pipeline import Env, Pipeline
from wmrl.pipeline import Test as Score
from wmrl.representations import REPRESENTATIONS
from wmrl.spec import Actions, Space
from wmrl.store import Store

OBSERVATION, ACTIONS = Space((3, 32, 32)), Actions(2, False)
PIPE = Pipeline(
    env=Env(id="Toy-v0", size=32),
    representation={"kind": "tiny"},
    dynamics={"kind": "mdn-rnn", "hidden": 4, "mixtures": 2},
    data="nowhere",
    test=Score(episodes=5),
)


@dataclass
class Outcome:
    obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class Toy:
    """Episodes of 3 to 7 steps; frames, rewards and ends depend on the seed and on the actions."""

    fps, observation, actions, max_steps = 20.0, OBSERVATION, ACTIONS, 7
    played: list[int] = []  # noqa: RUF012  the seeds of all episodes begun, over all environments
    calls = 0
    die_at: int | None = None

    def __init__(self, env, n, *, threads):
        self.n, self.env = n, env

    def __enter__(self):
        return self

    def __exit__(self, *why):
        return None

    def reset(self, seeds):
        assert len(seeds) <= self.n
        Toy.played += list(seeds)
        self.seeds, self.t = list(seeds), np.zeros(len(seeds), int)
        self.total = np.zeros(len(seeds))
        return np.stack([self._frame(i) for i in range(len(seeds))])

    def step(self, action, ids):
        Toy.calls += 1
        if Toy.calls == Toy.die_at:
            raise KeyboardInterrupt
        self.t[ids] += 1
        self.total[ids] += action.sum(1)
        length = np.array([3 + self.seeds[i] % 5 for i in ids])
        reward = np.array([self.seeds[i] % 11 for i in ids]) + action.mean(1)
        end = self.t[ids] >= length
        odd = length % 2 == 1
        frames = np.stack([self._frame(i) for i in ids])
        return Outcome(frames, reward.astype(np.float32), end & odd, end & ~odd)

    def frames(self, ids):
        return np.stack([np.full((40, 60, 3), (200, 10 * self.t[i], 30), np.uint8) for i in ids])

    def _frame(self, i):
        frame = np.zeros((3, 32, 32), np.uint8)
        frame[0], frame[1, : self.t[i]] = self.seeds[i] % 200, 250
        return frame


class Tiny(nn.Module):
    """A representation that keeps the mean colour.

    Args:
        observation: The space of the frames.
    """

    def __init__(self, observation):
        super().__init__()
        self.latent = Space((3,))

    def encode(self, obs):
        return obs.float().mean((-1, -2)) / 255

    def draw(self, code, *, sample, rng=None):
        return code

    def decode(self, latent):
        return latent[..., None, None].expand(*latent.shape, 32, 32)


def make_parts(logdir: Path, seed: int = 0, scale: float = 0.3) -> Store:
    """A logdir with untrained parts."""
    torch.manual_seed(seed)
    store = Store(logdir, PIPE)
    parents: dict[str, str] = {}
    given: tuple = (OBSERVATION,)
    made = {"vae": REPRESENTATIONS, "dynamics": DYNAMICS, "controller": CONTROLLERS}
    for name, registry in made.items():
        where = "representation" if name == "vae" else name
        table = getattr(PIPE, where)
        module = config.build(registry, table, where, *given)
        if name == "controller":
            torch.nn.init.normal_(module.out.weight, std=scale)
        done = artifact.of(module, name, config.resolved(registry, table, where), given, parents=dict(parents))
        store.save(name, done)
        parents[where] = done.hash
        given = (module.latent, ACTIONS) if name == "vae" else (getattr(module, "feature_shape", ()), ACTIONS)
    return store


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """The toy game wherever a test or a film would make an environment, and a package without baselines."""
    monkeypatch.setattr(scoring, "make", Toy)
    monkeypatch.setattr("wmrl.stages.subject.make", Toy)
    monkeypatch.setattr(evaluation, "_baselines", lambda: tmp_path / "baselines")
    monkeypatch.setitem(REPRESENTATIONS, "tiny", f"{__name__}:Tiny")
    monkeypatch.setattr(Toy, "played", [])
    monkeypatch.setattr(Toy, "calls", 0)
    monkeypatch.setattr(Toy, "die_at", None)
    yield Toy
    interrupts.clear()


@pytest.fixture
def parts(toy):
    """A function that makes a logdir with untrained parts."""
    return make_parts


@pytest.fixture
def toy_game(monkeypatch):
    """Rollouts are collected from a toy (see `toy_rollouts`)."""
    yield from toy_rollouts.game(monkeypatch)


@pytest.fixture
def uninterrupted(toy_game, tmp_path):
    """The bytes of a dataset of 10 episodes of the toy, made in one go."""
    return toy_rollouts.whole_dataset(tmp_path)
