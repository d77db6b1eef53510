"""How a run that learns online is doing: the fixed validation episodes, played again and again."""

import functools
from contextlib import ExitStack
from typing import Any

import numpy as np

from wmrl import envs, seeding
from wmrl.artifact import Artifact
from wmrl.pipeline import Pipeline
from wmrl.rollout import Agent, Policy, play
from wmrl.run import Run
from wmrl.stats import summary, told
from wmrl.world import WorldModel

COLUMNS = ("returns", "lengths")


class Checks:
    """The evaluations so far.

    Args:
        pipe: The pipeline.
        world: The world model.
        controller: What acts; its best actions, or draws if the pipeline's test draws (`test.sample`).
        run: Threads of the environments.
        stack: Closes the environments.
    """

    def __init__(self, pipe: Pipeline, world: WorldModel, controller: Any, run: Run, stack: ExitStack) -> None:
        self.pipe, self.how, self.world, self.controller = pipe, pipe.online, world, controller
        self.run, self.stack = run, stack
        self.rows: list[dict[str, Any]] = []  # step, updates, returns (E,), lengths (E,)

    def due(self, step: int) -> bool:
        """Whether the steps have come to the next one, or to their end."""
        every, last = self.how.evaluate_every, self.rows[-1]["step"] if self.rows else 0
        return bool(every) and step > last and (step >= self.how.steps or step // every > last // every)

    def play(self, step: int, updates: int) -> tuple[dict[str, float], str]:
        """Play the episodes; the metrics, and the same in words.

        Raises:
            Stopped: after a signal; nothing is noted.
        """
        count = self.how.evaluate_episodes
        seeds = [seeding.number(self.pipe.seed, "validation", i) for i in range(count)]
        agent = Agent(self.world, Policy(self.controller, sample=self.pipe.test.sample))
        played = play(self._games, agent, seeds)
        self.rows.append({"step": step, "updates": updates, "returns": played.returns, "lengths": played.lengths})
        found = summary(played.returns)
        row = {"eval/return_mean": found.mean, "eval/return_iqm": found.iqm, "eval/return_std": found.std}
        row |= {"eval/ci_low": found.low, "eval/ci_high": found.high}
        words = f"return {told(found.mean, found.std)} +- {told(found.std, found.mean)} on {count} validation episodes"
        return {**row, "eval/episodic_length": float(played.lengths.mean())}, words

    def curve(self) -> list[dict[str, float]]:
        """A record for each evaluation."""
        head = ("step", "updates")
        return [{**{k: row[k] for k in head}, **summary(np.asarray(row["returns"])).record()} for row in self.rows]

    def artifact(self, facts: dict[str, Any]) -> Artifact:
        """All evaluations: every return."""
        tensors = {f"{row['step']}/{name}": np.asarray(row[name]) for row in self.rows for name in COLUMNS}
        steps = [{"step": row["step"], "updates": row["updates"]} for row in self.rows]
        return Artifact("iterate", tensors=tensors, facts={"online": steps, **facts})

    @functools.cached_property
    def _games(self) -> Any:
        """Environments of their own."""
        return self.stack.enter_context(envs.make(self.pipe.env, self.how.evaluate_episodes, threads=self.run.threads))
