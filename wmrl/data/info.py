"""What a dataset holds, in a few lines."""

import shlex
from pathlib import Path
from typing import Any

from wmrl.data import shards, trust
from wmrl.data.episodes import Episodes


def info(path: Path) -> dict[str, Any]:
    """A dataset, finished or not, as a JSON-able table.

    Of the shards of a finished one only headers and lengths are looked at, which takes no time; `check` reads all.

    Raises:
        ArtifactError: if there is none, or it is damaged.
        ContractError: if a shard is not the one that is listed.
    """
    complete = (path / shards.COMPLETE).exists()
    episodes = Episodes(path, partial=not complete)
    if complete:
        for name, digest in zip(episodes.names, episodes.shards, strict=True):
            trust.match(path / name.file, digest, shards.COMPLETE)
    size = sum((path / name.file).stat().st_size for name in episodes.names)
    returns, lengths, meta = episodes.returns, episodes.lengths, episodes.meta
    return {
        "data": str(path),
        "complete": complete,
        "episodes": len(episodes),
        "steps": episodes.steps,
        "length": {"min": int(lengths.min()), "mean": float(lengths.mean()), "max": int(lengths.max())},
        "return": {
            "mean": float(returns.mean()),
            "std": float(returns.std()),
            "min": float(returns.min()),
            "max": float(returns.max()),
        },
        "observation": {"shape": list(episodes.observation.shape), "dtype": episodes.dtype.name},
        "actions": meta["actions"],
        "bytes": size,
        "bytes_per_frame": size / int(episodes.start[-1]),
        "shards": len(episodes.names),
        "hash": episodes.hash,
        "env": episodes.env,
        "policy": episodes.policy,
        "seed": meta.get("seed"),
        "versions": {"wmrl": meta.get("wmrl"), **meta.get("environment", {}).get("versions", {})},
        "provenance": shards.read_complete(path).provenance if complete else {},
    }


def lines(about: dict[str, Any]) -> list[str]:
    """The table of `info` for people."""
    length, score, seen, acts = about["length"], about["return"], about["observation"], about["actions"]
    box = "one-hot" if acts["discrete"] else f"in {acts['low']} to {acts['high']} of the environment"
    state = "complete" if about["complete"] else "unfinished"
    rows = {
        "dataset": f"{about['data']} ({state}, {about['shards']} shards, hash {about['hash'][:12]})",
        "episodes": f"{about['episodes']:,}, {about['steps']:,} steps",
        "lengths": f"{length['min']} to {length['max']}, mean {length['mean']:.1f}",
        "returns": f"{score['mean']:.1f} +- {score['std']:.1f}, {score['min']:.1f} to {score['max']:.1f}",
        "observations": f"{tuple(seen['shape'])} {seen['dtype']}",
        "actions": f"{acts['size']}, {box}",
        "size": f"{about['bytes'] / 1e6:,.1f} MB, {about['bytes_per_frame']:,.0f} bytes a frame",
        "environment": ", ".join(f"{key} {value}" for key, value in about["env"].items()),
        "policy": ", ".join(f"{key} {value}" for key, value in about["policy"].items()),
        "seed": str(about["seed"]),
        "versions": ", ".join(f"{key} {value}" for key, value in about["versions"].items()),
        **({"completed": _completed(about["provenance"])} if about["provenance"] else {}),
    }
    return [f"{name:<13} {value}" for name, value in rows.items()]


def _completed(provenance: dict[str, Any]) -> str:
    """Who completed a dataset: version, commit and command."""
    git = provenance["git"]
    commit = f" ({git['commit'][:12]}{', changed since' if git['dirty'] else ''})" if git else ""
    return f"by wmrl {provenance['wmrl']}{commit}: {shlex.join(provenance['argv'])}"
