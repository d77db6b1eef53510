"""What every model that goes step by step, with a memory of its rows, has to keep."""

from typing import Any

import torch
from torch import Tensor

from wmrl.spec import where


def together_and_alone(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """What rows that begin anew at other times get when they step together, and when each steps alone.

    Args:
        model: With `empty(like)` and `step(memory, x)`; the memory is a named tuple.
        x: Inputs (B, T, ...).

    Returns:
        Outputs (T, B, ...) of either.
    """
    rows, steps = x.shape[:2]
    begins = torch.rand(steps, rows, generator=torch.Generator().manual_seed(3)) < 0.15
    none, seen, expected = model.empty(x), [], []
    together, alone = none, [model.empty(x[:1]) for _ in range(rows)]
    for t in range(steps):
        together = type(none)(*where(begins[t], tuple(none), tuple(together)))
        y, together = model.step(together, x[:, t])
        seen.append(y)
        for row in range(rows):
            memory = model.empty(x[:1]) if begins[t, row] else alone[row]
            single, alone[row] = model.step(memory, x[row : row + 1, t])
            expected.append(single[0])
    return torch.stack(seen), torch.stack(expected).unflatten(0, (steps, rows))
