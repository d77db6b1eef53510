"""Optimisers and their states, as training states keep them."""

from typing import Any

import torch
from torch import Tensor, nn

from wmrl.pipeline import Fit


def make(parameters: list[nn.Parameter], settings: Fit) -> torch.optim.Optimizer:
    """The optimiser that the settings name; the learning rate is set before each step."""
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, settings.learning_rate, alpha=0.9)
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    betas = (0.9, settings.beta2)
    return torch.optim.Adam(parameters, settings.learning_rate, betas=betas, eps=settings.epsilon, fused=fused)


def state(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> list[dict[str, Tensor]]:
    """The optimiser's state, in the order of the parameters."""
    return [dict(optimizer.state.get(p, {})) for p in parameters]


def restore(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], stored: list[dict[str, Any]]) -> None:
    """Give the optimiser its state back, each tensor laid out in memory as its parameter.

    Raises:
        ValueError: if it is the state of other parameters.
    """
    if len(stored) != len(parameters):
        raise ValueError(f"{len(stored)} parameters are stored, there are {len(parameters)}")
    for parameter, entry in zip(parameters, stored, strict=True):
        for key, array in entry.items():
            optimizer.state[parameter][key] = _like(torch.as_tensor(array), parameter, optimizer)


def clip(parameters: list[nn.Parameter], most: float) -> Tensor:
    """The norm of the gradient, which is shortened to `most` (0: left alone)."""
    if most:
        return nn.utils.clip_grad_norm_(parameters, most).float()
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]).float()


def _like(value: Tensor, parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> Tensor:
    if value.ndim and value.shape == parameter.shape:
        return torch.empty_like(parameter, requires_grad=False).copy_(value)
    if value.ndim:
        raise ValueError(f"a state of shape {tuple(value.shape)} is stored for a parameter {tuple(parameter.shape)}")
    return value.to(parameter.device if optimizer.defaults.get("fused") else "cpu")  # the count of steps
