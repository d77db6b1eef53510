"""What is seen of an environment that is not looked at through pictures: its own observation."""

import importlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from wmrl.errors import ConfigError
from wmrl.pipeline import Env


@dataclass(frozen=True)
class State:
    """How an environment's own observation becomes a vector of floats or boolean planes, channels first.

    Args:
        space: The observation space of one environment.
        kind: "vector" (all numbers in the order of the space, one-hot where they are discrete), "planes" (booleans
            (H, W, C)), "codes" (MiniGrid's view: each cell's object, colour and state as planes, one-hot).
        sizes: Of "codes": how many objects, colours and states there are.
        keep: What is seen of the planes or numbers, in this order.
        shape: Of the result: (n,) or (C, H, W).
    """

    space: spaces.Space
    kind: Literal["vector", "planes", "codes"]
    sizes: tuple[int, ...]
    keep: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """float32 or bool."""
        return np.dtype(np.float32 if self.kind == "vector" else bool)

    def __call__(self, observation: Any, lead: int = 0) -> np.ndarray:
        """An observation with `lead` axes before its own -> (*lead, *shape)."""
        if self.kind == "vector":
            full = _flat(self.space, observation, lead)
        else:
            grid = observation["image"] if self.kind == "codes" else np.asarray(observation)
            full = np.moveaxis(_one_hot(grid, self.sizes) if self.kind == "codes" else grid, -1, lead)
        seen = full if len(self.keep) == full.shape[lead] else full.take(self.keep, axis=lead)
        return np.ascontiguousarray(seen, self.dtype)


def state_of(space: Any, env: Env) -> State:
    """How to see this space.

    Raises:
        ConfigError: if it is neither numbers nor planes, or `env.hide` names some that are not there.
    """
    sizes: tuple[int, ...] = ()
    if _is_minigrid(space):
        kind, sizes = "codes", _minigrid_sizes()
        shape = (sum(sizes), *space["image"].shape[:2])
    elif _is_planes(space):
        kind, shape = "planes", (space.shape[2], *space.shape[:2])
    else:
        kind, shape = "vector", (_width(space, env.id),)
    keep = tuple(i for i in range(shape[0]) if i not in env.hide)
    if env.hide and (max(env.hide) >= shape[0] or not keep):
        word = "numbers" if kind == "vector" else "planes"
        raise ConfigError(f"env.hide: {list(env.hide)} of {env.id}, which shows {shape[0]} {word}, 0 to {shape[0] - 1}")
    return State(space, kind, sizes, keep, (len(keep), *shape[1:]))  # type: ignore[arg-type]


def _flat(space: Any, value: Any, lead: int) -> np.ndarray:
    """All numbers of a value with `lead` axes before its own, (*lead, n) float32."""
    if isinstance(space, spaces.Dict):
        return np.concatenate([_flat(part, value[name], lead) for name, part in space.spaces.items()], -1)
    if isinstance(space, spaces.Tuple):
        return np.concatenate([_flat(part, each, lead) for part, each in zip(space.spaces, value, strict=True)], -1)
    if isinstance(space, spaces.Discrete):
        return np.eye(int(space.n), dtype=np.float32)[np.asarray(value) - int(space.start)]
    array = np.asarray(value, np.float32)
    return array.reshape(*array.shape[:lead], -1)


def _width(space: Any, env_id: str) -> int:
    """How many numbers a value of the space has."""
    if isinstance(space, spaces.Dict):
        return sum(_width(part, env_id) for part in space.spaces.values())
    if isinstance(space, spaces.Tuple):
        return sum(_width(part, env_id) for part in space.spaces)
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.Box | spaces.MultiBinary) and np.prod(space.shape):
        return int(np.prod(space.shape))
    kind = type(space).__name__
    raise ConfigError(f"env.observe: {env_id} observes a {kind}, which is neither numbers nor planes of booleans")


def _is_planes(space: Any) -> bool:
    """Whether it is booleans (H, W, C)."""
    flags = isinstance(space, spaces.MultiBinary) or (isinstance(space, spaces.Box) and space.dtype == bool)
    return flags and len(space.shape) == 3


def _is_minigrid(space: Any) -> bool:
    return isinstance(space, spaces.Dict) and type(space.spaces.get("mission")).__name__ == "MissionSpace"


def _minigrid_sizes() -> tuple[int, ...]:
    known = importlib.import_module("minigrid.core.constants")
    return len(known.OBJECT_TO_IDX), len(known.COLOR_TO_IDX), len(known.STATE_TO_IDX)


def _one_hot(grid: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """(..., H, W, 3) numbers -> (..., H, W, sum of sizes) booleans."""
    return np.concatenate([grid[..., i, None] == np.arange(size) for i, size in enumerate(sizes)], -1)
