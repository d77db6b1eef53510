"""Rows about world models that a policy learns in the dreams of, at the sizes of the published systems, on random data.

Published, on this kind of machine: RajGhugare19/dreamerv2 (MinAtar) 0.21 updates/s and 990 acting steps/s; mauicv's
RSSM 290 frames/s and 1.5 s for an update of the actor. Their code is not run here; what float32 gives is, beside bf16.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from workbench import Bench, Row, middle

from wmrl import envs, pipeline
from wmrl import precision as precisions
from wmrl.config import build
from wmrl.controllers import CONTROLLERS
from wmrl.dynamics import DYNAMICS
from wmrl.optimizers import Descent, descend
from wmrl.pipeline import Fit, Fits, Pipeline
from wmrl.representations import REPRESENTATIONS
from wmrl.rollout import Agent, Policy, play
from wmrl.run import cores
from wmrl.seeding import generator
from wmrl.spec import Actions, Batch, Space, State
from wmrl.trainers import TRAINERS
from wmrl.trainers import actor_critic as actor_critic_module
from wmrl.trainers.learner import starts_of
from wmrl.world import WorldModel

MINATAR = pipeline.load("minatar-breakout-dreamerv2")
PARAMETERS = 1_631_822
"""Of the published world model on Breakout; with controller and critic 1,792,826."""
PICTURES = Pipeline(
    dynamics={
        "kind": "rssm",
        "state": "gaussian",
        "variables": 30,
        "units": 256,
        "dyn_scale": 1.0,
        "rep_scale": 1.0,
        "free_nats": 3.0,
        "reward_scale": 10.0,
    },
    controller={"kind": "mlp", "layers": 3, "units": 512, "norm": "layer", "policy": "normal"},
    trainer={"kind": "value"},
    fit=Fits(dynamics=Fit(learning_rate=6e-4, clip=1.0)),
)
"""mauicv's RSSM with Dreamer's sizes, and its actor."""
GRID, PICTURE = (Space((4, 10, 10)), Actions(3, True)), (Space((3, 64, 64)), Actions(1, False))
"""What is seen and done: Breakout, and a task with one continuous action."""
ENVS, STARTS = 16, 784
KINDS: tuple[precisions.Choice, ...] = ("fp32", "bf16")


def dreamers(bench: Bench, wanted: str) -> Iterator[Row]:
    """Rows l to o: updates of MinAtar's agent, frames of an RSSM, updates of its actor, and acting."""
    if "l" in wanted:
        yield from _minatar(bench)
    if "m" in wanted or "n" in wanted:
        yield from _pictures(bench, wanted)
    if "o" in wanted:
        yield from _acting(bench)


class Parts:
    """One model and its behaviour, and the seconds that each part of their updates took.

    Args:
        pipe: What they are.
        spaces: Of observations and actions.
        choice: What to compute in.
    """

    def __init__(self, pipe: Pipeline, spaces: tuple[Space, Actions], choice: precisions.Choice = "fp32") -> None:
        self.space, self.actions = spaces
        eyes = build(REPRESENTATIONS, {"kind": "pixels"}, "representation", self.space)
        self.world = WorldModel(eyes, build(DYNAMICS, pipe.dynamics, "dynamics", eyes.latent, self.actions))
        shape = self.world.feature_shape
        self.controller = build(CONTROLLERS, pipe.controller, "controller", shape, self.actions)
        trainer = build(TRAINERS, pipe.trainer, "trainer")
        self.learner = trainer.learner(self.controller, shape, torch.device("cpu"))
        self.descent = Descent(self.world.parameters(), pipe.fit.dynamics.learning_rate, pipe.fit.dynamics.clip)
        self.choice, self.seconds, self.updates = choice, dict.fromkeys(("model", "dreams", "behaviour"), 0.0), 0

    def batch(self, rows: int, steps: int) -> Batch:
        """Windows of random observations and actions."""
        rng = torch.Generator().manual_seed(0)
        dots = torch.randint(256, (rows, steps + 1, *self.space.shape), generator=rng, dtype=torch.uint8)
        obs = dots if self.space.shape[0] == 3 else dots < 40
        action = torch.rand(rows, steps, self.actions.size, generator=rng) * 2 - 1
        if self.actions.discrete:
            action = torch.nn.functional.one_hot(action.argmax(-1), self.actions.size).float()
        nothing = torch.zeros(rows, steps)
        return Batch(obs, action, torch.rand(rows, steps, generator=rng), nothing, torch.ones(rows, steps))

    def learn(self, batch: Batch) -> State:
        """A step of the world model; the states that it met."""
        began = time.perf_counter()
        with precisions.autocast(self.choice, "cpu"):
            total, _, states = self.world.learn(batch, generator("model", self.updates))
            descend(total, self.descent)
        self.seconds["model"] += time.perf_counter() - began
        return states

    def improve(self, starts: State, weight: torch.Tensor) -> float:
        """An update of controller and critic from N states; its seconds."""
        began = time.perf_counter()
        imagine, before = actor_critic_module.imagine, self.seconds["dreams"]

        def timed(*args: Any, **how: Any) -> Any:
            asleep = time.perf_counter()
            made = imagine(*args, **how)
            self.seconds["dreams"] += time.perf_counter() - asleep
            return made

        with mock.patch.object(actor_critic_module, "imagine", timed), precisions.autocast(self.choice, "cpu"):
            self.world.requires_grad_(False)
            self.learner.update(self.world, starts, weight, rng=generator("dreams", self.updates))
            self.world.requires_grad_(True)
        took = time.perf_counter() - began
        self.seconds["behaviour"] += took - (self.seconds["dreams"] - before)
        self.updates += 1
        return took

    def shares(self) -> str:
        """Where the time went."""
        total = sum(self.seconds.values())
        return ", ".join(f"{name} {100 * took / total:.0f} %" for name, took in self.seconds.items())


def _minatar(bench: Bench) -> Iterator[Row]:
    count = bench.amount(6, 1)
    bench.note(f"MinAtar's agent: {count} updates in each precision, in turns")
    sides = {kind: Parts(MINATAR, GRID, kind) for kind in KINDS}
    size = sum(p.numel() for p in sides["fp32"].world.parameters())
    times = _in_turns(sides, count, _whole, 50, 50)
    best = min(times, key=lambda kind: middle(times[kind]))
    speeds = ", ".join(f"{kind} {1 / middle(took):.2f}/s" for kind, took in times.items())
    detail = f"50 x 50, horizon 10, {size:,} parameters (published {PARAMETERS:,}); {speeds}; {sides[best].shares()}"
    yield Row("l  MinAtar updates", 1 / middle(times[best]), 1.7, unit="/s", detail=f"{detail}; {bench.machine()}")


def _pictures(bench: Bench, wanted: str) -> Iterator[Row]:
    count, rows, steps = bench.amount(5, 1), 16, 50
    bench.note(f"an RSSM on pictures, and its actor: {count} updates in each precision, in turns")
    sides = {kind: Parts(PICTURES, PICTURE, kind) for kind in KINDS}
    if "m" in wanted:
        times = _in_turns(sides, count, _model, rows, steps - 1)
        best = min(times, key=lambda kind: middle(times[kind]))
        speeds = ", ".join(f"{kind} {rows * steps / middle(took):,.0f}/s" for kind, took in times.items())
        detail = f"16 x 50, model alone; {speeds}; {bench.machine()}"
        yield Row(
            "m  RSSM, frames of 64 x 64 in training", rows * steps / middle(times[best]), 600, unit="/s", detail=detail
        )
    if "n" in wanted:
        times = _in_turns(sides, count, _from_states, rows, STARTS // rows - 1)
        best = min(times, key=lambda kind: middle(times[kind]))
        speeds = ", ".join(f"{kind} {middle(took):.2f} s" for kind, took in times.items())
        bare = dataclasses.replace(PICTURES, trainer={"kind": "reward"})
        without = _in_turns({best: Parts(bare, PICTURE, best)}, count, _from_states, rows, STARTS // rows - 1)[best]
        speeds += f"; no critic ({bare.trainer['kind']}): {middle(without):.2f} s"
        speeds += f"; {sides[best].shares()}"
        detail = f"{STARTS} starts, 15 steps, through the dynamics; {speeds}; {bench.machine()}"
        yield Row("n  update of an RSSM's actor", middle(times[best]), 0.5, at_most=True, unit=" s", detail=detail)


def _whole(parts: Parts, batch: Batch) -> float:
    """Seconds of an update of model and behaviour."""
    began = time.perf_counter()
    parts.improve(*starts_of(batch, parts.learn(batch)))
    return time.perf_counter() - began


def _model(parts: Parts, batch: Batch) -> float:
    """Seconds of an update of the model."""
    began = time.perf_counter()
    parts.learn(batch)
    return time.perf_counter() - began


def _from_states(parts: Parts, batch: Batch) -> float:
    """Seconds of an update of the behaviour, from states that are there already."""
    return parts.improve(*starts_of(batch, parts.world.states(batch, generator("states"))))


def _in_turns(
    sides: dict[precisions.Choice, Parts], count: int, work: Callable[[Parts, Batch], float], rows: int, steps: int
) -> dict[precisions.Choice, list[float]]:
    """What `work` tells of its seconds, `count` times in each precision, after one to warm up."""
    times: dict[precisions.Choice, list[float]] = {kind: [] for kind in sides}
    batch = next(iter(sides.values())).batch(rows, steps)
    for k in range(count + 1):
        for kind, parts in sides.items():
            if k == 1:
                parts.seconds = dict.fromkeys(parts.seconds, 0.0)
            times[kind].append(work(parts, batch))
    return {kind: took[1:] for kind, took in times.items()}


class Endless:
    """Environments whose slots begin anew when an episode ends, as in online learning, so that all stay alive.

    Args:
        env: They.
    """

    def __init__(self, env: envs.VectorEnv) -> None:
        self.env, self.games = env, 0

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """As `VectorEnv.reset`."""
        return self.env.reset(seeds)

    def step(self, action: np.ndarray, ids: np.ndarray) -> Any:
        """As `VectorEnv.step`, but nothing ends."""
        outcome = self.env.step(action, ids)
        over = np.flatnonzero(outcome.terminated | outcome.truncated)
        if len(over):
            self.games += len(over)
            outcome.obs[over] = self.env.restart([self.games + k for k in range(len(over))], ids[over])
            outcome.terminated[:], outcome.truncated[:] = False, False
        return outcome


def _acting(bench: Bench) -> Iterator[Row]:
    """Games, posterior and policy, drawn; and the games alone, in turns."""
    steps, parts = bench.amount(400, 60), Parts(MINATAR, GRID)
    bench.note(f"{ENVS} games of MinAtar's Breakout with the agent, and alone, {steps} steps each, in turns")
    agent, alone = [], []
    with envs.make(MINATAR.env, ENVS, threads=cores()) as env:
        for _ in range(3):
            actor = Agent(parts.world.eval(), Policy(parts.controller, sample=True))
            began = time.perf_counter()
            play(Endless(env), actor, range(ENVS), max_steps=steps)
            agent.append(ENVS * steps / (time.perf_counter() - began))
            action = np.eye(3, dtype=np.float32)[np.arange(ENVS) % 3]
            game, ids = Endless(env), np.arange(ENVS)
            game.reset(range(ENVS))
            began = time.perf_counter()
            for _ in range(steps):
                game.step(action, ids)
            alone.append(ENVS * steps / (time.perf_counter() - began))
    detail = f"games alone {middle(alone):,.0f}/s; {bench.machine()}"
    yield Row(f"o  acting in MinAtar, {ENVS} environments, steps", middle(agent), 4000, unit="/s", detail=detail)
