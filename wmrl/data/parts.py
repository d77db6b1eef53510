"""Shards in the making: finished episodes whose shard is not whole yet, kept so that a kill does not cost them.

A part lies beside the shards as `shard-<first>-<count>.part.h5` and is removed when its shard is written.
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wmrl import files
from wmrl.data import columns, shards
from wmrl.data.shards import Episode, Name
from wmrl.data.track import unpack
from wmrl.errors import ArtifactError

ROLE = "rollouts-part"
Part = dict[int, Episode]
"""Some of a shard's episodes, by number."""


def path(folder: Path, name: Name) -> Path:
    """Where the part of a shard lies."""
    return (folder / name.file).with_suffix(".part.h5")


def save(folder: Path, name: Name, part: Mapping[int, Episode], meta: Mapping[str, Any]) -> None:
    """Keep some episodes of a shard, in place of those kept before.

    Raises:
        ArtifactError: if the file cannot be written.
    """
    numbers = sorted(part)

    def fill(file: h5py.File) -> None:
        file.attrs["meta"] = _text(meta)
        file.create_dataset("number", data=np.array(numbers, np.int64))
        columns.put_columns(file, [part[number] for number in numbers])

    files.write(path(folder, name), fill, role=ROLE)


def load(
    folder: Path, names: Sequence[Name], meta: Mapping[str, Any], warn: Callable[[str], None], *, exact: bool = False
) -> dict[Name, Part]:
    """The episodes of these shards that lie in parts, whatever shards those parts were begun for.

    Args:
        folder: The dataset.
        names: Shards to make.
        meta: What they will say of their making; parts that say otherwise are left out.
        warn: Is told of those, and of damaged ones.
        exact: Take a part for its own shard only: episodes that were played together belong together.
    """
    found: dict[Name, Part] = {}
    for where in sorted(folder.glob(shards.PARTS)):
        try:
            part = _read(where, meta)
        except ArtifactError as error:
            warn(f"{error}; its episodes are played again")
            continue
        for name in names:
            if exact and where != path(folder, name):
                continue
            if mine := {i: part[i] for i in part if name.first <= i < name.first + name.count}:
                found.setdefault(name, {}).update(mine)
    return found


def count(folder: Path) -> int:
    """How many episodes lie in parts; damaged ones hold none."""
    numbers: set[int] = set()
    for where in folder.glob(shards.PARTS):
        with contextlib.suppress(ArtifactError), files.open(where, role=ROLE, verify=False) as file:
            numbers |= set(file["number"][()].tolist())
    return len(numbers)


def made(folder: Path) -> dict[str, Any] | None:
    """What the first readable part says of its making; None without one."""
    for where in sorted(folder.glob(shards.PARTS)):
        with contextlib.suppress(ArtifactError, *files.DAMAGE), files.open(where, role=ROLE) as file:
            about: dict[str, Any] = json.loads(file.attrs["meta"])
            return about
    return None


def remove(folder: Path, name: Name) -> None:
    """Forget a part, if there is one."""
    path(folder, name).unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Forget all parts: the dataset is complete."""
    for leftover in folder.glob(shards.PARTS):
        leftover.unlink(missing_ok=True)


def _read(where: Path, meta: Mapping[str, Any]) -> Part:
    with files.open(where, role=ROLE) as file:
        try:
            if file.attrs["meta"] != _text(meta):
                raise ArtifactError(f"{where} was made otherwise, or by other versions")
            table = {name: file[name][()] for name in (*columns.COLUMNS, "start", "seed")}
            return dict(zip(file["number"][()].tolist(), unpack(table), strict=True))
        except files.DAMAGE as error:
            raise ArtifactError(f"{where} cannot be read: {error}") from error


def _text(meta: Mapping[str, Any]) -> str:
    return json.dumps(meta, sort_keys=True)
