"""The density of an observation behind a stochastic state, which has no closed form."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wmrl.nn.latents import Latents

SAMPLES = 16
"""Draws by which a density is estimated."""


def log_density(space: Latents, prior: Tensor, posterior: Tensor, log_likelihood: Callable[[Tensor], Tensor]) -> Tensor:
    """A lower bound, in the mean, of the log density (B,) in nats of an observation.

    It is estimated by draws of the posterior, weighted by prior over posterior (Burda et al. 2016, importance weighted
    autoencoders). The draws' noise is the same at each call.

    Args:
        space: Of the states.
        prior: Its parameters (B, P).
        posterior: Its parameters (B, P).
        log_likelihood: States (16, B, S) -> log density (16, B) of the observation given each.
    """
    rng = torch.Generator(prior.device).manual_seed(0)
    drawn = space.sample(posterior.expand(SAMPLES, *posterior.shape), rng)  # (16, B, S)
    weight = log_likelihood(drawn) + space.log_prob(space.parts(prior), drawn)
    weight = weight - space.log_prob(space.parts(posterior), drawn)
    return torch.logsumexp(weight, 0) - math.log(SAMPLES)
