"""Rollouts of ctallec/world-models and of tbwm: `thread_<k>/rollout_<i>.npz`.

There `observations[t]` is the frame *after* `actions[t]`, and the first frame of the episode is missing. So our row
t is (observations[t], actions[t + 1], rewards[t + 1], terminals[t + 1]), and T frames make an episode of T - 1 steps.
Their actions are the environment's own; 1,001 rows of them are kept for any episode, and cut. They do not tell a time
limit from an end of the game: an episode that ends at the environment's limit counts as truncated.
"""

import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wmrl import seeding
from wmrl.data.ingest import Foreign, source_of
from wmrl.data.shards import Episode
from wmrl.errors import ArtifactError

KEYS = ("observations", "actions", "rewards", "terminals")


@dataclass(frozen=True)
class Wanted:
    """What every rollout of a dataset must hold.

    Args:
        frame: The shape (H, W, C) of all frames.
        size: Numbers in an action of a box.
        discrete: The environment's numbers of its actions; None if they are a box.
    """

    frame: tuple[int, ...]
    size: int
    discrete: Sequence[int] | None = None


def find(folder: Path) -> list[Path]:
    """The rollouts in `folder` and below, in the order of their numbers, then of their names."""
    return sorted(folder.rglob("*.npz"), key=lambda path: ([int(n) for n in re.findall(r"\d+", str(path))], str(path)))


def frame_of(path: Path) -> tuple[int, ...]:
    """The shape (H, W, C) of a rollout's frames, H = W.

    Raises:
        ArtifactError: if it is no rollout.
    """
    return tuple(_arrays(path)["observations"].shape[1:])


def read(
    folder: Path,
    files: Sequence[Path],
    *,
    wanted: Wanted,
    env: dict[str, Any],
    actions: dict[str, Any],
    to_ours: Callable[[np.ndarray], np.ndarray],
    limit: int | None,
) -> Foreign:
    """The rollouts as episodes.

    Args:
        folder: Where they lie.
        files: As `find` gives them.
        wanted: What each must hold.
        env: The environment's table.
        actions: What shards say of actions (`actions_meta`).
        to_ours: The environment's actions (k, A) -> [-1, 1] or one-hot.
        limit: Steps after which the environment truncates.

    Raises:
        ArtifactError: if a file is damaged or holds something else; of some damage only while its episode is read.
    """
    names = [path.relative_to(folder).as_posix() for path in files]
    source = source_of("npz", [part for name in names for part in _sums(folder / name, name)])
    meta = {"env": env, "policy": {"policy": "random", "source": "npz"}, "actions": actions, "source": source}

    def episode(number: int) -> Episode:
        arrays = _arrays(files[number])
        _suits(files[number], arrays, wanted)
        return convert(arrays, to_ours, limit, seeding.number("npz", names[number]))

    return Foreign(str(folder), len(files), episode, meta)


def _sums(path: Path, name: str) -> list[tuple[str | int, ...]]:
    """The size and checksum of each array, as the zip file lists them: no need to read gigabytes."""
    try:
        with zipfile.ZipFile(path) as file:
            return [(name, part.filename, part.file_size, part.CRC) for part in file.infolist()]
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path} is no rollout: it is damaged, or no npz file") from error


def convert(
    arrays: dict[str, np.ndarray], to_ours: Callable[[np.ndarray], np.ndarray], limit: int | None, seed: int
) -> Episode:
    """One rollout, shifted by one.

    Args:
        arrays: `observations` (T, H, W, C), `actions` (>= T, A), `rewards` (T,), `terminals` (T,).
        to_ours: See `read`.
        limit: See `read`.
        seed: Stands for the unknown one.
    """
    obs = np.ascontiguousarray(arrays["observations"].transpose(0, 3, 1, 2))
    count = len(obs)
    action = to_ours(arrays["actions"][:count]).astype(np.float32)
    over = arrays["terminals"].astype(bool)
    terminated = over if limit is None or count < limit else np.zeros_like(over)
    truncated = np.zeros_like(over)
    truncated[-1] = not terminated[-1]
    columns = {
        "action": action,
        "reward": arrays["rewards"].astype(np.float32),
        "terminated": terminated,
        "truncated": truncated,
    }
    return Episode(obs=obs, **{name: _shifted(column) for name, column in columns.items()}, seed=seed)


def _shifted(column: np.ndarray) -> np.ndarray:
    return np.concatenate([column[1:], np.zeros_like(column[:1])])


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise ArtifactError(f"{path} is no rollout: it is damaged, or no npz file")
    try:
        with np.load(path) as file:  # unpickles nothing, by its default
            arrays = {key: file[key] for key in KEYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ArtifactError(f"{path} is no rollout with {', '.join(KEYS)}: {error}") from error
    obs = arrays["observations"]
    square = obs.ndim == 4 and obs.shape[1] == obs.shape[2]
    _insist(
        square and obs.dtype == np.uint8 and len(obs) > 1 and obs.size,
        path,
        arrays,
        "observations",
        "(T, H, W, C) of uint8 with T > 1 and H = W",
    )
    return arrays


def _suits(path: Path, arrays: dict[str, np.ndarray], wanted: Wanted) -> None:
    """Refuse arrays that are no episode of this dataset, before anything of them is written."""
    obs, over, count = arrays["observations"], arrays["terminals"], len(arrays["observations"])
    _insist(
        obs.shape[1:] == wanted.frame, path, arrays, "observations", f"frames of {wanted.frame} as in the first file"
    )
    acts, size = arrays["actions"], wanted.size
    _insist(acts.ndim and len(acts) >= count, path, arrays, "actions", f"at least {count} rows, one for each frame")
    if wanted.discrete is not None:
        known = acts.ndim == 1 and acts.dtype.kind in "iu" and np.isin(acts[:count], wanted.discrete).all()
        _insist(
            known, path, arrays, "actions", f"(T,) of integers from {min(wanted.discrete)} to {max(wanted.discrete)}"
        )
    else:
        _insist(acts.ndim == 2 and acts.shape[1] == size, path, arrays, "actions", f"(T, {size})")
    for name in KEYS[2:]:
        _insist(arrays[name].shape == (count,), path, arrays, name, f"({count},), one for each frame")
    for name in KEYS[1:]:
        column = arrays[name]
        _insist(column.dtype.kind in "biuf" and np.isfinite(column[:count]).all(), path, arrays, name, "finite numbers")
    _insist(not over[:-1].any(), path, arrays, "terminals", "none before the last row: one episode a file")


def _insist(fits: Any, path: Path, arrays: dict[str, np.ndarray], name: str, right: str) -> None:
    if not fits:
        array = arrays[name]
        raise ArtifactError(f"{path}: {name} are {array.shape} of {array.dtype}; they must be {right}")
