"""What every backend shares: the interface, the book-keeping of slots, time limits, frames."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import cv2
import numpy as np

from wmrl.envs.actions import ActionMap
from wmrl.envs.names import STATUS_BAR, canonical, difficulty, frame_skip
from wmrl.envs.pixels import SIDE, resize
from wmrl.envs.views import State
from wmrl.errors import ConfigError, UserError
from wmrl.pipeline import Env
from wmrl.spec import Actions, Space
from wmrl.video import picture


class Outcome(NamedTuple):
    """What one step of k slots led to, in the order of the ids that were stepped."""

    obs: np.ndarray  # (k, *obs), of an ended episode its last one
    reward: np.ndarray  # (k,) float32, unclipped, summed over the steps that an action is repeated
    terminated: np.ndarray  # (k,) bool: the game ended
    truncated: np.ndarray  # (k,) bool: a limit of steps ended the episode and the game did not


class VectorEnv(Protocol):
    """Episodes side by side, each in a slot; nothing is reset but by `reset` and `restart`.

    An observation (*obs) is a picture (3, size, size) uint8, planes (C, H, W) bool, or a vector (n,) float32.
    """

    n: int  # slots
    observation: Space  # of one slot; what `reset` returns has its type
    actions: Actions
    fps: float  # steps a second of the game's own time
    max_steps: int | None
    native: tuple[int, int]  # height and width of frames()
    info: dict[str, Any]  # id, backend, versions, notes: for provenance

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin one fresh episode for each seed, in slots 0 .. m - 1; earlier episodes are dropped.

        Returns:
            The first observations (m, *obs).
        """

    def restart(self, seeds: Sequence[int], ids: np.ndarray) -> np.ndarray:
        """Begin a fresh episode in each of the slots `ids` (k,), ended or not; the others stay as they are.

        Returns:
            The first observations (k, *obs).
        """

    def step(self, action: np.ndarray, ids: np.ndarray) -> Outcome:
        """Move the slots `ids` (k,) by `action` (k, A); the others stand still and cost nothing.

        Raises:
            ValueError: for an ended or unknown slot, or a wrong shape.
            UserError: if the environment fails; its traceback is in the error's notes.
        """

    def frames(self, ids: np.ndarray) -> np.ndarray:
        """What these slots look like, before cropping, resizing and hiding: (k, H, W, 3) uint8."""

    def native_action(self, action: np.ndarray) -> np.ndarray:
        """(k, A) floats -> what the environment itself takes."""

    def from_native(self, native: np.ndarray) -> np.ndarray:
        """The inverse of `native_action`."""

    def close(self) -> None:
        """Give processes and memory back; may be called twice."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(self, *error: object) -> None:
        """Close."""


class SlotEnv(ABC):
    """A `VectorEnv` but for `_begin` and `_advance`, which a backend adds.

    Args:
        env: The environment and what is seen of it.
        n: Slots.
        action_map: Made of the environment's action space.
        native: Height and width of native frames.
        state: How the environment's own observation is seen; None where frames are looked at.
        limit: Steps after which the environment itself truncates, used if `env.max_steps` is not given.
        fps: Frames a second.
        info: Provenance of the backend.
    """

    def __init__(
        self,
        env: Env,
        n: int,
        *,
        action_map: ActionMap,
        native: tuple[int, int],
        state: State | None,
        limit: int | None,
        fps: float,
        info: dict[str, Any],
    ):
        repeat = env.action_repeat
        self.n, self.fps, self.native, self._repeat = n, fps / repeat, native, repeat
        self._limit = env.max_steps * repeat if env.max_steps else limit  # the game's own steps
        self.max_steps = -(-self._limit // repeat) if self._limit else None
        self._state, self._size, self._crop = state, env.size, status_bar(env, native[0])
        self.observation, self._dtype = Space((3, env.size, env.size)), np.dtype(np.uint8)
        if state is not None:
            self.observation, self._dtype = Space(state.shape), state.dtype
        self.actions = action_map.actions
        self.native_action, self.from_native = action_map.native_action, action_map.from_native
        env_id, note = canonical(env.id)
        self.info = {"id": env_id, "max_steps": self.max_steps, "size": env.size, "crop": env.crop, **info}
        self.info |= {**_options(env, env_id, state), "notes": [note] if note else []}
        self._map = action_map
        self._alive, self._shown = np.zeros(n, bool), np.zeros(n, bool)
        self._steps = np.zeros(n, np.int64)  # the game's own
        self._closed = False

    @abstractmethod
    def _begin(self, seeds: list[int], ids: np.ndarray) -> np.ndarray:
        """Start an episode in each of the slots; return their observations (k, *obs).

        The episodes in slots that are not `_shown` any more are over.
        """

    @abstractmethod
    def _advance(self, native: np.ndarray, ids: np.ndarray, times: np.ndarray) -> Outcome:
        """Step each slot `times` (k,) times by its action, or until it ends; sum its rewards.

        `truncated` tells of the environment's own limits only, `max_steps` is seen to here.
        """

    @abstractmethod
    def _frames(self, ids: np.ndarray) -> np.ndarray: ...

    @abstractmethod
    def _shut(self) -> None: ...

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """See `VectorEnv.reset`."""
        if not 0 < len(seeds) <= self.n:
            raise ValueError(f"reset takes 1 to {self.n} seeds, got {len(seeds)}")
        self._open()
        self._alive[:] = self._shown[:] = False
        return self.restart(seeds, np.arange(len(seeds)))

    def restart(self, seeds: Sequence[int], ids: np.ndarray) -> np.ndarray:
        """See `VectorEnv.restart`."""
        ids = np.asarray(ids, np.int64)
        self._open()
        self._check_slots("restart", ids)
        if len(seeds) != len(ids):
            raise ValueError(f"restart: {len(seeds)} seeds for {len(ids)} slots")
        self._alive[ids], self._steps[ids] = False, 0
        obs = self._finite(self._guard(self._begin, [int(seed) for seed in seeds], ids))
        self._alive[ids] = self._shown[ids] = True
        return obs

    def step(self, action: np.ndarray, ids: np.ndarray) -> Outcome:
        """See `VectorEnv.step`."""
        ids = np.asarray(ids, np.int64)
        action = np.asarray(action, np.float32)
        self._check(action, ids)
        times = np.full(len(ids), self._repeat)
        if self._limit:
            times = np.minimum(times, self._limit - self._steps[ids])
        out: Outcome = self._guard(self._advance, self.native_action(action), ids, times)
        if not np.isfinite(out.reward).all():
            raise UserError(f"{self.info['id']} gave a reward that is not a finite number")
        self._finite(out.obs)
        self._steps[ids] += times
        over = self._steps[ids] >= self._limit if self._limit else np.zeros(len(ids), bool)
        truncated = (out.truncated | over) & ~out.terminated
        self._alive[ids] = ~(out.terminated | truncated)
        return out._replace(truncated=truncated)

    def frames(self, ids: np.ndarray) -> np.ndarray:
        """See `VectorEnv.frames`."""
        ids = np.asarray(ids, np.int64)
        if len(ids) and (ids.min() < 0 or ids.max() >= self.n or not self._shown[ids].all()):
            raise ValueError(f"frames: slots {ids.tolist()} are not all among those that were reset")
        return self._frames(ids)

    def close(self) -> None:
        """See `VectorEnv.close`."""
        if not self._closed:
            self._closed = True
            self._shut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _resized(self, frames: np.ndarray) -> np.ndarray:
        return resize(frames, self._size, self._crop)

    def _guard(self, call: Any, *args: Any) -> Any:
        """Call; close everything if it fails, so that nothing half-alive is used further."""
        try:
            return call(*args)
        except BaseException:
            self.close()
            raise

    def _finite(self, obs: np.ndarray) -> np.ndarray:
        if obs.dtype == np.float32 and not np.isfinite(obs).all():
            raise UserError(f"{self.info['id']} observes something that is not a finite number")
        return obs

    def _open(self) -> None:
        if self._closed:
            raise ValueError("the environment is closed")

    def _check(self, action: np.ndarray, ids: np.ndarray) -> None:
        self._open()
        if action.shape != (len(ids), self.actions.size) or not len(ids):
            raise ValueError(f"step: actions {action.shape} for {len(ids)} slots of {self.actions.size} actions each")
        self._check_slots("step", ids)
        if not self._alive[ids].all():
            raise ValueError(f"step: slots {ids[~self._alive[ids]].tolist()} have ended or were never reset")
        if not np.isfinite(action).all():
            raise UserError(f"an action for {self.info['id']} is not a finite number: the policy has diverged")

    def _check_slots(self, doing: str, ids: np.ndarray) -> None:
        if not len(ids) or ids.min() < 0 or ids.max() >= self.n or len(set(ids.tolist())) < len(ids):
            raise ValueError(f"{doing}: slots {ids.tolist()} are not different numbers below {self.n}")


def _options(env: Env, env_id: str, state: State | None) -> dict[str, Any]:
    """What is asked of the game beyond what is usual, for provenance.

    Raises:
        ConfigError: for an option that this game, or this view of it, does not have.
    """
    if env.hide and state is None:
        raise ConfigError(f"env.hide: nothing can be hidden of pictures; env.observe = 'state' may show {env_id}'s own")
    found = difficulty(env_id, env.sticky, env.ramping)
    found |= {"frame_skip": skip} if (skip := frame_skip(env_id, env.frame_skip)) else {}
    found |= {"action_repeat": env.action_repeat} if env.action_repeat > 1 else {}
    return found | ({"hide": list(env.hide)} if env.hide else {})


def drawn(obs: np.ndarray) -> np.ndarray:
    """Pictures (k, SIDE, SIDE, 3) uint8 of observations (k, *obs) that no environment renders."""
    shown = [cv2.resize(picture(each), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST) for each in obs]
    return np.stack(shown)


def status_bar(env: Env, height: int) -> int:
    """Rows that `env.crop` cuts off at the bottom of a frame of this height.

    Raises:
        ConfigError: if nothing is known of a status bar in this game.
    """
    if not env.crop:
        return 0
    env_id = canonical(env.id)[0]
    if env_id not in STATUS_BAR:
        raise ConfigError(f"env.crop: {env_id} has no known status bar; crop cuts the one of {', '.join(STATUS_BAR)}")
    return round(height * STATUS_BAR[env_id])
