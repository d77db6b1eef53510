"""Episodes in memory: one that is being played, and several as arrays, end to end."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wmrl.data.columns import COLUMNS
from wmrl.data.shards import Episode

ROWS = 64
"""Rows that an episode has room for at first."""


class Track:
    """An episode in progress: its rows so far, the last of which has no action yet.

    Args:
        rows: The episode so far; of a fresh one, the first observation and zeros (see `begin`).
    """

    def __init__(self, rows: Episode):
        self.seed, self.steps = rows.seed, len(rows.reward) - 1
        self._columns = {name: getattr(rows, name) for name in COLUMNS}

    @classmethod
    def begin(cls, seed: int, obs: np.ndarray, actions: int) -> "Track":
        """An episode of which only the first observation (*obs) is known; an action has so many numbers."""
        none = np.zeros(1, np.bool_)
        return cls(
            Episode(obs[None].copy(), np.zeros((1, actions), np.float32), np.zeros(1, np.float32), none, none, seed)
        )

    def add(self, action: np.ndarray, obs: np.ndarray, reward: float, terminated: bool, truncated: bool) -> None:
        """Record a step: the action (A,) taken at the last row, what it gave, and the observation it led to."""
        if self.steps + 2 > len(self._columns["reward"]):
            self._columns = {name: _longer(column) for name, column in self._columns.items()}
        row = self._columns
        row["action"][self.steps], row["reward"][self.steps] = action, reward
        row["terminated"][self.steps], row["truncated"][self.steps] = terminated, truncated
        self.steps += 1
        row["obs"][self.steps] = obs

    def episode(self) -> Episode:
        """The rows so far, not copied: they stay as they are, but for the last one's action and what follows of it."""
        return Episode(**{name: column[: self.steps + 1] for name, column in self._columns.items()}, seed=self.seed)

    def finish(self) -> Episode:
        """The whole episode, in arrays of its own that have no room left."""
        rows = self.episode()
        return Episode(**{name: getattr(rows, name).copy() for name in COLUMNS}, seed=self.seed)


def _longer(column: np.ndarray) -> np.ndarray:
    """Twice the rows, at least `ROWS`: the new ones are zero."""
    more = np.zeros((max(ROWS, 2 * len(column)), *column.shape[1:]), column.dtype)
    more[: len(column)] = column
    return more


def size(episode: Episode) -> int:
    """Its bytes."""
    return sum(getattr(episode, name).nbytes for name in COLUMNS)


def pack(episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
    """Episodes end to end: the columns, where each begins (E + 1,), and their seeds (E,). Of none, no columns."""
    start = np.cumsum([0, *(len(e.reward) for e in episodes)])
    table = {"start": start, "seed": np.array([e.seed for e in episodes], np.int64)}
    if episodes:
        table |= {name: np.concatenate([getattr(e, name) for e in episodes]) for name in COLUMNS}
    return table


def unpack(table: Mapping[str, Any]) -> list[Episode]:
    """The episodes that were packed, as views."""
    borders = itertools.pairwise(table["start"].tolist())
    return [
        Episode(**{name: table[name][a:b] for name in COLUMNS}, seed=int(seed))
        for seed, (a, b) in zip(table["seed"], borders, strict=True)
    ]
