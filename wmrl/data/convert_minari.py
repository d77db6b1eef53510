"""Minari datasets, both ways and without loss.

Frames are (H, W, C) there and (C, H, W) here, actions in the environment's units there and in [-1, 1] here. An export
also keeps our actions (as `infos`) and what shards say of their making: importing it gives the same bytes again.
"""

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wmrl.data.episodes import Episodes
from wmrl.data.ingest import Foreign, actions_meta
from wmrl.data.shards import Episode
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
    ours = json.loads(about[OURS]) if OURS in about else None
    name = env_id or (json.loads(about["env_spec"])["id"] if about.get("env_spec") else about.get("dataset_id", source))
    if getattr(storage.observation_space, "shape", None) is None:
        raise ConfigError(f"{name} has observations of {storage.observation_space}; supported are arrays")
    meta = ours["meta"] if ours else _meta(storage, name, about, action_map)
    to_ours = action_map(storage.action_space, name).from_native
    return Foreign(_episodes(storage, count, to_ours), count, meta, ours["per_shard"] if ours else None)


def _meta(storage: Any, name: str, about: dict[str, Any], action_map: ActionMap) -> dict[str, Any]:
    space, shape = storage.action_space, storage.observation_space.shape
    low, high = (np.ravel(space.low), np.ravel(space.high)) if hasattr(space, "low") else (None, None)
    size = {"size": int(shape[0] if shape[-1] <= 4 else shape[-1])} if len(shape) == 3 else {}
    return {
        "env": {"id": name, **size, "crop": False, "backend": "imported"},
        "policy": {"policy": "imported", "source": f"minari {about.get('dataset_id', '')}".strip()},
        "actions": actions_meta(action_map(space, name).actions, low, high),
    }


def _episodes(storage: Any, count: int, to_ours: Callable[[np.ndarray], np.ndarray]) -> Iterator[Episode]:
    for number in range(count):
        raw, about = next(iter(storage.get_episodes([number]))), next(iter(storage.get_episode_metadata([number])))
        kept = (raw.get("infos") or {}).get(ACTION)
        action = to_ours(np.asarray(raw["actions"])) if kept is None else np.asarray(kept, np.float32)
        terminated = np.asarray(raw["terminations"], bool)
        yield Episode(
            obs=_ours(np.asarray(raw["observations"])),
            action=_padded(action),
            reward=_padded(np.asarray(raw["rewards"], np.float32)),
            terminated=_padded(terminated),
            truncated=_padded(np.asarray(raw["truncations"], bool) & ~terminated),
            seed=int(about["seed"]) if about.get("seed") is not None else number,
        )


def export(episodes: Episodes, dataset_id: str, action_map: ActionMap) -> Path:
    """Write a Minari dataset, one episode at a time, into Minari's local folder (`MINARI_DATASETS_PATH`).

    Args:
        episodes: Ours.
        dataset_id: As `carracing/brown-v0`.
        action_map: See `read`.

    Raises:
        ArtifactError: if Minari is not installed.
        ConfigError: if there is a dataset of this id already, or the id is malformed.
    """
    _, minari = _minari()
    to_theirs = action_map(_action_space(episodes), str(episodes.env.get("id"))).native_action
    ours = {"meta": _bare(episodes.meta), "per_shard": episodes.names[0].count}
    try:
        made = _quietly(
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
    for number in range(1, len(episodes)):
        made.storage.update_episodes([_buffer(episodes, number, to_theirs)])
    made.storage.update_metadata({OURS: json.dumps(ours, sort_keys=True)})
    return Path(made.storage.data_path)


def _quietly(call: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """Without Minari's advice to give authors and links, which a private conversion does not need."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return call(*args, **more)


def _bare(meta: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in meta.items() if key not in ("format", "first", "count", "observation")}


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


def _ours(obs: np.ndarray) -> np.ndarray:
    """Channels first, doubles as floats."""
    if obs.ndim == 4 and (obs.shape[-1] <= 4 or obs.shape[1] > 4):
        obs = np.ascontiguousarray(obs.transpose(0, 3, 1, 2))
    return obs.astype(np.float32) if obs.dtype == np.float64 else obs


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
