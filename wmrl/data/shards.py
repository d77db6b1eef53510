"""Rollouts on disk: a folder of shards, each a sealed HDF5 file of a few whole episodes.

A shard is named `shard-<first episode>-<number of episodes>.h5`. An episode of T steps has T + 1 rows: row t holds
obs[t], the action taken there, and the reward and flags it led to; the last row holds the last observation, and zeros.
`complete.h5` appears when the requested number of episodes is there: it lists the shards with their digests, and every
episode's seed, length and return, so that opening a dataset reads one small file. See datasets/README.md.
"""

import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wmrl import artifact, files
from wmrl.data import trust
from wmrl.data.columns import put_columns
from wmrl.errors import ArtifactError, ContractError

FORMAT = 1
ROLE = trust.ROLE
COMPLETE = "complete.h5"
SHARD_BYTES = 1 << 27
"""The most raw bytes of observations in a shard, which is built in memory: 8 CarRacing episodes of 1,000 steps."""
PARTS = "shard-*.part.h5"
"""Files of shards in the making (see `wmrl.data.parts`)."""
HEAD = ("format", "first", "count", "observation")
"""What `write_shard` adds to a shard's `meta`."""
_NAME = re.compile(r"shard-(\d{6,})-([1-9]\d*)\.h5")


@dataclass(frozen=True)
class Episode:
    """One whole episode of T steps. Row T is the last observation; all else in it is zero."""

    obs: np.ndarray  # (T + 1, *shape), channels first if pixels
    action: np.ndarray  # (T + 1, A) float32 in [-1, 1], or one-hot
    reward: np.ndarray  # (T + 1,) float32, unclipped
    terminated: np.ndarray  # (T + 1,) bool: the environment ended the episode
    truncated: np.ndarray  # (T + 1,) bool: a time limit did
    seed: int

    @property
    def score(self) -> float:
        """The undiscounted sum of rewards."""
        return float(self.reward.sum(dtype=np.float64))


@dataclass(frozen=True, order=True)
class Name:
    """Which episodes a shard holds: `count` of them from episode `first` on."""

    first: int
    count: int

    @property
    def file(self) -> str:
        """The file's name."""
        return f"shard-{self.first:06d}-{self.count}.h5"


@dataclass(frozen=True)
class Index:
    """All that is known of a dataset without reading a frame."""

    names: tuple[Name, ...]
    hashes: tuple[str, ...]  # digests of the shards, in order
    seeds: np.ndarray  # (E,) int64
    lengths: np.ndarray  # (E,) int64, steps
    returns: np.ndarray  # (E,) float64
    meta: dict[str, Any]  # of the first shard
    provenance: dict[str, Any] = field(default_factory=dict)  # of the list; {} where there is none yet

    @property
    def hash(self) -> str:
        """The dataset's content hash: of its ordered shard digests."""
        return hash_of(self.hashes)


def hash_of(digests: Sequence[str]) -> str:
    """The content hash of a dataset with these shards."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def scan(folder: Path) -> list[Name]:
    """The shards in `folder`, by first episode; none if there is no such folder."""
    found = (_NAME.fullmatch(path.name) for path in folder.glob("shard-*.h5"))
    names = {Name(int(m[1]), int(m[2])): m[0] for m in found if m}
    return sorted(name for name, file in names.items() if name.file == file)


def disjoint(folder: Path, names: Sequence[Name]) -> None:
    """Insist that no episode is in two shards; `names` as `scan` gives them.

    Raises:
        ArtifactError: naming the first two that overlap.
    """
    for one, other in itertools.pairwise(names):
        if other.first < one.first + one.count:
            raise ArtifactError(
                f"{folder} holds episode {other.first} twice, in {one.file} and in {other.file}: "
                "delete one of the two (wmrl generate makes what is lacking then)"
            )


def write_shard(folder: Path, first: int, episodes: Sequence[Episode], meta: dict[str, Any]) -> Name:
    """Write one shard; equal episodes and `meta` give equal bytes.

    Args:
        folder: The dataset.
        first: Number of the first of the episodes.
        episodes: A few whole episodes, in order.
        meta: Provenance, stored as JSON: environment, policy, seed, versions. No times, no host names.

    Raises:
        ArtifactError: if it cannot be written.
    """
    name = Name(first, len(episodes))
    obs = episodes[0].obs
    observation = {"shape": list(obs.shape[1:]), "dtype": obs.dtype.name}
    head = {"format": FORMAT, "first": first, "count": len(episodes), "observation": observation}
    text = json.dumps({**meta, **head}, sort_keys=True)

    def fill(file: h5py.File) -> None:
        file.attrs["meta"] = text
        put_columns(file, episodes)

    files.write(folder / name.file, fill, role=ROLE)
    return name


def episodes_per_shard(row_bytes: int, max_steps: int | None) -> int:
    """How many episodes a shard holds: a power of two from 1 to 64."""
    most = SHARD_BYTES // (max(row_bytes, 1) * ((max_steps or 1000) + 1))
    return int(2 ** np.floor(np.log2(np.clip(most, 1, 64))))


def read_meta(path: Path) -> dict[str, Any]:
    """The provenance stored in a shard.

    Raises:
        ArtifactError: if it is no shard, damaged, or of a later format.
    """
    trust.verify(path)
    with files.open(path, role=ROLE, verify=False) as file:
        return meta_of(file, path)


def provenance(meta: dict[str, Any]) -> dict[str, Any]:
    """Of what a shard says, what `write_shard` was given as `meta`."""
    return {key: value for key, value in meta.items() if key not in HEAD}


def meta_of(file: h5py.File, path: Path) -> dict[str, Any]:
    """The provenance in an open shard; `path` is for messages."""
    try:
        meta: dict[str, Any] = json.loads(file.attrs["meta"])
        version = int(meta["format"])
    except (KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} has no readable description of its episodes ({error})") from error
    if version > FORMAT:
        raise files.LaterError(f"{path} is a shard of format {version}; this wmrl reads up to {FORMAT}: upgrade wmrl")
    return meta


def index(folder: Path, names: Sequence[Name]) -> Index:
    """Read the tables of `names`, one shard after the other.

    Raises:
        ArtifactError: if a shard is missing or damaged, or if two overlap or leave a gap between them.
        ContractError: if they hold different kinds of observations or actions.
    """
    if not names:
        raise absent(folder)
    disjoint(folder, names)
    tables: dict[str, list[np.ndarray]] = {"seeds": [], "lengths": [], "returns": []}
    hashes: list[str] = []
    meta: dict[str, Any] = {}
    at = 0
    for name in names:
        if name.first != at:
            raise ArtifactError(
                f"{folder} lacks the episodes {at} to {name.first - 1}; the same wmrl generate makes them"
            )
        at += name.count
        own, table = _table(folder, name)
        meta = meta or own
        if any(own.get(key) != meta.get(key) for key in ("observation", "actions")):
            raise ContractError(f"{folder / name.file} holds other observations or actions than {names[0].file}")
        for key, values in table.items():
            tables[key].append(values)
        hashes.append(files.digest(folder / name.file))
    columns = {key: np.concatenate(parts) for key, parts in tables.items()}
    return Index(tuple(names), tuple(hashes), columns["seeds"], columns["lengths"], columns["returns"], meta)


def _table(folder: Path, name: Name) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What one shard says of its making, and its column for each table of an index."""
    path = folder / name.file
    trust.verify(path)
    with files.open(path, role=ROLE, verify=False) as file:
        meta = meta_of(file, path)
        lengths = np.diff(file["start"][()]) - 1
        table = {"seeds": file["seed"][()], "lengths": lengths, "returns": file["return"][()]}
    if len(lengths) != name.count:
        raise ArtifactError(f"{path} holds {len(lengths)} episodes, not {name.count} as its name says")
    return meta, table


def complete(folder: Path, names: Sequence[Name] | None = None) -> Index:
    """Declare a dataset finished: write `complete.h5` over `names` (default: all shards that there are).

    The list says who completed the dataset, which shards do not: their bytes depend on episodes and recipe alone.

    Raises:
        ArtifactError: as `index`, or if it cannot be written.
    """
    found = index(folder, scan(folder) if names is None else names)
    tree = {
        "format": FORMAT,
        "episodes": len(found.seeds),
        "shards": [[n.first, n.count] for n in found.names],
        "hashes": list(found.hashes),
        "hash": found.hash,
        "meta": found.meta,
        "provenance": artifact.provenance(),
        "seed": found.seeds,
        "length": found.lengths,
        "return": found.returns,
    }
    files.write(folder / COMPLETE, lambda file: files.put_tree(file, tree), role="dataset")
    return found


def absent(folder: Path) -> ArtifactError:
    """What to say of a folder that is no complete dataset."""
    have = sum(name.count for name in scan(folder))
    state = "holds no episodes; to make some"
    if have or any(folder.glob(PARTS)):
        state = f"is unfinished ({have} episodes in whole shards so far); to finish it"
    return ArtifactError(f"{folder} {state}: wmrl generate --data {shlex.quote(str(folder))}")


def read_complete(folder: Path) -> Index:
    """The index that `complete` wrote.

    Raises:
        ArtifactError: if the dataset is missing, unfinished or damaged.
    """
    path = folder / COMPLETE
    if not path.exists():
        raise absent(folder)
    with files.open(path, role="dataset") as file:
        tree = files.get_tree(file)
    if tree["format"] > FORMAT:
        raise files.LaterError(f"{path} is of format {tree['format']}; this wmrl reads up to {FORMAT}: upgrade wmrl")
    names, made = tuple(Name(first, count) for first, count in tree["shards"]), tree.get("provenance", {})
    return Index(names, tuple(tree["hashes"]), tree["seed"], tree["length"], tree["return"], tree["meta"], made)
