"""CMA-ES on the parameters of a controller, as in World Models."""

import math
import time
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from wmrl.progress import Rate
from wmrl.seeding import number
from wmrl.trainers.course import Check, Course, Generation
from wmrl.trainers.grounds import Grounds, Score, Scores
from wmrl.trainers.strategy import Strategy


class Evolve:
    """Improve a controller by CMA-ES: no gradients, returns of whole episodes only.

    All candidates of a generation play the same episodes, fresh ones for each generation. What is kept is the mean of
    the search distribution, judged on fixed validation episodes, never the luckiest candidate. State is saved after
    each wave of rollouts, and a resumed search continues exactly.

    Args:
        population: Candidates in a generation. Source: Ha & Schmidhuber 2018, 64.
        samples: Episodes that each candidate plays. Source: Ha & Schmidhuber 2018, 16.
        sigma: Standard deviation of the first generation, in units of the parameters. Source: ctallec, 0.1.
        sigma_decay: What the step size is multiplied by after each generation, on top of CMA-ES's own adaptation. That
            acts over about 3 * parameters / population generations: less than 1 where a search is shorter than that.
        generations: Generations in all; a larger number continues a finished search.
        steps: Environment (or dreamt) steps after which no generation is begun: gives the controllers of several models
            the same number, where generations differ in length. Without it there is no such end.
        diagonal: Learn variances only, no covariances (CMA_diagonal): faster for many parameters.
        abort: Steps without a new best return after which a training rollout is given up; 0 never. Validation and test
            episodes are always played to their end.
        halving: Rounds of successive halving; after each, the better half of the candidates plays on. 0 lets all play
            all episodes.
        validate_every: Generations between two validations.
        validation_episodes: Fixed episodes that the mean is judged on.
        keep_every: Generations between two snapshots of the mean that stay in the artifact; 0 keeps none.
        target_return: Mean validation return at which the search ends early.
        where: Where candidates are scored, and the mean is validated: "env", or "dream", inside the world model.
        temperature: Of the dreams. Source: Ha & Schmidhuber 2018, 1.25 for Doom.
        ends: How dreams end: "threshold", where the chance to go on is below 0.5, or "sample", by a draw.
        dream_steps: Steps after which a dream is truncated.

    Raises:
        ValueError: if a number makes no sense.
    """

    def __init__(
        self,
        *,
        population: int = 64,
        samples: int = 16,
        sigma: float = 0.1,
        sigma_decay: float = 1.0,
        generations: int = 100,
        steps: int | None = None,
        diagonal: bool = False,
        abort: int = 0,
        halving: int = 0,
        validate_every: int = 5,
        validation_episodes: int = 32,
        keep_every: int = 0,
        target_return: float | None = None,
        where: Literal["env", "dream"] = "env",
        temperature: float = 1.0,
        ends: Literal["threshold", "sample"] = "threshold",
        dream_steps: int = 1000,
    ) -> None:
        _at_least(4, population=population)
        _at_least(1, samples=samples, generations=generations, dream_steps=dream_steps)
        _at_least(1, validate_every=validate_every, validation_episodes=validation_episodes)
        _at_least(1, steps=1 if steps is None else steps)
        _at_least(0, abort=abort, halving=halving, keep_every=keep_every)
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma must be greater than 0 and finite, got {sigma}")
        if not 0 < sigma_decay <= 1:
            raise ValueError(f"sigma_decay must be greater than 0 and at most 1, got {sigma_decay}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
        if halving and (halving + 1 > samples or population >> halving < 1):
            raise ValueError(f"halving {halving} is too much for {population} candidates and {samples} samples")
        self.population, self.samples, self.sigma, self.generations = population, samples, sigma, generations
        self.sigma_decay, self.diagonal, self.abort = sigma_decay, diagonal, abort
        self.halving, self.keep_every, self.steps = halving, keep_every, math.inf if steps is None else steps
        self.validate_every, self.validation_episodes = validate_every, validation_episodes
        self.target_return = math.inf if target_return is None else target_return
        self.where, self.temperature, self.ends, self.dream_steps = where, temperature, ends, dream_steps

    def train(self, controller: nn.Module, grounds: Grounds) -> dict[str, Any]:
        """Search; then `controller` holds the mean that validated best.

        Returns:
            The history, validations, the last mean and the snapshots, as arrays.
        """
        search = _Search(self, controller, grounds)
        search.run()
        weights = parameters_to_vector(controller.parameters())
        vector_to_parameters(torch.as_tensor(search.course.best).to(weights), controller.parameters())
        return search.course.facts(search.strategy.mean)


class _TimeUp(Exception):
    """The time is spent in the middle of a generation; its finished waves are saved."""


class _Search:
    """One call of `Evolve.train`: the course so far, and the strategy restored from it."""

    def __init__(self, how: Evolve, controller: nn.Module, grounds: Grounds) -> None:
        self.how, self.grounds = how, grounds
        x0 = parameters_to_vector(controller.parameters()).detach().cpu().numpy().astype(np.float64)
        saved = grounds.resume()
        self.course = Course.begin(x0) if saved is None else Course.from_tree(saved)
        self.strategy = Strategy(
            self.course.x0,
            sigma=how.sigma,
            population=how.population,
            diagonal=how.diagonal,
            seed=grounds.seed,
            decay=how.sigma_decay,
        )
        self.score: Score = grounds.awake
        if how.where == "dream":
            self.score = grounds.asleep(how.temperature, how.ends, how.dream_steps)
        self._clock, self._rate = time.monotonic(), Rate()

    def run(self) -> None:
        """Generations and validations, in turn, until one of the ends is reached."""
        self._replay()
        try:
            while True:
                if self._due():
                    self._validate()
                if self._finished():
                    break
                self._generation()
        except _TimeUp:
            self.grounds.say("the time is spent; validating the last mean")
        if self._unchecked():
            self._validate(hurry=False)
        if self._reached():
            self.grounds.say(f"the target of {self.how.target_return:g} is reached; a higher one searches on")

    def _replay(self) -> None:
        how, past = self.how, self.course.generations
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
        return bool(self.course.checks) and self.course.checks[-1].mean >= self.how.target_return

    def _finished(self) -> bool:
        return self._reached() or self._spent() or self.grounds.over()

    def _spent(self) -> bool:
        return self.strategy.generation >= self.how.generations or self.course.steps >= self.how.steps

    def _unchecked(self) -> bool:
        return not self.course.checks or self.course.checks[-1].generation != self.strategy.generation

    def _due(self) -> bool:
        k = self.strategy.generation
        return self._unchecked() and k > 0 and (k % self.how.validate_every == 0 or self._spent())

    def _generation(self) -> None:
        k, how = self.strategy.generation, self.how
        candidates = self.strategy.ask()
        seeds = np.array([number(self.grounds.seed, "train", k, i) for i in range(how.samples)])
        scores = self.course.scores or Scores.empty(how.population, how.samples)
        self.course.scores = scores
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
        best = f", best mean {self.course.best_return:.0f}" if self.course.checks else ""
        return f"generation {self.strategy.generation + 1}, {self._rate.add(steps):,.0f} steps/s{best}"

    def _validate(self, hurry: bool = True) -> None:
        """Play the fixed validation episodes with the mean of the distribution."""
        k, episodes = self.strategy.generation, self.how.validation_episodes
        seeds = np.array([number(self.grounds.seed, "validation", i) for i in range(episodes)])
        scores = self.course.looking or Scores.empty(1, episodes)
        self.course.looking = scores
        cells = np.array([(0, s) for s in range(episodes)])

        def after_wave() -> None:
            self._save()
            if hurry and self.grounds.over() and not scores.played.all():
                raise _TimeUp

        self.score(self.strategy.mean[None], seeds, cells, scores, after_wave=after_wave)
        self.course.looking = None
        check = Check(k, self.course.steps, self._seconds(), scores.returns[0])
        self.course.add(check, self.strategy.mean)
        names = ("eval/return_mean", "eval/return_std") if self.how.where == "env" else ("dream/return", "dream/std")
        self.grounds.log(check.steps, dict(zip(names, (check.mean, float(check.returns.std())), strict=True)))
        self._save()
        self.grounds.say(
            f"generation {k}: the mean scores {check.mean:.1f} +- {check.returns.std():.1f} on {episodes} validation "
            f"episodes after {self.course.steps:,} steps; best {self.course.best_return:.1f}"
        )

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


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
