"""Where metrics and pictures go: JSON lines always, TensorBoard when installed, a tracker when asked for.

Every sink has the same four methods. `Guarded` wraps one so that a sink that fails warns once and is left out:
losing a curve must never cost a run.
"""

import contextlib
import importlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wmrl import files
from wmrl.errors import ArtifactError

Record = Mapping[str, float]
STEP = "global_step"
"""Where a line of metrics stands: gradient steps of a model, environment (or dreamt) steps of a controller."""


class Sink(Protocol):
    """One receiver of metrics and pictures."""

    def metrics(self, step: int, values: Record) -> None:
        """Take the metrics of one step."""

    def image(self, name: str, step: int, picture: np.ndarray) -> None:
        """Take one picture, (H, W, 3) uint8, RGB."""

    def rewind(self, step: int) -> None:
        """Forget metrics of later steps than `step`: a run was taken up again from there."""

    def close(self) -> None:
        """Write what is pending and let go."""


class Guarded:
    """A sink that cannot stop a run: made at its first use; its first failure is told once and ends it."""

    def __init__(self, name: str, make: Callable[[], Sink], warn: Callable[[str], None]) -> None:
        self.name, self._make, self._warn = name, make, warn
        self._sink: Sink | None = None
        self._dead = False
        self._rewound: int | None = None

    def metrics(self, step: int, values: Record) -> None:
        """Pass the metrics on, if the sink still lives."""
        self._call("metrics", step, values)

    def image(self, name: str, step: int, picture: np.ndarray) -> None:
        """Pass the picture on, if the sink still lives."""
        self._call("image", name, step, picture)

    def rewind(self, step: int) -> None:
        """Rewind an open sink now, and one that is not open yet when it opens."""
        self._rewound = step
        if self._sink is not None:
            self._call("rewind", step)

    def close(self) -> None:
        """Close the sink if it was ever used."""
        if self._sink is not None:
            self._call("close")
        self._dead = True

    def _call(self, method: str, *args: Any) -> None:
        if self._dead:
            return
        try:
            with contextlib.redirect_stdout(sys.stderr):  # trackers chat, and stdout is for results
                if self._sink is None:
                    self._sink = self._make()
                    if self._rewound is not None:
                        self._sink.rewind(self._rewound)
                getattr(self._sink, method)(*args)
        except Exception as error:  # noqa: BLE001  a sink is foreign code: whatever it raises, the run goes on without it
            self._dead = True
            self._warn(f"{self.name} failed and is left out from here on: {type(error).__name__}: {error}")


class Jsonl:
    """Metrics as one JSON object per line, `{"global_step": 3, "time": ..., "loss": 0.5}`; flushed line by line.

    A last line that a killed process left half written is cut off when the file is opened.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path, self._clock = path, clock
        path.parent.mkdir(parents=True, exist_ok=True)
        _mend(path)
        self._file = path.open("a", encoding="utf-8")

    def metrics(self, step: int, values: Record) -> None:
        """Append one line."""
        record = {STEP: step, "time": round(self._clock(), 3)} | {k: _plain(v) for k, v in values.items()}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def image(self, name: str, step: int, picture: np.ndarray) -> None:
        """Pictures are files of their own; nothing to do."""

    def rewind(self, step: int) -> None:
        """Drop the lines of later steps; the file is replaced in one step."""
        self._file.close()
        kept = [line for line, record in _lines(self._path) if record and record[STEP] <= step]
        files.atomic_text(self._path, "".join(line + "\n" for line in kept))
        self._file = self._path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files for TensorBoard, in `LOGDIR/tb/<stage>`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer = self._open()

    def _open(self, **options: Any) -> Any:
        module = importlib.import_module("torch.utils.tensorboard")
        return module.SummaryWriter(str(self._folder), **options)

    def metrics(self, step: int, values: Record) -> None:
        """Add one scalar per metric."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, name: str, step: int, picture: np.ndarray) -> None:
        """Add one picture."""
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def rewind(self, step: int) -> None:
        """Tell TensorBoard to hide later steps."""
        self._writer.close()
        self._writer = self._open(purge_step=step + 1)

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


class Wandb:
    """Weights & Biases; offline unless WANDB_MODE says otherwise."""

    def __init__(self, stage: str, logdir: Path) -> None:
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_SILENT", "true")
        self._wandb = importlib.import_module("wandb")
        name = "-".join([*logdir.resolve().parts[-2:], stage])
        self._run = self._wandb.init(project="wmrl", name=name, dir=str(logdir))

    def metrics(self, step: int, values: Record) -> None:
        """Log the metrics of one step."""
        self._run.log(dict(values) | {"global_step": step}, step=step)

    def image(self, name: str, step: int, picture: np.ndarray) -> None:
        """Log one picture."""
        self._run.log({name: self._wandb.Image(picture)}, step=step)

    def rewind(self, step: int) -> None:
        """A run taken up again is a run of its own there; nothing to do."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Trackio:
    """Trackio: local, no account."""

    def __init__(self, stage: str, logdir: Path) -> None:
        self._trackio = importlib.import_module("trackio")
        self._trackio.init(project="wmrl", name="-".join([*logdir.resolve().parts[-2:], stage]))

    def metrics(self, step: int, values: Record) -> None:
        """Log the metrics of one step."""
        self._trackio.log(dict(values), step=step)

    def image(self, name: str, step: int, picture: np.ndarray) -> None:
        """Log one picture."""
        self._trackio.log({name: self._trackio.Image(picture)}, step=step)

    def rewind(self, step: int) -> None:
        """A run taken up again is a run of its own there; nothing to do."""

    def close(self) -> None:
        """Finish the run."""
        self._trackio.finish()


TRACKERS: dict[str, Callable[[str, Path], Sink]] = {"wandb": Wandb, "trackio": Trackio}


def installed(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def read_metrics(path: Path, warn: Callable[[str], None] | None = None) -> list[dict[str, float]]:
    """The records of a metrics file, oldest first; what is no record is left out, as a half-written last line is.

    Args:
        path: The file; one that is not there has no records.
        warn: Is told how many whole lines were left out, if any.

    Raises:
        ArtifactError: if the file cannot be read.
    """
    try:
        records = [record for _, record in _lines(path)]
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    kept = [record for record in records if record]
    if warn is not None and len(kept) < len(records):
        first, left = records.index({}) + 1, len(records) - len(kept)
        warn(f"{path}: {left} of {len(records)} lines are no metrics and left out, line {first} the first")
    return kept


def _plain(value: float) -> float | str:
    """A number as JSON has it; NaN and the infinities, which it has not, as text that `float` reads back."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _lines(path: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """The complete lines of a file and their records."""
    with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.endswith("\n"):
                yield line.rstrip("\n"), _record(line)


def _record(line: str) -> dict[str, float]:
    """The numbers of a line; none of one that is damaged."""
    try:
        record = {name: float(value) for name, value in json.loads(line).items()}
    except (ValueError, TypeError, AttributeError, OverflowError):
        return {}
    return record if math.isfinite(record.get(STEP, math.nan)) else {}


def _mend(path: Path) -> None:
    """Cut off what stands after the last line end."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
