"""Pixels as they are: the representation of models that bring their own encoder."""

import torch
from torch import Tensor, nn

from wmrl.spec import Space


class Pixels(nn.Module):
    """Does nothing to frames, and has nothing to train.

    Args:
        observation: The space of the frames, (C, H, W) uint8.
    """

    def __init__(self, observation: Space):
        super().__init__()
        self.latent = observation

    def encode(self, obs: Tensor) -> Tensor:
        """(*n, C, H, W) uint8 -> the same."""
        return obs

    def draw(self, code: Tensor, *, sample: bool, rng: torch.Generator | None = None) -> Tensor:
        """(*n, C, H, W) uint8 -> the same."""
        return code

    def decode(self, latent: Tensor) -> Tensor:
        """(*n, C, H, W), uint8 or already in 0..1 -> float in 0..1."""
        return latent.float() / 255 if latent.dtype == torch.uint8 else latent
