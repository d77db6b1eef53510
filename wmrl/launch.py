"""Run one stage: device, log, lock, and the call itself."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from wmrl import files
from wmrl.agreement import check_components
from wmrl.errors import ConfigError
from wmrl.log import Log
from wmrl.run import Run, cores
from wmrl.session import Session
from wmrl.sources import STORED
from wmrl.store import Store


def launch(
    name: str,
    target: str,
    session: Session,
    common: Mapping[str, Any],
    settings: Mapping[str, Any],
    options: Callable[[], Any] | None,
    *,
    keeps: bool,
) -> None:
    """Run the stage `target` ("module:function").

    Args:
        name: The stage's name in logs.
        target: Where the stage's function is.
        session: The pipeline and the logdir.
        common: The options that every stage has.
        settings: Fields of `Run` that the command sets.
        options: Makes the stage's further argument, if it takes one.
        keeps: Whether the overrides of this call shall hold for later ones: not if the stage makes no part of the run.

    Raises:
        UserError: whatever the stage raises.
    """
    module, _, function = target.partition(":")
    run, pipe, logdir = _settings(common, settings), session.pipe, session.logdir
    store = Store(logdir, pipe)
    check_components(pipe)
    with store.lock():
        files.sweep(logdir)
        if keeps or not (logdir / STORED).exists():
            store.remember(session.sets)
        verbosity = int(common["verbose"]) - int(common["quiet"])
        bar = False if common["no_progress"] else (True if run.display else None)
        with Log(name, logdir, progress=bar, verbosity=verbosity, as_json=run.json, track=common["track"]) as log:
            stage = getattr(importlib.import_module(module), function)
            more = () if options is None else (options(),)
            stage(pipe, store, log, run, *more)


def _settings(common: Mapping[str, Any], settings: Mapping[str, Any]) -> Run:
    if common["precision"] not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"--precision is auto, fp32 or bf16, not {common['precision']!r}")
    threads = common["threads"] if common["threads"] is not None else cores()
    for flag, value in {"--threads": threads, "--max-workers": settings.get("max_workers", 1)}.items():
        if value < 1:
            raise ConfigError(f"{flag} must be at least 1, got {value}")
    minutes, append = settings.get("minutes"), settings.get("append", 0)
    if minutes is not None and not minutes > 0:
        raise ConfigError(f"--minutes must be greater than 0, got {minutes:g}")
    if append < 0:
        raise ConfigError(f"--append must not be negative, got {append}")
    return Run(
        device=_device(common["device"]),
        precision=common["precision"],
        threads=threads,
        json=common["json"],
        **settings,
    )


def _device(asked: str) -> str:
    if asked == "cpu":
        return asked
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise ConfigError(f"--device is auto, cpu, cuda or cuda:N, not {asked!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {asked}: this machine (or this build of torch) has no CUDA device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {asked}: there are only {torch.cuda.device_count()} CUDA devices")
    return asked
