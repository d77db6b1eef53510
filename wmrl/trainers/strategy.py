"""CMA-ES without hidden state: all follows from x0, the options, the seed and the fitnesses told."""

import warnings

import cma
import numpy as np

from wmrl.seeding import rng


class Strategy:
    """An evolution strategy whose generation k draws from `rng(seed, "cma-es", k)` and from nothing else.

    Telling the same fitnesses again restores it exactly: its state is never stored.

    Args:
        x0: (n,) mean of the first generation.
        sigma: Standard deviation of the first generation.
        population: Candidates in a generation.
        diagonal: Learn variances only, no covariances: for large n.
        decay: What the step size is multiplied by after each generation, on top of its own adaptation.
        seed: The run's seed.
    """

    def __init__(
        self, x0: np.ndarray, *, sigma: float, population: int, diagonal: bool, seed: int, decay: float = 1.0
    ) -> None:
        self._seed, self._decay, self.generation = seed, decay, 0
        options = {
            "popsize": population,
            "CMA_diagonal": diagonal,
            "randn": self._randn,
            "seed": np.nan,  # leave NumPy's global generator alone
            "verbose": -10,  # print nothing, read no cma_signals.in
            "verb_log": 0,  # write nothing
            "verb_disp": 0,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._es = cma.CMAEvolutionStrategy(np.asarray(x0, np.float64), sigma, options)
        self._asked: list[np.ndarray] = []
        self._draws = rng(seed, "cma-es", 0)

    @property
    def mean(self) -> np.ndarray:
        """(n,) float64, the centre of the distribution."""
        return np.array(self._es.mean)

    @property
    def sigma(self) -> float:
        """The overall step size."""
        return float(self._es.sigma)

    def ask(self) -> np.ndarray:
        """The candidates (P, n) of this generation."""
        self._draws = rng(self._seed, "cma-es", self.generation)
        self._asked = self._es.ask()
        return np.stack(self._asked)

    def tell(self, fitness: np.ndarray) -> None:
        """Learn from the fitness (P,) of the candidates asked last; more is better."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._es.tell(self._asked, [-float(f) for f in fitness])
        self._es.sigma *= self._decay
        self.generation += 1

    def _randn(self, *shape: int) -> np.ndarray:
        return self._draws.standard_normal(shape)
