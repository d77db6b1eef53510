"""Datasets from and for other programs: npz rollouts of ctallec and tbwm -> ours; Minari both ways."""

from pathlib import Path

import numpy as np

from wmrl.data import convert_minari, convert_npz
from wmrl.data.episodes import Episodes
from wmrl.data.ingest import Foreign, actions_meta, box, ingest
from wmrl.data.shards import Index
from wmrl.envs import make
from wmrl.envs.actions import ActionMap
from wmrl.errors import ArtifactError
from wmrl.locking import lock
from wmrl.pipeline import Env


def import_rollouts(source: str, out: Path, env_id: str | None = None) -> Index:
    """Convert a dataset; which kind it is tells what lies in the folder.

    Args:
        source: A folder with `rollout_*.npz` files in it or below, a Minari dataset's folder, or its id.
        out: The new dataset.
        env_id: The environment, where the dataset does not tell.

    Raises:
        ArtifactError: if nothing known is there, or it is damaged.
        ConfigError: if `out` holds other episodes, or spaces are not supported.
    """
    with lock(out):
        return ingest(_read(source, env_id), out)


def export_rollouts(path: Path, dataset_id: str) -> Path:
    """Write a dataset as a Minari dataset; returns its folder.

    Raises:
        ArtifactError: if ours is missing or unfinished, or Minari is not installed.
        ConfigError: if the id is taken or malformed.
    """
    return convert_minari.export(Episodes(path), dataset_id, ActionMap)


def _read(source: str, env_id: str | None) -> Foreign:
    folder = Path(source)
    if folder.is_dir() and (files := convert_npz.find(folder)):
        return _npz(folder, files, env_id or "CarRacing-v3")
    if convert_minari.is_minari(source):
        return convert_minari.read(source, env_id, ActionMap)
    raise ArtifactError(f"{source} holds neither npz rollouts of ctallec or tbwm nor a Minari dataset")


def _npz(folder: Path, files: list[Path], env_id: str) -> Foreign:
    """The range of actions and the time limit are the environment's."""
    frame = convert_npz.frame_of(files[0])
    size = frame[0]
    with make(Env(id=env_id, size=size), 1, threads=1) as env:
        table = {"id": env_id, "size": size, "crop": False, "backend": "imported"}
        acts = actions_meta(env.actions, *box(env))
        each = env.native_action(np.eye(env.actions.size)).tolist() if env.actions.discrete else None
        wanted = convert_npz.Wanted(frame, env.actions.size, each)
        return convert_npz.read(
            folder, files, wanted=wanted, env=table, actions=acts, to_ours=env.from_native, limit=env.max_steps
        )
