"""CMA-ES on the parameters of a controller, as in World Models."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from wmrl.trainers.grounds import Grounds
from wmrl.trainers.options import Options
from wmrl.trainers.search import Search
from wmrl.trainers.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class Evolve(Options):
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

    Source: Hansen & Ostermeier 2001. The other keywords are those of `Options`.

    Args:
        sigma_decay: What the step size is multiplied by after each generation, on top of CMA-ES's own adaptation. That
            acts over about 3 * parameters / population generations: less than 1 where a search is shorter than that.
        diagonal: Learn variances only, no covariances (CMA_diagonal): faster for many parameters.

    Raises:
        ValueError: if a number makes no sense.
    """

    sigma_decay: float = 1.0
    diagonal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sigma_decay <= 1:
            raise ValueError(f"sigma_decay must be greater than 0 and at most 1, got {self.sigma_decay}")

    def train(self, controller: nn.Module, grounds: Grounds) -> dict[str, Any]:
        """Search; then `controller` holds the mean that validated best.

        Returns:
            The history, the validations of each world, the last mean and the snapshots, as arrays.
        """
        return Search(self, lambda x0: self._strategy(x0, grounds.seed), controller, grounds).improve(controller)

    def _strategy(self, x0: np.ndarray, seed: int) -> Strategy:
        return Strategy(
            x0,
            sigma=self.sigma,
            population=self.population,
            diagonal=self.diagonal,
            seed=seed,
            decay=self.sigma_decay,
        )
