"""Turn episodes from elsewhere into a dataset of ours."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import wmrl
from wmrl import interrupts
from wmrl.data import plan, shards
from wmrl.data.shards import Episode, Index, Name
from wmrl.errors import ArtifactError, ConfigError


@dataclass(frozen=True)
class Foreign:
    """A dataset in another format.

    Args:
        name: What the user calls it.
        count: How many episodes there are.
        episode: Gives the episode of a number; asked for in order, one at a time.
        meta: What shards shall say of their making: `env`, `policy`, `actions`, `source` (see `source_of`).
        shards: If it was a dataset of ours: its shards, and what each said in place of `meta`.
    """

    name: str
    count: int
    episode: Callable[[int], Episode]
    meta: dict[str, Any]
    shards: Mapping[Name, dict[str, Any]] | None = None


def source_of(kind: str, parts: Iterable[tuple[str | int, ...]]) -> str:
    """What shards say of where they came from: the same for equal sources, wherever they lie.

    Args:
        kind: The format.
        parts: In the order of reading, for each file its name in the source, its size and a checksum of its content.
    """
    digest = hashlib.sha256("\n".join(map(json.dumps, parts)).encode())
    return f"{kind} {digest.hexdigest()[:16]}"


def ingest(foreign: Foreign, folder: Path) -> Index:
    """Write all episodes and `complete.h5`; an interrupted import goes on, a finished one is left alone.

    Raises:
        ConfigError: if the folder holds other episodes.
        ArtifactError: if there is nothing to import, or it cannot be read or written.
        Stopped: after a signal; whole shards are kept, and the same import goes on.
    """
    if not foreign.count:
        raise ArtifactError("there are no episodes to import")
    have = shards.scan(folder)
    wanted = foreign.shards or _by_size(foreign)
    for name in have:
        _check(folder, name, foreign, wanted)
    for name, meta in wanted.items():
        if name not in have:
            part = []
            for number in range(name.first, name.first + name.count):
                interrupts.check()
                part.append(foreign.episode(number))
            shards.write_shard(folder, name.first, part, meta)
    return plan.finish(folder, foreign.count)[0]


def _by_size(foreign: Foreign) -> dict[Name, dict[str, Any]]:
    """Shards of equal numbers of episodes, as the first episode's size suggests."""
    obs = foreign.episode(0).obs
    each = shards.episodes_per_shard(obs[0].nbytes, len(obs))
    meta = {"wmrl": wmrl.__version__, **foreign.meta}
    return {Name(first, min(each, foreign.count - first)): meta for first in range(0, foreign.count, each)}


def _check(folder: Path, name: Name, foreign: Foreign, wanted: Mapping[Name, dict[str, Any]]) -> None:
    """Refuse a shard that is there and none of those to write; which version of wmrl wrote it does not matter."""
    there, new = shards.provenance(shards.read_meta(folder / name.file)), wanted.get(name, foreign.meta)
    keys = sorted((there.keys() | new.keys()) - {"wmrl"}, key=lambda key: (key != "source", key))
    differs = next((key for key in keys if there.get(key) != new.get(key)), None)
    if differs:
        old, theirs = (f"{differs} {meta[differs]}" if differs in meta else f"no {differs}" for meta in (there, new))
    elif name not in wanted:
        old, theirs = f"the shard {name.file}", "no such shard"
    else:
        return
    raise ConfigError(
        f"{folder} holds episodes with {old} already, {foreign.name} has {theirs}; name another folder with --out"
    )


def box(env: Any) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """The least and the greatest action, (A,) in the environment's units; None if actions are discrete."""
    if env.actions.discrete:
        return None, None
    one = np.ones((1, env.actions.size), np.float32)
    return env.native_action(-one).reshape(-1), env.native_action(one).reshape(-1)


def actions_meta(actions: Any, low: Any, high: Any) -> dict[str, Any]:
    """How shards describe actions; `low` and `high` (A,) in the environment's units, None if discrete."""
    table: dict[str, Any] = {"size": actions.size, "discrete": actions.discrete}
    return table if actions.discrete else {**table, "low": list(map(float, low)), "high": list(map(float, high))}
