"""What every search among parameters is told, whatever its strategy."""

import math
from dataclasses import dataclass
from typing import Literal

from wmrl.limits import at_least


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keywords that `cma-es` and `nes` share.

    Args:
        population: Candidates in a generation. Source: Ha & Schmidhuber 2018, 64.
        samples: Episodes that each candidate plays. Source: Ha & Schmidhuber 2018, 16.
        sigma: Standard deviation of the first generation, in units of the parameters. Source: ctallec, 0.1.
        generations: Generations in all; a larger number continues a finished search.
        steps: Steps, dreamt ones if asleep, after which no generation is begun: gives the controllers of several models
            the same number, where generations differ in length. Without it there is no such end.
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

    population: int = 64
    samples: int = 16
    sigma: float = 0.1
    generations: int = 100
    steps: int | None = None
    abort: int = 0
    halving: int = 0
    validate_every: int = 5
    validation_episodes: int = 32
    keep_every: int = 0
    target_return: float | None = None
    where: Literal["env", "dream"] = "env"
    real_every: int | None = None
    judge: Literal["dream", "env"] = "dream"
    temperature: float = 1.0
    ends: Literal["threshold", "sample"] = "threshold"
    dream_steps: int = 1000

    def __post_init__(self) -> None:
        at_least(4, population=self.population)
        at_least(1, samples=self.samples, generations=self.generations, dream_steps=self.dream_steps)
        at_least(1, validate_every=self.validate_every, validation_episodes=self.validation_episodes)
        at_least(1, steps=1 if self.steps is None else self.steps)
        at_least(0, abort=self.abort, halving=self.halving, keep_every=self.keep_every)
        at_least(0, real_every=0 if self.real_every is None else self.real_every)
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma must be greater than 0 and finite, got {self.sigma}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0 and finite, got {self.temperature}")
        if self.halving and (self.halving + 1 > self.samples or self.population >> self.halving < 1):
            raise ValueError(
                f"halving {self.halving} is too much for {self.population} candidates and {self.samples} samples"
            )
        if self.awake_judges and not self.observe_every:
            raise ValueError('judge = "env" needs validations in the environment: real_every must be at least 1')

    @property
    def asleep(self) -> bool:
        """Whether candidates are scored in dreams."""
        return self.where == "dream"

    @property
    def awake_judges(self) -> bool:
        """Whether the environment decides which of the means that were found asleep is kept."""
        return self.asleep and self.judge == "env"

    @property
    def observe_every(self) -> int:
        """Generations between two validations in the environment, of a search asleep; 0 never."""
        if not self.asleep:
            return 0
        return self.validate_every if self.real_every is None else self.real_every

    @property
    def idle(self) -> list[str]:
        """The keywords that were given and have no part in this search, since it is awake."""
        given = {"temperature": self.temperature != 1, "ends": self.ends != "threshold"}
        given |= {"dream_steps": self.dream_steps != 1000}
        given |= {"real_every": self.real_every is not None, "judge": self.judge != "dream"}
        return [name for name, asked in given.items() if asked and not self.asleep]
