"""Natural evolution strategies on the parameters of a controller: the gradient of fitness, estimated from its noise."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from wmrl.seeding import rng
from wmrl.trainers.grounds import Grounds
from wmrl.trainers.options import Options
from wmrl.trainers.search import Search


@dataclass(frozen=True, kw_only=True)
class NES(Options):
    """Improve a controller by natural evolution strategies: the mean moves along the fitness-weighted noise.

    Candidates are mean + sigma * noise, with normal noise and a sigma that stays. The mean moves by
    `learning_rate` * (average of noise * rank - `weight_decay` * mean), where ranks are centred, in [-0.5, 0.5]; how
    far it moves does not depend on how large returns are, nor on sigma. Nothing is learnt of the shape of the
    landscape, so that a generation costs nothing beside its rollouts, whatever the number of parameters. Awake or
    asleep, validations and saving are as with `cma-es`.

    Source: Wierstra et al. 2014; as in Salimans et al. 2017, with the published defaults of mauicv/world-model-rl,
    whose learning rate is fixed and which has neither pairs nor decay. The other keywords are those of `Options`.

    Args:
        population: Candidates in a generation. Source: mauicv/world-model-rl, 100.
        sigma: Standard deviation of the noise, in units of the parameters. Source: mauicv/world-model-rl, 0.05.
        learning_rate: What the estimated direction is multiplied by. Source: mauicv/world-model-rl, 1.
        antithetic: Each noise is tried with both signs; the population is even then. Source: Salimans et al. 2017.
        weight_decay: Share of the mean, times `learning_rate`, that is taken off in each generation. Source: Salimans
            et al. 2017; mauicv/world-model-rl has none.

    Raises:
        ValueError: if a number makes no sense.
    """

    population: int = 100
    sigma: float = 0.05
    learning_rate: float = 1.0
    antithetic: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be greater than 0 and finite, got {self.learning_rate}")
        if not 0 <= self.learning_rate * self.weight_decay < 1:
            raise ValueError(f"weight_decay must be 0 to 1 / learning_rate, got {self.weight_decay}")
        if self.antithetic and self.population % 2:
            raise ValueError(f"population must be even with antithetic pairs, got {self.population}")

    def train(self, controller: nn.Module, grounds: Grounds) -> dict[str, Any]:
        """Search; then `controller` holds the mean that validated best.

        Returns:
            The history, the validations of each world, the last mean and the snapshots, as arrays.
        """
        return Search(self, lambda x0: Natural(x0, self, seed=grounds.seed), controller, grounds).improve(controller)


class Natural:
    """A search distribution whose generation k draws from `rng(seed, "nes", k)` and from nothing else.

    Telling the same fitnesses again restores it exactly: its state is never stored.

    Args:
        x0: (n,) mean of the first generation.
        how: The options.
        seed: The run's seed.
    """

    def __init__(self, x0: np.ndarray, how: NES, *, seed: int) -> None:
        self.mean, self.sigma, self.generation = np.asarray(x0, np.float64), how.sigma, 0
        self._how, self._seed = how, seed

    def ask(self) -> np.ndarray:
        """The candidates (P, n) of this generation; of antithetic pairs, the second half mirrors the first."""
        return self.mean + self.sigma * self._noise()

    def tell(self, fitness: np.ndarray) -> None:
        """Learn from the fitness (P,) of this generation's candidates; more is better."""
        direction = ranks(fitness) @ self._noise() / len(fitness)  # (n,)
        self.mean = self.mean + self._how.learning_rate * (direction - self._how.weight_decay * self.mean)
        self.generation += 1

    def _noise(self) -> np.ndarray:
        """(P, n), drawn anew whenever it is wanted: it is as large as the population."""
        draws, count = rng(self._seed, "nes", self.generation), self._how.population
        if not self._how.antithetic:
            return draws.standard_normal((count, len(self.mean)))
        half = draws.standard_normal((count // 2, len(self.mean)))
        return np.concatenate([half, -half])


def ranks(fitness: np.ndarray) -> np.ndarray:
    """Centred ranks (P,) in [-0.5, 0.5], which sum to 0; equal fitnesses (P,) share their mean rank."""
    _, place, count = np.unique(fitness, return_inverse=True, return_counts=True)
    above = np.cumsum(count)
    mean_rank: np.ndarray = (above - (count + 1) / 2)[place]
    return mean_rank / (len(fitness) - 1) - 0.5
