"""Rows about training: what data costs, what a plain loop would give, windows per second."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from workbench import Bench, Row, middle, rate

from wmrl import seeding
from wmrl.data.episodes import Episodes
from wmrl.stages import train_dynamics as dynamics_stage
from wmrl.stages import train_vae as vae_stage

ROUNDS = 2
"""How often each pair is measured, in turns."""


def train_vae(bench: Bench, wanted: str) -> Iterator[Row]:
    """Rows c and d: V from disk, on one resident batch, and as a plain float32 loop with batches of 32."""
    logdir = bench.folder / "vae"
    steps = bench.amount(120, 15)
    sets = [f"fit.vae.steps={steps}", f"fit.vae.log_every={bench.amount(20, 5)}", "fit.vae.validation_batches=1"]
    pipe = bench.pipe(*sets, data=bench.data)
    bench.stage(vae_stage.train_vae, "train-vae", logdir, pipe, noreload=True)
    precision = bench.precision(logdir, "vae")
    bench.note(f"train-vae in {precision}: from disk, on a resident batch, and a plain loop, in turns")
    streamed, resident, plain, waited = [], [], [], []
    frames = vae_stage.frames

    def same(*args: Any, **how: Any) -> Iterator[Any]:
        return itertools.repeat(next(frames(*args, **how)))

    for _ in range(ROUNDS):
        rows = bench.stage(vae_stage.train_vae, "train-vae", logdir, pipe, noreload=True, precision=precision)
        streamed.append(rate(rows, "time/frames_per_second"))
        waited.append(rate(rows, "time/waiting_for_data"))
        with mock.patch.object(vae_stage, "frames", same):
            rows = bench.stage(vae_stage.train_vae, "train-vae", logdir, pipe, noreload=True, precision=precision)
        resident.append(rate(rows, "time/frames_per_second"))
        plain.append(_plain_loop(pipe, bench.data, bench.amount(150, 40)))
    machine = bench.machine()
    ours, still, loop = middle(streamed), middle(resident), middle(plain)
    if "c" in wanted:
        detail = f"{ours:,.0f} / {still:,.0f} frames/s, {precision}, waiting {100 * middle(waited):.1f} %; {machine}"
        yield Row("c  train-vae / its step on a resident batch", ours / still, 0.90, detail=detail)
    if "d" in wanted:
        detail = f"{ours:,.0f} / {loop:,.0f} frames/s; {machine}"
        yield Row("d  train-vae / float32 loop with batches of 32", ours / loop, 1.5, detail=detail)


def _plain_loop(pipe: Any, data: Path, steps: int) -> float:
    """Frames per second of the same network, in float32, on a resident batch of 32."""
    episodes = Episodes(data)
    module = vae_stage.fresh(pipe, episodes).train()
    batch = next(vae_stage.frames(episodes, episodes.split(0.1, 1)[0], 32, 8, key=("plain",)))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    began = 0.0
    for k in range(steps + 5):
        if k == 5:
            began = time.perf_counter()
        loss, _ = module.loss(batch, rng=seeding.generator("plain", k))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return 32 * steps / (time.perf_counter() - began)


def train_dynamics(bench: Bench, wanted: str) -> Iterator[Row]:
    """Rows c and e: M from codes, and on one resident batch."""
    logdir = bench.world
    steps = bench.amount(200, 60)
    sets = [f"fit.dynamics.steps={steps}", "fit.dynamics.log_every=20", "fit.dynamics.validation_batches=1"]
    pipe = bench.pipe(*sets, data=bench.data)
    fit, precision = pipe.fit.dynamics, "fp32"
    bench.note(f"train-dynamics, {fit.batch} windows of {fit.length} steps: from codes and on a resident batch")
    streamed, resident, waited = [], [], []
    training = dynamics_stage.Windows.training

    def same(self: Any, start: int = 0) -> Iterator[Any]:
        return itertools.repeat(next(training(self, start)))

    stage = dynamics_stage.train_dynamics
    for k in range(ROUNDS + 1):
        chosen = {} if k == 0 else {"precision": precision}
        rows = bench.stage(stage, "train-dynamics", logdir, pipe, noreload=True, **chosen)
        if k == 0:
            precision = bench.precision(logdir, "dynamics")
            continue
        streamed.append(rate(rows, "time/steps_per_second"))
        waited.append(rate(rows, "time/waiting_for_data"))
        with mock.patch.object(dynamics_stage.Windows, "training", same):
            rows = bench.stage(stage, "train-dynamics", logdir, pipe, noreload=True, **chosen)
        resident.append(rate(rows, "time/steps_per_second"))
    machine = bench.machine()
    ours, still = middle(streamed) * fit.batch, middle(resident) * fit.batch
    if "c" in wanted:
        detail = f"{ours:,.0f} / {still:,.0f} windows/s, {precision}, waiting {100 * middle(waited):.1f} %; {machine}"
        yield Row("c  train-dynamics / its step on a resident batch", ours / still, 0.90, detail=detail)
    if "e" in wanted:
        yield Row("e  train-dynamics, windows of 32 steps", ours, 1000, unit="/s", detail=f"{precision}; {machine}")
