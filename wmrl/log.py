"""What a stage says: words and progress on stderr, results on stdout, metrics and pictures into the logdir.

Everything that stderr shows also stands, line by line and flushed, in `LOGDIR/logs/<stage>.log`: what Python code and
the workers of environments say. What a C library writes to descriptor 2 of this very process is shown only.
"""

import contextlib
import json
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, cast

import numpy as np

from wmrl import files, stdout
from wmrl.errors import ArtifactError, ConfigError, UserError, missing_extra
from wmrl.progress import Bar, Meter, Plain, wants_bar
from wmrl.sinks import TRACKERS, Guarded, Jsonl, TensorBoard, installed
from wmrl.streams import Lasting, Tee

SCHEMA_VERSION = 1


class Log:
    """One stage's messages, progress, metrics and pictures; a context manager.

    Args:
        stage: Name of the stage, as on the command line (`train-vae`).
        logdir: Folder of the run; `logs/`, `metrics/`, `images/` are made inside it.
        progress: Whether to draw a bar; None: when stderr is a terminal that can (not TERM=dumb, not in CI).
        verbosity: -1 shows warnings only, 0 is normal, 1 shows details too. The log file always has everything.
        as_json: Whether stdout carries one JSON object and nothing else.
        track: A further tracker, `wandb` or `trackio`, or None.
        answers: Whether stdout carries results; a part of a larger stage leaves that to the whole.

    Raises:
        ArtifactError: if the log file cannot be written, or the tracker is not installed.
        ConfigError: if there is no such tracker.
    """

    def __init__(
        self,
        stage: str,
        logdir: Path | str,
        *,
        progress: bool | None = None,
        verbosity: int = 0,
        as_json: bool = False,
        track: str | None = None,
        answers: bool = True,
    ) -> None:
        self.stage, self.logdir = stage, Path(logdir)
        self.as_json, self.verbosity, self.answers = as_json, verbosity, answers
        self._how: dict[str, Any] = {"progress": progress, "verbosity": verbosity, "track": track}
        self._before = sys.stderr
        self._stderr = cast(TextIO, Lasting(self._before))
        self._tee: Tee | None = None
        self._lock = threading.RLock()
        path = self.logdir / "logs" / f"{stage}.log"
        self._file = _opened(path)
        self._meter = Meter()
        self._bar: Bar | Plain = Bar(self._stderr) if wants_bar(self._stderr, progress, verbosity) else Plain()
        self._sinks = [Guarded(name, make, self.warn) for name, make in self._choose(track)]

    def _choose(self, track: str | None) -> list[tuple[str, Any]]:
        stage, logdir = self.stage, self.logdir
        chosen: list[tuple[str, Any]] = [("metrics", lambda: Jsonl(logdir / "metrics" / f"{stage}.jsonl", time.time))]
        if self.verbosity > -2 and installed("tensorboard"):
            chosen.append(("tensorboard", lambda: TensorBoard(logdir / "tb" / stage)))
        if track is not None:
            if track not in TRACKERS:
                raise ConfigError(f"there is no tracker {track!r}; choose one of {', '.join(TRACKERS)}")
            if not installed(track):
                raise missing_extra(track)
            chosen.append((track, lambda: TRACKERS[track](stage, logdir)))
        return chosen

    @classmethod
    def quiet(cls, stage: str, logdir: Path | str) -> Self:
        """A log that shows nothing on stderr and keeps only files: for tests and for use as a library."""
        return cls(stage, logdir, progress=False, verbosity=-2)

    @contextlib.contextmanager
    def part(self, stage: str) -> "Iterator[Log]":
        """A log for a stage that is a part of this one: it has files of its own, and its results are words on stderr.

        While it is open, what Python code writes to stderr goes into its file and not into this log's.
        """
        self._bar.close()
        outer, sys.stderr = sys.stderr, self._before
        try:
            with Log(stage, self.logdir, answers=False, **self._how) as inner:
                yield inner
        finally:
            sys.stderr = outer

    def __enter__(self) -> Self:
        self._tee = Tee(self._stderr, self._bar, self.keep, self._lock)
        sys.stderr = self._tee
        self.keep(f"$ {' '.join(sys.argv)}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, UserError):
            self.keep(f"error: {error}")
        if error is not None:
            for line in "".join(traceback.format_exception(error)).rstrip().split("\n"):
                self.keep(line)
        self.close()

    def close(self) -> None:
        """End the bar, write what is pending, give stderr back, close the log file: what is told later is not kept."""
        try:
            self._bar.close()
            for sink in self._sinks:
                sink.close()
            if self._tee is not None:
                self._tee.finish()
        finally:
            if sys.stderr is self._tee:
                sys.stderr = self._before
            with self._lock:
                self._file.close()

    def keep(self, text: str) -> None:
        """Write a line to the log file only; if it takes no more, warn once and go on without it."""
        with self._lock:
            if self._file.closed:
                return
            try:
                self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
                self._file.flush()
            except OSError as error:  # as with metrics: losing the log must never cost a run
                with contextlib.suppress(OSError):  # it tries once more
                    self._file.close()
                self.warn(f"{self._file.name} cannot be written, and is not kept from here on: {error.strerror}")

    def say(self, text: str) -> None:
        """Tell the user something, on stderr."""
        self._show(text, 0)

    def detail(self, text: str) -> None:
        """Tell the user something that only `-v` shows."""
        self._show(text, 1)

    def warn(self, text: str) -> None:
        """Tell the user something that is wrong but does not stop the run."""
        self._show(f"warning: {text}", -1)

    def _show(self, text: str, level: int) -> None:
        with self._lock:
            for line in text.split("\n"):
                self.keep(line)
            if self.verbosity >= level:
                self._bar.print(text, self._stderr)

    def out(self, text: str) -> None:
        """Print a result on stdout; with `--json` it goes to stderr, because stdout holds one JSON object only."""
        if self.as_json or not self.answers:
            self.say(text)
        else:
            self._bar.close()
            stdout.write(text + "\n")

    def result(self, values: Mapping[str, Any]) -> None:
        """Print one JSON object with its schema version on stdout, if `--json` was given."""
        if self.as_json:
            self._bar.close()
            stdout.write(json.dumps({"schema_version": SCHEMA_VERSION, **values}, default=_json) + "\n")

    def progress(self, done: float, total: float, unit: str = "steps", note: str = "") -> None:
        """Show how far the stage is, with rate and time left.

        Args:
            done: What is done, in units; less than before begins a new bar.
            total: What there is to do; 0 if nobody knows.
            unit: What is counted.
            note: A few words behind it (the loss, the return).
        """
        with self._lock:
            text = self._meter.line(done, total, unit, note)
            if text is None:
                self._bar.update(done, total, unit, note, self._meter.speed(unit))
                return
            self.keep(text)
            if self._bar.update(done, total, unit, note, self._meter.speed(unit)) is False and self.verbosity >= 0:
                self._bar.print(text, self._stderr)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the metrics of one step to every sink.

        Args:
            step: The step they belong to.
            values: Name (`losses/nll`) to number, or to a tensor with one element.
        """
        plain = {name: float(value) for name, value in values.items()}
        with self._lock:
            for sink in self._sinks:
                sink.metrics(step, plain)

    def image(self, name: str, step: int, picture: np.ndarray) -> None:
        """Write a picture, (H, W, 3) uint8 RGB, to `LOGDIR/images/<stage>/<name>-<step>.png` and to every sink."""
        try:
            files.write_png(self.logdir / "images" / self.stage / f"{name}-{step:06d}.png", picture)
        except ArtifactError as error:  # as with metrics: losing a picture must never cost a run
            self.warn(str(error))
            return
        for sink in self._sinks:
            sink.image(name, step, picture)

    def rewind(self, step: int) -> None:
        """Drop the metrics of later steps than `step`, after a resume; -1 drops all."""
        for sink in self._sinks:
            sink.rewind(step)


def _opened(path: Path) -> TextIO:
    """The log file, to be written on."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        why = f"{path.parent} is a file" if path.parent.is_file() else error.strerror
        raise ArtifactError(f"{path} cannot be written: {why}") from error


def _json(value: Any) -> Any:
    """Numbers and arrays of numpy and torch, and paths, as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
