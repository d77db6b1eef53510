"""What every model that goes step by step, with a memory of its rows, has to keep."""

from typing import Any

import torch
from torch import Tensor

from wmrl.spec import where


def rows_are_apart(model: Any, x: Tensor) -> None:
    """Rows that begin anew at other times get together what each gets alone.

    Args:
        model: With `empty(like)` and `step(memory, x)`; the memory is a named tuple.
        x: Inputs (B, T, ...).
    """
    rows, steps = x.shape[:2]
    begins = torch.rand(steps, rows, generator=torch.Generator().manual_seed(3)) < 0.15
    none = model.empty(x)
    together, alone = none, [model.empty(x[:1]) for _ in range(rows)]
    for t in range(steps):
        together = type(none)(*where(begins[t], tuple(none), tuple(together)))
        y, together = model.step(together, x[:, t])
        for row in range(rows):
            memory = model.empty(x[:1]) if begins[t, row] else alone[row]
            single, alone[row] = model.step(memory, x[row : row + 1, t])
            torch.testing.assert_close(y[row], single[0], atol=1e-5, rtol=1e-5)
