"""Read episodes: tables of all of them, and any rows, in bounded memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hdf5plugin  # noqa: F401  registers the Zstd filter with HDF5
import numpy as np

from wmrl import seeding
from wmrl.data import shards
from wmrl.data.reader import Shards, empty, gather
from wmrl.spec import Actions, Space

Columns = dict[str, np.ndarray]


class Episodes:
    """A dataset of E episodes; episode e has `lengths[e]` steps and one row more, from flat row `start[e]` on.

    Args:
        path: The dataset's folder.
        partial: Take the shards that there are, even if `complete.h5` is missing or older.

    Attributes:
        env: The environment's table, as in a pipeline (`id`, `size`, `crop`, ...).
        policy: The policy's table (`policy`, ...).
        meta: All that the first shard says of its making.
        observation: What one observation is.
        actions: What one action is.
        dtype: Of stored observations.
        lengths: (E,) steps.
        start: (E + 1,) flat row numbers.
        seeds: (E,).
        returns: (E,) undiscounted, unclipped.
        hash: Content hash of the ordered shards.
        shards: Their digests, in order.

    Raises:
        ArtifactError: if the dataset is missing, unfinished (unless `partial`) or damaged.
    """

    def __init__(self, path: Path | str, *, partial: bool = False):
        self.path = Path(path)
        index = shards.index(self.path, shards.scan(self.path)) if partial else shards.read_complete(self.path)
        self._index = index
        self.meta: dict[str, Any] = index.meta
        self.env: dict[str, Any] = self.meta["env"]
        self.policy: dict[str, Any] = self.meta["policy"]
        observation, actions = self.meta["observation"], self.meta["actions"]
        self.observation = Space(tuple(observation["shape"]), observation.get("vocab"))
        self.dtype = np.dtype(observation["dtype"])
        self.actions = Actions(actions["size"], actions["discrete"])
        self.lengths, self.seeds, self.returns = index.lengths, index.seeds, index.returns
        self.start = np.concatenate([[0], np.cumsum(self.lengths + 1)]).astype(np.int64)
        self.hash, self.shards = index.hash, index.hashes
        self.names = index.names
        ends = np.cumsum([0, *(name.count for name in self.names)])
        paths = [self.path / name.file for name in self.names]
        self._rows = Shards(paths, self.shards, self.start[ends])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """The steps of all episodes."""
        return int(self.lengths.sum())

    def gather(self, rows: np.ndarray) -> Columns:
        """The rows of some windows.

        Args:
            rows: (B, L) int64 flat row numbers: lines that grow by 0 or 1 (0: a repeated row, as padding) and may
                jump, from episode to episode, say. The fewer jumps, the faster.

        Returns:
            Column -> (B, L, ...): obs, action, reward, terminated, truncated; in the dtypes they are stored in.

        Raises:
            ArtifactError: if a shard is missing or damaged.
        """
        out = self._empty(rows.shape)
        gather(self._rows.read, out, rows)
        return out

    def read(self, first: int, last: int) -> Columns:
        """The flat rows [first, last), one array per column."""
        out = self._empty((last - first,))
        self._rows.read(out, first, last)
        return out

    def episode(self, number: int) -> shards.Episode:
        """One whole episode."""
        columns = self.read(int(self.start[number]), int(self.start[number + 1]))
        return shards.Episode(**columns, seed=int(self.seeds[number]))

    def ended(self) -> np.ndarray:
        """Which episodes terminated (E,) bool; the others were cut off, by a limit of time, say."""
        found = np.zeros(len(self), bool)
        for e, last in enumerate(self.start[1:] - 2):
            self._rows.read({"terminated": found[e : e + 1]}, int(last), int(last) + 1)
        return found

    def split(self, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Training and validation episodes, both increasing (see `split`)."""
        return split(self.seeds, fraction, seed)

    def lineage(self) -> list[str]:
        """The hashes of the datasets that this one grew from, itself last: one for each prefix of its shards."""
        return [shards.hash_of(self.shards[:n]) for n in range(1, len(self.shards) + 1)]

    def close(self) -> None:
        """Close the files; reading opens them again."""
        self._rows.close()

    def _empty(self, lead: tuple[int, ...]) -> Columns:
        return empty(lead, self.observation.shape, self.dtype, self.actions.size)


def split(seeds: Sequence[int] | np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide episodes for good: each by a hash of its own seed, so that appended ones move no other.

    Where chance leaves one side empty (a handful of episodes), one episode goes there; a single episode is on both.

    Args:
        seeds: (E,) of the episodes.
        fraction: Expected share of validation episodes, in (0, 1).
        seed: Another seed divides otherwise.

    Returns:
        Numbers of the training and of the validation episodes, both increasing and never empty.
    """
    draws = np.array([seeding.number(seed, "validation", int(s)) for s in seeds]) / 2**31
    held = draws < fraction
    if len(draws) > 1:
        held[draws.argmin()] = True
        held[draws.argmax()] = False
    everything = np.arange(len(draws))
    return (everything, everything) if len(draws) == 1 else (everything[~held], everything[held])
