"""Linear layers inside loops over steps: the gradient of each weight is one product behind the loop, not one a step.

The products of single steps are small, and each is added to the sum of those before it; on CPUs that is most of what
the backward pass of an unrolled recurrent network takes.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmrl.precision import working


class _Later(torch.autograd.Function):
    """Gives its first input back; the gradient of the weight is made of all that was put into `seen` meanwhile."""

    @staticmethod
    def forward(ctx: Any, rest: Tensor, weight: Tensor, seen: list[Tensor]) -> Tensor:
        """What is added to the products, (T, B, out), and the weight (out, in) by which `seen` is multiplied."""
        ctx.seen, ctx.dtype = seen, weight.dtype
        return rest.view_as(rest)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of the T products -> those of what was added and of the weight."""
        seen = torch.cat(ctx.seen)  # (T B, in)
        used = grads[0][: len(ctx.seen)].flatten(0, 1)  # (T B, out)
        ctx.seen.clear()
        return grads[0], (used.t() @ seen).to(ctx.dtype), None


class Tape:
    """One weight in one loop.

    Args:
        weight: (out, in).
        rest: (T, B, out), what is added at each step.
    """

    def __init__(self, weight: Tensor, rest: Tensor):
        dtype = working(rest)
        self.weight, self.seen = weight.detach().to(dtype).t(), list[Tensor]()
        self.rest: Tensor = _Later.apply(rest.to(dtype), weight, self.seen)

    def step(self, x: Tensor, rest: Tensor) -> Tensor:
        """The next step's x (B, in), and its row of `rest` (B, out) -> (B, out)."""
        x = x.to(self.weight.dtype)
        self.seen.append(x.detach())
        return torch.addmm(rest, x, self.weight)


class Taped(nn.Module):
    """A module that knows whether it is in a loop."""

    steps = 0  # of the loop, at most

    def __init__(self, *args: Any, **how: Any):
        super().__init__(*args, **how)
        self.tapes: dict[str, tuple[Tape, Iterator[Tensor]]] = {}

    def times(self, name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x` times the weight of that name (out, in), and the bias (out,): in a loop x is (B, in), or is no part."""
        if not self.steps or x.ndim != 2:
            return F.linear(x, weight, bias)
        if name not in self.tapes:
            one = weight.new_zeros(()) if bias is None else bias
            tape = Tape(weight, one.expand(self.steps, len(x), len(weight)))
            self.tapes[name] = tape, iter(tape.rest.unbind(0))
        tape, rows = self.tapes[name]
        return tape.step(x, next(rows))


class Linear(Taped, nn.Linear):
    """`nn.Linear`, also in loops, where x is (B, in)."""

    def forward(self, input: Tensor) -> Tensor:
        """(*n, in) -> (*n, out)."""
        return self.times("weight", input, self.weight, self.bias)


class GRUCell(Taped, nn.GRUCell):
    """`nn.GRUCell`, also in loops."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Input (B, in), state (B, D) -> the next state."""
        if not self.steps or hx is None:
            return super().forward(input, hx)
        size = self.hidden_size
        new = self.times("input", input, self.weight_ih, self.bias_ih)
        old = self.times("state", hx, self.weight_hh, self.bias_hh)
        reset, keep = torch.sigmoid(new[:, : 2 * size] + old[:, : 2 * size]).chunk(2, -1)
        candidate = torch.tanh(new[:, 2 * size :] + reset * old[:, 2 * size :]).float()
        return torch.lerp(candidate, hx.float(), keep.float())


class Apart(Taped):
    """A linear layer of two inputs whose parts are computed apart: what is known of all steps, before the loop.

    Its parameters, and how they begin, are those of `nn.Linear(left + right, outputs)`.

    Args:
        left: Numbers of the first input.
        right: Numbers of the second.
        outputs: Numbers that come out.
    """

    def __init__(self, left: int, right: int, outputs: int):
        super().__init__()
        whole = nn.Linear(left + right, outputs)
        first, second = whole.weight.detach().split([left, right], 1)
        self.left, self.right = nn.Parameter(first.clone()), nn.Parameter(second.clone())
        self.bias = whole.bias

    def ahead(self, right: Tensor) -> Tensor:
        """The second input's part, and the bias: (*n, right) -> (*n, outputs); for a loop once, (B, T, right)."""
        rest = F.linear(right, self.right, self.bias)
        if not self.steps:
            return rest
        tape = Tape(self.left, rest.transpose(0, 1))
        self.tapes["left"] = tape, iter(())
        return tape.rest.transpose(0, 1)

    def forward(self, left: Tensor, ahead: Tensor) -> Tensor:
        """The first input (*n, left) and what `ahead` gave -> (*n, outputs)."""
        if self.steps:
            return self.tapes["left"][0].step(left, ahead)
        return F.linear(left, self.left) + ahead


@contextlib.contextmanager
def unrolled(module: nn.Module, steps: int) -> Iterator[None]:
    """Inside, the layers of `module` take part in one loop, in which each is called at most `steps` times."""
    parts = [part for part in module.modules() if isinstance(part, Taped)]
    try:
        for part in parts:
            part.steps = steps
        yield
    finally:
        for part in parts:
            part.steps, part.tapes = 0, {}
