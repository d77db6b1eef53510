"""Minari datasets, both ways and without loss.

Frames are (H, W, C) there and (C, H, W) here, actions in the environment's units there and in [-1, 1] here. An export
also keeps our actions (as `infos`) and each shard's length and what it says of its making: importing it gives the same
bytes again.
"""

import contextlib
import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wmrl import interrupts
from wmrl.data import minari_folder, shards
from wmrl.data.episodes import Episodes
from wmrl.data.ingest import Foreign, actions_meta, source_of
from wmrl.data.shards import Episode, Name
from wmrl.errors import ArtifactError, ConfigError, missing_extra

OURS = "wmrl"
ACTION = "wmrl_action"
ActionMap = Callable[[Any, str], Any]
"""`wmrl.envs.actions.ActionMap`: data and environments do not know each other."""


def is_minari(source: str) -> bool:
    """Whether a folder holds a Minari dataset, or the name is that of a local one."""
    return _folder(source) is not None


def read(source: str, env_id: str | None, action_map: ActionMap) -> Foreign:
    """A Minari dataset as episodes.

    Args:
        source: Its folder, or the id of a local one.
        env_id: The environment; that of the dataset if left out.
        action_map: (space, name for messages) -> the map between its actions and ours.

    Raises:
        ArtifactError: if it is missing, or Minari is not installed.
        ConfigError: if its spaces are not supported.
    """
    storage_class, _ = _minari()
    folder = _folder(source)
    if folder is None:
        raise ArtifactError(f"{source} is no Minari dataset")
    storage = storage_class.read(folder)
    about: dict[str, Any] = storage.metadata
    count = int(about["total_episodes"])
    name = env_id or (json.loads(about["env_spec"])["id"] if about.get("env_spec") else about.get("dataset_id", source))
    if getattr(storage.observation_space, "shape", None) is None:
        raise ConfigError(f"{name} has observations of {storage.observation_space}; supported are arrays")
    ours = _shards(about, count, source)
    last = _channels_last(storage.observation_space.shape, ours=OURS in about)
    to_ours = action_map(storage.action_space, name).from_native
    if ours is None:
        meta = _meta(storage, name, about, action_map, last) | {"source": source_of("minari", _files(folder))}
    else:
        meta = next(iter(ours.values()))
    return Foreign(source, count, lambda number: _episode(storage, number, to_ours, last), meta, ours)


def _shards(about: dict[str, Any], count: int, source: str) -> dict[Name, dict[str, Any]] | None:
    """The shards of ours that were exported, and what each said of its making.

    None for a dataset of others, or if others have added episodes or taken some away since.
    """
    try:
        runs = json.loads(about.get(OURS, "{}")).get("shards", [])
        each = [(int(size), dict(run["meta"])) for run in runs for size in run["counts"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{source} has no readable description of the shards it was exported from") from error
    firsts = [0, *itertools.accumulate(size for size, _ in each)]
    if not each or firsts[-1] != count or any(size < 1 for size, _ in each):
        return None
    return {Name(first, size): meta for first, (size, meta) in zip(firsts, each, strict=False)}


def _files(folder: Path) -> list[tuple[str | int, ...]]:
    """The name, size and digest of each file of a Minari dataset."""

    def one(path: Path) -> tuple[str | int, ...]:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return path.relative_to(folder).as_posix(), path.stat().st_size, digest

    return sorted(one(path) for path in folder.rglob("*") if path.is_file())


def _channels_last(shape: tuple[int, ...], *, ours: bool) -> bool:
    """Whether observations are (H, W, C), and not (C, H, W) or no pictures at all: exports of `ours` always are.

    Those of others are if at most 4 planes are last, or more than 4 would be first.
    """
    return len(shape) == 3 and (ours or shape[2] <= 4 or shape[0] > 4)


def _meta(storage: Any, name: str, about: dict[str, Any], action_map: ActionMap, last: bool) -> dict[str, Any]:
    space, shape = storage.action_space, storage.observation_space.shape
    low, high = (np.ravel(space.low), np.ravel(space.high)) if hasattr(space, "low") else (None, None)
    size = {"size": int(shape[0] if last else shape[1])} if len(shape) == 3 else {}
    return {
        "env": {"id": name, **size, "crop": False, "backend": "imported"},
        "policy": {"policy": "imported", "source": f"minari {about.get('dataset_id', '')}".strip()},
        "actions": actions_meta(action_map(space, name).actions, low, high),
    }


def _episode(storage: Any, number: int, to_ours: Callable[[np.ndarray], np.ndarray], last: bool) -> Episode:
    raw, about = next(iter(storage.get_episodes([number]))), next(iter(storage.get_episode_metadata([number])))
    kept = (raw.get("infos") or {}).get(ACTION)
    action = to_ours(np.asarray(raw["actions"])) if kept is None else np.asarray(kept, np.float32)
    terminated, obs = np.asarray(raw["terminations"], bool), np.asarray(raw["observations"])
    obs = np.ascontiguousarray(obs.transpose(0, 3, 1, 2)) if last else obs
    return Episode(
        obs=obs.astype(np.float32) if obs.dtype == np.float64 else obs,
        action=_padded(action),
        reward=_padded(np.asarray(raw["rewards"], np.float32)),
        terminated=_padded(terminated),
        truncated=_padded(np.asarray(raw["truncations"], bool) & ~terminated),
        seed=int(about["seed"]) if about.get("seed") is not None else number,
    )


def export(episodes: Episodes, dataset_id: str, action_map: ActionMap) -> Path:
    """Write a Minari dataset, one episode at a time, into Minari's local folder (`MINARI_DATASETS_PATH`).

    It appears there when it is whole; an export that is stopped or killed leaves nothing.

    Args:
        episodes: Ours.
        dataset_id: As `carracing/brown-v0`.
        action_map: See `read`.

    Raises:
        ArtifactError: if Minari is not installed, or its folder cannot be written.
        ConfigError: if there is a dataset of this id already, or the id is malformed.
        Stopped: after a signal.
    """
    _minari()
    to_theirs = action_map(_action_space(episodes), str(episodes.env.get("id"))).native_action
    with minari_folder.whole(dataset_id) as folder:
        made = _begin(episodes, dataset_id, to_theirs)
        for number in range(1, len(episodes)):
            interrupts.check()
            made.storage.update_episodes([_buffer(episodes, number, to_theirs)])
        made.storage.update_metadata({OURS: json.dumps({"shards": _runs(episodes)}, sort_keys=True)})
    return folder / "data"


def _begin(episodes: Episodes, dataset_id: str, to_theirs: Callable[[np.ndarray], np.ndarray]) -> Any:
    """A Minari dataset of the first episode."""
    _, minari = _minari()
    try:
        return _quietly(
            minari.create_dataset_from_buffers,
            dataset_id,
            [_buffer(episodes, 0, to_theirs)],
            observation_space=_observation_space(episodes),
            action_space=_action_space(episodes),
            description=f"{episodes.env.get('id')}, policy {episodes.policy.get('policy')}; exported by wmrl",
            algorithm_name=str(episodes.policy.get("policy")),
            data_format="hdf5",
            jpeg_encoding=False,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--id {dataset_id}: {error}") from error


def _quietly(call: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """Without Minari's advice to give authors and links, which a private conversion does not need."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return call(*args, **more)


def _runs(episodes: Episodes) -> list[dict[str, Any]]:
    """Each shard's number of episodes, and what it says of its making: said once for neighbours that say the same."""
    told = [(shards.provenance(shards.read_meta(episodes.path / name.file)), name.count) for name in episodes.names]
    runs = itertools.groupby(told, key=lambda one: one[0])
    return [{"meta": meta, "counts": [count for _, count in run]} for meta, run in runs]


def _buffer(episodes: Episodes, number: int, to_theirs: Callable[[np.ndarray], np.ndarray]) -> Any:
    from minari.data_collector import EpisodeBuffer

    episode = episodes.episode(number)
    steps = len(episode.reward) - 1
    return EpisodeBuffer(
        seed=episode.seed,
        observations=_theirs(episode.obs),
        actions=to_theirs(episode.action[:steps]),
        rewards=episode.reward[:steps],
        terminations=episode.terminated[:steps],
        truncations=episode.truncated[:steps],
        infos={ACTION: episode.action[:steps]},
    )


def _action_space(episodes: Episodes) -> Any:
    from gymnasium import spaces

    table = episodes.meta["actions"]
    if table["discrete"]:
        return spaces.Discrete(table["size"])
    low, high = np.asarray(table["low"], np.float32), np.asarray(table["high"], np.float32)
    return spaces.Box(low, high, dtype=np.float32)


def _observation_space(episodes: Episodes) -> Any:
    from gymnasium import spaces

    shape, dtype = episodes.observation.shape, episodes.dtype
    shape = (*shape[1:], shape[0]) if len(shape) == 3 else shape
    low, high = (-np.inf, np.inf) if dtype.kind == "f" else (0, 1 if dtype.kind == "b" else np.iinfo(dtype).max)
    return spaces.Box(low, high, shape, dtype.type)


def _theirs(obs: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(obs.transpose(0, 2, 3, 1)) if obs.ndim == 4 else obs


def _padded(column: np.ndarray) -> np.ndarray:
    return np.concatenate([column, np.zeros_like(column[:1])])


def _folder(source: str) -> Path | None:
    roots = [Path(source)]
    with contextlib.suppress(KeyError):
        roots.append(Path(os.environ["MINARI_DATASETS_PATH"]) / source)
    roots.append(Path.home() / ".minari" / "datasets" / source)
    found = (folder for root in roots for folder in (root, root / "data") if (folder / "metadata.json").is_file())
    return next(found, None)


def _minari() -> tuple[Any, Any]:
    try:
        import minari
        from minari.dataset.minari_storage import MinariStorage
    except ImportError as error:
        raise missing_extra("minari") from error
    return MinariStorage, minari
