"""Finished episodes that become more: whole shards of them on disk, the newest also in memory.

What is read does not depend on how far the writing is: an episode stays in memory until its shard is on the disk.
"""

from array import array
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wmrl import files
from wmrl.data import shards
from wmrl.data.reader import Shards
from wmrl.data.recorder import Writer
from wmrl.data.shards import Episode, Name
from wmrl.data.track import size

SHARDS = 160
"""Shards that hold the capacity of a replay, at most: fewer than stay open (`reader.MOST_OPEN`), because opening one
takes longer than reading a window. Measured, 64 x 64 RGB, windows of 51 rows: 0.4 ms where all are open, 3 ms where a
quarter is, as at a million steps in shards of 16 MB."""


class Growing:
    """The finished episodes of a replay, numbered as they ended.

    Args:
        folder: The dataset.
        names: The shards to begin with.
        writer: Writes further ones, in the background.
        memory: Bytes of the newest episodes that stay in memory though they are on the disk.
        shard: Bytes of episodes that make a shard, at least.
        capacity: Steps that windows are drawn from, if there is a bound.

    Attributes:
        lengths: Steps of each episode.
        kind: Shape and type of observations; None if there are none yet.
        durable: Episodes that are in shards on the disk; the others are in memory.

    Raises:
        ArtifactError: if a shard is damaged, or one is lacking in between.
    """

    def __init__(
        self, folder: Path, names: Sequence[Name], writer: Writer, memory: int, shard: int, capacity: int | None
    ):
        index = shards.index(folder, names) if names else None
        self.folder, self._writer, self._budget, self._shard_bytes = folder, writer, memory, shard
        self._shard_rows = (capacity or 0) // SHARDS
        self.lengths = array("q", index.lengths.tolist() if index else [])
        self.kind: tuple[tuple[int, ...], np.dtype] | None = None
        if index:
            self.kind = tuple(index.meta["observation"]["shape"]), np.dtype(index.meta["observation"]["dtype"])
        rows = [sum(self.lengths[name.first : name.first + name.count]) + name.count for name in names]
        self.disk = Shards(
            [folder / name.file for name in names], index.hashes if index else (), np.cumsum([0, *rows], dtype=np.int64)
        )
        self.durable = self._handed = self._kept = len(self.lengths)  # `_handed`: to the writer; `_kept`: from memory
        self._recent: dict[int, Episode] = {}  # those from `_kept` on
        self._recent_bytes = self._loose_bytes = self._loose_rows = 0
        self._waiting: deque[Name] = deque()

    def add(self, episode: Episode) -> None:
        """Take an episode; hand a shard over when it is whole.

        Raises:
            ArtifactError: if an earlier shard could not be written.
        """
        self.keep(episode)
        if self._loose_bytes >= self._shard_bytes and self._loose_rows >= self._shard_rows:
            self.cut()

    def keep(self, episode: Episode) -> None:
        """Take an episode that waits for its shard."""
        self.kind = episode.obs.shape[1:], episode.obs.dtype
        self._recent[len(self.lengths)] = episode
        self.lengths.append(len(episode.reward) - 1)
        self._recent_bytes += size(episode)
        self._loose_bytes += size(episode)
        self._loose_rows += len(episode.reward)

    def cut(self) -> None:
        """Hand over those that wait for a shard, if there are any.

        Raises:
            ArtifactError: if an earlier shard could not be written.
        """
        if self._handed < len(self.lengths):
            loose = [self._recent[number] for number in range(self._handed, len(self.lengths))]
            self._waiting.append(self._writer.shard(self._handed, loose))
            self._handed, self._loose_bytes, self._loose_rows = len(self.lengths), 0, 0

    def settle(self, oldest: int) -> None:
        """Note which shards were written; let go of memory what they hold beyond the budget, or before `oldest`."""
        while self._waiting and self._writer.has(self._waiting[0]):
            name = self._waiting.popleft()
            path, end = self.folder / name.file, name.first + name.count
            rows = sum(self.lengths[name.first : end]) + name.count
            self.disk.add(path, files.digest(path, role=shards.ROLE), rows)
            self.durable = end
        while self._kept < self.durable and (self._recent_bytes > self._budget or self._kept < oldest):
            self._recent_bytes -= size(self._recent.pop(self._kept))
            self._kept += 1

    @property
    def kept(self) -> int:
        """The first episode that is in memory."""
        return self._kept

    def recent(self, number: int) -> Episode:
        """An episode that is in memory."""
        return self._recent[number]

    def loose(self) -> tuple[list[Episode], list[int]]:
        """The episodes that no shard on the disk holds yet, and how many go into each shard that is on its way."""
        episodes = [self._recent[number] for number in range(self.durable, len(self.lengths))]
        return episodes, [name.count for name in self._waiting]


def drop_later(folder: Path, names: Sequence[Name]) -> None:
    """Remove all shards but these, which come first; and before, the list of shards, if it may name one of those.

    Raises:
        ArtifactError: if that cannot be done.
    """
    kept = set(names)
    if later := [name for name in shards.scan(folder) if name not in kept]:
        (folder / shards.COMPLETE).unlink(missing_ok=True)
        for name in reversed(later):  # the last one first: what a kill leaves has no gap
            (folder / name.file).unlink()
        files.sync_folder(folder)
