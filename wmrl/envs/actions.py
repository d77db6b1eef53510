"""Actions inside the program are one-hot or floats in [-1, 1]; here they become what the environment takes."""

import numpy as np
from gymnasium import spaces

from wmrl.errors import ConfigError
from wmrl.spec import Actions


class ActionMap:
    """The affine map between [-1, 1] and a bounded box, or between one-hot rows and the numbers of a discrete space.

    Args:
        space: The action space of one environment.
        env_id: For messages.

    Raises:
        ConfigError: if the space is neither discrete nor a bounded box of at least one float.
    """

    def __init__(self, space: spaces.Space, env_id: str):
        self.actions, self.shape, self.dtype = _describe(space, env_id)
        self._start = int(space.start) if isinstance(space, spaces.Discrete) else 0
        self._low = self._span = np.zeros(0, np.float32)
        if isinstance(space, spaces.Box):
            self._low = space.low.astype(np.float32).reshape(-1)
            self._span = space.high.astype(np.float32).reshape(-1) - self._low

    def native_action(self, action: np.ndarray) -> np.ndarray:
        """What the environment takes: (k, A) floats -> (k, *box shape) in the box, or (k,) int64.

        Floats beyond [-1, 1] are clipped; of a discrete row the largest entry counts.
        """
        if self.actions.discrete:
            return action.argmax(-1).astype(np.int64) + self._start
        unit = (np.clip(action, -1.0, 1.0) + 1.0) / 2.0
        return (self._low + unit * self._span).astype(self.dtype).reshape(len(action), *self.shape)

    def from_native(self, native: np.ndarray) -> np.ndarray:
        """The inverse: (k, *box shape) or (k,) numbers -> (k, A) float32."""
        if self.actions.discrete:
            return np.eye(self.actions.size, dtype=np.float32)[np.asarray(native) - self._start]
        flat = np.asarray(native, np.float32).reshape(len(native), -1)
        return ((flat - self._low) / self._span * 2.0 - 1.0).astype(np.float32)


def _describe(space: spaces.Space, env_id: str) -> tuple[Actions, tuple[int, ...], np.dtype]:
    if isinstance(space, spaces.Discrete):
        return Actions(int(space.n), discrete=True), (), np.dtype(np.int64)
    if not isinstance(space, spaces.Box):
        kind = type(space).__name__
        raise ConfigError(f"env.id: {env_id} has {kind} actions; supported are Discrete and bounded Box of floats")
    if not np.issubdtype(space.dtype, np.floating):
        raise ConfigError(f"env.id: {env_id} has a Box of {space.dtype} actions; supported are Boxes of floats")
    if not np.prod(space.shape):
        raise ConfigError(
            f"env.id: {env_id} has a Box of no actions {space.shape}; supported are Boxes of one float or more"
        )
    # Half of the largest number marks an unbounded side whose infinity was lost on the way.
    if not space.is_bounded() or np.abs([space.low, space.high]).max() > np.finfo(np.float32).max / 2:
        raise ConfigError(f"env.id: {env_id} has unbounded Box actions, which cannot be scaled from [-1, 1]")
    if not (space.high > space.low).all():
        raise ConfigError(f"env.id: {env_id} has an action whose lower and upper bound are equal")
    return Actions(int(np.prod(space.shape)), discrete=False), tuple(space.shape), np.dtype(space.dtype)
