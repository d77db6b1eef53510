"""Rollouts of ctallec/world-models and of tbwm: `thread_<k>/rollout_<i>.npz`.

There `observations[t]` is the frame *after* `actions[t]`, and the first frame of the episode is missing. So our row
t is (observations[t], actions[t + 1], rewards[t + 1], terminals[t + 1]), and T frames make an episode of T - 1 steps.
Their actions are the environment's own; 1,001 rows of them are kept for any episode, and cut. They do not tell a time
limit from an end of the game: an episode that ends at the environment's limit counts as truncated.
"""

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wmrl import seeding
from wmrl.data.ingest import Foreign
from wmrl.data.shards import Episode
from wmrl.errors import ArtifactError

KEYS = ("observations", "actions", "rewards", "terminals")


def find(folder: Path) -> list[Path]:
    """The rollouts in `folder` and below, in the order of their numbers."""
    return sorted(folder.rglob("*.npz"), key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))])


def size_of(path: Path) -> int:
    """The height of a rollout's frames, pixels.

    Raises:
        ArtifactError: if it is none.
    """
    return int(_arrays(path)["observations"].shape[1])


def read(
    folder: Path,
    files: Sequence[Path],
    *,
    env: dict[str, Any],
    actions: dict[str, Any],
    to_ours: Callable[[np.ndarray], np.ndarray],
    limit: int | None,
) -> Foreign:
    """The rollouts as episodes.

    Args:
        folder: Where they lie.
        files: As `find` gives them.
        env: The environment's table.
        actions: What shards say of actions (`actions_meta`).
        to_ours: The environment's actions (k, A) -> [-1, 1] or one-hot.
        limit: Steps after which the environment truncates.

    Raises:
        ArtifactError: while reading, if a file is damaged or holds something else.
    """
    meta = {"env": env, "policy": {"policy": "random", "source": "npz"}, "actions": actions}

    def episodes() -> Iterator[Episode]:
        for path in files:
            seed = seeding.number("npz", path.relative_to(folder).as_posix())
            yield convert(_arrays(path), to_ours, limit, seed)

    return Foreign(episodes(), len(files), meta)


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
    obs, count = arrays["observations"], len(arrays["observations"])
    if obs.ndim != 4 or obs.dtype != np.uint8 or count < 2:
        raise ArtifactError(
            f"{path} holds observations {obs.shape} of {obs.dtype}, not (T, H, W, C) of uint8 with T > 1"
        )
    if len(arrays["actions"]) < count or len(arrays["rewards"]) != count or len(arrays["terminals"]) != count:
        raise ArtifactError(f"{path} holds {count} observations and other numbers of actions, rewards or terminals")
    return arrays
