"""The linter of datasets: everything that can be wrong with rollouts and would go unseen in training."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the Zstd filter with HDF5
import numpy as np

from wmrl import files
from wmrl.data import shards
from wmrl.data.rules import Finding, Tally, dataset_findings, episode_findings
from wmrl.data.shards import Episode, Index, Name
from wmrl.errors import ArtifactError

COLUMNS = {"action": "f4", "reward": "f4", "terminated": "b1", "truncated": "b1"}


def check(folder: Path) -> Iterator[Finding]:
    """Read a whole dataset, episode by episode, and yield what is wrong with it.

    Raises:
        ArtifactError: if there is no dataset at all.
    """
    names = shards.scan(folder)
    if not names:
        raise shards.absent(folder)
    index = None
    try:
        index = shards.read_complete(folder)
    except ArtifactError as error:
        yield Finding("unfinished", shards.COMPLETE, str(error))
    tally: Tally | None = None
    for name in names:
        path = folder / name.file
        try:
            with files.open(path, role=shards.ROLE) as file:
                tally = tally or Tally(shards.meta_of(file, path))
                yield from _shard(file, path, name, index, tally)
        except ArtifactError as error:
            yield Finding("digest", name.file, str(error))
    if index is not None:
        yield from _listed(folder, index, names)
    if tally is not None:
        yield from dataset_findings(tally)


def _listed(folder: Path, index: Index, names: list[Name]) -> Iterator[Finding]:
    """Whether `complete.h5` lists what is there."""
    for name, digest in zip(index.names, index.hashes, strict=True):
        if name not in names:
            yield Finding("digest", name.file, f"{folder / name.file} is missing")
            continue
        try:
            stored = files.digest(folder / name.file)
        except ArtifactError:
            continue  # reported already
        if stored != digest:
            yield Finding("digest", name.file, f"{folder / name.file} is not the shard that {shards.COMPLETE} lists")
    for name in sorted(set(names) - set(index.names)):
        yield Finding("unfinished", name.file, f"{folder / name.file} is not listed in {shards.COMPLETE}")


def _shard(file: h5py.File, path: Path, name: Name, index: Index | None, tally: Tally) -> Iterator[Finding]:
    problems = list(_schema(file, path, name, tally))
    yield from problems
    if any(finding.kind == "schema" for finding in problems):
        return
    start, seeds, returns = file["start"][()], file["seed"][()], file["return"][()]
    for number, (first, end) in enumerate(itertools.pairwise(start)):
        columns = {column: file[column][first:end] for column in ("obs", *COLUMNS)}
        episode = Episode(**columns, seed=int(seeds[number]))
        yield from _table(name.first + number, episode, float(returns[number]), index)
        yield from episode_findings(name.first + number, episode, tally)


def _schema(file: h5py.File, path: Path, name: Name, tally: Tally) -> Iterator[Finding]:
    def finding(kind: str, text: str) -> Finding:
        return Finding(kind, name.file, f"{path} {text}")

    wanted = ["obs", *COLUMNS, "start", "seed", "return"]
    if lacking := [column for column in wanted if column not in file]:
        yield finding("schema", f"lacks {', '.join(lacking)}")
        return
    meta = shards.meta_of(file, path)
    for key in ("env", "policy", "observation", "actions"):
        if key not in meta:
            yield finding("schema", f"does not say what its {key} is")
        elif key in ("observation", "actions") and meta[key] != tally.meta.get(key):
            yield finding("schema", f"holds other {key} than the first shard")
    start, rows = file["start"][()], (file["obs"].shape or (0,))[0]
    for column, (shape, dtype) in _columns(meta).items():
        there = file[column]
        if there.shape != (rows, *shape):
            yield finding("schema", f"has {column} of {there.shape}, not {(rows, *shape)}")
        if there.dtype != dtype:
            yield finding("schema", f"has {column} as {there.dtype}, not {dtype}")
    if start.ndim != 1 or not len(start) or start[0] != 0 or start[-1] != rows or (np.diff(start) < 2).any():
        yield finding("schema", f"has a table of starts that does not divide its {rows} rows into episodes")
    if not np.size(start) - 1 == len(file["seed"]) == len(file["return"]) == name.count:
        yield finding("schema", f"does not hold {name.count} episodes, as its name says")


def _columns(meta: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape of a row, and type, of each column; of obs and action only if the shard says what they are."""
    kinds: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        name: ((), np.dtype(dtype)) for name, dtype in COLUMNS.items() if name != "action"
    }
    if "actions" in meta:
        kinds["action"] = (int(meta["actions"]["size"]),), np.dtype(COLUMNS["action"])
    if "observation" in meta:
        kinds["obs"] = tuple(meta["observation"]["shape"]), np.dtype(meta["observation"]["dtype"])
    return kinds


def _table(number: int, episode: Episode, score: float, index: Index | None) -> Iterator[Finding]:
    where, steps = f"episode {number}", len(episode.reward) - 1
    if not np.isclose(score, episode.score, rtol=1e-4, atol=1e-3, equal_nan=True):
        yield Finding(
            "lengths", where, f"{where} is said to return {score:.3f}, its rewards sum to {episode.score:.3f}"
        )
    if index is None or number >= len(index.seeds):
        return
    if (index.lengths[number], index.seeds[number]) != (steps, episode.seed):
        said = f"{index.lengths[number]} steps and the seed {index.seeds[number]}"
        yield Finding("lengths", where, f"{where} has {steps} steps and the seed {episode.seed}; listed are {said}")
