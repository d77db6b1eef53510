"""What an actor's outputs mean: distributions over actions that are drawn from often and cheaply.

All have the same four methods (see `Policy`); they compute in float32 whatever the network does. Shapes: `*n` any
leading axes, A `Actions.size`.
"""

import functools
import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
MARGIN = 1e-6
"""How near to the ends of [-1, 1], or of a cumulative distribution, float32 is asked to go."""


class Policy(Protocol):
    """A distribution over actions (*n, A), or rather one for each of the *n rows."""

    def sample(self, rng: torch.Generator | None = None) -> Tensor:
        """Actions (*n, A); their gradients reach the network's outputs."""

    def mode(self) -> Tensor:
        """The action (*n, A) to take where nothing is to be left to chance."""

    def log_prob(self, action: Tensor) -> Tensor:
        """Log probability, or density, in nats (*n,)."""

    def entropy(self) -> Tensor:
        """Entropy in nats (*n,)."""


class OneHot:
    """One of A actions, as a one-hot vector.

    A draw is one-hot, and has the gradient of the probabilities (straight through). Source: DreamerV2, algorithm 1.

    Args:
        logits: (*n, A).
        unimix: Share of the uniform distribution. Source: DreamerV3, 0.01.
    """

    def __init__(self, logits: Tensor, unimix: float = 0.0) -> None:
        logits = logits.float()
        if unimix:
            mixed = (1 - unimix) * logits.softmax(-1) + unimix / logits.shape[-1]
            logits = mixed.log()
        self.log_probs = logits.log_softmax(-1)  # (*n, A)

    def sample(self, rng: torch.Generator | None = None) -> Tensor:
        """As `Policy.sample`."""
        race = torch.empty_like(self.log_probs).exponential_(generator=rng).log_()
        hard, soft = largest(self.log_probs.detach() - race), self.log_probs.exp()
        return hard + (soft - soft.detach()) if soft.requires_grad else hard

    def mode(self) -> Tensor:
        """As `Policy.mode`."""
        return largest(self.log_probs)

    def log_prob(self, action: Tensor) -> Tensor:
        """As `Policy.log_prob`."""
        return (self.log_probs * action).sum(-1)

    def entropy(self) -> Tensor:
        """As `Policy.entropy`."""
        return -(self.log_probs * self.log_probs.exp()).sum(-1)


class Normal:
    """Independent normal numbers; a draw may lie outside [-1, 1], and whoever takes it there clips it.

    Args:
        mean: (*n, A).
        std: (*n, A).
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean.float(), std.float()

    def sample(self, rng: torch.Generator | None = None) -> Tensor:
        """As `Policy.sample`."""
        return self.mean + self.std * torch.empty_like(self.mean).normal_(generator=rng)

    def mode(self) -> Tensor:
        """As `Policy.mode`."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """As `Policy.log_prob`."""
        return -(0.5 * ((action - self.mean) / self.std).square() + self.std.log() + 0.5 * LOG_2PI).sum(-1)

    def entropy(self) -> Tensor:
        """As `Policy.entropy`."""
        return (self.std.log() + 0.5 * (1 + LOG_2PI)).sum(-1)


class TanhNormal:
    """tanh of independent normal numbers.

    `mode` is tanh of the mean, the median; the density itself is highest at the ends where the deviation is large.
    `entropy` is not sampled but integrated (Gauss-Hermite), so that it is no source of noise: exact to 0.01 nats up to
    a deviation of 1, to 0.1 at 5. Source of the form: Dreamer (Hafner et al. 2020) and SAC.

    Args:
        mean: (*n, A), before tanh.
        std: (*n, A), before tanh.
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.inner = Normal(mean, std)

    def sample(self, rng: torch.Generator | None = None) -> Tensor:
        """As `Policy.sample`."""
        return self.inner.sample(rng).tanh()

    def mode(self) -> Tensor:
        """As `Policy.mode`."""
        return self.inner.mean.tanh()

    def log_prob(self, action: Tensor) -> Tensor:
        """As `Policy.log_prob`; at the ends, where float32 does not tell x, of all that lies behind."""
        x = action.clamp(MARGIN - 1, 1 - MARGIN).atanh()
        mean, std = self.inner.mean, self.inner.std
        inside = -0.5 * ((x - mean) / std).square() - std.log() - 0.5 * LOG_2PI - _log_slope(x)
        behind = torch.special.log_ndtr((x.sign() * mean - x.abs()) / std)
        return torch.where(action.abs() < 1 - MARGIN, inside, behind).sum(-1)

    def entropy(self) -> Tensor:
        """As `Policy.entropy`."""
        nodes, weights = _hermite(self.inner.mean.device)
        x = self.inner.mean[..., None] + self.inner.std[..., None] * nodes  # (*n, A, nodes)
        return self.inner.entropy() + (_log_slope(x) * weights).sum((-2, -1))


class TruncatedNormal:
    """Independent normal numbers given that they lie in [-1, 1]. Source: DreamerV2 (Hafner et al. 2021).

    Args:
        mean: (*n, A) in [-1, 1], of the normal before it is cut.
        std: (*n, A), likewise.
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.inner = Normal(mean, std)
        self.ends = [(end - self.inner.mean) / self.inner.std for end in (-1, 1)]
        self.low, high = (torch.special.ndtr(end) for end in self.ends)
        self.share = high - self.low  # of the normal that is left

    def sample(self, rng: torch.Generator | None = None) -> Tensor:
        """As `Policy.sample`."""
        at = self.low + self.share * torch.empty_like(self.share).uniform_(generator=rng)
        x = self.inner.mean + self.inner.std * torch.special.ndtri(at.clamp(MARGIN, 1 - MARGIN))
        return x + (x.clamp(-1, 1) - x).detach()  # what rounding alone put outside keeps its gradient

    def mode(self) -> Tensor:
        """As `Policy.mode`."""
        return self.inner.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """As `Policy.log_prob`."""
        return self.inner.log_prob(action) - self.share.log().sum(-1)

    def entropy(self) -> Tensor:
        """As `Policy.entropy`."""
        low, high = (end * torch.exp(-0.5 * (end.square() + LOG_2PI)) for end in self.ends)
        return self.inner.entropy() + (self.share.log() + 0.5 * (low - high) / self.share).sum(-1)


def largest(y: Tensor) -> Tensor:
    """One-hot (*n, A) of the largest output; the first of equals."""
    index = torch.arange(y.shape[-1], device=y.device)
    return (y.argmax(-1, keepdim=True) == index).to(y.dtype)


def _log_slope(x: Tensor) -> Tensor:
    """Log of the derivative of tanh, 1 - tanh(x)^2, for any x."""
    return 2 * (math.log(2) - x - F.softplus(-2 * x))


@functools.cache
def _hermite(device: torch.device, count: int = 16) -> tuple[Tensor, Tensor]:
    """Where to look at a function of a standard normal number, and how much each look counts.

    Source: Golub and Welsch 1969; the nodes are the eigenvalues of the recursion's matrix.
    """
    side = torch.arange(1, count, dtype=torch.float64).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(side, 1) + torch.diag(side, -1))
    return nodes.float().to(device), vectors[0].square().float().to(device)
