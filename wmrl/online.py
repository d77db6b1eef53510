"""The `[online]` table of a pipeline: a world model and a behaviour that learn while the agent acts."""

import math
from dataclasses import dataclass
from typing import Literal

from wmrl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Online:
    """How `wmrl iterate` learns online: act a little, learn a little, again.

    Windows for the world model are cut as `fit.dynamics` says (batch, length, optimiser, learning rate, clip); the
    behaviour dreams from the states that the world model met in them. `fit.dynamics.steps` has no part.

    Args:
        steps: Environment steps in all, rounded up to whole turns (see `collect`); 0: the pipeline is not learnt
            online. A larger number goes on.
        environments: Environments in lockstep.
        seed_steps: Steps of a random policy at the beginning. Source: MinAtar's DreamerV2, 4,000.
        seed_policy: That policy, as in `generate.policy`: "white", "brown", or "held", by `generate.hold`.
        collect: Environment steps between two turns of learning, rounded up to whole steps of all environments.
            Source: MinAtar's DreamerV2 calls it train_every, 50.
        updates_per_step: Updates of world model and behaviour for each environment step after the seed steps: the
            train ratio; 0: it only acts. An update replays batch * length steps. Source: MinAtar's DreamerV2, 0.1
            (5 updates every 50).
        noise: Exploration at the first step after the seed steps: of discrete actions the chance that a uniform one is
            taken instead, of others the standard deviation of Gaussian noise, units of [-1, 1].
        noise_final: Exploration at the end of its decay.
        noise_steps: Environment steps over which it falls linearly from the one to the other.
        evaluate_every: Environment steps between two evaluations on the fixed validation episodes; 0 never.
        evaluate_episodes: Their number.
        keep_every: Environment steps between two snapshots of all models, which `test-controller --snapshots all`
            scores; 0 keeps none.
        capacity: Newest environment steps that are replayed.
        log_every: Updates between two rows of metrics; with `updates_per_step = 0`, turns.
    """

    steps: int = 0
    environments: int = 16
    seed_steps: int = 4000
    seed_policy: Literal["white", "brown", "held"] = "white"
    collect: int = 50
    updates_per_step: float = 0.1
    noise: float = 0.0
    noise_final: float = 0.0
    noise_steps: int = 1
    evaluate_every: int = 10_000
    evaluate_episodes: int = 10
    keep_every: int = 0
    capacity: int = 1_000_000
    log_every: int = 50

    @property
    def turn(self) -> int:
        """Environment steps between two turns of learning, all environments counted."""
        return math.ceil(self.collect / self.environments) * self.environments

    def updates(self, step: int) -> int:
        """The updates that are due after so many environment steps."""
        return int(self.updates_per_step * max(0, step - self.seed_steps) + 1e-9)

    def exploration(self, step: int) -> float:
        """The noise of an action after so many environment steps."""
        share = min(1.0, max(0, step - self.seed_steps) / self.noise_steps)
        return self.noise + share * (self.noise_final - self.noise)


def check_online(table: Online) -> None:
    """Check what types alone do not rule out.

    Raises:
        ConfigError: naming the key.
    """
    for key in ("environments", "seed_steps", "collect", "noise_steps", "evaluate_episodes", "capacity", "log_every"):
        if (value := getattr(table, key)) < 1:
            raise ConfigError(f"online.{key}: must be greater than 0, got {value}")
    for key in ("steps", "updates_per_step", "noise", "noise_final", "evaluate_every", "keep_every"):
        if (value := getattr(table, key)) < 0:
            raise ConfigError(f"online.{key}: must not be negative, got {value}")
