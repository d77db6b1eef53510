"""What all rows share: a folder, a dataset, a trained world model, stages run in this process, and the yardsticks."""

import contextlib
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from wmrl import artifact, pipeline
from wmrl.log import Log
from wmrl.pipeline import Pipeline
from wmrl.run import Run, cores
from wmrl.stages.generate import generate
from wmrl.stages.train_dynamics import train_dynamics
from wmrl.stages.train_vae import train_vae
from wmrl.store import Store


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: What was measured.
        measured: The number.
        target: What it is held against, if anything.
        at_most: Whether the target is an upper bound.
        unit: Of both; "" for a ratio.
        detail: What the number comes from.
    """

    name: str
    measured: float
    target: float | None = None
    at_most: bool = False
    unit: str = ""
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether the target is met, if there is one."""
        if self.target is None:
            return True
        return self.measured <= self.target if self.at_most else self.measured >= self.target


@dataclass
class Bench:
    """One run of the benchmark.

    Args:
        folder: Where everything is written.
        quick: Measure for a fraction of the time.
        gflops: All measurements of the matrix product, GFLOP/s, by type.
    """

    folder: Path
    quick: bool = False
    gflops: dict[str, list[float]] = field(default_factory=lambda: {"fp32": [], "bf16": []})

    def amount(self, full: int, quick: int) -> int:
        """How much of something: steps, episodes."""
        return quick if self.quick else full

    def note(self, text: str) -> None:
        """Tell what is going on."""
        print(f"  {text}", flush=True)

    def machine(self) -> str:
        """Measure the matrix product once more; the result, in words."""
        found = {"fp32": _product(torch.float32), "bf16": _product(torch.bfloat16)}
        for kind, value in found.items():
            self.gflops[kind].append(value)
        return ", ".join(f"{value:.0f} GFLOP/s {kind}" for kind, value in found.items())

    def pipe(self, *sets: str, data: Path | None = None) -> Pipeline:
        """The published experiment with overrides, on the benchmark's dataset."""
        where = [f"data={json.dumps(str(data))}"] if data else []
        return pipeline.load("carracing-mdnrnn", [*where, *sets])

    def stage(self, run: Callable[..., None], name: str, logdir: Path, pipe: Pipeline, **settings: Any) -> list[dict]:
        """Run a stage in this process; the rows of metrics that it wrote."""
        path = logdir / "metrics" / f"{name}.jsonl"
        path.unlink(missing_ok=True)
        with contextlib.redirect_stdout(io.StringIO()), Log.quiet(name, logdir) as log:
            run(pipe, Store(logdir, pipe), log, Run(threads=cores(), **settings))
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @cached_property
    def data(self) -> Path:
        """A dataset of whole CarRacing episodes."""
        folder, rollouts = self.folder / "carracing", self.amount(32, 8)
        self.note(f"generating {rollouts} episodes")
        self.stage(generate, "generate", self.folder, self.pipe(f"generate.rollouts={rollouts}", data=folder))
        return folder

    @cached_property
    def world(self) -> Path:
        """A logdir with a V and an M that were trained for a moment: enough to walk and to dream at full speed."""
        logdir = self.folder / "world"
        self.note("training a world model for a moment")
        sets = ["fit.vae.steps=20", "fit.vae.validation_batches=1", "fit.dynamics.steps=150"]
        pipe = self.pipe(*sets, "fit.dynamics.validation_batches=1", data=self.data)
        self.stage(train_vae, "train-vae", logdir, pipe)
        self.stage(train_dynamics, "train-dynamics", logdir, pipe)
        return logdir

    def precision(self, logdir: Path, name: str) -> str:
        """The precision that a training chose."""
        return str(artifact.read(logdir / f"{name}.h5", name).facts["fit"]["precision"])


def rate(rows: Sequence[dict], key: str) -> float:
    """The median of a rate over the intervals of a run, the first one left out: caches and threads warm up."""
    values = [row[key] for row in rows if key in row]
    return statistics.median(values[1:] if len(values) > 1 else values)


def middle(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def _product(kind: torch.dtype, size: int = 1536, seconds: float = 0.4) -> float:
    a, b = torch.randn(size, size).to(kind), torch.randn(size, size).to(kind)
    a @ b
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        a @ b
        count += 1
    return count * 2 * size**3 / (time.perf_counter() - began) / 1e9
