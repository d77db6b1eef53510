"""The memory that a process and its workers share: what each slot shows, and what it is told to do."""

import mmap
import os
import tempfile
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layout:
    """How much of what lies on a board.

    Args:
        n: Slots.
        native: Height and width of native frames.
        obs: Shape of one observation.
        obs_dtype: Its type, numpy's name.
        action: Shape of one native action.
        dtype: Its type, numpy's name.
    """

    n: int
    native: tuple[int, int]
    obs: tuple[int, ...]
    obs_dtype: str
    action: tuple[int, ...]
    dtype: str

    def fields(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """The arrays: name -> shape and type."""
        return {
            "frames": ((self.n, *self.native, 3), np.dtype(np.uint8)),
            "obs": ((self.n, *self.obs), np.dtype(self.obs_dtype)),
            "action": ((self.n, *self.action), np.dtype(self.dtype)),
            "times": ((self.n,), np.dtype(np.int64)),
            "reward": ((self.n,), np.dtype(np.float64)),
            "terminated": ((self.n,), np.dtype(bool)),
            "truncated": ((self.n,), np.dtype(bool)),
        }

    def nbytes(self) -> int:
        """Size of the whole board, bytes."""
        return sum(_padded(shape, dtype) for shape, dtype in self.fields().values())


class Board:
    """Arrays by slot over one buffer."""

    def __init__(self, layout: Layout, buffer: mmap.mmap):
        arrays, offset = {}, 0
        for name, (shape, dtype) in layout.fields().items():
            count = int(np.prod(shape, dtype=np.int64))
            arrays[name] = np.frombuffer(buffer, dtype, count, offset).reshape(shape)
            offset += _padded(shape, dtype)
        self.frames, self.obs = arrays["frames"], arrays["obs"]
        self.action, self.times = arrays["action"], arrays["times"]
        self.reward, self.terminated, self.truncated = arrays["reward"], arrays["terminated"], arrays["truncated"]


def allocate(nbytes: int) -> int:
    """A descriptor of zeroed memory without a name: gone with the last process that holds it, however that ends."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("wmrl-envs")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, nbytes)
    return fd


def _padded(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return -(-int(np.prod(shape, dtype=np.int64)) * dtype.itemsize // 64) * 64
