"""Random policies that collect rollouts: brown, white, held. Each is an `Actor` (see `wmrl.protocols`).

The actions of an episode depend on its seed alone, whatever other episodes march beside it: episode seeds s draw from
`rng(s, "policy")`. Actions are one-hot, or in [-1, 1], the affine image of the environment's box.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from wmrl import seeding
from wmrl.errors import ConfigError
from wmrl.spec import Actions

BLOCK = 256
"""Steps drawn at a time."""


class Random(ABC):
    """An actor whose rows each follow a stream of blocks of actions, (steps, A), made by `plan`."""

    def __init__(self, actions: Actions):
        self.actions = actions

    @abstractmethod
    def plan(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """The actions of one episode, endless, in blocks of any number of steps."""

    def begin(self, obs: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """As `Actor.begin`; the observations are not looked at."""
        self._rows = [self.walk(int(seed)) for seed in seeds]
        return self.step(obs)

    def step(self, obs: np.ndarray) -> np.ndarray:
        """As `Actor.step`."""
        return np.stack([next(row) for row in self._rows])

    def keep(self, index: np.ndarray) -> None:
        """As `Actor.keep`."""
        self._rows = [self._rows[i] for i in index]

    def walk(self, seed: int) -> Iterator[np.ndarray]:
        """The actions (A,) of the episode with that seed, one after the other, endless."""
        for block in self.plan(seeding.rng(seed, "policy")):
            yield from block


def uniform(actions: Actions, rng: np.random.Generator, count: int) -> np.ndarray:
    """Independent uniform actions (count, A), one-hot or in [-1, 1]."""
    if actions.discrete:
        return np.eye(actions.size, dtype=np.float32)[rng.integers(actions.size, size=count)]
    return rng.uniform(-1, 1, (count, actions.size)).astype(np.float32)


class White(Random):
    """Independent uniform actions."""

    def plan(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """As `Random.plan`."""
        while True:
            yield uniform(self.actions, rng, BLOCK)


class Held(Random):
    """A uniform action held for a uniform number of steps.

    Source: Ha & Schmidhuber 2018, VizDoom: 1 to 10 steps.

    Args:
        actions: The action space.
        hold: Longest time, steps.
    """

    def __init__(self, actions: Actions, hold: int = 10):
        super().__init__(actions)
        self.hold = hold

    def plan(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """As `Random.plan`."""
        while True:
            actions = uniform(self.actions, rng, BLOCK)
            yield np.repeat(actions, rng.integers(1, self.hold + 1, size=BLOCK), axis=0)


class Brown(Random):
    """A random walk in the environment's own units, clipped to its box; it begins anywhere in the box.

    Source: ctallec/world-models: standard deviation sqrt(dt) a step with dt = 1/50, on each coordinate.

    Args:
        actions: The action space, a box.
        low: (A,) the box in the environment's units.
        high: (A,) likewise.
        dt: Square of the step's standard deviation.

    Raises:
        ConfigError: for discrete actions and for a box without bounds.
    """

    def __init__(self, actions: Actions, low: np.ndarray, high: np.ndarray, dt: float = 1 / 50):
        super().__init__(actions)
        if actions.discrete:
            raise ConfigError("the policy brown walks in a box of actions, and these are discrete: use held or white")
        self.low, self.high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        if not np.isfinite([self.low, self.high]).all():
            raise ConfigError("the policy brown walks in a box of actions, and this one has no bounds: use white")
        self.deviation = float(np.sqrt(dt))

    def plan(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """As `Random.plan`."""
        at = rng.uniform(self.low, self.high)
        while True:
            walk = np.empty((BLOCK, len(self.low)))
            for i, step in enumerate(self.deviation * rng.standard_normal((BLOCK, len(self.low)))):
                walk[i] = at
                at = np.minimum(np.maximum(at + step, self.low), self.high)
            yield ((walk - self.low) / (self.high - self.low) * 2 - 1).astype(np.float32)


def make(settings: Any, actions: Actions, low: np.ndarray | None = None, high: np.ndarray | None = None) -> Random:
    """The random policy that a pipeline's `generate` table names.

    Args:
        settings: `wmrl.pipeline.Generate`.
        actions: The action space.
        low: (A,) the environment's box, in its own units; None if actions are discrete.
        high: (A,) likewise.

    Raises:
        ConfigError: if the policy does not fit the actions, or is not a random one.
    """
    if settings.policy == "white":
        return White(actions)
    if settings.policy == "held":
        return Held(actions, settings.hold)
    if settings.policy == "brown":
        box = np.zeros(actions.size) if low is None or high is None else np.asarray(low)
        return Brown(actions, box, box if high is None else np.asarray(high))
    raise ConfigError(f"generate.policy: {settings.policy!r} is no random policy; brown, white and held are")
