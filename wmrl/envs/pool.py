"""The envpool backend: C++ threads, one pool a wave.

envpool numbers its truncation and termination as one: an episode that ends at its limit counts as truncated even if the
game ended in that step. So the pool's own limit lies one step beyond ours, and the base class counts. Its autoreset is
never reached, because an ended slot is never stepped; `reset(seed=...)` has no effect there, so each wave is a new pool
(9 ms and 3.3 MB for each CarRacing environment; 70 ms of two cores and 9 MB for each Doom, a process of its own).
"""

import difflib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from wmrl.envs import doom
from wmrl.envs.actions import ActionMap
from wmrl.envs.base import Outcome, PixelEnv
from wmrl.envs.names import CLOCKS, canonical, frame_skip, home, versions
from wmrl.envs.pixels import image_size, layout, rgb
from wmrl.errors import ConfigError, UserError
from wmrl.pipeline import Env

FPS = {"CarRacing-v3": 50.0}
"""Frames a second, as gymnasium's metadata have it; envpool does not tell."""

CROWD = 8
"""Slots for each thread from which on two pools are worth their waiting for each other."""

TYPES = (np.float32, np.bool_, np.bool_)
"""Of reward, terminated, truncated."""


class PoolEnv(PixelEnv):
    """Environments stepped by envpool's threads.

    With enough slots there are two pools, so that the frames of one are resized while the threads step the other:
    slot s is number s // 2 of pool s % 2. With a single thread there is one: who gives an environment one thread has
    others beside it, and a second pool's thread would only fight them.
    """

    free_of_python = True
    """Several of these can be stepped at once from threads of Python."""

    def __init__(self, env: Env, n: int, *, threads: int):
        self._id, self._threads = canonical(env.id)[0], threads
        self._clock = CLOCKS.get(self._id)
        skip = frame_skip(self._id, env.frame_skip)
        self._options = doom.options(env.size, skip) if skip else {}
        limit, space, actions = _spaces(self._id, self._options)
        order = layout(space.shape, space.dtype) if getattr(space, "shape", None) else None
        if order is None:
            raise ConfigError(
                f"env.id: envpool's {self._id} observes no image; env.backend = 'gymnasium' may render it"
            )
        self._order = order
        native = image_size(space.shape, order)
        super().__init__(
            env,
            n,
            action_map=ActionMap(actions, self._id),
            native=native,
            limit=self._clock.limit // skip if self._clock and skip else limit,
            fps=self._clock.rate / skip if self._clock and skip else FPS.get(self._id, 30.0),
            info={
                "backend": "envpool",
                "pixels": "observation",
                "versions": versions("envpool", "gymnasium", "numpy", "opencv-python-headless"),
            },
        )
        self._pools: list[Pool] = []
        self._den = doom.Den(doom.program()) if self._clock else None
        self._last = np.zeros((n, *native, 3), np.uint8)

    def _begin(self, seeds: list[int]) -> np.ndarray:
        self._drop()  # the old wave's memory goes before the new one's comes
        options = {**self._options, "vzd_path": str(self._den.launcher)} if self._den else self._options
        count = 2 if self._threads > 1 and len(seeds) >= CROWD * self._threads else 1
        frames = self._last[: len(seeds)]
        for part in range(count):
            with doom.starting() if self._den else nullcontext():
                pool = Pool(self._id, seeds[part::count], self._threads, (self.max_steps or 0) + 1, options)
            self._pools.append(pool)
            frames[part::count] = rgb(pool.first(), self._order)
        return self._resized(frames)

    def _advance(self, native: np.ndarray, ids: np.ndarray) -> Outcome:
        out = Outcome(np.empty((len(ids), *self.observation.shape), np.uint8), *(np.empty(len(ids), t) for t in TYPES))
        count = len(self._pools)
        work = [(self._pools[part], np.flatnonzero(ids % count == part)) for part in range(count)]
        work = [(pool, rows) for pool, rows in work if len(rows)]
        for pool, rows in work[:1]:
            pool.send(native[rows], ids[rows] // count)
        for i, (pool, rows) in enumerate(work):
            obs, *rest = pool.receive(ids[rows] // count)
            for following, later in work[i + 1 : i + 2]:
                following.send(native[later], ids[later] // count)
            frames = rgb(obs, self._order)
            self._last[ids[rows]] = frames
            out.obs[rows] = self._resized(frames)
            out.reward[rows], out.terminated[rows], out.truncated[rows] = rest
            if self._clock:
                out.reward[rows] = 1.0
        return out

    def _frames(self, ids: np.ndarray) -> np.ndarray:
        return self._last[ids]

    def _shut(self) -> None:
        self._drop()
        if self._den:
            self._den.close()

    def _drop(self) -> None:
        for pool in self._pools:
            pool.close()
        self._pools = []


class Pool:
    """One wave of envpool's environments, numbered from 0; answers come in the order that was asked for.

    Args:
        env_id: envpool's name of the game.
        seeds: One for each environment.
        threads: C++ threads.
        limit: Steps after which it truncates.
        options: Further arguments of `envpool.make`.
    """

    def __init__(self, env_id: str, seeds: list[int], threads: int, limit: int, options: dict[str, Any]):
        import envpool

        self._id = env_id
        with _quiet():
            self._pool = envpool.make(
                env_id,
                env_type="gymnasium",
                num_envs=len(seeds),
                seed=seeds,
                num_threads=min(threads, len(seeds)),
                max_episode_steps=limit,
                **options,
            )

    def first(self) -> np.ndarray:
        """Begin all episodes; their first observations."""
        with _quiet():
            obs, info = self._pool.reset()
        return obs[np.argsort(info["env_id"])]

    def send(self, native: np.ndarray, numbers: np.ndarray) -> None:
        """Let the threads step these environments."""
        self._pool.send(native, numbers.astype(np.int32))

    def receive(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Wait for them: observation, reward, terminated, truncated.

        Raises:
            UserError: if others came than were sent.
        """
        *outcome, info = self._pool.recv()
        came: np.ndarray = info["env_id"]
        if np.array_equal(came, numbers):
            return outcome
        order = np.argsort(came)
        rows = order[np.searchsorted(came, numbers, sorter=order).clip(max=len(came) - 1)]
        if len(came) != len(numbers) or not np.array_equal(came[rows], numbers):
            raise UserError(f"envpool stepped {came.tolist()} of {self._id} where {numbers.tolist()} were asked for")
        return [values[rows] for values in outcome]

    def close(self) -> None:
        """Let go of the threads."""
        self._pool.close()


def _spaces(env_id: str, options: dict[str, Any]) -> tuple[int, Any, Any]:
    """The limit of steps, the observation space, the action space."""
    try:
        import envpool
    except ImportError as error:
        other = f"{env_id} needs it" if home(env_id) == "envpool" else "take 'gymnasium'"
        raise ConfigError(f"env.backend: envpool cannot be imported here ({error}); {other}") from error
    known = envpool.list_all_envs()
    if env_id not in known:
        close = difflib.get_close_matches(env_id, known, n=1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        raise ConfigError(f"env.id: envpool has no {env_id!r}{meant}; env.backend = 'gymnasium' may have it")
    with _quiet():
        spec = envpool.make_spec(env_id, **options)
        return int(spec.config.max_episode_steps), spec.gymnasium_observation_space, spec.gymnasium_action_space


@contextmanager
def _quiet() -> Iterator[None]:
    """Without gymnasium's warnings that the bounds of envpool's boxes are float64."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*Box (low|high)'s precision lowered.*")
        yield
