"""How much a state is worth: networks from views to values, and slow copies of them."""

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmrl.nn.mlp import Activation, Norm, mlp
from wmrl.nn.twohot import TwoHot

Kind = Literal["gaussian", "two-hot"]


class Critic(nn.Module):
    """Values of views, as the mean of a normal of deviation 1 (half the square of the error) or as classes.

    A two-hot critic begins with zero everywhere. It computes losses and values in float32, whatever its layers do.

    Args:
        shape: Shape (F,) of the views.
        kind: "gaussian", or "two-hot". Source: DreamerV2; DreamerV3.
        layers: Hidden layers.
        units: Units of each.
        activation: After each layer.
        norm: Before each activation.

    Raises:
        ValueError: if views are no vectors.
    """

    def __init__(
        self, shape: tuple[int, ...], *, kind: Kind, layers: int, units: int, activation: Activation, norm: Norm
    ) -> None:
        super().__init__()
        if len(shape) != 1:
            raise ValueError(f"a critic reads a vector of features, not shape {tuple(shape)}")
        self.classes = TwoHot() if kind == "two-hot" else None
        outputs = 1 if self.classes is None else len(self.classes.values)
        self.net = mlp(shape[0], outputs, units=units, layers=layers, activation=activation, norm=norm)
        if self.classes is not None:
            for parameter in self.net[-1].parameters():
                nn.init.zeros_(parameter)

    def output(self, view: Tensor) -> Tensor:
        """Views (*n, F) -> what `mean` and `loss` read, (*n, 1) or logits (*n, bins), float32."""
        y: Tensor = self.net(view)
        return y.float()

    def mean(self, output: Tensor) -> Tensor:
        """Values (*n,) of an output."""
        return output.squeeze(-1) if self.classes is None else self.classes.mean(output)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Nats (*n,), up to a constant, of targets (*n,) under an output."""
        if self.classes is not None:
            return self.classes.loss(output, target)
        return 0.5 * F.mse_loss(output.squeeze(-1), target, reduction="none")

    def forward(self, view: Tensor) -> Tensor:
        """Values (*n,) of views (*n, F)."""
        return self.mean(self.output(view))


def slow_copy(module: nn.Module) -> nn.Module:
    """A copy that takes no gradients; `follow` moves it."""
    return copy.deepcopy(module).requires_grad_(False).eval()


@torch.no_grad()
def follow(slow: nn.Module, module: nn.Module, fraction: float) -> None:
    """Move the parameters of `slow` by this fraction of the way to those of `module`; 1 copies them."""
    pairs = list(zip(slow.parameters(), module.parameters(), strict=True))
    torch._foreach_lerp_([a for a, _ in pairs], [b for _, b in pairs], fraction)
