"""What a stage says: words and progress on stderr, results on stdout, metrics and pictures into the logdir.

Everything that stderr shows also stands, line by line and flushed, in `LOGDIR/logs/<stage>.log`.
"""

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np

from wmrl.errors import ConfigError, UserError, missing_extra
from wmrl.progress import Bar, Meter, Plain, wants_bar
from wmrl.sinks import TRACKERS, Guarded, Jsonl, TensorBoard, installed

SCHEMA_VERSION = 1


class Tee:
    """A text stream that writes to another one and to the log file: foreign tracebacks and warnings are kept."""

    def __init__(self, stream: TextIO, bar: Bar | Plain, keep: Callable[[str], None]) -> None:
        self._stream, self._bar, self._keep, self._pending = stream, bar, keep, ""

    def write(self, text: str) -> int:
        """Show the text (at once, or by whole lines above a bar) and keep it, line by line, in the log file."""
        *lines, self._pending = (self._pending + text).split("\n")
        if self._bar.live:
            for line in lines:
                self._bar.print(line, self._stream)
        else:
            self._stream.write(text)
        for line in lines:
            self._keep(line)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Log:
    """One stage's messages, progress, metrics and pictures; a context manager.

    Args:
        stage: Name of the stage, as on the command line (`train-vae`).
        logdir: Folder of the run; `logs/`, `metrics/`, `images/` are made inside it.
        progress: Whether to draw a bar; None: when stderr is a terminal that can (not TERM=dumb, not in CI).
        verbosity: -1 shows warnings only, 0 is normal, 1 shows details too. The log file always has everything.
        as_json: Whether stdout carries one JSON object and nothing else.
        track: A further tracker, `wandb` or `trackio`, or None.
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
    ) -> None:
        self.stage, self.logdir = stage, Path(logdir)
        self.as_json, self.verbosity = as_json, verbosity
        self._stderr: TextIO = sys.stderr
        self._tee: Tee | None = None
        self._lock = threading.RLock()
        path = self.logdir / "logs" / f"{stage}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)
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

    silent = quiet

    def __enter__(self) -> Self:
        self._tee = Tee(self._stderr, self._bar, self.keep)
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
        """End the bar, write what is pending, give stderr back."""
        self._bar.close()
        for sink in self._sinks:
            sink.close()
        if sys.stderr is self._tee:
            sys.stderr = self._stderr
        with contextlib.suppress(ValueError):
            self._file.flush()

    def keep(self, text: str) -> None:
        """Write a line to the log file only."""
        with self._lock:
            if not self._file.closed:
                self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
                self._file.flush()

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
        if self.as_json:
            self.say(text)
        else:
            self._bar.close()
            _print(text)

    def result(self, values: Mapping[str, Any]) -> None:
        """Print one JSON object with its schema version on stdout, if `--json` was given."""
        if self.as_json:
            self._bar.close()
            _print(json.dumps({"schema_version": SCHEMA_VERSION, **values}, default=_json))

    def progress(self, done: float, total: float, unit: str = "steps", note: str = "") -> None:
        """Show how far the stage is, with rate and time left.

        Args:
            done: What is done, in units; less than before begins a new bar.
            total: What there is to do.
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
        import cv2

        path = self.logdir / "images" / self.stage / f"{name}-{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        ok, data = cv2.imencode(".png", np.ascontiguousarray(picture[:, :, ::-1]))
        if not ok:
            self.warn(f"could not encode the picture {path}")
            return
        beside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        beside.write_bytes(data.tobytes())
        beside.replace(path)
        for sink in self._sinks:
            sink.image(name, step, picture)

    def rewind(self, step: int) -> None:
        """Drop the metrics of later steps than `step`, after a resume; -1 drops all."""
        for sink in self._sinks:
            sink.rewind(step)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _json(value: Any) -> Any:
    """Numbers and arrays of numpy and torch, and paths, as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
