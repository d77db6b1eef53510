"""What steps lead to, read off the features of a state: reward, and the chance that the episode goes on."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmrl.nn.mlp import Activation, Norm, mlp
from wmrl.nn.twohot import TwoHot

RewardKind = Literal["gaussian", "two-hot"]


class RewardHead(nn.Module):
    """A reward for each state: Gaussian of unit variance, or two-hot over numbers of any size.

    Source: Dreamer; DreamerV3 for "two-hot", whose last layer begins at zero, so that the first guess is 0.

    Args:
        inputs: F, numbers of the features.
        kind: The distribution.
        units: Of the MLP.
        layers: Of the MLP.
        activation: Of the MLP.
        norm: Of the MLP.
    """

    def __init__(self, inputs: int, kind: RewardKind, *, units: int, layers: int, activation: Activation, norm: Norm):
        super().__init__()
        self.bins = TwoHot() if kind == "two-hot" else None
        outputs = 1 if self.bins is None else len(self.bins.values)
        self.net = mlp(inputs, outputs, units=units, layers=layers, activation=activation, norm=norm)
        if self.bins is not None:
            last = self.net[-1]
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Features (*n, F) -> the expected reward (*n,) float32."""
        return self.mean(self.net(features))

    def mean(self, out: Tensor) -> Tensor:
        """What the network gave (*n, 1 or bins) -> (*n,)."""
        return out.float().squeeze(-1) if self.bins is None else self.bins.mean(out)

    def losses(self, features: Tensor, reward: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood in nats (Gaussian: up to a constant), and the detached squared error, (*n,) each."""
        out = self.net(features)
        error = (self.mean(out) - reward).square()
        return (0.5 * error if self.bins is None else self.bins.loss(out, reward)), error.detach()


class ContinueHead(nn.Module):
    """The chance that the episode goes on at a state: a Bernoulli variable.

    Args:
        inputs: F, numbers of the features.
        units: Of the MLP.
        layers: Of the MLP.
        activation: Of the MLP.
        norm: Of the MLP.
    """

    def __init__(self, inputs: int, *, units: int, layers: int, activation: Activation, norm: Norm):
        super().__init__()
        self.net = mlp(inputs, 1, units=units, layers=layers, activation=activation, norm=norm)

    def forward(self, features: Tensor) -> Tensor:
        """Features (*n, F) -> chances (*n,) in 0..1."""
        return torch.sigmoid(self.net(features).float().squeeze(-1))

    def losses(self, features: Tensor, terminated: Tensor) -> Tensor:
        """Cross entropy (*n,) in nats with what happened: terminated (*n,) is 1 where the episode ended so."""
        logit = self.net(features).float().squeeze(-1)
        return F.binary_cross_entropy_with_logits(logit, 1 - terminated, reduction="none")
