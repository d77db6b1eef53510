"""A search by an evolution strategy: generations and validations, in turn, from the course so far."""

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from wmrl.progress import Rate
from wmrl.seeding import number
from wmrl.stats import told
from wmrl.trainers.course import Check, Course, Generation
from wmrl.trainers.grounds import Grounds, Score, Scores
from wmrl.trainers.options import Options


class AskTell(Protocol):
    """The part in which searches differ; telling the same fitnesses again restores it exactly.

    Args:
        generation: How many were told.
    """

    generation: int

    @property
    def mean(self) -> np.ndarray:
        """(n,) float64, the centre of the distribution."""

    @property
    def sigma(self) -> float:
        """The overall step size."""

    def ask(self) -> np.ndarray:
        """The candidates (P, n) of this generation."""

    def tell(self, fitness: np.ndarray) -> None:
        """Learn from the fitness (P,) of the candidates asked last; more is better."""


class _TimeUp(Exception):
    """The time is spent in the middle of a generation; its finished waves are saved."""


class Search:
    """The course so far, and the strategy restored from it.

    Args:
        how: The options.
        strategy: Makes the strategy that begins at the parameters (n,) it is given.
        controller: Where a fresh search begins.
        grounds: The world.
    """

    def __init__(
        self, how: Options, strategy: Callable[[np.ndarray], AskTell], controller: nn.Module, grounds: Grounds
    ) -> None:
        self.how, self.grounds = how, grounds
        x0 = parameters_to_vector(controller.parameters()).detach().cpu().numpy().astype(np.float64)
        saved = grounds.resume()
        self.course = Course.begin(x0) if saved is None else Course.from_tree(saved)
        self.strategy = strategy(self.course.x0)
        self.score: Score = grounds.awake
        if how.asleep:
            self.score = grounds.asleep(how.temperature, how.ends, how.dream_steps)
        self._clock, self._rate = time.monotonic(), Rate()

    @property
    def judges(self) -> list[Check]:
        """The validations that decide which mean is kept."""
        return self.course.awake if self.how.awake_judges else self.course.checks

    def improve(self, controller: nn.Module) -> dict[str, Any]:
        """Search; then `controller` holds the mean that validated best. The facts that its artifact keeps."""
        course = self.run()
        weights = parameters_to_vector(controller.parameters())
        vector_to_parameters(torch.as_tensor(course.best).to(weights), controller.parameters())
        return course.facts(self.strategy.mean, self.judges)

    def run(self) -> Course:
        """Generations and validations, in turn, until one of the ends is reached."""
        if self.how.observe_every:  # nothing is played, but an environment that does not work says so now
            nothing = np.zeros((0, 2), np.int64)
            self.grounds.awake(self.strategy.mean[None], np.zeros(0, np.int64), nothing, Scores.empty(1, 0))
        self._replay()
        try:
            while True:
                if self._due():
                    self._validate(awake=self._observed())
                if self._finished():
                    break
                self._generation()
        except _TimeUp:
            self.grounds.say("the time is spent; validating the last mean")
        observed = self.how.observe_every > 0
        if self._unchecked(observed):
            self._validate(awake=observed, hurry=False)
        if self._reached():
            self.grounds.say(f"the target of {self.how.target_return:g} is reached; a higher one searches on")
        return self.course

    def _replay(self) -> None:
        how, past = self.how, self.course.generations
        if how.idle:
            self.grounds.say(
                f"searching in the environment: {', '.join(how.idle)} is of dreams (--where dream) and has no part"
            )
        self.grounds.say(
            f"searching {len(self.course.x0)} parameters: {how.population} candidates x {how.samples} episodes, "
            f"up to {how.generations} generations"
        )
        for k, row in enumerate(past):
            began = time.monotonic()
            self.strategy.ask()
            self.strategy.tell(row.fitness)
            if k == 0:
                each = time.monotonic() - began
                self.grounds.say(
                    f"continuing after generation {len(past)}: replaying it takes {each * len(past):.0f} s"
                )
        if not np.array_equal(self.strategy.mean, self.course.mean):
            away = np.abs(self.strategy.mean - self.course.mean).max()
            self.grounds.say(
                f"the replay is {away:.1g} away from the search: another machine, version or thread count?"
            )

    def _reached(self) -> bool:
        target = self.how.target_return
        return target is not None and bool(self.judges) and self.judges[-1].mean >= target

    def _finished(self) -> bool:
        return self._reached() or self._spent() or self.grounds.over()

    def _spent(self) -> bool:
        most = math.inf if self.how.steps is None else self.how.steps
        return self.strategy.generation >= self.how.generations or self.course.steps >= most

    def _unchecked(self, awake: bool) -> bool:
        """Whether the mean has not been validated, in the world of the search or, if `awake`, in the environment."""
        k = self.strategy.generation
        return _last(self.course.checks) != k or (awake and _last(self.course.awake) != k)

    def _observed(self) -> bool:
        """Whether it is the environment's turn too."""
        every = self.how.observe_every
        return every > 0 and (self.strategy.generation % every == 0 or self._spent())

    def _due(self) -> bool:
        k = self.strategy.generation
        turn = k % self.how.validate_every == 0 or self._observed() or self._spent()
        return (k > 0 or self.grounds.trained) and turn and self._unchecked(self._observed())

    def _generation(self) -> None:
        k, how = self.strategy.generation, self.how
        candidates = self.strategy.ask()
        seeds = np.array([number(self.grounds.seed, "train", k, i) for i in range(how.samples)])
        scores = self.course.scores or Scores.empty(how.population, how.samples)
        self.course.scores, self.course.looking = scores, None
        began, before = time.monotonic(), int(scores.steps.sum())
        fitness = self._fitness(candidates, seeds, scores)
        self.strategy.tell(fitness)
        steps = int(scores.steps.sum())
        self.course.steps += steps
        self.course.scores, self.course.mean = None, self.strategy.mean
        row = Generation(k + 1, self.course.steps, self._seconds(), self.strategy.sigma, fitness)
        self.course.generations.append(row)
        if how.keep_every and (k + 1) % how.keep_every == 0:
            self.course.kept.append((k + 1, self.strategy.mean))
        speed = (steps - before) / max(time.monotonic() - began, 1e-9)
        self._tell_generation(row, scores.steps[scores.played].mean(), speed)
        self._save()

    def _fitness(self, candidates: np.ndarray, seeds: np.ndarray, scores: Scores) -> np.ndarray:
        """Mean returns (P,). With halving, those who dropped out count at most as much as the worst who did not."""
        left = np.arange(len(candidates))
        blocks = np.array_split(np.arange(len(seeds)), self.how.halving + 1)
        ceiling = np.full(len(candidates), np.inf)
        for k, block in enumerate(blocks):
            cells = np.array([(p, s) for s in block for p in left])
            self._play(candidates, seeds, cells, scores)
            if k + 1 < len(blocks):
                seen = np.concatenate(blocks[: k + 1])  # later ones may be there too, from before an interruption
                order = np.argsort(-scores.returns[np.ix_(left, seen)].mean(1), kind="stable")
                left = np.sort(left[order[: math.ceil(len(left) / 2)]])
        mean = np.nanmean(scores.returns, 1)
        ceiling[np.setdiff1d(np.arange(len(candidates)), left)] = mean[left].min()
        return np.minimum(mean, ceiling)

    def _play(self, candidates: np.ndarray, seeds: np.ndarray, cells: np.ndarray, scores: Scores) -> None:
        if self.grounds.over():
            raise _TimeUp
        size = self.how.population * self.how.samples
        before = self.strategy.generation * size

        def tick(ended: int, steps: int) -> None:
            done = before + int(scores.played.sum()) + ended
            self.grounds.progress(done, self.how.generations * size, self._note(steps))

        def after_wave() -> None:
            self._save()
            if self.grounds.over() and not scores.played[tuple(cells.T)].all():
                raise _TimeUp

        self.score(candidates, seeds, cells, scores, abort=self.how.abort, after_wave=after_wave, tick=tick)

    def _note(self, steps: int) -> str:
        best = f", best mean {self.course.best_return:.0f}" if self.judges else ""
        return f"generation {self.strategy.generation + 1}, {self._rate.add(steps):,.0f} steps/s{best}"

    def _validate(self, *, awake: bool, hurry: bool = True) -> None:
        """Play the fixed validation episodes with the mean of the distribution, as far as it has not been done."""
        course, k = self.course, self.strategy.generation
        if _last(course.checks) != k:
            self._check(self.score, course.checks, "dream/return" if self.how.asleep else "eval/return_mean", hurry)
        if awake and _last(course.awake) != k:
            self._check(self.grounds.awake, course.awake, "eval/return_mean", hurry)
        words = ("dreams" if self.how.asleep else "scores") + f" {course.checks[-1].words}"
        if _last(course.awake) == k:
            words += f", and scores {course.awake[-1].words} awake,"
        steps = "dreamt steps" if self.how.asleep else "steps"
        best = f"; best {told(course.best_return)}" if np.isfinite(course.best_return) else ""
        whose = {"dream": " asleep", "env": " awake"}[self.how.judge] if best and self.how.asleep else ""
        self.grounds.say(
            f"generation {k}: the mean {words} on {self.how.validation_episodes} validation episodes "
            f"after {course.steps:,} {steps}{best}{whose}"
        )

    def _check(self, score: Score, checks: list[Check], name: str, hurry: bool) -> None:
        """Validate the mean in one world; its mean return is logged as `name`."""
        k, episodes = self.strategy.generation, self.how.validation_episodes
        seeds = np.array([number(self.grounds.seed, "validation", i) for i in range(episodes)])
        scores = self.course.looking or Scores.empty(1, episodes)
        self.course.looking = scores
        cells = np.array([(0, s) for s in range(episodes)])

        def after_wave() -> None:
            self._save()
            if hurry and self.grounds.over() and not scores.played.all():
                raise _TimeUp

        score(self.strategy.mean[None], seeds, cells, scores, after_wave=after_wave)
        self.course.looking = None
        check = Check(k, self.course.steps, self._seconds(), scores.returns[0])
        checks.append(check)
        if checks is self.judges:
            self.course.judged(self.strategy.mean, check)
        kind = name.removesuffix("_mean")
        self.grounds.log(check.steps, check.metrics(kind, name.removeprefix(kind)))
        self._save()

    def _tell_generation(self, row: Generation, length: float, speed: float) -> None:
        metrics = {
            "charts/episodic_return": row.fitness.mean(),
            "charts/return_std": row.fitness.std(),
            "charts/return_best": row.fitness.max(),
            "charts/sigma": row.sigma,
            "charts/episodic_length": length,
            "charts/SPS": speed,
            "charts/generation": row.number,
        }
        self.grounds.log(row.steps, {name: float(value) for name, value in metrics.items()})

    def _seconds(self) -> float:
        return self.course.seconds + time.monotonic() - self._clock

    def _save(self) -> None:
        self.course.seconds, self._clock = self._seconds(), time.monotonic()
        self.grounds.save(self.course.tree())


def _last(checks: list[Check]) -> int | None:
    return checks[-1].generation if checks else None
