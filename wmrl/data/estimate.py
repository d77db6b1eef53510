"""How long a dataset will take and how large it will be, measured on a few steps."""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from wmrl.data import columns
from wmrl.data.policies import White

SECONDS = 1.0
STEPS = 96
LAST = 16
"""Frames of each environment that are compressed: the last ones, after CarRacing has zoomed in."""
USUAL_LENGTH = 1000
"""Steps of an episode where nothing is known."""


@dataclass(frozen=True)
class Estimate:
    """What a dataset will cost, at most."""

    steps: int
    bytes: float
    seconds: float

    def text(self) -> str:
        """For the user: "about 8,000 steps, 3 MB, 4 s at 2,000 steps/s"."""
        minutes = f"{self.seconds / 60:.0f} min" if self.seconds > 90 else f"{self.seconds:.0f} s"
        rate = self.steps / max(self.seconds, 1e-9)
        return f"up to {self.steps:,} steps, {self.bytes / 1e6:,.0f} MB and {minutes} at {rate:,.0f} steps/s"


def estimate(env: Any, seeds: Sequence[int], episodes: int, bytes_each: float | None = None) -> Estimate:
    """Play a few steps of white noise (at most a second) and compress what was seen.

    Args:
        env: A vector environment; it must be reset afterwards.
        seeds: Of the first wave.
        episodes: Number of episodes to come.
        bytes_each: Of a frame on disk, if it is known.
    """
    actor = White(env.actions)
    frames = [env.reset(seeds)]
    action, ids = actor.begin(frames[0], seeds), np.arange(len(seeds))
    began = time.monotonic()
    while len(frames) <= STEPS and time.monotonic() - began < SECONDS:
        outcome = env.step(action, ids)
        frames.append(outcome.obs)
        if (outcome.terminated | outcome.truncated).any():
            break
        action = actor.step(outcome.obs)
    each = (time.monotonic() - began) / max(1, (len(frames) - 1) * len(seeds))
    steps = episodes * (env.max_steps or USUAL_LENGTH)
    bytes_each = bytes_each or _bytes_each(np.stack(frames[-LAST:], 1))
    return Estimate(steps, (steps + episodes) * bytes_each, steps * each)


def _bytes_each(frames: np.ndarray) -> float:
    """Compressed bytes of a frame, of (N, t, *shape); the other columns take about 16 bytes more."""
    rows = frames.reshape(-1, *frames.shape[2:])
    chunk = (min(len(rows), columns.chunk_rows(rows.shape[1:], rows.dtype)), *rows.shape[1:])
    with h5py.File(io.BytesIO(), "w") as file:
        dataset = file.create_dataset("obs", data=rows, chunks=chunk, **hdf5plugin.Zstd(clevel=3))
        return dataset.id.get_storage_size() / len(rows) + 16
