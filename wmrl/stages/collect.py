"""Play the episodes that a dataset lacks, in waves, and hand them to the writer."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wmrl import seeding
from wmrl.data.estimate import Estimate
from wmrl.data.parts import Part
from wmrl.data.recorder import Recorder, Writer
from wmrl.data.shards import Episode, Name
from wmrl.errors import Stopped
from wmrl.log import Log
from wmrl.protocols import Actor
from wmrl.rollout import play

PROGRESS_SECONDS = 0.5
WAVE_SECONDS = 40.0
Lane = tuple[Any, Actor]
"""An environment and what acts in it."""


class _Abandoned(Exception):
    """Another lane has failed."""


@dataclass
class Job:
    """What is to be played and written.

    Args:
        folder: The dataset.
        names: The shards to make.
        total: Number of episodes that there shall be.
        seed: The pipeline's.
        environments: Most episodes at a time, over all lanes.
        fixed: Whether waves are the same whatever was made before, and replayed whole (a controller's are).
        max_steps: Of an episode; None if unknown.
        begun: Episodes of shards in the making that are there already.
        first: Number of the first episode of this collection: fixed waves are counted from it.
    """

    folder: Path
    names: Sequence[Name]
    total: int
    seed: int
    environments: int
    fixed: bool
    max_steps: int | None
    begun: Mapping[Name, Part] = field(default_factory=dict)
    first: int = 0
    steps: int = 0
    finished: int = 0  # replayed ones too, as `steps`
    finished_steps: int = 0
    made: int = 0  # of those that were to be made
    to_play: int = 0  # episodes of all waves
    _lock: Any = field(default_factory=threading.Lock)
    _error: BaseException | None = None
    _shown: float = 0.0

    def __post_init__(self) -> None:
        there = {number for part in self.begun.values() for number in part}
        wanted = (i for name in self.names for i in range(name.first, name.first + name.count))
        self.todo = [i for i in wanted if i not in there]

    def waves(self, lanes: int) -> list[list[int]]:
        """The numbers of the episodes that are played together: as many waves for each lane, about equally large."""
        n = self.environments
        if self.fixed:
            begins = sorted({self.first + (i - self.first) // n * n for i in self.todo})
            return [list(range(begin, min(begin + n, self.total))) for begin in begins]
        each = n // lanes
        count = lanes * -(-len(self.todo) // (lanes * each))
        size = -(-len(self.todo) // count)
        return [self.todo[i : i + size] for i in range(0, len(self.todo), size)]

    def slow_down(self, guess: Estimate, threads: int) -> None:
        """Play so few episodes at a time that they end within `WAVE_SECONDS`: that is what a kill may cost."""
        if not self.fixed and guess.seconds:
            longest = guess.steps / len(self.todo)
            in_time = int(WAVE_SECONDS * guess.steps / guess.seconds / longest)
            self.environments = min(self.environments, max(threads, in_time))

    def seeds(self, numbers: Sequence[int]) -> list[int]:
        """The seeds of episodes."""
        return [seeding.number(self.seed, "episode", i) for i in numbers]

    def work(self, lanes: Sequence[Lane], meta: dict[str, Any], log: Log) -> None:
        """Play all waves, in as many threads as there are lanes.

        Args:
            lanes: Where waves are played, side by side.
            meta: What every shard says of its making.
            log: For progress.

        Raises:
            Stopped: after a signal.
            ArtifactError: if a shard cannot be written.
        """
        waves = self.waves(len(lanes))[::-1]
        self.to_play = sum(map(len, waves))
        writer = Writer(self.folder, self.names, meta, self.begun)
        try:
            with writer:
                self._play(lanes, waves, writer, log)
        except Stopped:
            have = self.total - sum(name.count for name in self.names) + writer.written
            if writer.error is not None:
                log.warn(f"not all could be written: {writer.error}")
            log.say(f"stopped: {have} of {self.total} episodes are on disk; the same command continues")
            raise
        log.progress(self.steps, self.steps, "steps", f"{self.total} of {self.total} episodes")

    def _play(self, lanes: Sequence[Lane], waves: list[list[int]], writer: Writer, log: Log) -> None:
        """The first lane in this thread, the others beside it; all end before the first error is raised."""
        others = [threading.Thread(target=self._lane, args=(lane, waves, writer, log)) for lane in lanes[1:]]
        try:
            for thread in others:
                thread.start()
            self._lane(lanes[0], waves, writer, log)
            for thread in others:
                thread.join()
        except BaseException as error:  # noqa: BLE001  raised again below
            self._error = self._error or error
            for thread in others:
                thread.join()
        if self._error is not None:
            raise self._error

    def _lane(self, lane: Lane, waves: list[list[int]], writer: Writer, log: Log) -> None:
        """Play waves until none is left; the first error of any lane ends all."""
        try:
            while waves and self._error is None:
                try:
                    numbers = waves.pop()
                except IndexError:
                    return
                self._wave(lane, numbers, writer, log)
        except _Abandoned:
            return
        except BaseException as error:  # noqa: BLE001  raised again by `work`
            self._error = self._error or error

    def _wave(self, lane: Lane, numbers: Sequence[int], writer: Writer, log: Log) -> None:
        todo = set(self.todo)

        def finished(row: int, episode: Episode) -> None:
            with self._lock:
                self.finished += 1
                self.made += numbers[row] in todo
                self.finished_steps += len(episode.reward) - 1
                writer.add(numbers[row], episode)

        seeds = self.seeds(numbers)
        recorder = Recorder(seeds, finished, self.max_steps)

        def on_step(ids: np.ndarray, obs: np.ndarray, action: np.ndarray, outcome: Any) -> None:
            if self._error is not None:
                raise _Abandoned
            recorder(ids, obs, action, outcome)
            self._count(len(ids), log)
            with self._lock:
                writer.tick()

        env, actor = lane
        play(env, actor, seeds, on_step=on_step)

    def _count(self, steps: int, log: Log) -> None:
        with self._lock:
            self.steps += steps
            now = time.monotonic()
            if now - self._shown < PROGRESS_SECONDS:
                return
            self._shown = now
            each = self.finished_steps / self.finished if self.finished else float(self.max_steps or 1000)
            note = f"{self.total - len(self.todo) + self.made} of {self.total} episodes"
            log.progress(self.steps, max(self.steps, round(each * self.to_play)), "steps", note)
