"""Stochastic states of a world model: categorical or Gaussian, drawn with gradients."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wmrl.nn.heads import masked_mean

Kind = Literal["categorical", "gaussian"]
Parts = tuple[Tensor, ...]
"""What the parameters of a distribution mean: (log p (*n, K, L),), or (mean (*n, S), std (*n, S))."""


class Categorical:
    """K one-hot variables of L classes each; a draw is flat (*n, K L), its parameters are as many logits.

    Source: Hafner et al. 2021 (DreamerV2), straight-through gradients: a draw is the one-hot vector in value, and the
    probabilities in gradient.

    Args:
        variables: K.
        classes: L.
        unimix: Share of the uniform distribution in the probabilities. Source: DreamerV3, 0.01; before, 0.
    """

    def __init__(self, variables: int, classes: int, unimix: float = 0.0):
        if variables < 1 or classes < 2 or not 0 <= unimix < 1:
            raise ValueError(
                "a categorical state needs at least 1 variable, 2 classes, and unimix in [0, 1); "
                f"got {variables}, {classes}, {unimix}"
            )
        self.variables, self.classes, self.unimix = variables, classes, unimix
        self.size = self.parameters = variables * classes

    def parts(self, parameters: Tensor) -> Parts:
        """Logits (*n, K L) -> (log p (*n, K, L) float32,)."""
        logits = parameters.float().unflatten(-1, (self.variables, self.classes))
        if not self.unimix:
            return (logits.log_softmax(-1),)
        return (self._mixed(logits).log(),)

    def sample(self, parameters: Tensor, rng: torch.Generator | None, temperature: float = 1.0) -> Tensor:
        """Logits (*n, K L) -> a draw (*n, K L) of softmax(log p / temperature); without `rng` the likeliest."""
        logits = parameters.float().unflatten(-1, (self.variables, self.classes))
        p = self._mixed(logits)
        with torch.no_grad():
            drawn = p if temperature == 1 or temperature == 0 else (p.log() / temperature).softmax(-1)
            index = drawn.argmax(-1, True) if rng is None or temperature == 0 else _invert(drawn, rng)
            chosen = torch.zeros_like(p).scatter_(-1, index, 1.0)
        # p - p is zero, exactly: a draw is one-hot to the last bit
        return (chosen + (p - p.detach()) if p.requires_grad else chosen).flatten(-2)

    def log_prob(self, parts: Parts, drawn: Tensor) -> Tensor:
        """Log probability (*n,) in nats of one-hot draws (*n, K L)."""
        return (parts[0].flatten(-2) * drawn).sum(-1)

    def kl(self, q: Parts, p: Parts) -> Tensor:
        """KL(q || p), (*n,) in nats, summed over the variables."""
        return (q[0].exp() * (q[0] - p[0])).sum((-1, -2))

    def entropy(self, parts: Parts) -> Tensor:
        """(*n,) in nats, at most K ln L."""
        return -(parts[0].exp() * parts[0]).sum((-1, -2))

    def _mixed(self, logits: Tensor) -> Tensor:
        p = logits.softmax(-1)
        return p if not self.unimix else (1 - self.unimix) * p + self.unimix / self.classes


def _invert(p: Tensor, rng: torch.Generator) -> Tensor:
    """Classes (*n, K, 1) drawn with probabilities (*n, K, L): one uniform number each, a hundredth of Gumbel's time."""
    edges = p.cumsum(-1)
    u = torch.empty_like(edges[..., :1]).uniform_(generator=rng)
    return (edges <= u * edges[..., -1:]).sum(-1, True).clamp_(max=p.shape[-1] - 1)


class Gaussian:
    """S independent Gaussian numbers; parameters are (mean, raw) (*n, 2 S), std = softplus(raw) + `min_std`.

    Source: Hafner et al. 2020 (Dreamer).

    Args:
        size: S.
        min_std: The least standard deviation. Source: Dreamer, 0.1.
    """

    def __init__(self, size: int, min_std: float = 0.1):
        if size < 1 or min_std <= 0:
            raise ValueError(
                f"a Gaussian state needs at least 1 number and min_std greater than 0, got {size}, {min_std}"
            )
        self.size, self.parameters, self.min_std = size, 2 * size, min_std

    def parts(self, parameters: Tensor) -> Parts:
        """(*n, 2 S) -> mean, std (*n, S) float32."""
        mean, raw = parameters.float().chunk(2, -1)
        return mean, F.softplus(raw) + self.min_std

    def sample(self, parameters: Tensor, rng: torch.Generator | None, temperature: float = 1.0) -> Tensor:
        """(*n, 2 S) -> a draw (*n, S), noise * sqrt(temperature); without `rng`, or at temperature 0, the mean."""
        mean, std = self.parts(parameters)
        if rng is None or temperature == 0:
            return mean
        return mean + math.sqrt(temperature) * std * torch.empty_like(mean).normal_(generator=rng)

    def log_prob(self, parts: Parts, drawn: Tensor) -> Tensor:
        """Log density (*n,) in nats of draws (*n, S)."""
        mean, std = parts
        return (-0.5 * ((drawn - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def kl(self, q: Parts, p: Parts) -> Tensor:
        """KL(q || p), (*n,) in nats, summed over the numbers."""
        ratio = (q[1] / p[1]).square()
        return 0.5 * (ratio + ((q[0] - p[0]) / p[1]).square() - 1 - ratio.log()).sum(-1)

    def entropy(self, parts: Parts) -> Tensor:
        """(*n,) in nats."""
        return (parts[1].log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


Latents = Categorical | Gaussian


def latents(kind: Kind, variables: int, classes: int, *, unimix: float = 0.0, min_std: float = 0.1) -> Latents:
    """The stochastic state that keywords name: `variables` variables of `classes` classes, or Gaussian numbers."""
    return Categorical(variables, classes, unimix) if kind == "categorical" else Gaussian(variables, min_std)


def balance(space: Latents, posterior: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """KL(posterior || prior) (*n,) in nats, twice: once it teaches the prior alone, once the posterior alone.

    Source: DreamerV2, KL balancing, which adds 0.8 of the first to 0.2 of the second; DreamerV3 calls their weights
    the scales of `dyn` and `rep`.
    """
    q, p = space.parts(posterior), space.parts(prior)
    return space.kl(tuple(x.detach() for x in q), p), space.kl(q, tuple(x.detach() for x in p))


def floored(kl: Tensor, mask: Tensor, free_nats: float, *, each: bool) -> Tensor:
    """The mean of `kl` (B, T) where `mask` is 1, of which `free_nats` cost nothing and teach nothing.

    Args:
        kl: Nats.
        mask: (B, T), 0 or 1.
        free_nats: The floor.
        each: Whether each state is floored (DreamerV3), or their mean (Dreamer, DreamerV2).
    """
    if each:
        return masked_mean(kl.clamp(min=free_nats), mask)
    return masked_mean(kl, mask).clamp(min=free_nats)
