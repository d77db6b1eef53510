"""Dropout whose noise comes from a generator that the caller owns."""

import torch
from torch import Tensor

LEVELS = 1 << 16


def chance(dropout: float) -> None:
    """Check the chance of a pipeline file.

    Raises:
        ValueError: if it is none, or 1.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and less than 1, got {dropout}")


class Drop:
    """Sets numbers to zero with chance `p` and scales the others by 1 / (1 - p), as in training.

    torch's own dropout draws from the global generator only. Four draws are cut from each random word: several times
    faster on a CPU; `p` is rounded to 1 / 65,536.

    Args:
        p: The chance; 0 leaves all as it is.
        rng: Where the noise comes from.
    """

    def __init__(self, p: float, rng: torch.Generator | None = None):
        self.p, self.rng = round(p * LEVELS) / LEVELS, rng

    def __call__(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        if not self.p:
            return x
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        words.random_(-(1 << 63), None, generator=self.rng)
        draws = words.view(torch.int16)[: x.numel()].view(x.shape)
        keep = draws >= round(self.p * LEVELS) - LEVELS // 2
        return x * (keep.to(x.dtype) / (1 - self.p))
