"""Rows about the dynamics models side by side, each at its published size: training, dreams, awake."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from workbench import Bench, Row, middle, rate

from wmrl.config import build
from wmrl.dynamics import DYNAMICS
from wmrl.spec import Actions, Space
from wmrl.stages.train_controller import train_controller
from wmrl.stages.train_dynamics import train_dynamics
from wmrl.stages.train_vae import train_vae

ROWS, STEPS, TURNS = 64, 1000, 3
MODELS: dict[str, dict[str, Any]] = {
    "mdn-rnn": {"kind": "mdn-rnn"},
    "transformer-de": {"kind": "transformer-de"},
    "trade": {"kind": "trade"},
    "trade, autoregressive": {"kind": "trade", "density": "autoregressive"},
}
CASES = ["trainer.population=16", "trainer.samples=4", "trainer.generations=1", "trainer.validation_episodes=1"]


def models(bench: Bench, wanted: str) -> Iterator[Row]:
    """Rows j and k: windows per second, dreamt steps and steps awake of each model; a step beside MDN-RNN's."""
    if "j" in wanted:
        yield from _stages(bench)
    if "k" in wanted:
        yield from _steps(bench)


def _stages(bench: Bench) -> Iterator[Row]:
    for name, table in MODELS.items():
        bench.note(f"{name}: training, dreams, and awake with {ROWS} environments")
        logdir, sets = bench.folder / name.replace(", ", "-"), [f"dynamics.{k}={v}" for k, v in table.items()]
        trained = [*sets, f"fit.dynamics.steps={bench.amount(100, 20)}", "fit.dynamics.log_every=5"]
        base = [*trained, "fit.dynamics.validation_batches=1", "trainer.abort=0", *CASES]
        pipe = bench.pipe(*base, f'representation.from="{bench.world}"', data=bench.data)
        bench.stage(train_vae, "train-vae", logdir, pipe)
        rows = bench.stage(train_dynamics, "train-dynamics", logdir, pipe, noreload=True)
        windows = rate(rows, "time/steps_per_second") * pipe.fit.dynamics.batch
        precision = bench.precision(logdir, "dynamics")
        speeds = {}
        for where, more in {
            "env": [f"env.max_steps={bench.amount(300, 60)}"],
            "dream": ["trainer.population=64", "trainer.samples=16", f"trainer.dream_steps={bench.amount(64, 8)}"],
        }.items():
            pipe = bench.pipe(*base, f"trainer.where={where}", *more, data=bench.data)
            rows = bench.stage(train_controller, "train-controller", logdir, pipe, noreload=True, max_workers=ROWS)
            speeds[where] = rate([row for row in rows if "charts/generation" in row], "charts/SPS")
        yield Row(f"j  {name}: windows in training", windows, unit="/s", detail=f"of 32 steps, {precision}")
        yield Row(f"j  {name}: dreamt steps at 1,024 rows", speeds["dream"], unit="/s")
        yield Row(f"j  {name}: steps awake, {ROWS} environments", speeds["env"], unit="/s", detail="V, C and game too")


def _steps(bench: Bench) -> Iterator[Row]:
    """What a step of the model alone costs, averaged over an episode of 1,000 steps."""
    steps = bench.amount(STEPS, 200)
    bench.note(f"a step of each model, {ROWS} rows, {steps} steps, in turns")
    played = {name: _episode(table, steps) for name, table in MODELS.items()}
    times = {name: [] for name in MODELS}
    for _ in range(TURNS):
        for name, play in played.items():
            times[name].append(play())
    cost = {name: middle(values) for name, values in times.items()}
    for name in list(MODELS)[1:]:
        detail = f"{1e3 * cost[name]:.2f} / {1e3 * cost['mdn-rnn']:.2f} ms for {ROWS} rows; {bench.machine()}"
        target = 4.0 if name == "transformer-de" else None
        yield Row(f"k  {name}: step / MDN-RNN's", cost[name] / cost["mdn-rnn"], target, at_most=True, detail=detail)


def _episode(table: dict[str, Any], steps: int) -> Callable[[], float]:
    model = build(DYNAMICS, table, "dynamics", Space((32,)), Actions(3, False)).eval()
    latent, action = torch.randn(ROWS, 32), torch.rand(ROWS, 3)

    @torch.inference_mode()
    def play() -> float:
        state = model.start(latent)
        began = time.perf_counter()
        for _ in range(steps):
            state = model.observe(state, action, latent)
            model.features(state)
        return (time.perf_counter() - began) / steps

    return play
