"""What a trainer may learn from; each takes what it needs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from wmrl.precision import Choice
from wmrl.spec import Batch
from wmrl.world import WorldModel

CPU = torch.device("cpu")


@dataclass
class Scores:
    """A table of rollouts, filled wave by wave: P candidates (rows) on S seeds (columns).

    Args:
        returns: (P, S) float64; NaN where a rollout has not been played.
        steps: (P, S) int64, environment (or dreamt) steps of each rollout.
    """

    returns: np.ndarray
    steps: np.ndarray

    @classmethod
    def empty(cls, candidates: int, seeds: int) -> "Scores":
        """A table in which nothing has been played."""
        return cls(np.full((candidates, seeds), np.nan), np.zeros((candidates, seeds), np.int64))

    @property
    def played(self) -> np.ndarray:
        """(P, S) bool: which rollouts are done."""
        return ~np.isnan(self.returns)


class Score(Protocol):
    """Rolls a whole population out in lockstep."""

    def __call__(
        self,
        parameters: np.ndarray,
        seeds: np.ndarray,
        cells: np.ndarray,
        scores: Scores,
        *,
        abort: int = 0,
        after_wave: Callable[[], None] = lambda: None,
        tick: Callable[[int, int], None] = lambda rollouts, steps: None,
    ) -> None:
        """Play what is missing in `scores`.

        Args:
            parameters: (P, n), one candidate a row.
            seeds: (S,), the same episodes for all candidates.
            cells: (R, 2) the rollouts wanted, as (candidate, seed) indices; cut into waves in this order, and waves
                that are already played are skipped.
            scores: The table to fill.
            abort: Steps without a new best return after which a rollout is given up; 0 never.
            after_wave: Called when the results of a wave stand in `scores`.
            tick: (rollouts of the wave that have ended, rows that just took a step), after each step.
        """


@dataclass
class Grounds:
    """The world that a trainer works in.

    Args:
        world: The frozen world model, to dream in.
        batches: (batch, length, start) -> windows of real episodes, the batches from number `start` on; to be closed.
        awake: Scores a population in the environment.
        asleep: (temperature, ends, max_steps) -> the same inside the world model; steps no environment.
        seed: The number from which all randomness of the trainer follows.
        save: Keeps a tree of arrays and numbers, durably; the next `resume` returns it.
        resume: The tree saved last, or None at the first start.
        log: (global step, metrics) -> None.
        progress: (done, total, note, unit = "rollouts") -> None, for people who watch.
        say: A line for people who watch.
        over: Whether the time is spent and training should end early.
        trained: Whether the controller was trained before, in another world: it is validated before the first step.
        view: The shape of what the controller sees.
        device: Where the world and the controller are.
        arithmetic: What to compute in; the first call may do the given work a few times, and its answer holds.
    """

    world: WorldModel
    batches: Callable[[int, int, int], Iterator[Batch]]
    awake: Score
    asleep: Callable[[float, Literal["threshold", "sample"], int], Score]
    seed: int
    save: Callable[[dict[str, Any]], None]
    resume: Callable[[], dict[str, Any] | None]
    log: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    progress: Callable[..., None] = lambda done, total, note, unit="rollouts": None
    say: Callable[[str], None] = lambda text: None
    over: Callable[[], bool] = lambda: False
    trained: bool = False
    view: tuple[int, ...] = ()
    device: torch.device = CPU
    arithmetic: Callable[[Callable[[], object]], Choice] = lambda work: "fp32"
