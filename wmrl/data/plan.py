"""What `generate` still has to make: shard borders depend on episode numbers alone, so an interrupted run fits."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wmrl import files
from wmrl.data import parts, shards, trust
from wmrl.data.shards import Index, Name
from wmrl.errors import ArtifactError, ConfigError
from wmrl.pipeline import Pipeline


def missing(have: Sequence[Name], total: int, per_shard: int) -> list[Name]:
    """The shards to make so that the episodes 0 to `total` - 1 are there.

    Args:
        have: Shards that are there.
        total: Number of episodes wanted.
        per_shard: Shards begin and end at multiples of it, but for the last one of a finished dataset.
    """
    there = {name.first: name for name in have}
    todo, at = [], 0
    while at < total:
        if at in there:
            at += there[at].count
            continue
        border = (at // per_shard + 1) * per_shard
        end = min([border, total, *(first for first in there if first > at)])
        todo.append(Name(at, end - at))
        at = end
    return todo


def listed(folder: Path, warn: Callable[[str], None] = lambda text: None) -> Index | None:
    """What `complete.h5` says; None if there is none.

    A damaged one counts as none and is told to `warn`: all that it says stands in the shards.

    Raises:
        ArtifactError: if it is of a later format.
    """
    if not (folder / shards.COMPLETE).exists():
        return None
    try:
        return shards.read_complete(folder)
    except files.LaterError:
        raise
    except ArtifactError as error:
        warn(f"{error.args[0].removesuffix('; make it again')}; it is made anew from the shards")
        return None


def base(folder: Path) -> int:
    """Episodes of the dataset when it was last complete; 0 if it never was."""
    old = listed(folder)
    return 0 if old is None else len(old.seeds)


def finish(folder: Path, total: int, warn: Callable[[str], None] = lambda text: None) -> tuple[Index, bool]:
    """Bring `complete.h5` up to date with the shards of the episodes 0 to `total` - 1.

    Args:
        folder: The dataset, in which nothing is missing.
        total: See above.
        warn: Is told of a damaged list, and of shards that are not the listed ones any more.

    Returns:
        The list, and whether it had to be written.

    Raises:
        ArtifactError: if a shard is damaged, or the list cannot be written.
    """
    old, names = listed(folder, warn), [name for name in shards.scan(folder) if name.first < total]
    there = tuple(trust.stated(folder / name.file) for name in names)
    if old is not None and (old.names, old.hashes) == (tuple(names), there):
        return old, False
    new = shards.complete(folder, names)
    if old is not None and new.hashes[: len(old.hashes)] != old.hashes:
        warn(
            f"{folder}: shards were made again, by other versions or otherwise: the dataset's content hash has changed "
            f"from {old.hash[:12]} to {new.hash[:12]}, and what was trained on the old one is out of date"
        )
    return new, True


def trusted(folder: Path) -> None:
    """Verify all shards that are there, before more are made.

    Raises:
        ArtifactError: naming one that is damaged, and what to do.
    """
    for name in shards.scan(folder):
        trust.verify(folder / name.file)


def total(folder: Path, rollouts: int, append: int) -> int:
    """How many episodes there shall be: `rollouts`, or `append` more than when it was last complete.

    Shards of an interrupted run count: a dataset is never made smaller.
    """
    done = base(folder)
    wanted = (done or rollouts) + append if append else rollouts
    if done >= wanted and not missing(shards.scan(folder), done, 1):
        return done
    return max([wanted, *(name.first + name.count for name in shards.scan(folder))])


def recipe(pipe: Pipeline) -> dict[str, Any]:
    """What decides how episodes come out: stored in every shard, and the same for all of a run."""
    settings = pipe.generate
    policy: dict[str, Any] = {"policy": settings.policy}
    if settings.policy == "held":
        policy["hold"] = settings.hold
    if settings.policy == "controller":
        policy["noise"] = settings.noise  # which controller, its hash tells
    return {"env": pipe.env.table(), "policy": policy, "seed": pipe.seed}


def stored(folder: Path, append: int) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What the first shard says of its making, and what the first one of the run in progress says; None without one.

    Where there is no shard yet, a part of one speaks.

    Args:
        folder: The dataset.
        append: Whether (how many) episodes are appended: those may be of another policy than the first ones.
    """
    names = shards.scan(folder)
    if not names:
        return (parts.made(folder),) * 2
    first = shards.read_meta(folder / names[0].file)
    later = [name for name in names if name.first >= base(folder)]
    current = shards.read_meta(folder / later[0].file) if later else (None if append else first)
    return first, current


def check(folder: Path, ours: dict[str, Any], theirs: dict[str, Any], sections: Sequence[str]) -> None:
    """Compare two recipes.

    Raises:
        ConfigError: naming the first key that differs.
    """
    for section in sections:
        old, new = _flat(section, theirs.get(section)), _flat(section, ours.get(section))
        for key in sorted(old.keys() | new.keys()):
            if key == "env.backend" and new.get(key) == "auto":
                continue
            if old.get(key) != new.get(key):
                raise ConfigError(
                    f"{key}: {folder} was made with {old.get(key)!r}, this call says {new.get(key)!r}; "
                    "name another folder with --data, or use the same value"
                )


def _flat(section: str, value: Any) -> dict[str, Any]:
    name = "generate" if section == "policy" else section
    return {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}


def bytes_each(folder: Path) -> float | None:
    """Size of a frame on disk, all columns included, in the first shard; None without one."""
    names = shards.scan(folder)
    if not names or names[0].first:
        return None
    rows = int((shards.index(folder, names[:1]).lengths + 1).sum())
    return (folder / names[0].file).stat().st_size / rows
