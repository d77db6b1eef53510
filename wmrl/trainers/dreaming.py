"""The offline loop of trainers that learn in dreams: a frozen world, windows of real episodes, a learner.

Each step: a batch of windows, the states at all its rows, dreams from there, an update. Step k draws from (seed, k) and
takes batch k, so that a training goes on from its saved state with the same bits.
"""

import copy
import time
from abc import ABC, abstractmethod
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from wmrl import interrupts
from wmrl.errors import UserError
from wmrl.limits import at_least
from wmrl.precision import autocast
from wmrl.seeding import generator, number
from wmrl.spec import Batch, Metrics
from wmrl.stats import told
from wmrl.trainers.course import Check, checks_of, checks_tree
from wmrl.trainers.grounds import Grounds, Scores
from wmrl.trainers.learner import Learner, starts_of

LOG_EVERY = 25
SAVE_EVERY = 25.0
"""At most so much work is lost by a kill, seconds (and the step that is under way)."""


@dataclass(frozen=True, kw_only=True)
class Offline(ABC):
    """A trainer that learns in dreams: how long, on what, and how often it is looked at, are keywords of all of them.

    Adam's epsilon is 1e-5 for controllers and critics, as in DreamerV2; that of a world model that learns online is
    `fit.dynamics.epsilon`, torch's 1e-8 if left out.

    Args:
        steps: Updates in all; a larger number continues a finished training. What is from here to `target_return` is
            for `wmrl train-controller`; `wmrl iterate` has its own.
        batch: Windows in a batch.
        length: Steps of a window: batch x (length + 1) states are dreamt from.
        validate_every: Updates between two validations.
        validation_episodes: Fixed episodes, awake, on which the best weights are chosen; 0: none, the last are kept.
        target_return: Mean validation return at which the training ends early.

    Raises:
        ValueError: if a number makes no sense.
    """

    steps: int = 10_000
    batch: int = 50
    length: int = 50
    validate_every: int = 1_000
    validation_episodes: int = 16
    target_return: float | None = None

    needs = "policy"

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, batch=self.batch, length=self.length, validate_every=self.validate_every)
        at_least(0, validation_episodes=self.validation_episodes)

    @abstractmethod
    def learner(self, controller: Any, shape: tuple[int, ...], device: torch.device) -> Learner:
        """What takes the steps; see `wmrl.trainers.learner`."""

    def train(self, controller: nn.Module, grounds: Grounds) -> dict[str, Any]:
        """Let the learner take its steps; then `controller` holds the weights that validated best.

        Returns:
            The validations, the best one, steps and seconds.

        Raises:
            UserError: if a loss or a gradient is not finite.
            ContractError: if the saved state is of other networks.
            Stopped: if a signal asked to stop; the state is saved.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number(grounds.seed, "learner"))
            learner = self.learner(controller, grounds.view, grounds.device)
        loop = _Loop(learner, self, controller, grounds)
        loop.run()
        controller.requires_grad_(False)
        vector_to_parameters(loop.best.to(loop.weights()), controller.parameters())
        return loop.facts()


class _Loop:
    """The state of one call of `Offline.train`."""

    def __init__(self, learner: Learner, how: Offline, controller: nn.Module, grounds: Grounds) -> None:
        self.learner, self.how, self.controller, self.grounds = learner, how, controller, grounds
        self.step, self.seconds = 0, 0.0
        self.checks: list[Check] = []
        self.looking: Scores | None = None
        self.metrics: list[Metrics] = []  # since the last report
        self.best, self.best_return, self.best_step = self.weights(), -np.inf, 0
        if (saved := grounds.resume()) is not None:
            self._restore(saved)
        self.counted = self.step
        self.saved = self.clock = self.logged = time.monotonic()

    def weights(self) -> torch.Tensor:
        """The controller's parameters, as one vector on its device."""
        return parameters_to_vector(self.controller.parameters()).detach().clone()

    # --- the loop

    def run(self) -> None:
        """Updates and validations, in turn, until one of the ends is reached."""
        how, say = self.how, self.grounds.say
        say(
            f"learning in dreams from {how.batch} windows of {how.length} steps, up to {how.steps:,} updates"
            + (f"; continuing after {self.step:,}" if self.step else "")
        )
        if how.validation_episodes:  # an environment that does not work says so now, not after an hour
            nothing = np.zeros((0, 2), np.int64)
            self.grounds.awake(self.weights()[None].cpu().numpy(), np.zeros(0, np.int64), nothing, Scores.empty(1, 0))
        with closing(self.grounds.batches(how.batch, how.length, self.step)) as stream:  # type: ignore[type-var]
            batch = next(stream)
            arithmetic = self._arithmetic(batch)
            self._save()  # with what has just been chosen
            while True:
                if self._due():
                    self._validate()
                if self._over():
                    break
                self._update(batch, arithmetic)
                batch = next(stream)
        if self._unchecked():
            say("the time is spent; validating the last weights")
            self._validate()
        if self._reached():
            say(f"the target of {how.target_return:g} is reached; a higher one trains on")
        if not how.validation_episodes:
            self.best, self.best_step = self.weights(), self.step
        self._save()

    def _update(self, batch: Batch, arithmetic: str) -> None:
        with autocast(arithmetic, self.grounds.device):
            self.metrics.append(self._one(batch, self.step))
        self.step, self.looking = self.step + 1, None
        if self.step % LOG_EVERY == 0:
            self._report()
        self.grounds.progress(self.step, self.how.steps, self._note(), "updates")
        if interrupts.pending() or time.monotonic() - self.saved > SAVE_EVERY:
            self._save()
            interrupts.check()

    def _one(self, batch: Batch, k: int) -> Metrics:
        grounds = self.grounds
        rng = generator(grounds.seed, "dreaming", k, device=grounds.device)
        batch = batch.to(grounds.device)
        starts, weight = starts_of(batch, grounds.world.states(batch, rng))
        return self.learner.update(grounds.world, starts, weight, rng=rng)

    def _arithmetic(self, batch: Batch) -> str:
        """What to compute in; updates that were made to measure it are taken back."""
        before = copy.deepcopy(self.learner.state())
        found = self.grounds.arithmetic(lambda: self._one(batch, self.step))
        self.learner.restore(before)
        return found

    # --- where it is

    def _reached(self) -> bool:
        target = self.how.target_return
        return target is not None and bool(self.checks) and self.checks[-1].mean >= target

    def _over(self) -> bool:
        return self._reached() or self.step >= self.how.steps or self.grounds.over()

    def _unchecked(self) -> bool:
        checked = self.checks[-1].steps if self.checks else None
        return self.how.validation_episodes > 0 and checked != self.step

    def _due(self) -> bool:
        turn = self.step % self.how.validate_every == 0 or self.step >= self.how.steps
        return turn and self._unchecked() and (self.step > 0 or self.grounds.trained)

    def _note(self) -> str:
        return f"best mean {told(self.best_return)}" if self.checks else ""

    # --- what is told and kept

    def _numbers(self) -> dict[str, float]:
        """The means of the metrics since the last report.

        Raises:
            UserError: if one number is not finite.
        """
        names = list(self.metrics[0])
        table = torch.stack([torch.stack([row[name].float() for name in names]).cpu() for row in self.metrics])
        bad = (~table.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise UserError(
                f"controller: {names[column]} is {table[row, column].item()} at update "
                f"{self.step - len(table) + row + 1}; begin anew with --noreload and lower learning rates"
            )
        return dict(zip(names, table.mean(0).tolist(), strict=True))

    def _report(self) -> None:
        numbers, now = self._numbers(), time.monotonic()
        speed = (self.step - self.counted) / max(now - self.logged, 1e-9)  # of this call alone
        self.grounds.log(self.step, {**numbers, "time/updates_per_second": speed})
        self.metrics, self.counted, self.logged = [], self.step, now

    def _validate(self) -> None:
        """Play the fixed validation episodes, as far as that has not been done."""
        if self.metrics:
            self._report()
        how, k, weights = self.how, self.step, self.weights()
        seeds = np.array([number(self.grounds.seed, "validation", i) for i in range(how.validation_episodes)])
        scores = self.looking = self.looking or Scores.empty(1, len(seeds))
        self._save()
        interrupts.check()
        cells = np.array([(0, s) for s in range(len(seeds))])
        self.grounds.awake(weights[None].cpu().numpy(), seeds, cells, scores, after_wave=self._save)
        self.looking = None
        check = Check(k, k, self._seconds(), scores.returns[0])
        self.checks.append(check)
        if check.mean > self.best_return:
            self.best, self.best_return, self.best_step = weights, check.mean, k
        self.grounds.log(k, check.metrics("eval/return"))
        self.grounds.say(
            f"update {k:,}: {check.words} on {len(seeds)} validation episodes; "
            f"best {told(self.best_return)} of update {self.best_step:,}"
        )
        self._save()
        self.logged = time.monotonic()

    def _seconds(self) -> float:
        return self.seconds + time.monotonic() - self.clock

    def _save(self) -> None:
        """Keep the state; never one that was not looked at for NaN."""
        if self.metrics:
            self._numbers()
        self.seconds, self.clock = self._seconds(), time.monotonic()
        best_return = self.best_return if np.isfinite(self.best_return) else None
        self.grounds.save(
            {
                "step": self.step,
                "seconds": self.seconds,
                "learner": self.learner.state(),
                "rows": [{name: float(value) for name, value in row.items()} for row in self.metrics],
                "best": self.best,
                "best_return": best_return,
                "best_step": self.best_step,
                "looking": self.looking and {"returns": self.looking.returns, "steps": self.looking.steps},
                **checks_tree("check", self.checks),
            }
        )
        self.saved = time.monotonic()

    def _restore(self, tree: dict[str, Any]) -> None:
        self.learner.restore(tree["learner"])
        self.step, self.seconds = int(tree["step"]), float(tree["seconds"])
        self.best, self.best_step = torch.as_tensor(tree["best"]), int(tree["best_step"])
        self.best_return = -np.inf if tree["best_return"] is None else float(tree["best_return"])
        rows = tree.get("rows", ())  # an earlier wmrl kept none
        self.metrics = [{name: torch.tensor(value) for name, value in row.items()} for row in rows]
        self.looking = Scores(**tree["looking"]) if tree["looking"] else None
        self.checks = checks_of("check", tree)

    def facts(self) -> dict[str, Any]:
        """What an artifact keeps of the training."""
        returns = np.stack([c.returns for c in self.checks]) if self.checks else np.zeros((0, 0))
        seen = {"steps": np.array([c.steps for c in self.checks], np.int64), "returns": returns}
        best = {"return": self.best_return if self.checks else float("nan"), "step": self.best_step}
        seen["seconds"] = np.array([c.seconds for c in self.checks])
        return {"validation": seen, "best": best, "steps": self.step, "seconds": self.seconds}
