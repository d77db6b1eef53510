"""Observations as they are: the representation of models that bring their own encoder."""

import torch
from torch import Tensor, nn

from wmrl.spec import Space


class Pixels(nn.Module):
    """Does nothing to observations, and has nothing to train.

    Args:
        observation: Their space: (C, H, W) uint8 pictures or bool grids, or (n,) float vectors.
    """

    def __init__(self, observation: Space):
        super().__init__()
        self.latent = observation

    def encode(self, obs: Tensor) -> Tensor:
        """(*n, *observation) -> the same."""
        return obs

    def draw(self, code: Tensor, *, sample: bool, rng: torch.Generator | None = None) -> Tensor:
        """(*n, *observation) -> the same."""
        return code

    def decode(self, latent: Tensor) -> Tensor:
        """(*n, *observation) -> float: pictures and grids in 0..1, also those that a model gives; vectors as is."""
        if latent.dtype == torch.uint8:
            return latent.float() / 255
        return latent.float() if latent.dtype == torch.bool else latent
