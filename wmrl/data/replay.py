"""Episodes that grow while they are learnt from: shards on disk, and the newest steps in memory.

Finished episodes are numbered as they end, and go to shards of about `SHARD_BYTES` in the background; those in progress
follow behind, in the order in which they were begun, so that the newest step can be drawn at once. An episode in
progress looks like one that was cut off: its last row has no action yet. The newest rows are read from memory, up to a
budget, the others from disk.

What is kept of a state (`Replay.state`) are the episodes that no shard holds yet. A run that is killed and continues
from its last state forgets the shards written since: what it plays again makes the same ones.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import Any, Protocol, Self

import numpy as np

from wmrl import files
from wmrl.data import shards
from wmrl.data.columns import COLUMNS
from wmrl.data.growing import Growing, drop_later
from wmrl.data.reader import empty, gather
from wmrl.data.recorder import Writer
from wmrl.data.shards import Episode, Index, Name
from wmrl.data.track import Track, pack, unpack
from wmrl.errors import ArtifactError, ContractError
from wmrl.locking import lock

MEMORY = 1 << 28
"""Bytes of the newest finished episodes that stay in memory."""
SHARD_BYTES = 1 << 24
"""Bytes of finished episodes that make a shard, at least (see `growing.SHARDS`): what waits for it is in memory and in
every saved state."""


class Outcome(Protocol):
    """What a step of some slots (k,) led to, as environments give it."""

    @property
    def obs(self) -> np.ndarray:
        """(k, *obs); of an ended episode its last observation."""

    @property
    def reward(self) -> np.ndarray:
        """(k,)."""

    @property
    def terminated(self) -> np.ndarray:
        """(k,) bool."""

    @property
    def truncated(self) -> np.ndarray:
        """(k,) bool."""


def playing_in(tree: Mapping[str, Any]) -> dict[int, Episode]:
    """The episodes in progress by slot, of what `Replay.state` gave."""
    return dict(zip(tree["slots"].tolist(), unpack(tree["playing"]), strict=True))


class Replay:
    """A source of windows that grows; a context manager, which holds the folder for this process.

    Episodes that the folder holds already come first. Windows drawn are a function of what was recorded: how far the
    writing is does not matter. `windows` sees what is there when it is called: call it again after each change.

    Args:
        folder: The dataset, that of this run alone.
        meta: What every shard says of its making (as `generate` has it): environment, policy, seed, actions.
        capacity: Steps that windows are drawn from: of more, the oldest episodes are left out (they stay on disk).
        memory: Bytes of the newest finished episodes that stay in memory.
        shard: Bytes of finished episodes that make a shard, at least.

    Raises:
        ArtifactError: if what is there is damaged.
        ConfigError: if another process holds the folder.
    """

    def __init__(
        self,
        folder: Path,
        meta: dict[str, Any],
        *,
        capacity: int | None = None,
        memory: int = MEMORY,
        shard: int = SHARD_BYTES,
    ):
        self.folder, self.capacity, self._sizes = folder, capacity, (memory, shard)
        self._actions = int(meta["actions"]["size"])
        self._lock = RLock()
        with contextlib.ExitStack() as opening:
            opening.enter_context(lock(folder))
            files.sweep(folder)
            self._writer = opening.enter_context(Writer(folder, (), meta))
            self._open(shards.scan(folder))
            self._stack = opening.pop_all()

    def _open(self, names: Sequence[Name]) -> None:
        """Begin with these shards, and nothing else."""
        self._finished = Growing(self.folder, names, self._writer, *self._sizes, self.capacity)
        self._playing: dict[int, Track] = {}  # in the order in which they were begun
        self._live, self._oldest = sum(self._finished.lengths), 0
        self._forget()

    def begin(self, ids: np.ndarray, seeds: Sequence[int], obs: np.ndarray) -> None:
        """Begin an episode in each of these slots (k,), which must be free.

        Args:
            ids: Slots.
            seeds: (k,) of the episodes.
            obs: (k, *obs) their first observations.

        Raises:
            ContractError: if these are not observations of the kind that is there.
        """
        there, kind = self._kind(), (obs.shape[1:], obs.dtype)
        if there not in (None, kind):
            raise ContractError(f"{self.folder} holds observations of {there}; those to be recorded are {kind}")
        with self._lock:
            for slot, seed, first in zip(ids.tolist(), seeds, obs, strict=True):
                if slot in self._playing:
                    raise ValueError(f"begin: the episode in slot {slot} goes on")
                self._playing[slot] = Track.begin(int(seed), first, self._actions)
            self._forget()

    def add(self, ids: np.ndarray, action: np.ndarray, outcome: Outcome) -> None:
        """Record a step of these slots (k,): their actions (k, A), and what they led to.

        Slots whose episodes end are free from then on.

        Raises:
            ArtifactError: if an earlier shard could not be written.
        """
        with self._lock:
            self._live += len(ids)
            for row, slot in enumerate(ids.tolist()):
                flags = bool(outcome.terminated[row]), bool(outcome.truncated[row])
                self._playing[slot].add(action[row], outcome.obs[row], float(outcome.reward[row]), *flags)
                if any(flags):
                    self._finished.add(self._playing.pop(slot).finish())
            self._forget()

    @property
    def begun(self) -> int:
        """Episodes that were ever begun."""
        return len(self._finished.lengths) + len(self._playing)

    @property
    def steps(self) -> int:
        """Steps that windows are drawn from."""
        return self._live

    @property
    def playing(self) -> dict[int, Episode]:
        """The episodes in progress by slot: rows so far, the last of which has no action yet."""
        return {slot: track.episode() for slot, track in self._playing.items()}

    @property
    def lengths(self) -> np.ndarray:
        """(E,) steps of the episodes that windows are drawn from; the last ones are in progress."""
        return self._layout()[0]

    @property
    def start(self) -> np.ndarray:
        """(E + 1,) the first row of each; an episode of T steps has T + 1 rows."""
        start = self._layout()[1][self._oldest :]
        return start - start[0]

    def gather(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The rows (B, L) of each column; see `Episodes.gather`.

        Raises:
            ArtifactError: if a shard is missing or damaged.
        """
        with self._lock:
            kind, first = self._kind(), self._layout()[1][self._oldest]
            assert kind is not None, "no rows, nothing to gather"
            out = empty(rows.shape, *kind, self._actions)
            gather(self._read, out, rows + first)
            return out

    def state(self) -> dict[str, Any]:
        """A tree to be saved, and given to `restore` after a kill: what is in no shard yet."""
        with self._lock:
            self._finished.settle(self._oldest)
            loose, cuts = self._finished.loose()
            return {
                "episodes": self._finished.durable,
                "hash": shards.hash_of(self._finished.disk.digests),
                "cuts": cuts,
                "finished": pack(loose),
                "slots": np.array(list(self._playing), np.int64),
                "playing": pack([track.episode() for track in self._playing.values()]),
            }

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Go back to a state; to be called before anything is recorded. Shards that were written since are removed.

        Raises:
            ArtifactError: if the other shards are not those that the state was saved with.
        """
        names = [name for name in shards.scan(self.folder) if name.first < tree["episodes"]]
        digests = [files.digest(self.folder / name.file, role=shards.ROLE) for name in names]
        if shards.hash_of(digests) != tree["hash"]:
            raise ArtifactError(
                f"{self.folder} does not hold the {tree['episodes']} episodes that the run was saved with: put its "
                "shards back, or begin in another --logdir"
            )
        with self._lock:
            self._finished.disk.close()
            self._open(names)  # looks at them, and may refuse
            drop_later(self.folder, names)
            borders = (self._finished.durable + np.cumsum(tree["cuts"], dtype=np.int64)).tolist()
            for number, episode in enumerate(unpack(tree["finished"]), self._finished.durable + 1):
                self._finished.keep(episode)
                if number in borders:
                    self._finished.cut()
            self._playing = {slot: Track(episode) for slot, episode in playing_in(tree).items()}
            self._live = sum(self._finished.lengths) + sum(track.steps for track in self._playing.values())
            self._oldest = 0
            self._forget()

    def flush(self) -> Index | None:
        """Write all finished episodes to the disk, and the list of shards, so that the folder is a complete dataset.

        Returns:
            The list; None if no episode has ended yet.

        Raises:
            ArtifactError: if something could not be written.
        """
        with self._lock:
            self._finished.cut()
            self._writer.wait()
            self._forget()
        return shards.complete(self.folder) if self._finished.lengths else None

    def close(self) -> None:
        """Finish writing what was begun, and let the folder go. What no shard holds is in the last saved state.

        Raises:
            ArtifactError: if something could not be written.
        """
        try:
            self._stack.close()
        finally:
            self._finished.disk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with contextlib.suppress(*([ArtifactError] if error else [])):  # the first error is the one to be told
            self.close()

    def _kind(self) -> tuple[tuple[int, ...], np.dtype] | None:
        """Shape and type of observations."""
        if self._finished.kind or not self._playing:
            return self._finished.kind
        obs = next(iter(self._playing.values())).episode().obs
        return obs.shape[1:], obs.dtype

    def _forget(self) -> None:
        """Leave out the oldest episodes beyond the capacity, after any change."""
        lengths = self._finished.lengths
        while self.capacity and self._oldest < len(lengths) and self._live > self.capacity:
            self._live -= lengths[self._oldest]
            self._oldest += 1
        self._finished.settle(self._oldest)
        self._cached: tuple[np.ndarray, np.ndarray] | None = None

    def _layout(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps of the episodes that are drawn from, and the first row of every episode there ever was."""
        with self._lock:
            if self._cached is None:
                playing = np.array([track.steps for track in self._playing.values()], np.int64)
                lengths = np.concatenate([np.array(self._finished.lengths, np.int64), playing])
                start = np.concatenate([[0], np.cumsum(lengths + 1)])
                self._cached = lengths[self._oldest :], start
            return self._cached

    def _read(self, out: dict[str, np.ndarray], first: int, last: int) -> None:
        """Fill the first rows of each column with the rows [first, last) of all there ever were."""
        start, done = self._layout()[1], len(self._finished.lengths)
        tracks = list(self._playing.values())
        border = int(start[self._finished.kept])
        if first < border:
            self._finished.disk.read(out, first, min(last, border))
        at = max(first, border)
        while at < last:
            number = int(np.searchsorted(start, at, "right")) - 1
            base, end = int(start[number]), min(last, int(start[number + 1]))
            episode = self._finished.recent(number) if number < done else tracks[number - done].episode()
            for name in COLUMNS:
                out[name][at - first : end - first] = getattr(episode, name)[at - base : end - base]
            at = end
