"""A slow copy of a module: an exponential moving average of its parameters."""

from typing import Any

import torch
from torch import nn


class Slow(nn.Module):
    """Computes what another module computes, with the moving average of that module's parameters.

    The average lies in buffers: no optimiser touches it, no gradient reaches it, and it is saved, restored and moved
    with the model that owns it. The model calls `follow` once at the beginning of each training step, before it uses
    the copy: a step then depends on parameters and buffers alone, and a training that was killed goes on to the bit.

    Args:
        module: What is followed; it has no buffers. It is not kept, for it belongs to the model.
        rate: How much of the way to the parameters each `follow` goes, in (0, 1].

    Raises:
        ValueError: if the rate is out of its range.
    """

    def __init__(self, module: nn.Module, rate: float):
        super().__init__()
        if not 0 < rate <= 1:
            raise ValueError(f"the rate of a slow copy lies in (0, 1], got {rate}")
        self.rate = rate
        for name, parameter in module.named_parameters():
            self.register_buffer(_flat(name), parameter.detach().clone())

    @torch.no_grad()
    def follow(self, module: nn.Module) -> None:
        """Go a little of the way to the parameters of `module`; where they are equal already, nothing changes."""
        for name, parameter in module.named_parameters():
            self.get_buffer(_flat(name)).lerp_(parameter, self.rate)

    @torch.no_grad()
    def forward(self, module: nn.Module, *args: Any) -> Any:
        """`module(*args)`, with the average in the place of its parameters."""
        average = {name: self.get_buffer(_flat(name)) for name, _ in module.named_parameters()}
        return torch.func.functional_call(module, average, args)


def _flat(name: str) -> str:
    return name.replace(".", "-")  # a dot would name a submodule
