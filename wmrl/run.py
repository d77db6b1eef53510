"""How a stage is run, as opposed to what it computes: device, threads, time. Nothing here is part of a pipeline."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from wmrl.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device(asked: str, what: str = "--device") -> str:
    """The torch device that is meant by "auto", "cpu", "cuda" or "cuda:N".

    Args:
        asked: What was typed.
        what: What it was typed for, for messages.

    Raises:
        ConfigError: if there is no such device.
    """
    if asked == "cpu":
        return asked
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(asked)
    except RuntimeError:
        raise ConfigError(f"{what} is auto, cpu, cuda or cuda:N, not {asked!r}") from None
    if found.type not in ("cpu", "cuda"):
        raise ConfigError(f"{what} is auto, cpu, cuda or cuda:N, not {asked!r}")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{what} {asked}: this machine (or this build of torch) has no CUDA device")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"{what} {asked}: there are only {torch.cuda.device_count()} CUDA devices")
    return asked


@dataclass(frozen=True)
class Run:
    """The settings of one call of one stage.

    Args:
        device: A torch device: "cpu", "cuda", "cuda:1".
        precision: Arithmetic of training and of frame encoding: "auto" measures which is faster.
        threads: Environment threads or processes.
        minutes: A training stage ends after so many minutes; None for no limit.
        max_workers: At most so many environments are alive at once.
        noreload: Begin anew; the old artifact is replaced on completion only.
        untrained: `train-dynamics` saves a randomly initialised model.
        append: `generate` adds so many episodes with fresh seeds.
        display: Show the progress bar even where stderr is no terminal.
        json: Print one JSON object as the result.
        earlier: Models that were there before, parent's name -> content hashes: what was trained on one of them may be
            trained on with the one that is there now. No command sets it; `iterate` does, which moved them.
    """

    device: str = "cpu"
    precision: Precision = "auto"
    threads: int = field(default_factory=cores)
    minutes: float | None = None
    max_workers: int = 256
    noreload: bool = False
    untrained: bool = False
    append: int = 0
    display: bool = False
    json: bool = False
    earlier: Mapping[str, Sequence[str]] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def over(self) -> bool:
        """Whether the minutes of this run are spent."""
        return self.minutes is not None and time.monotonic() - self.began > 60 * self.minutes
