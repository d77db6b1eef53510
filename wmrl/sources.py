"""Where pipelines are read from: files in `pipelines/`, other TOML files, logdirs; and overrides of their keys."""

import copy
import json
import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wmrl import config
from wmrl.errors import ArtifactError, ConfigError

DEFAULT = "carracing-mdnrnn"
"""The pipeline that holds when none is named; it is known even where there is no `pipelines/`."""
STORED = "pipeline.json"
"""The name under which a logdir keeps the pipeline that it was made with."""

BEGAN = "began_in"
"""Under which key it keeps the folder that its relative paths begin in, as seen from the logdir."""
PATHS = ("data", "generate.controller", "representation.from", "dynamics.from", "controller.from")
"""Keys of a pipeline that are paths."""


def with_overrides(table: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `table` with overrides "a.b=c" applied.

    Raises:
        ConfigError: for an override of another form.
    """
    table = copy.deepcopy(table)
    for override in sorted(overrides, key=lambda text: not key_of(text).endswith(".kind")):
        _set(table, override)  # a kind before its arguments, in whatever order they were given
    return table


def read(source: str) -> tuple[str, dict[str, Any]]:
    """The name and the raw table of a pipeline.

    Raises:
        ConfigError: if there is no such pipeline, or it is no TOML.
        ArtifactError: if `source` is a folder without a stored pipeline.
    """
    path = Path(source)
    if is_logdir(source):
        return _stored(path)
    if path.suffix == ".toml":
        return path.stem, _toml(path)
    found = [folder / f"{source}.toml" for folder in _folders() if (folder / f"{source}.toml").exists()]
    if found:
        return source, _toml(found[0])
    if path.is_dir():
        raise no_logdir(path)
    if source == DEFAULT:
        return source, {"representation": {"kind": "vae"}}
    raise ConfigError(f"there is no pipeline {source!r} in pipelines/{config.hint(source, names())}")


def is_logdir(source: str) -> bool:
    """Whether `source` names a logdir; a folder without a stored pipeline leaves the name to `pipelines/`."""
    return Path(source, STORED).exists()


def names() -> list[str]:
    """The names of all pipelines in `pipelines/`."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.toml")})


def _folders() -> list[Path]:
    return [Path("pipelines"), Path(__file__).resolve().parent.parent / "pipelines"]


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"there is no pipeline file {path}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _stored(logdir: Path) -> tuple[str, dict[str, Any]]:
    table = dict(_kept(logdir)["pipeline"])
    return table.pop("name"), table


def stored_sets(logdir: Path) -> list[str]:
    """The overrides that were given in a logdir.

    Raises:
        ArtifactError: if it holds no pipeline, or a damaged one.
    """
    return _kept(logdir)["set"]


def sets_with_data(logdir: Path, data: str) -> list[str]:
    """The overrides that were given in a logdir, if any were, with the dataset that is its own from here on.

    Raises:
        ArtifactError: if it holds a damaged pipeline.
    """
    sets = stored_sets(logdir) if (logdir / STORED).exists() else []
    return [*(each for each in sets if key_of(each) != "data"), f"data={inline(data)}"]


def _kept(logdir: Path) -> dict[str, Any]:
    try:
        kept = json.loads((logdir / STORED).read_text())
        if not isinstance(kept["pipeline"]["name"], str) or not all("=" in s for s in kept["set"]):
            raise ValueError("it is no pipeline")
        return _from_here(kept, logdir)
    except FileNotFoundError:
        raise no_logdir(logdir) from None
    except OSError as error:
        raise ArtifactError(f"{logdir / STORED} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{logdir / STORED} is damaged: {error}") from None


def no_logdir(folder: Path) -> ArtifactError:
    """The error for a folder without a stored pipeline."""
    return ArtifactError(f"{folder} holds no {STORED}: it is no logdir of wmrl")


def place(logdir: Path) -> dict[str, str]:
    """Where a logdir is, and the folder that relative paths begin in, as `_from_here` reads them."""
    here = os.path.realpath(logdir)
    return {BEGAN: os.path.relpath(os.path.realpath("."), here), "logdir": here}


def _from_here(kept: dict[str, Any], logdir: Path) -> dict[str, Any]:
    """Let the paths of a stored pipeline hold here: relative ones begin where the run was begun.

    What lies in the logdir itself moves with it, and is copied with it.
    """
    folder, here = os.path.realpath(logdir), os.path.realpath(".")
    origin, way = kept.get("logdir", folder), kept.get(BEGAN, os.path.relpath(here, folder))
    began, copied = os.path.realpath(Path(folder, way)), origin != folder
    if began == here and not copied:
        return kept

    def moved(value: str) -> str:
        inside = os.path.relpath(os.path.realpath(Path(origin, way, value)), origin)
        if value and copied and inside.partition(os.sep)[0] != os.pardir:
            return os.path.relpath(Path(folder, inside))
        there = Path(began, value)
        if not value or Path(value).is_absolute() or (copied and Path(value).exists() and not there.exists()):
            return value
        return os.path.relpath(there)

    def walk(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: walk(f"{key}.{name}", inner) for name, inner in value.items()}
        return moved(value) if key in PATHS and isinstance(value, str) else value

    kept["pipeline"] = {key: walk(key, value) for key, value in kept["pipeline"].items()}
    for i, override in enumerate(kept["set"]):
        key = key_of(override)
        if any(path == key or path.startswith(f"{key}.") for path in PATHS):
            kept["set"][i] = f"{key}={inline(walk(key, value_of(override)))}"
    return kept


def inline(value: Any) -> str:
    """A value of a pipeline in TOML, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, float):
        return repr(value)  # JSON has no infinity
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


def key_of(override: str) -> str:
    """The key of "a.b=c"."""
    return override.partition("=")[0].strip()


def value_of(override: str) -> Any:
    """The value of "a.b=c"; what is no TOML is text."""
    text = override.partition("=")[2].strip()
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _set(table: dict[str, Any], override: str) -> None:
    key, value = key_of(override), value_of(override)
    if "=" not in override or not key:
        raise ConfigError(f"--set takes a.b=c, got {override!r}")
    *path, last = key.split(".")
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{key}: {part!r} is a value, not a table")
    if last == "kind" and table.get("kind") != value:
        table.clear()  # the arguments of another kind mean nothing to this one
    table[last] = value
