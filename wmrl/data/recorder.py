"""From steps to shards: episodes are recorded while they are played, and written by a thread of its own."""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from wmrl.data import parts, shards
from wmrl.data.parts import Part
from wmrl.data.shards import Episode, Name

_OUTCOME = ("reward", "terminated", "truncated")


class Recorder:
    """Keeps one wave of episodes; the `on_step` of `wmrl.rollout.play`.

    Args:
        seeds: (N,) of the wave's episodes.
        finished: Called with (row, episode) as soon as an episode ends.
        max_steps: The longest episode, if known; otherwise buffers grow.
    """

    def __init__(self, seeds: Sequence[int], finished: Callable[[int, Episode], None], max_steps: int | None = None):
        self.seeds, self.finished = seeds, finished
        self._t = 0
        self._rows = (max_steps or 255) + 1
        self._columns: dict[str, np.ndarray] = {}

    def __call__(self, ids: np.ndarray, obs: np.ndarray, action: np.ndarray, outcome: Any) -> None:
        """Record a step of the rows `ids` (K,): at `obs` they took `action`, which led to `outcome`."""
        if not self._columns:
            self._columns = self._allocate(obs, action)
            self._columns["obs"][ids, 0] = obs
        if self._t + 2 > self._rows:
            self._grow()
        self._columns["action"][ids, self._t] = action
        for name in _OUTCOME:
            self._columns[name][ids, self._t] = getattr(outcome, name)
        self._t += 1
        self._columns["obs"][ids, self._t] = outcome.obs
        for row in ids[outcome.terminated | outcome.truncated]:
            self.finished(int(row), self._episode(int(row)))

    def _allocate(self, obs: np.ndarray, action: np.ndarray) -> dict[str, np.ndarray]:
        lead = (len(self.seeds), self._rows)
        return {
            "obs": np.empty((*lead, *obs.shape[1:]), obs.dtype),
            "action": np.zeros((*lead, *action.shape[1:]), np.float32),
            "reward": np.zeros(lead, np.float32),
            "terminated": np.zeros(lead, np.bool_),
            "truncated": np.zeros(lead, np.bool_),
        }

    def _grow(self) -> None:
        for name, column in self._columns.items():
            more = np.zeros_like(column) if name != "obs" else np.empty_like(column)
            self._columns[name] = np.concatenate([column, more], 1)
        self._rows *= 2

    def _episode(self, row: int) -> Episode:
        end = self._t + 1
        return Episode(**{k: column[row, :end] for k, column in self._columns.items()}, seed=int(self.seeds[row]))


KEEP_AFTER = 20.0
"""Seconds after which a finished episode is kept in a file of its own if its shard is still not whole."""


class Writer:
    """Collects episodes and writes each shard as soon as it is whole, in a background thread; a context manager.

    Episodes that wait for their shard are kept beside it (see `wmrl.data.parts`): by `tick`, and when an error or a
    signal ends the work. An error of the thread is raised by the next `add`, or on leaving.

    Args:
        folder: The dataset.
        names: The shards to make.
        meta: What each of them stores about its making.
        begun: Episodes of these shards that are there already.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[Name],
        meta: dict[str, Any],
        begun: Mapping[Name, Mapping[int, Episode]] | None = None,
    ):
        self.folder, self.meta = folder, meta
        self._shard = {number: name for name in names for number in range(name.first, name.first + name.count)}
        self._parts = {name: dict(part) for name, part in (begun or {}).items()}
        self._written = {name: len(part) for name, part in self._parts.items()}
        self._waiting: dict[Name, float] = {}  # since when the oldest episode that is in no file waits
        self._queue: queue.Queue[tuple[Name, Part] | None] = queue.Queue(2)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="shards", daemon=True)

    def add(self, number: int, episode: Episode) -> None:
        """Take episode `number`; if no shard wants it, it is dropped.

        Raises:
            ArtifactError: if an earlier shard could not be written.
        """
        self._raise()
        name = self._shard.get(number)
        if name is None:
            return
        part = self._parts.setdefault(name, {})
        part[number] = episode
        self._waiting.setdefault(name, time.monotonic())
        if len(part) == name.count:
            for i in part:
                del self._shard[i]
            self._hand_over(name)
            del self._parts[name]

    def shard(self, first: int, episodes: Sequence[Episode]) -> Name:
        """Take a whole shard, which begins with episode `first`; waits while two others are waiting.

        Raises:
            ArtifactError: if an earlier shard could not be written.
        """
        self._raise()
        name = Name(first, len(episodes))
        self._queue.put((name, dict(enumerate(episodes, first))))
        return name

    def has(self, name: Name) -> bool:
        """Whether this shard is on the disk."""
        return self._written.get(name) == name.count

    def wait(self) -> None:
        """Wait until all that was handed over is on the disk.

        Raises:
            ArtifactError: if it could not be written.
        """
        self._queue.join()
        self._raise()

    @property
    def written(self) -> int:
        """Episodes of these shards that are on the disk."""
        return sum(self._written.values())

    @property
    def error(self) -> BaseException | None:
        """What went wrong with writing, if anything."""
        return self._error

    def tick(self) -> None:
        """Keep what has waited long; to be called now and then."""
        now = time.monotonic()
        for name, since in list(self._waiting.items()):
            if now - since > KEEP_AFTER:
                self._hand_over(name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._waiting):
            self._hand_over(name)
        self._queue.put(None)
        self._thread.join()
        if error is None:
            self._raise()

    def _hand_over(self, name: Name) -> None:
        """Let the thread write what there is of a shard."""
        self._waiting.pop(name, None)
        self._queue.put((name, dict(self._parts[name])))

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                if self._error is None:
                    self._write(*job)
            except BaseException as error:  # noqa: BLE001  raised again in the caller
                self._error = error
            job = None
            self._queue.task_done()

    def _write(self, name: Name, part: Part) -> None:
        if len(part) < name.count:
            parts.save(self.folder, name, part, self.meta)
        else:
            shards.write_shard(self.folder, name.first, [part[i] for i in sorted(part)], self.meta)
            parts.remove(self.folder, name)
        self._written[name] = len(part)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
