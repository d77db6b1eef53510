"""What trainers that learn in dreams have in common: a learner takes one small step at a time.

The stage `train-controller` lets it take them on a frozen world, `wmrl iterate` between those of the world itself.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wmrl.errors import ContractError
from wmrl.optimizers import Descent
from wmrl.spec import Batch, Metrics, State, tree_map
from wmrl.world import WorldModel


class Learner(Protocol):
    """Improves a controller, in place, a step at a time; made by `trainer.learner(controller, shape, device)`.

    `shape` is that of the controller's view: `feature_shape` of the dynamics, or a frame's. The learner owns all other
    networks (critics, slow copies) and the optimisers; they are on `device`, where the controller is already. Their
    first weights come from torch's global generator, which the caller seeds.
    """

    def update(self, world: WorldModel, starts: State, weight: Tensor, *, rng: torch.Generator) -> Metrics:
        """Dream from `starts`, and take a step; it may be called under autocast, losses are float32 all the same.

        Args:
            world: Frozen: its parameters take no gradients; dreams may be in the graph all the same.
            starts: N states at real observations, detached.
            weight: (N,) float, 0 where the episode has terminated: nothing can be learnt from there.
            rng: Source of all noise.

        Returns:
            Detached scalars to log, under their whole names (`losses/actor`), the same ones at every call.
        """

    def state(self) -> dict[str, Any]:
        """A tree of tensors and numbers from which `restore` goes on; the controller's parameters are in it too."""

    def restore(self, tree: dict[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            ContractError: if it is the state of other networks.
        """


Parts = Mapping[str, nn.Module | Descent]
"""The networks of a learner, and the optimisers of those that are trained, by their names."""


class Kept:
    """A learner whose state is that of its `parts`."""

    parts: Parts

    def state(self) -> dict[str, Any]:
        """As `Learner.state`."""
        parts = self.parts.items()
        return {name: dict(x.state_dict()) if isinstance(x, nn.Module) else x.state() for name, x in parts}

    def restore(self, tree: dict[str, Any]) -> None:
        """As `Learner.restore`."""
        try:
            for name, part in self.parts.items():
                if isinstance(part, nn.Module):
                    part.load_state_dict({key: torch.as_tensor(x) for key, x in tree[name].items()})
                else:
                    part.restore(tree[name])
        except (RuntimeError, ValueError, KeyError) as error:
            what = str(error).splitlines()[-1].strip()
            raise ContractError(f"the state is of other networks ({what}); begin anew with --noreload") from error


def starts_of(batch: Batch, states: State) -> tuple[State, Tensor]:
    """The states (B, T + 1, ...) at the rows of a batch as N = B (T + 1) starts (N, ...), and their weights (N,).

    A weight is 0 at padding and at the last observation of an episode that terminated. A window that begins with the
    last observation of an episode does not know how it ended: there too.
    """
    weight = batch.rows * (1 - batch.ended)
    if batch.first is not None:
        weight[:, 0] -= batch.first[:, 1]
    return tree_map(lambda x: x.flatten(0, 1), states), weight.flatten()
