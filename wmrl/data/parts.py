"""Shards in the making: finished episodes whose shard is not whole yet, kept so that a kill does not cost them.

A part lies beside the shards as `shard-<first>-<count>.part.h5` and is removed when its shard is written.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wmrl import files
from wmrl.data import shards
from wmrl.data.shards import Episode, Name
from wmrl.errors import ArtifactError

ROLE = "rollouts-part"
SUFFIX = ".part.h5"
Part = dict[int, Episode]
"""Some of a shard's episodes, by number."""


def path(folder: Path, name: Name) -> Path:
    """Where the part of a shard lies."""
    return (folder / name.file).with_suffix(SUFFIX)


def save(folder: Path, name: Name, part: Mapping[int, Episode], meta: Mapping[str, Any]) -> None:
    """Keep some episodes of a shard, in place of those kept before.

    Raises:
        ArtifactError: if the file cannot be written.
    """
    numbers = sorted(part)

    def fill(file: h5py.File) -> None:
        file.attrs["meta"] = _text(meta)
        file.create_dataset("number", data=np.array(numbers, np.int64))
        shards.put_columns(file, [part[number] for number in numbers])

    files.write(path(folder, name), fill, role=ROLE)


def load(folder: Path, names: Sequence[Name], meta: Mapping[str, Any], warn: Callable[[str], None]) -> dict[Name, Part]:
    """The parts of these shards, but for those of another making, and damaged ones, of which `warn` tells."""
    found = {}
    for name in names:
        if path(folder, name).exists():
            try:
                part = _read(path(folder, name), meta)
            except ArtifactError as error:
                warn(f"{error}; its episodes are played again")
                continue
            if part:
                found[name] = part
    return found


def remove(folder: Path, name: Name) -> None:
    """Forget a part, if there is one."""
    path(folder, name).unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Forget all parts: the dataset is complete."""
    for leftover in folder.glob(f"shard-*{SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _read(where: Path, meta: Mapping[str, Any]) -> Part:
    with files.open(where, role=ROLE) as file:
        if file.attrs["meta"] != _text(meta):
            return {}
        start, columns = file["start"][()], {name: file[name][()] for name in shards.COLUMNS}
        return {
            int(number): Episode(**{name: rows[a:b] for name, rows in columns.items()}, seed=int(seed))
            for number, seed, a, b in zip(file["number"][()], file["seed"][()], start[:-1], start[1:], strict=True)
        }


def _text(meta: Mapping[str, Any]) -> str:
    return json.dumps(meta, sort_keys=True)
