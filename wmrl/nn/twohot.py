"""Numbers of any size as classes: symlog and two-hot targets."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|). Source: Hafner et al. 2023 (DreamerV3), equation 9."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


class TwoHot(nn.Module):
    """A distribution over fixed numbers, symexp of a line: its mean, and its cross entropy with a number.

    A number lies between two of them and is written as weights of these two that have it as their mean; numbers beyond
    the ends count as the ends. With logits of zero the mean is exactly zero.

    Args:
        bins: How many numbers; odd, so that zero is one of them. Source: DreamerV3, 255.
        most: symlog of the largest one. Source: DreamerV3, 20.
    """

    values: Tensor

    def __init__(self, bins: int = 255, most: float = 20.0):
        super().__init__()
        if bins < 3 or bins % 2 == 0:
            raise ValueError(f"bins must be odd and at least 3, got {bins}")
        half = symexp(torch.linspace(-most, 0, bins // 2 + 1))
        self.register_buffer("values", torch.cat([half, -half[:-1].flip(0)]), persistent=False)

    def mean(self, logits: Tensor) -> Tensor:
        """Logits (*n, bins) -> (*n,); both halves are summed from the middle, so that equal ones cancel exactly."""
        p, middle = logits.float().softmax(-1), len(self.values) // 2
        each = p * self.values
        return (each[..., :middle].flip(-1) + each[..., middle + 1 :]).sum(-1)

    def weights(self, target: Tensor) -> Tensor:
        """Numbers (*n,) -> their weights (*n, bins), which sum to 1."""
        x = target.float().clamp(self.values[0], self.values[-1])
        above = torch.searchsorted(self.values, x.contiguous()).clamp(1, len(self.values) - 1)
        low, high = self.values[above - 1], self.values[above]
        share = ((x - low) / (high - low)).unsqueeze(-1)
        spread = torch.zeros(*x.shape, len(self.values), device=x.device)
        spread.scatter_(-1, (above - 1).unsqueeze(-1), 1 - share)
        return spread.scatter_(-1, above.unsqueeze(-1), share)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross entropy (*n,) in nats of logits (*n, bins) with numbers (*n,)."""
        return -(self.weights(target) * F.log_softmax(logits.float(), -1)).sum(-1)
