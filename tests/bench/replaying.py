"""Row r: memory, and the time of a batch, of a replay of a million steps of 64 x 64 pictures.

Memory that other rows have freed is used again and not counted: `--only r` says what it takes.
"""

import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from workbench import Bench, Row, middle

from wmrl.data.replay import Replay

META = {"env": {"id": "Toy-v0"}, "policy": {"policy": "white"}, "actions": {"size": 3, "discrete": True}, "seed": 1}
Outcome = namedtuple("Outcome", "obs reward terminated truncated")
SLOTS, STEPS = 16, 1000
"""Games at once, and steps of each."""


def replaying(bench: Bench, wanted: str) -> Iterator[Row]:
    """The process's memory before and behind a million steps whose pictures change a little from one to the next."""
    steps = bench.amount(1_000_000, 64_000)
    bench.note(f"a replay of {steps:,} steps")
    rng, ids = np.random.default_rng(0), np.arange(SLOTS)
    obs, action = np.zeros((SLOTS, 3, 64, 64), np.uint8), np.eye(3, dtype=np.float32)[ids % 3]
    none, all_ = np.zeros(SLOTS, bool), np.ones(SLOTS, bool)
    with Replay(bench.folder / "replay", META) as replay:
        before, began, seed = _resident(), time.perf_counter(), 0
        while seed * STEPS < steps:
            replay.begin(ids, list(range(seed, seed + SLOTS)), obs)
            for t in range(1, STEPS + 1):
                obs = obs.copy()
                obs[ids, :, *rng.integers(64, size=(2, SLOTS))] = rng.integers(256, size=(SLOTS, 3), dtype=np.uint8)
                reward = np.full(SLOTS, t, np.float32)
                replay.add(ids, action, Outcome(obs, reward, none, all_ if t == STEPS else none))
            seed += SLOTS
        speed = seed * STEPS / (time.perf_counter() - began)
        took = []
        for _ in range(20):
            first = rng.integers(int(replay.start[-1]) - 64, size=(16, 1))
            began = time.perf_counter()
            replay.gather(first + np.arange(64))
            took.append(time.perf_counter() - began)
        grown = _resident() - before
    size = sum(path.stat().st_size for path in (bench.folder / "replay").rglob("*.h5"))
    detail = f"{seed * STEPS:,} steps of 3 x 64 x 64, {size / 1e9:.2f} GB on the disk, {speed:,.0f} steps/s written"
    detail += f"; a batch of 16 windows of 64 rows in {1000 * middle(took):.0f} ms"
    yield Row("r  memory of a replay", grown, 1.0, at_most=True, unit=" GB", detail=detail)


def _resident() -> float:
    """Memory of this process, GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1e6
