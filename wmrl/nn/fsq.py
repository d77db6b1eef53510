"""Finite scalar quantisation: numbers rounded to a few levels each, so that groups of them are codes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FSQ(nn.Module):
    """Vectors of G groups of N numbers; number i of a group takes `levels[i]` values, evenly spaced in [-1, 1].

    One function bounds, tanh, and its range is that of the levels, ends included: every code is reached by some input.
    A group is one of V = product of `levels` codes.

    Source: Mentzer et al. 2023, with levels that lie evenly around zero whether their number is odd or even.

    Args:
        levels: Levels of each number of a group.

    Raises:
        ValueError: if there are no levels, or fewer than 2 of a number.
    """

    step: Tensor  # (N,) codes between two levels of a number
    count: Tensor  # (N,) levels of a number
    table: Tensor  # (V, N) the values of each code

    def __init__(self, levels: Sequence[int]):
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels must be numbers of at least 2, got {list(levels)}")
        self.group, self.vocab = len(levels), math.prod(levels)
        step = [math.prod(levels[:i]) for i in range(len(levels))]
        for name, numbers in {"step": step, "count": levels}.items():
            self.register_buffer(name, torch.tensor(list(numbers)), persistent=False)
        digits = torch.arange(self.vocab)[:, None] // self.step % self.count
        self.register_buffer("table", 2 * digits / (self.count - 1) - 1, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Numbers of any size (*n, G N) -> the nearest levels (*n, G N) in [-1, 1]; gradients are those of tanh."""
        bounded = x.float().tanh()
        top = (self.count - 1) / 2
        nearest = (self._split(bounded.detach() + 1) * top).round() / top - 1
        return bounded + (nearest.flatten(-2) - bounded).detach()

    def index(self, values: Tensor) -> Tensor:
        """Levels (*n, G N), as `forward` gives them -> codes (*n, G) int64."""
        digits = ((self._split(values) + 1) * (self.count - 1) / 2).round().long()
        return (digits * self.step).sum(-1)

    def values(self, weights: Tensor) -> Tensor:
        """One-hot codes (*n, G V), or weights of them -> levels (*n, G N), or their averages."""
        return (weights.unflatten(-1, (-1, self.vocab)) @ self.table).flatten(-2)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.group))  # (*n, G, N)
