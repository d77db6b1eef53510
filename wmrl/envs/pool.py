"""The envpool backend: C++ threads, one pool for the episodes that begin together.

envpool numbers its truncation and termination as one: an episode that ends at its limit counts as truncated even if the
game ended in that step. So the pool's own limit lies one step beyond ours, and the base class counts. Its autoreset is
never reached, because an ended slot is never stepped; `reset(seed=...)` has no effect there, so new episodes are a new
pool (9 ms and 3.3 MB for each CarRacing environment; 70 ms of two cores and 9 MB for each Doom, a process of its own).
"""

import difflib
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np

from wmrl.envs import doom
from wmrl.envs.actions import ActionMap
from wmrl.envs.base import Outcome, SlotEnv, drawn
from wmrl.envs.names import CLOCKS, canonical, frame_skip, home, observes, versions
from wmrl.envs.pixels import SIDE, image_size, layout, rgb
from wmrl.envs.views import State, state_of
from wmrl.errors import ConfigError, UserError
from wmrl.pipeline import Env

FPS = {"CarRacing-v3": 50.0}
"""Frames a second, as gymnasium's metadata have it; envpool does not tell."""

NOWHERE = -1
"""Of a slot without a pool."""

CROWD = 8
"""Slots for each thread from which on two pools are worth their waiting for each other."""

TYPES = (np.float32, np.bool_, np.bool_)
"""Of reward, terminated, truncated."""


class PoolEnv(SlotEnv):
    """Environments stepped by envpool's threads; those that begin together are a pool.

    With enough of them there are two pools, so that the frames of one are resized while the threads step the other.
    With a single thread there is one: who gives an environment one thread has others beside it, and a second pool's
    thread would only fight them. A slot that restarts leaves its pool, for one of its own or of those that restart with
    it; a pool that all have left is closed.
    """

    free_of_python = True
    """Several of these can be stepped at once from threads of Python."""

    def __init__(self, env: Env, n: int, *, threads: int):
        self._id, self._threads = canonical(env.id)[0], threads
        self._clock = CLOCKS.get(self._id)
        skip = frame_skip(self._id, env.frame_skip)
        self._options = doom.options(env.size, skip) if skip else {}
        limit, space, actions = _spaces(self._id, self._options)
        order, state = _look(self._id, space, env)
        native = image_size(space.shape, order) if order else (SIDE, SIDE)
        super().__init__(
            env,
            n,
            action_map=ActionMap(actions, self._id),
            native=native,
            state=state,
            limit=self._clock.limit // skip if self._clock and skip else limit,
            fps=self._clock.rate / skip if self._clock and skip else FPS.get(self._id, 30.0),
            info={
                "backend": "envpool",
                "pixels": "observation" if order else "drawn",
                "versions": versions("envpool", "gymnasium", "numpy", "opencv-python-headless"),
            },
        )
        self._read = partial(rgb, order=order) if order else partial(state, lead=1)  # type: ignore[arg-type, misc]
        self._pools: dict[int, Pool] = {}
        self._pool = np.full(n, NOWHERE)  # the key of each slot's pool, and its number there
        self._number = np.zeros(n, np.int64)
        self._den = doom.Den(doom.program()) if self._clock else None
        self._last = (
            np.zeros((n, *native, 3), np.uint8) if order else np.zeros((n, *self.observation.shape), np.float32)
        )

    def _begin(self, seeds: list[int], ids: np.ndarray) -> np.ndarray:
        self._pool[ids] = self._pool[~self._shown] = NOWHERE
        self._sweep()  # the old episodes' memory goes before the new ones' comes
        count = 2 if self._threads > 1 and len(seeds) >= CROWD * self._threads else 1
        for part in range(count):
            self._open_pool(seeds[part::count], ids[part::count])
        return self._see(ids)

    def _open_pool(self, seeds: list[int], ids: np.ndarray) -> None:
        options = {**self._options, "vzd_path": str(self._den.launcher)} if self._den else self._options
        with doom.starting() if self._den else nullcontext():
            pool = Pool(self._id, seeds, self._threads, (self._limit or 0) + 1, options, self._read)
        key = max(self._pools, default=NOWHERE) + 1
        self._pools[key] = pool
        self._pool[ids], self._number[ids] = key, np.arange(len(ids))
        self._last[ids] = pool.first()

    def _advance(self, native: np.ndarray, ids: np.ndarray, times: np.ndarray) -> Outcome:
        k = len(ids)
        out = Outcome(np.empty((k, *self.observation.shape), self._dtype), *(np.zeros(k, t) for t in TYPES))
        for turn in range(times.max()):
            rows = np.flatnonzero((times > turn) & ~out.terminated & ~out.truncated)
            if len(rows):
                self._once(native, ids, rows, out, times == turn + 1)
        return out

    def _once(self, native: np.ndarray, ids: np.ndarray, rows: np.ndarray, out: Outcome, last: np.ndarray) -> None:
        """Step these rows once; those that end, and the `last` ones of a repetition, are looked at."""
        keys = self._pool[ids[rows]]
        work = [(self._pools[key], rows[keys == key]) for key in np.unique(keys).tolist()]
        waiting, flying = deque(work), deque[tuple[Pool, np.ndarray]]()

        def launch() -> None:
            while waiting and (not flying or sum(p.threads for p, _ in (*flying, waiting[0])) <= self._threads):
                pool, part = waiting.popleft()
                pool.send(native[part], self._number[ids[part]])
                flying.append((pool, part))

        launch()
        while flying:
            pool, part = flying.popleft()
            obs, reward, out.terminated[part], out.truncated[part] = pool.receive(self._number[ids[part]])
            launch()  # these step while the frames of those are resized
            out.reward[part] += 1.0 if self._clock else reward
            self._last[ids[part]] = obs
            shown = part[last[part] | out.terminated[part] | out.truncated[part]]
            out.obs[shown] = self._see(ids[shown])

    def _see(self, ids: np.ndarray) -> np.ndarray:
        return self._last[ids] if self._state else self._resized(self._last[ids])

    def _frames(self, ids: np.ndarray) -> np.ndarray:
        return drawn(self._last[ids]) if self._state else self._last[ids]

    def _shut(self) -> None:
        self._pool[:] = NOWHERE
        self._sweep()
        if self._den:
            self._den.close()

    def _sweep(self) -> None:
        """Close the pools that no slot is in."""
        for key in self._pools.keys() - set(self._pool.tolist()):
            self._pools.pop(key).close()


class Pool:
    """One wave of envpool's environments, numbered from 0; answers come in the order that was asked for.

    Args:
        env_id: envpool's name of the game.
        seeds: One for each environment.
        threads: C++ threads.
        limit: Steps after which it truncates.
        options: Further arguments of `envpool.make`.
        read: Makes one array (k, ...) of what envpool observes.
    """

    def __init__(
        self, env_id: str, seeds: list[int], threads: int, limit: int, options: dict[str, Any], read: Callable
    ):
        import envpool

        self._id, self._read = env_id, read
        self.threads = min(threads, len(seeds))
        with _quiet():
            self._pool = envpool.make(
                env_id,
                env_type="gymnasium",
                num_envs=len(seeds),
                seed=seeds,
                num_threads=self.threads,
                max_episode_steps=limit,
                **options,
            )

    def first(self) -> np.ndarray:
        """Begin all episodes; their first observations."""
        with _quiet():
            obs, info = self._pool.reset()
        return np.asarray(self._read(obs))[np.argsort(info["env_id"])]

    def send(self, native: np.ndarray, numbers: np.ndarray) -> None:
        """Let the threads step these environments."""
        self._pool.send(native, numbers.astype(np.int32))

    def receive(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Wait for them: observation, reward, terminated, truncated.

        Raises:
            UserError: if others came than were sent.
        """
        obs, *outcome, info = self._pool.recv()
        outcome = [self._read(obs), *outcome]
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


def _look(env_id: str, space: Any, env: Env) -> tuple[str | None, State | None]:
    """The layout of the observed image, or how another observation is seen."""
    order = layout(space.shape, space.dtype) if getattr(space, "shape", None) else None
    if observes(env_id, env.observe) == "state":
        if order:
            raise ConfigError(f"env.observe: envpool's {env_id} observes an image; take 'pixels'")
        return None, state_of(space, env)
    if order is None:
        raise ConfigError(
            f"env.id: envpool's {env_id} observes no image; env.backend = 'gymnasium' may render it, "
            "env.observe = 'state' takes the numbers"
        )
    return order, None


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
