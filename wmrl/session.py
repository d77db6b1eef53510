"""From what was typed to what is run: which pipeline, which logdir, and do the two agree."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmrl import pipeline, sources
from wmrl.errors import ArtifactError, ConfigError
from wmrl.pipeline import Pipeline
from wmrl.sources import STORED, key_of, value_of

LAST = Path("runs", ".last")
"""Keeps the logdir used last, for a stage that is called without a pipeline and without a logdir."""


@dataclass(frozen=True)
class Asked:
    """What a command line says about the run.

    Args:
        pipeline: A name, a TOML file, a logdir, or None.
        logdir: `--logdir`, or None.
        data: `--data`, or None.
        sets: The `--set a.b=c` of the call.
        flags: Keys of the pipeline that have flags of their own; None where a flag was not given.
    """

    pipeline: str | None = None
    logdir: Path | None = None
    data: Path | None = None
    sets: tuple[str, ...] = ()
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Session:
    """What a call works on.

    Args:
        pipe: The pipeline, overrides applied.
        logdir: The run's folder.
        sets: The overrides of this call and of earlier ones in this logdir, as "a.b=c".
    """

    pipe: Pipeline
    logdir: Path
    sets: tuple[str, ...] = ()


def resolve(asked: Asked, *, writes: str | None = None, anew: bool = False) -> Session:
    """The pipeline and the logdir of a call.

    Without a pipeline, the one stored in the logdir holds; without both, the logdir used last, else the default.
    Overrides once given in a logdir hold for later calls there, except for a stage that begins anew.

    Args:
        asked: What was typed.
        writes: The artifact that the stage makes ("vae"), if any.
        anew: Whether the stage begins anew (`--noreload`).

    Raises:
        ConfigError: for an unknown pipeline or key, or one that differs from what the logdir was begun with.
        ArtifactError: if a stored pipeline is damaged.
    """
    source, logdir = _source(asked)
    own, table = pipeline.read_checked(source)
    sets = (*asked.sets, *flags_as_sets(asked.flags))
    pipe = _override(table, sets, own.env.id)
    if asked.data is not None and os.path.realpath(asked.data) != os.path.realpath(pipe.data):
        sets = (*sets, *flags_as_sets({"data": asked.data}))
        pipe = _override(table, sets, own.env.id)
    folder = logdir or (Path(source) if sources.is_logdir(source) else pipeline.logdir_of(pipe, own.env.id))
    if not (folder / STORED).exists():
        return Session(pipe, folder, sets)
    begins = writes if anew else None
    stored = sources.stored_sets(folder)
    sets = _merged(stored, sets, begins, sources.read(str(folder))[1])
    try:
        pipe = _override(table, sets, own.env.id)
    except ConfigError:
        _blame(folder, table, stored, own.env.id)
        raise
    return Session(_continue(folder, pipe, begins), folder, sets)


def remember(logdir: Path) -> None:
    """Note `logdir` as the one used last. A read-only folder is no reason to fail."""
    from wmrl import files

    with contextlib.suppress(OSError, ArtifactError):
        for leftover in LAST.parent.glob(f"{LAST.name}.tmp-*"):  # of a call that was killed here
            leftover.unlink()
        files.atomic_text(LAST, f"{logdir}\n")


def last() -> Path | None:
    """The logdir used last, if it still exists."""
    try:
        path = Path(LAST.read_text().strip())
    except (OSError, ValueError):
        return None
    return path if sources.is_logdir(str(path)) else None


def _source(asked: Asked) -> tuple[str, Path | None]:
    """Where the pipeline is read from, and the logdir if it is settled already."""
    if asked.pipeline is not None:
        return asked.pipeline, asked.logdir
    if asked.logdir is not None:
        return (str(asked.logdir) if (asked.logdir / STORED).exists() else sources.DEFAULT), asked.logdir
    if (recent := last()) is not None:
        sys.stderr.write(f"logdir: {recent} (used last; name another with --logdir)\n")
        return str(recent), recent
    return sources.DEFAULT, None


def _merged(old: Iterable[str], new: Sequence[str], begins: str | None, stored: Mapping[str, Any]) -> tuple[str, ...]:
    """Old overrides, then new ones; the last of each key.

    Old ones are left out if they are of a stage that begins anew, or arguments of a kind that another one replaces.
    """
    from wmrl import agreement

    void = list(agreement.SECTIONS[begins]) if begins else []
    for override in new:
        where, _, last = key_of(override).rpartition(".")
        if last == "kind" and stored.get(where, {}).get("kind") != value_of(override):
            void.append(where)
    kept = [s for s in old if not agreement.holds(key_of(s), void)]
    return tuple({key_of(s): s for s in [*kept, *new]}.values())


def _override(table: dict[str, Any], sets: Iterable[str], own_env: str) -> Pipeline:
    sets = list(sets)
    moved = sources.with_overrides(table, sets)
    table_of_env = moved.get("env", {})
    env = table_of_env.get("id", own_env) if isinstance(table_of_env, dict) else own_env
    if env != own_env and not any(key_of(s) == "data" for s in sets):
        moved["data"] = ""
    return pipeline.parse(moved)


def _blame(folder: Path, table: dict[str, Any], stored: Iterable[str], own_env: str) -> None:
    """Raise `ArtifactError` if the overrides kept in a logdir are wrong by themselves."""
    try:
        _override(table, stored, own_env)
    except ConfigError as error:
        raise ArtifactError(f"{folder / STORED}: {error}") from error


def flags_as_sets(flags: Mapping[str, Any]) -> Iterable[str]:
    """Flags that were given, as overrides in TOML."""
    for key, value in flags.items():
        if value is not None:
            yield f"{key}={sources.inline(value)}"


def _continue(folder: Path, pipe: Pipeline, anew: str | None) -> Pipeline:
    from wmrl import agreement

    stored = pipeline.load(folder)
    agreement.reconcile(folder, stored, pipe, anew)
    return dataclasses.replace(pipe, name=stored.name)
