"""The envpool backend: C++ threads, one pool a wave.

envpool numbers its truncation and termination as one: an episode that ends at its limit counts as truncated even if the
game ended in that step. So the pool's own limit lies one step beyond ours, and the base class counts. Its autoreset is
never reached, because an ended slot is never stepped; `reset(seed=...)` has no effect there, so each wave is a new pool
(9 ms and 3.3 MB for each CarRacing environment).
"""

import difflib
import importlib.metadata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from wmrl.envs.actions import ActionMap
from wmrl.envs.base import Outcome, PixelEnv
from wmrl.envs.names import canonical
from wmrl.envs.pixels import image_size, layout, rgb
from wmrl.errors import ConfigError, UserError
from wmrl.pipeline import Env

FPS = {"CarRacing-v3": 50.0}
"""Frames a second, as gymnasium's metadata have it; envpool does not tell."""


class PoolEnv(PixelEnv):
    """Environments stepped by envpool's threads."""

    def __init__(self, env: Env, n: int, *, threads: int):
        env_id = canonical(env.id)[0]
        self._id, self._threads = env_id, threads
        limit, space, actions = _spaces(env_id)
        order = layout(space.shape, space.dtype) if getattr(space, "shape", None) else None
        if order is None:
            raise ConfigError(f"env.id: envpool's {env_id} observes no image; env.backend = 'gymnasium' may render it")
        self._order = order
        native = image_size(space.shape, order)
        super().__init__(
            env,
            n,
            action_map=ActionMap(actions, env_id),
            native=native,
            limit=limit,
            fps=FPS.get(env_id, 30.0),
            info={"backend": "envpool", "pixels": "observation", "versions": _versions("envpool", "gymnasium")},
        )
        self._pool: Any = None
        self._last = np.zeros((n, *native, 3), np.uint8)

    def _begin(self, seeds: list[int]) -> np.ndarray:
        import envpool

        self._shut()
        with _quiet():
            self._pool = envpool.make(
                self._id,
                env_type="gymnasium",
                num_envs=len(seeds),
                seed=seeds,
                num_threads=min(self._threads, len(seeds)),
                max_episode_steps=(self.max_steps or 0) + 1,
            )
            obs, info = self._pool.reset()
        frames = self._last[: len(seeds)]
        frames[info["env_id"]] = rgb(obs, self._order)
        return self._resized(frames)

    def _advance(self, native: np.ndarray, ids: np.ndarray) -> Outcome:
        obs, reward, terminated, truncated, info = self._pool.step(native, ids.astype(np.int32))
        came: np.ndarray = info["env_id"]
        order = np.empty(self.n, np.int64)  # slot -> its row in what came back
        order[came] = np.arange(len(came))
        rows = order[ids]
        if len(came) != len(ids) or (came[rows] != ids).any():
            raise UserError(f"envpool stepped slots {came.tolist()} of {self._id} where {ids.tolist()} were asked")
        if not (came == ids).all():
            obs, reward, terminated, truncated = obs[rows], reward[rows], terminated[rows], truncated[rows]
        frames = rgb(obs, self._order)
        self._last[ids] = frames
        return Outcome(self._resized(frames), reward.astype(np.float32), terminated.copy(), truncated.copy())

    def _frames(self, ids: np.ndarray) -> np.ndarray:
        return self._last[ids]

    def _shut(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def _spaces(env_id: str) -> tuple[int, Any, Any]:
    """The limit of steps, the observation space, the action space."""
    try:
        import envpool
    except ImportError as error:
        raise ConfigError(f"env.backend: envpool cannot be imported here ({error}); take 'gymnasium'") from error
    known = envpool.list_all_envs()
    if env_id not in known:
        close = difflib.get_close_matches(env_id, known, n=1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        raise ConfigError(f"env.id: envpool has no {env_id!r}{meant}; env.backend = 'gymnasium' may have it")
    with _quiet():
        spec = envpool.make_spec(env_id)
        return int(spec.config.max_episode_steps), spec.gymnasium_observation_space, spec.gymnasium_action_space


@contextmanager
def _quiet() -> Iterator[None]:
    """Without gymnasium's warnings that the bounds of envpool's boxes are float64."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*Box (low|high)'s precision lowered.*")
        yield


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}
