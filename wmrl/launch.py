"""Run one stage: device, log, lock, and the call itself."""

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wmrl import artifact, files, session
from wmrl.agreement import check_components
from wmrl.errors import ConfigError, Stopped
from wmrl.locking import lock
from wmrl.log import Log
from wmrl.run import Run, cores, device
from wmrl.session import Session
from wmrl.sources import STORED
from wmrl.store import MAKERS, Store


def launch(
    name: str,
    target: str,
    bound: Session,
    common: Mapping[str, Any],
    settings: Mapping[str, Any],
    options: Callable[[], Any] | None,
    *,
    writes: str | None,
) -> None:
    """Run the stage `target` ("module:function").

    Args:
        name: The stage's name in logs.
        target: Where the stage's function is.
        bound: The pipeline and the logdir.
        common: The options that every stage has.
        settings: Fields of `Run` that the command sets.
        options: Makes the stage's further argument, if it takes one.
        writes: The artifact that the stage makes, if it makes a part of the run: then the overrides of this call hold
            for later ones, and `--noreload` forgets its training state.

    Raises:
        UserError: whatever the stage raises.
    """
    module, _, function = target.partition(":")
    run, pipe, logdir = _settings(common, settings), bound.pipe, bound.logdir
    store = Store(logdir, pipe)
    check_components(pipe)
    _leave_to_iterate(store, writes, anew=run.noreload)
    verbosity = int(common["verbose"]) - int(common["quiet"])
    bar = False if common["no_progress"] else (True if run.display else None)
    with lock(logdir):
        files.sweep(logdir, "codes", "images", "metrics", "videos")
        with (
            _binding(store, bound.sets, writes, anew=run.noreload),
            Log(name, logdir, progress=bar, verbosity=verbosity, as_json=run.json, track=common["track"]) as log,
        ):
            stage = getattr(importlib.import_module(module), function)
            more = () if options is None else (options(),)
            stage(pipe, store, log, run, *more)


def _leave_to_iterate(store: Store, writes: str | None, *, anew: bool) -> None:
    """Models that are trained in iterations are not trained on by a single stage: what it did would end the iterations.

    Raises:
        ConfigError: if this call would.
    """
    if writes in MAKERS and not anew and any(store.part(name).exists() for name in ("iterate", "online")):
        raise ConfigError(
            f"{store.logdir} is iterated: wmrl iterate trains its models, and more --iterations train them on; "
            "take another --logdir for this stage, or replace what it made with --noreload, which ends the iterations"
        )


@contextlib.contextmanager
def _binding(store: Store, sets: Sequence[str], writes: str | None, *, anew: bool) -> Iterator[None]:
    """Let this call's settings hold in the logdir, and `--noreload` forget the training state there.

    Both are taken back if the stage refuses the call before it has kept anything: bad input damages nothing.
    """
    touched = [store.logdir / STORED, session.LAST, *([store.part(writes)] if writes and anew else [])]
    undo = _undo(touched)
    if writes and not anew and store.exists(writes):
        artifact.read(store.path(writes), writes)  # a damaged one is told now, and not after hours
    if writes and anew:
        store.begin_anew(writes)  # first: new settings beside an old training state would be mixed
    if writes or not (store.logdir / STORED).exists():
        store.remember(sets)
    session.remember(store.logdir)
    before = _kept(store)
    try:
        yield
    except Stopped:
        raise
    except Exception:
        if _kept(store) == before:
            undo()
        raise
    if writes and store.anew(writes):
        store.drop_part(writes)  # a stage that has nothing to train keeps no state


def _kept(store: Store) -> dict[Path, int]:
    """What there is, and since when."""
    return {path: path.stat().st_mtime_ns for path in (*store.logdir.glob("*.h5"), *store.data.glob("*.h5"))}


def _undo(paths: Iterable[Path]) -> Callable[[], None]:
    """What brings files back to what they are now, or are not."""
    old = {path: path.read_bytes() if path.is_file() else None for path in paths}

    def undo() -> None:
        for path, data in old.items():
            if data is None:
                path.unlink(missing_ok=True)
            else:
                files.atomic_bytes(path, data)

    return undo


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
        device=device(common["device"]),
        precision=common["precision"],
        threads=threads,
        json=common["json"],
        **settings,
    )
