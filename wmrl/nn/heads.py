"""Outputs with a likelihood and a sample, shared by dynamics models."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmrl.spec import Batch

LOG_STD = (-7.0, 7.0)
"""Log standard deviations are clamped to this range, so that no likelihood overflows."""
_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of `x` where `mask` (of the same shape, 0 or 1) is 1; 0 where nothing is."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


class Mixture(NamedTuple):
    """A mixture of M diagonal Gaussians over vectors of Z numbers, one for each leading index.

    With logits (*n, M) one component is chosen for the whole vector; with logits (*n, M, Z) one for each number.
    """

    logits: Tensor  # (*n, M) or (*n, M, Z), not normalised
    mean: Tensor  # (*n, M, Z)
    log_std: Tensor  # (*n, M, Z)

    @property
    def joint(self) -> bool:
        """Whether one component is chosen for the whole vector."""
        return self.logits.ndim < self.mean.ndim

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of vectors: (*n, Z) -> (*n,), in nats."""
        away = (x.unsqueeze(-2) - self.mean) * torch.exp(-self.log_std)  # (*n, M, Z)
        each = -0.5 * away.square() - self.log_std - _HALF_LOG_TWO_PI
        if self.joint:
            return torch.logsumexp(self.logits.log_softmax(-1) + each.sum(-1), -1)
        return torch.logsumexp(self.logits.log_softmax(-2) + each, -2).sum(-1)

    def sample(self, rng: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Draw vectors (*n, Z) with logits / temperature and noise * sqrt(temperature); at 0 the likeliest mean.

        Source: Ha & Schmidhuber (2018), the temperature of the dream.
        """
        if temperature < 0:
            raise ValueError(f"the temperature of a sample is at least 0, got {temperature}")
        # argmax(logits + t * Gumbel) is a draw from softmax(logits / t), and defined at t = 0 too
        gumbel = -torch.empty_like(self.logits).exponential_(generator=rng).log()
        index = (self.logits + temperature * gumbel).argmax(self.mean.ndim - 2, keepdim=True)  # (*n, 1) or (*n, 1, Z)
        if self.joint:
            index = index.unsqueeze(-1).expand(*index.shape, self.mean.shape[-1])
        mean, log_std = (t.gather(-2, index).squeeze(-2) for t in (self.mean, self.log_std))
        noise = torch.empty_like(mean).normal_(generator=rng)
        return mean + math.sqrt(temperature) * log_std.exp() * noise


class MixtureHead(nn.Module):
    """A mixture of diagonal Gaussians over the next latent, from features.

    One linear layer gives means (M x Z), log standard deviations (M x Z) and logits (M, or M x Z).
    Likelihoods are computed in float32 whatever the precision of the layer.
    """

    def __init__(self, inputs: int, size: int, mixtures: int, *, joint: bool = True):
        super().__init__()
        self.shape, self.joint = (mixtures, size), joint
        self.out = nn.Linear(inputs, mixtures * (2 * size + (1 if joint else size)))

    def forward(self, h: Tensor) -> Mixture:
        """Features (*n, inputs) -> a mixture for each leading index."""
        cells = self.shape[0] * self.shape[1]
        out = self.out(h).float()
        mean, log_std, logits = out.split([cells, cells, out.shape[-1] - 2 * cells], dim=-1)
        return Mixture(
            logits if self.joint else logits.unflatten(-1, self.shape),
            mean.unflatten(-1, self.shape),
            log_std.unflatten(-1, self.shape).clamp(*LOG_STD),
        )


class OutcomeHead(nn.Module):
    """Reward (a mean) and the logit of termination, from features that saw the action."""

    def __init__(self, inputs: int):
        super().__init__()
        self.out = nn.Linear(inputs, 2)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Features (*n, inputs) -> reward (*n,), logit of termination (*n,)."""
        reward, end = self.out(h).float().unbind(-1)
        return reward, end

    def losses(self, h: Tensor, batch: Batch, *, positive_weight: float = 1.0) -> tuple[Tensor, Tensor]:
        """Squared error of the reward and cross entropy of termination in nats, each a masked mean.

        Args:
            h: Features (B, T, inputs) after the action of each step.
            batch: Gives reward, terminated and mask, (B, T); a time limit is no termination.
            positive_weight: How much a step that terminates weighs against one that does not.
        """
        reward, end = self(h)
        wrong = F.binary_cross_entropy_with_logits(
            end, batch.terminated, reduction="none", pos_weight=end.new_tensor(positive_weight)
        )
        return masked_mean((reward - batch.reward).square(), batch.mask), masked_mean(wrong, batch.mask)
