"""Common random numbers: in a batch of dreams, rows of the same episode draw the same numbers."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wmrl.seeding import generator

FILLS = {Tensor.normal_, Tensor.exponential_, Tensor.uniform_}
FRESH: dict[Any, Callable[..., Tensor]] = {torch.randn: Tensor.normal_, torch.rand: Tensor.uniform_}


class Common(TorchFunctionMode):
    """Within it, what is drawn with `rng` for every row depends on the row's seed and on what was drawn before.

    Candidates that play the same seed then meet the same noise, in whatever batch they are: what is left of the
    difference between two returns is the candidates' own. Seen are `normal_`, `exponential_`, `uniform_`, `torch.randn`
    and `torch.rand` of as many rows as there are; other draws come from `rng` as ever, and differ from row to row.

    Args:
        seeds: (B,) the rows' episodes.
        device: Of the tensors that are filled; the numbers are the same on every device.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.device, self.rng = device, generator("dream", *seeds, device=device)
        self._one = {int(seed): generator("dream", int(seed)) for seed in seeds}  # a small draw is fastest on the CPU
        self._place(np.array([int(seed) for seed in seeds], np.int64))

    def keep(self, rows: np.ndarray) -> None:
        """Drop all rows but these (K,)."""
        self._place(self._seeds[rows])

    def _place(self, seeds: np.ndarray) -> None:
        episodes, row = np.unique(seeds, return_inverse=True)
        self._seeds, self._rngs = seeds, [self._one[int(seed)] for seed in episodes]
        self._row = torch.as_tensor(row, device=self.device)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As torch calls it, for every function."""
        more = dict(kwargs or {})
        if more.get("generator") is not self.rng or func not in FILLS | FRESH.keys():
            return func(*args, **more)
        del more["generator"]
        if func in FRESH:
            return self._fill(FRESH[func], torch.empty(*args, **more))
        return self._fill(func, *args, **more)

    def _fill(self, fill: Callable[..., Tensor], x: Tensor, *args: Any, **more: Any) -> Tensor:
        if x.ndim == 0 or len(x) != len(self._seeds):
            return fill(x, *args, **more, generator=self.rng)
        each = x.new_empty(len(self._rngs), *x.shape[1:], device="cpu")
        for row, rng in zip(each, self._rngs, strict=True):
            fill(row, *args, **more, generator=rng)
        return x.copy_(each.to(x.device).index_select(0, self._row))
