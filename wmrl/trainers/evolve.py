"""CMA-ES on the parameters of a controller, as in World Models."""

import math
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from wmrl.trainers.grounds import Grounds
from wmrl.trainers.search import Search


class Evolve:
    """Improve a controller by CMA-ES: no gradients, returns of whole episodes only.

    All candidates of a generation play the same episodes, fresh ones for each generation. What is kept is the mean of
    the search distribution, judged on fixed validation episodes, never the luckiest candidate. State is saved after
    each wave of rollouts, and a resumed search continues exactly.

    Asleep (`where = "dream"`) the mean is validated in both worlds, and both curves are kept. A search finds what a
    world model has wrong, and dreamt returns rise where real ones do not: the gap between the curves is this exploit.
    By default the environment only observes: the dream also decides what is kept, so that the controller comes from
    the dream alone. With `judge = "env"` the environment picks among the means that were found asleep. Returns of both
    are comparable only where `dream_steps` is the environment's own time limit.

    The axis of all curves, `global_step`, counts the steps that were searched on: the environment's, or asleep dreamt
    ones. Those of validations count in neither world. `charts/SPS` is steps of the same kind a second.

    Args:
        population: Candidates in a generation. Source: Ha & Schmidhuber 2018, 64.
        samples: Episodes that each candidate plays. Source: Ha & Schmidhuber 2018, 16.
        sigma: Standard deviation of the first generation, in units of the parameters. Source: ctallec, 0.1.
        sigma_decay: What the step size is multiplied by after each generation, on top of CMA-ES's own adaptation. That
            acts over about 3 * parameters / population generations: less than 1 where a search is shorter than that.
        generations: Generations in all; a larger number continues a finished search.
        steps: Steps, dreamt ones if asleep, after which no generation is begun: gives the controllers of several models
            the same number, where generations differ in length. Without it there is no such end.
        diagonal: Learn variances only, no covariances (CMA_diagonal): faster for many parameters.
        abort: Steps without a new best return after which a training rollout is given up; 0 never. Validation and test
            episodes are always played to their end.
        halving: Rounds of successive halving; after each, the better half of the candidates plays on. 0 lets all play
            all episodes.
        validate_every: Generations between two validations.
        validation_episodes: Fixed episodes that the mean is judged on.
        keep_every: Generations between two snapshots of the mean that stay in the artifact; 0 keeps none.
        target_return: Mean validation return, in the world that judges, at which the search ends early.
        where: Where candidates are scored, and the mean is validated: "env", or "dream", inside the world model.
        real_every: Asleep: generations between two validations in both worlds; by default as `validate_every`. The last
            mean is always among them. 0: never, and no environment is ever stepped.
        judge: Asleep: whose validations decide which mean is kept, "dream" or "env".
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
        real_every: int | None = None,
        judge: Literal["dream", "env"] = "dream",
        temperature: float = 1.0,
        ends: Literal["threshold", "sample"] = "threshold",
        dream_steps: int = 1000,
    ) -> None:
        _at_least(4, population=population)
        _at_least(1, samples=samples, generations=generations, dream_steps=dream_steps)
        _at_least(1, validate_every=validate_every, validation_episodes=validation_episodes)
        _at_least(1, steps=1 if steps is None else steps)
        dreams = {"temperature": temperature != 1, "ends": ends != "threshold", "dream_steps": dream_steps != 1000}
        dreams |= {"real_every": real_every is not None, "judge": judge != "dream"}
        self.idle = [name for name, asked in dreams.items() if asked and where == "env"]  # has no part in this search
        real_every = validate_every if real_every is None else real_every
        _at_least(0, abort=abort, halving=halving, keep_every=keep_every, real_every=real_every)
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma must be greater than 0 and finite, got {sigma}")
        if not 0 < sigma_decay <= 1:
            raise ValueError(f"sigma_decay must be greater than 0 and at most 1, got {sigma_decay}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
        if halving and (halving + 1 > samples or population >> halving < 1):
            raise ValueError(f"halving {halving} is too much for {population} candidates and {samples} samples")
        if where == "dream" and judge == "env" and not real_every:
            raise ValueError('judge = "env" needs validations in the environment: real_every must be at least 1')
        self.population, self.samples, self.sigma, self.generations = population, samples, sigma, generations
        self.sigma_decay, self.diagonal, self.abort = sigma_decay, diagonal, abort
        self.halving, self.keep_every, self.steps = halving, keep_every, math.inf if steps is None else steps
        self.validate_every, self.validation_episodes = validate_every, validation_episodes
        self.target_return = math.inf if target_return is None else target_return
        self.where, self.temperature, self.ends, self.dream_steps = where, temperature, ends, dream_steps
        self.real_every, self.judge = (real_every, judge) if where == "dream" else (0, "dream")

    def train(self, controller: nn.Module, grounds: Grounds) -> dict[str, Any]:
        """Search; then `controller` holds the mean that validated best.

        Returns:
            The history, the validations of each world, the last mean and the snapshots, as arrays.
        """
        search = Search(self, controller, grounds)
        course = search.run()
        weights = parameters_to_vector(controller.parameters())
        vector_to_parameters(torch.as_tensor(course.best).to(weights), controller.parameters())
        return course.facts(search.strategy.mean, search.judges)


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
