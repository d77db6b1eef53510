"""Turn episodes from elsewhere into a dataset of ours."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wmrl
from wmrl.data import shards
from wmrl.data.shards import Episode, Index
from wmrl.errors import ArtifactError, ConfigError


@dataclass(frozen=True)
class Foreign:
    """A dataset in another format.

    Args:
        episodes: Each call gives them in the same order, read one at a time.
        count: How many there are.
        meta: `env`, `policy`, `actions` and what else shards shall say of their making.
        per_shard: Episodes in a shard; by size if left out.
    """

    episodes: Iterable[Episode]
    count: int
    meta: dict[str, Any]
    per_shard: int | None = None


def ingest(foreign: Foreign, folder: Path) -> Index:
    """Write all episodes and `complete.h5`; an interrupted import goes on.

    Raises:
        ConfigError: if the folder holds other episodes.
        ArtifactError: if there is nothing to import, or it cannot be read or written.
    """
    if not foreign.count:
        raise ArtifactError("there are no episodes to import")
    have = shards.scan(folder)
    if have:
        stored = shards.read_meta(folder / have[0].file)
        if (stored["env"], stored["policy"]) != (foreign.meta["env"], foreign.meta["policy"]):
            raise ConfigError(f"{folder} holds other episodes already; name an empty folder with --out")
    meta = {"wmrl": wmrl.__version__, **foreign.meta}
    for first, part in _parts(foreign):
        if shards.Name(first, len(part)) not in have:
            shards.write_shard(folder, first, part, meta)
    return shards.complete(folder)


def _parts(foreign: Foreign) -> Iterator[tuple[int, list[Episode]]]:
    part: list[Episode] = []
    first, per_shard = 0, foreign.per_shard
    for episode in foreign.episodes:
        per_shard = per_shard or shards.episodes_per_shard(episode.obs[0].nbytes, len(episode.obs))
        part.append(episode)
        if len(part) == per_shard:
            yield first, part
            first, part = first + len(part), []
    if part:
        yield first, part


def actions_meta(actions: Any, low: Any, high: Any) -> dict[str, Any]:
    """How shards describe actions; `low` and `high` (A,) in the environment's units, None if discrete."""
    table: dict[str, Any] = {"size": actions.size, "discrete": actions.discrete}
    return table if actions.discrete else {**table, "low": list(map(float, low)), "high": list(map(float, high))}
