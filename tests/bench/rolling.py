"""Rows about rollouts: generate, lockstep evaluation and dreams, beside the bare environments."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any
from unittest import mock

import envpool
import numpy as np
from workbench import Bench, Row, middle, rate

from wmrl.data import shards
from wmrl.envs.base import SlotEnv
from wmrl.run import cores
from wmrl.stages.generate import PER_THREAD
from wmrl.stages.generate import generate as generate_stage
from wmrl.stages.train_controller import train_controller

ENVS = 64


@dataclass
class Tape:
    """What an environment was asked to do: the seeds of its last reset, and each step's actions and slots."""

    seeds: list[int] = field(default_factory=list)
    steps: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    last: list["Tape"] = field(default_factory=list)

    def record(self) -> Any:
        """A patch of the environments under which this tape runs; `last` keeps each wave, also those side by side."""
        reset, step = SlotEnv.reset, SlotEnv.step
        current: dict[int, Tape] = {}

        def on_reset(env: SlotEnv, seeds: Any) -> Any:
            current[id(env)] = Tape([int(s) for s in seeds])
            self.last.append(current[id(env)])
            return reset(env, seeds)

        def on_step(env: SlotEnv, action: np.ndarray, ids: np.ndarray) -> Any:
            current[id(env)].steps.append((env.native_action(np.asarray(action, np.float32)), np.asarray(ids)))
            return step(env, action, ids)

        return mock.patch.multiple(SlotEnv, reset=on_reset, step=on_step)

    def beside(self, other: "Tape") -> "Tape":
        """Two waves as one of all their environments, in step."""
        first = len(self.seeds)
        moved = [(action, ids + first) for action, ids in other.steps]
        steps = [
            tuple(np.concatenate(parts) for parts in zip(*(pair for pair in pairs if pair is not None), strict=True))
            for pairs in zip_longest(self.steps, moved)
        ]
        return Tape(self.seeds + other.seeds, steps)

    def together(self, size: int) -> "Tape":
        """The first recorded waves, side by side, that have so many environments; looks of a few steps do not count."""
        tape = Tape()
        for wave in self.last:
            if len(wave.steps) > 80 and len(tape.seeds) < size:
                tape = tape.beside(wave)
        if len(tape.seeds) != size:
            raise RuntimeError(f"no {size} environments were recorded, but {[len(w.seeds) for w in self.last]}")
        return tape


def raw(tape: Tape) -> tuple[int, float]:
    """Play a tape on bare envpool, same games and threads: steps and seconds, making the pool included."""
    began, steps = time.perf_counter(), 0
    pool = envpool.make(
        "CarRacing-v3",
        env_type="gymnasium",
        num_envs=len(tape.seeds),
        seed=tape.seeds,
        num_threads=min(cores(), len(tape.seeds)),
        max_episode_steps=2000,
    )
    pool.reset()
    for action, ids in tape.steps:
        pool.step(action, ids.astype(np.int32))
        steps += len(ids)
    return steps, time.perf_counter() - began


def generate(bench: Bench, wanted: str) -> Iterator[Row]:
    """Rows a and b: rollouts to disk beside the bare environments, and their size."""
    at_once = PER_THREAD * cores()
    rollouts = at_once * bench.amount(3, 1)
    cap = [] if not bench.quick else ["env.max_steps=200"]
    tape, ours, bare, folder = Tape(), [], [], bench.folder
    for k in range(2):
        folder = bench.folder / f"generated-{k}"
        pipe = bench.pipe(f"generate.rollouts={rollouts}", *cap, data=folder)
        bench.note(f"generating {rollouts} episodes, and the same steps bare")
        if k == 0:
            with tape.record():  # the actions to replay; not measured
                small = bench.pipe(f"generate.rollouts={at_once}", *cap, data=bench.folder / "taped")
                bench.stage(generate_stage, "generate", bench.folder, small)
        steps, seconds = raw(tape.together(at_once))
        bare.append(steps / seconds)
        began = time.perf_counter()
        bench.stage(generate_stage, "generate", bench.folder, pipe)
        ours.append(int(shards.read_complete(folder).lengths.sum()) / (time.perf_counter() - began))
        steps, seconds = raw(tape.together(at_once))
        bare.append(steps / seconds)
    index = shards.read_complete(folder)
    if not bench.quick:
        bench.__dict__.setdefault("data", folder)  # the other rows need one too
    if "a" in wanted:
        sizes = f"{rollouts} rollouts, {at_once} environments, {cores()} threads"
        detail = f"{middle(ours):,.0f} / {middle(bare):,.0f} steps/s, {sizes}"
        yield Row("a  generate to disk / bare environments", middle(ours) / middle(bare), 0.80, detail=detail)
    if "b" in wanted:
        size = sum((folder / name.file).stat().st_size for name in index.names)
        frames = int((index.lengths + 1).sum())
        yield Row("b  bytes on disk per 64 x 64 frame", size / frames, 900, at_most=True, detail=f"{frames:,} frames")


def lockstep(bench: Bench, wanted: str) -> Iterator[Row]:
    """Row f: a population with V, M and C in lockstep, beside the bare environments; all episodes run to their end."""
    steps = bench.amount(300, 100)
    how = ["trainer.population=16", "trainer.samples=4", "trainer.generations=1", "trainer.validation_episodes=1"]
    how += ["trainer.abort=0"]
    pipe = bench.pipe(*how, f"env.max_steps={steps}", data=bench.data)
    ours, bare = [], []
    bench.note(f"{ENVS} environments in lockstep with V, M and C, and the same steps bare")
    for _ in range(2):
        tape = Tape()
        with tape.record():
            rows = bench.stage(train_controller, "train-controller", bench.world, pipe, noreload=True, max_workers=ENVS)
        ours.append(rate([row for row in rows if "charts/generation" in row], "charts/SPS"))
        count, seconds = raw(tape.together(ENVS))
        bare.append(count / seconds)
    detail = f"{middle(ours):,.0f} / {middle(bare):,.0f} steps/s; {bench.machine()}"
    yield Row("f  lockstep evaluation, 64 / bare environments", middle(ours) / middle(bare), 0.60, detail=detail)


def dreams(bench: Bench, wanted: str) -> Iterator[Row]:
    """Row g: dreamt steps per second, 1,024 rows."""
    how = ["trainer.population=64", "trainer.samples=16", f"trainer.generations={bench.amount(4, 2)}"]
    how += ["trainer.where=dream", f"trainer.dream_steps={bench.amount(200, 50)}", "trainer.validate_every=100"]
    how += ["trainer.validation_episodes=1", "trainer.real_every=0"]
    pipe = bench.pipe(*how, data=bench.data)
    bench.note("dreams, 1,024 rows")
    before = bench.machine()
    rows = bench.stage(train_controller, "train-controller", bench.world, pipe, noreload=True)
    speed = rate([row for row in rows if "charts/generation" in row], "charts/SPS")
    generations = [row for row in rows if "charts/generation" in row]
    full = 1024 * pipe.trainer["dream_steps"] * len(generations)
    share = generations[-1]["global_step"] / full
    detail = f"{100 * share:.0f} % of the rows alive on average; {before}"
    yield Row("g  dreamt steps at 1,024 rows", speed, 60_000, unit="/s", detail=detail)
