"""Episodes kept whole: recorded while they are played, packed into artifacts, taken out again to be watched."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Tree = dict[str, Any]


@dataclass(frozen=True)
class Episode:
    """One episode of T steps.

    Args:
        obs: (T + 1, *obs), the last one after the last action.
        action: (T, A), one-hot or in [-1, 1].
        reward: (T,).
        terminated: Whether it ended by itself.
        native: T + 1 frames (H, W, 3) of the environment's own resolution, as encoded PNG; empty if not recorded.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: bool = False
    native: tuple[bytes, ...] = ()

    def __len__(self) -> int:
        return len(self.reward)

    def cut(self, steps: int) -> "Episode":
        """The first `steps` steps of it."""
        return Episode(
            obs=self.obs[: steps + 1],
            action=self.action[:steps],
            reward=self.reward[:steps],
            terminated=self.terminated and steps >= len(self),
            native=self.native[: steps + 1],
        )

    def tensors(self, prefix: str) -> dict[str, np.ndarray]:
        """The columns, named for an artifact."""
        columns = {"obs": self.obs, "action": self.action, "reward": self.reward}
        return {f"{prefix}/{name}": array for name, array in columns.items()}

    def pack(self) -> Tree:
        """The episode as a tree with its frames compressed, for the state of a stage in progress."""
        frames = np.ascontiguousarray(self.obs)
        return {
            "frames": np.frombuffer(zlib.compress(frames.tobytes(), 1), np.uint8),
            "dtype": frames.dtype.str,
            "shape": list(frames.shape),
            "action": self.action,
            "reward": self.reward,
            "terminated": self.terminated,
        }


def unpack(tree: Mapping[str, Any]) -> Episode:
    """The episode that `Episode.pack` made a tree of."""
    data = zlib.decompress(tree["frames"].tobytes())
    obs = np.frombuffer(data, np.dtype(tree["dtype"])).reshape(tree["shape"])
    return Episode(obs, tree["action"], tree["reward"], tree["terminated"])


def episodes_in(tensors: Mapping[str, np.ndarray], prefix: str) -> list[Episode]:
    """The episodes that an artifact holds as `prefix/0/obs`, `prefix/1/obs`, ..."""
    found: list[Episode] = []
    while f"{prefix}/{len(found)}/obs" in tensors:
        at = f"{prefix}/{len(found)}"
        found.append(Episode(tensors[f"{at}/obs"], tensors[f"{at}/action"], tensors[f"{at}/reward"]))
    return found


@dataclass
class _Rows:
    obs: list[np.ndarray] = field(default_factory=list)
    action: list[np.ndarray] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    terminated: bool = False


class Recorder:
    """Keeps the first `rows` rows of a wave; `wmrl.rollout.play` calls it after each step."""

    def __init__(self, rows: int) -> None:
        self._rows = [_Rows() for _ in range(rows)]

    def __call__(self, ids: np.ndarray, obs: Any, action: np.ndarray, outcome: Any) -> None:
        """Keep what happened: see `on_step` of `wmrl.rollout.play`."""
        for at in np.flatnonzero(ids < len(self._rows)):
            row = self._rows[ids[at]]
            row.obs.append(np.array(obs[at]))
            row.action.append(np.array(action[at], np.float32))
            row.reward.append(float(outcome.reward[at]))
            if outcome.terminated[at] or outcome.truncated[at]:
                row.obs.append(np.array(outcome.obs[at]))
                row.terminated = bool(outcome.terminated[at])

    def episodes(self, native: Sequence[bytes] = ()) -> list[Episode]:
        """The episodes recorded, each complete."""
        return [
            Episode(np.stack(r.obs), np.stack(r.action), np.array(r.reward, np.float32), r.terminated, tuple(native))
            for r in self._rows
            if r.reward
        ]
