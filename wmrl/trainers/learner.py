"""What trainers that learn in dreams have in common: a learner takes one small step at a time.

The stage `train-controller` lets it take them on a frozen world, `wmrl iterate` between those of the world itself.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from wmrl.spec import Batch, Metrics, State, tree_map
from wmrl.world import WorldModel


class Learner(Protocol):
    """Improves a controller, in place, a step at a time; made by `trainer.learner(controller, shape, device)`.

    `shape` is that of the controller's view: `feature_shape` of the dynamics, or a frame's. The learner owns all other
    networks (critics, slow copies) and the optimisers; they are on `device`, where the controller is already.
    """

    def update(self, world: WorldModel, starts: State, weight: Tensor, *, rng: torch.Generator) -> Metrics:
        """Dream from `starts`, and take a step.

        Args:
            world: Frozen: its parameters take no gradients; dreams may be in the graph all the same.
            starts: N states at real observations, detached.
            weight: (N,) float, 0 where the episode has terminated: nothing can be learnt from there.
            rng: Source of all noise.

        Returns:
            Detached scalars to log.
        """

    def state(self) -> dict[str, Any]:
        """A tree of tensors and numbers from which `restore` goes on; the controller's parameters are in it too."""

    def restore(self, tree: dict[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            ContractError: if it is the state of other networks.
        """


def starts_of(batch: Batch, states: State) -> tuple[State, Tensor]:
    """The states (B, T + 1, ...) at the rows of a batch as N = B (T + 1) starts (N, ...), and their weights (N,).

    A weight is 0 at padding and at the last observation of an episode that terminated.
    """
    weight = batch.rows * (1 - batch.ended)
    return tree_map(lambda x: x.flatten(0, 1), states), weight.flatten()
