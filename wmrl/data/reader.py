"""Open shards, a bounded number of them at a time; lines of rows read run by run."""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the Zstd filter with HDF5
import numpy as np

from wmrl.data import shards, trust
from wmrl.errors import ArtifactError

SMALL = ("action", "reward", "terminated", "truncated")
MOST_OPEN = 192
CACHE_BYTES = 1 << 20


class Shard:
    """One open shard: its small columns in memory, its observations on disk."""

    def __init__(self, path: Path, digest: str):
        trust.match(path, digest, str(path.with_name(shards.COMPLETE)))
        trust.verify(path)
        try:
            self.file = h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES)
            self.small = {name: self.file[name][()] for name in SMALL}
            self._obs: h5py.Dataset = self.file["obs"]
        except (OSError, KeyError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from error

    def read(self, out: dict[str, np.ndarray], at: int, first: int, last: int) -> None:
        """Copy the rows [first, last) of each column of `out` into its rows from `at` on."""
        for name, array in out.items():
            if name == "obs":
                self._read_obs(array[at : at + last - first], first)
            else:
                array[at : at + last - first] = self.small[name][first:last]

    def _read_obs(self, out: np.ndarray, first: int) -> None:
        """h5py's low-level calls: its selections in Python take a fifth of the time of a 33-row window."""
        count, zeros = out.shape, (0,) * (out.ndim - 1)
        space = self._obs.id.get_space()
        space.select_hyperslab((first, *zeros), count)
        self._obs.id.read(h5py.h5s.create_simple(count), space, out)


class Shards:
    """The rows of a list of shards as one long table. Safe to use from several threads."""

    def __init__(self, paths: Sequence[Path], digests: Sequence[str], rows: np.ndarray):
        """`rows` (S + 1,): the first row of each shard in the table, and the number of all rows."""
        self.paths, self.digests, self.rows = list(paths), list(digests), rows
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, path: Path, digest: str, rows: int) -> None:
        """Append a shard with so many rows."""
        with self._lock:
            self.paths.append(path)
            self.digests.append(digest)
            self.rows = np.append(self.rows, self.rows[-1] + rows)

    def read(self, out: dict[str, np.ndarray], first: int, last: int) -> None:
        """Fill the first rows of each column of `out` with the rows [first, last) of the table."""
        with self._lock:
            at = 0
            number = int(np.searchsorted(self.rows, first, "right")) - 1
            while first < last:
                base, end = int(self.rows[number]), min(last, int(self.rows[number + 1]))
                if end > first:
                    self._shard(number).read(out, at, first - base, end - base)
                at, first, number = at + end - first, end, number + 1

    def _shard(self, number: int) -> Shard:
        shard = self._open.pop(number, None) or Shard(self.paths[number], self.digests[number])
        self._open[number] = shard
        if len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)[1].file.close()
        return shard

    def close(self) -> None:
        """Close every file; reading opens them again."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].file.close()


def empty(lead: tuple[int, ...], shape: tuple[int, ...], dtype: np.dtype, actions: int) -> dict[str, np.ndarray]:
    """Columns (*lead, ...) to be filled, for observations of `shape` and `dtype` and so many numbers of an action."""
    kinds: dict[str, tuple[tuple[int, ...], Any]] = {
        "obs": (shape, dtype),
        "action": ((actions,), np.float32),
        "reward": ((), np.float32),
        **dict.fromkeys(SMALL[2:], ((), np.bool_)),
    }
    return {name: np.empty((*lead, *each), kind) for name, (each, kind) in kinds.items()}


Read = Callable[[dict[str, np.ndarray], int, int], None]
"""(columns, first, last): fill the first rows of each column with the rows [first, last) of a table."""


def gather(read: Read, out: dict[str, np.ndarray], rows: np.ndarray) -> None:
    """Fill columns (B, L, ...) with the rows (B, L) of a table: each line is read in as few runs as it has.

    In a run, rows grow by 0 or 1 (0: a repeated row, as padding); between runs they may jump anywhere.
    """
    moves = np.diff(rows, axis=1)
    jumps = (moves < 0) | (moves > 1)
    for i, line in enumerate(rows):
        borders = [0, *(np.flatnonzero(jumps[i]) + 1).tolist(), len(line)] if len(line) else []
        for a, b in itertools.pairwise(borders):
            first, last = int(line[a]), int(line[b - 1]) + 1
            part = {name: column[i, a:b] for name, column in out.items()}
            read(part, first, last)
            if last - first < b - a:
                for column in part.values():
                    column[:] = column[line[a:b] - first]
