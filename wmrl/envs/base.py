"""What every backend shares: the interface, the book-keeping of slots, time limits, frames."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from wmrl.envs.actions import ActionMap
from wmrl.envs.names import STATUS_BAR, canonical, frame_skip
from wmrl.envs.pixels import resize
from wmrl.errors import ConfigError, UserError
from wmrl.pipeline import Env
from wmrl.spec import Actions, Space


class Outcome(NamedTuple):
    """What one step of k slots led to, in the order of the ids that were stepped."""

    obs: np.ndarray  # (k, C, H, W) uint8; of an ended episode its last frame
    reward: np.ndarray  # (k,) float32, unclipped
    terminated: np.ndarray  # (k,) bool: the game ended
    truncated: np.ndarray  # (k,) bool: a limit of steps ended the episode and the game did not


class VectorEnv(Protocol):
    """Episodes side by side, each in a slot; nothing is reset but by `reset`."""

    n: int  # slots
    observation: Space  # (3, size, size), uint8
    actions: Actions
    fps: float  # frames a second of the game's own time
    max_steps: int | None
    native: tuple[int, int]  # height and width of frames()
    info: dict[str, Any]  # id, backend, versions, notes: for provenance

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin one fresh episode for each seed, in slots 0 .. m - 1; earlier episodes are dropped.

        Returns:
            The first frames (m, C, H, W) uint8.
        """

    def step(self, action: np.ndarray, ids: np.ndarray) -> Outcome:
        """Move the slots `ids` (k,) by `action` (k, A); the others stand still and cost nothing.

        Raises:
            ValueError: for an ended or unknown slot, or a wrong shape.
            UserError: if the environment fails; its traceback is in the error's notes.
        """

    def frames(self, ids: np.ndarray) -> np.ndarray:
        """The frames last shown by these slots, before cropping and resizing: (k, H, W, 3) uint8."""

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


class PixelEnv(ABC):
    """A `VectorEnv` but for `_begin` and `_advance`, which a backend adds.

    Args:
        env: The environment and what is seen of it.
        n: Slots.
        action_map: Made of the environment's action space.
        native: Height and width of native frames.
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
        limit: int | None,
        fps: float,
        info: dict[str, Any],
    ):
        self.n, self.fps, self.native = n, fps, native
        self.max_steps = env.max_steps or limit
        self.observation = Space((3, env.size, env.size))
        self.actions = action_map.actions
        self.native_action, self.from_native = action_map.native_action, action_map.from_native
        env_id, note = canonical(env.id)
        skip = frame_skip(env_id, env.frame_skip)
        self.info = {"id": env_id, "max_steps": self.max_steps, "size": env.size, "crop": env.crop, **info}
        self.info |= {"frame_skip": skip} if skip else {}
        self.info["notes"] = [note] if note else []
        self._size, self._crop = env.size, status_bar(env, native[0])
        self._map = action_map
        self._alive = np.zeros(n, bool)
        self._steps = np.zeros(n, np.int64)
        self._shown = 0  # slots that ever showed a frame since the last reset
        self._closed = False

    @abstractmethod
    def _begin(self, seeds: list[int]) -> np.ndarray:
        """Start the episodes of `reset`; return their frames (m, 3, size, size)."""

    @abstractmethod
    def _advance(self, native: np.ndarray, ids: np.ndarray) -> Outcome:
        """Step the slots; `truncated` tells of the environment's own limits only, `max_steps` is seen to here."""

    @abstractmethod
    def _frames(self, ids: np.ndarray) -> np.ndarray: ...

    @abstractmethod
    def _shut(self) -> None: ...

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """See `VectorEnv.reset`."""
        if not 0 < len(seeds) <= self.n:
            raise ValueError(f"reset takes 1 to {self.n} seeds, got {len(seeds)}")
        self._open()
        self._alive[:], self._steps[:], self._shown = False, 0, len(seeds)
        obs = self._guard(self._begin, [int(seed) for seed in seeds])
        self._alive[: len(seeds)] = True
        return obs

    def step(self, action: np.ndarray, ids: np.ndarray) -> Outcome:
        """See `VectorEnv.step`."""
        ids = np.asarray(ids, np.int64)
        action = np.asarray(action, np.float32)
        self._check(action, ids)
        out: Outcome = self._guard(self._advance, self.native_action(action), ids)
        if not np.isfinite(out.reward).all():
            raise UserError(f"{self.info['id']} gave a reward that is not a finite number")
        self._steps[ids] += 1
        over = self._steps[ids] >= self.max_steps if self.max_steps else np.zeros(len(ids), bool)
        truncated = (out.truncated | over) & ~out.terminated
        self._alive[ids] = ~(out.terminated | truncated)
        return out._replace(truncated=truncated)

    def frames(self, ids: np.ndarray) -> np.ndarray:
        """See `VectorEnv.frames`."""
        ids = np.asarray(ids, np.int64)
        if len(ids) and (ids.min() < 0 or ids.max() >= self._shown):
            raise ValueError(f"frames: slots {ids.tolist()} are not all among the {self._shown} that were reset")
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

    def _open(self) -> None:
        if self._closed:
            raise ValueError("the environment is closed")

    def _check(self, action: np.ndarray, ids: np.ndarray) -> None:
        self._open()
        if action.shape != (len(ids), self.actions.size) or not len(ids):
            raise ValueError(f"step: actions {action.shape} for {len(ids)} slots of {self.actions.size} actions each")
        if ids.min() < 0 or ids.max() >= self.n or len(np.unique(ids)) < len(ids):
            raise ValueError(f"step: slots {ids.tolist()} are not different numbers below {self.n}")
        if not self._alive[ids].all():
            raise ValueError(f"step: slots {ids[~self._alive[ids]].tolist()} have ended or were never reset")
        if not np.isfinite(action).all():
            raise UserError(f"an action for {self.info['id']} is not a finite number: the policy has diverged")


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
