"""Optimisers and their states, as training states keep them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from wmrl.pipeline import Fit

EPSILON = 1e-5
"""Adam's, for the networks of a learner. Source: DreamerV2."""


def make(parameters: list[nn.Parameter], settings: Fit) -> torch.optim.Optimizer:
    """The optimiser that the settings name; the learning rate is set before each step."""
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, settings.learning_rate, alpha=0.9)
    how = {"beta2": settings.beta2, "epsilon": settings.epsilon, "weight_decay": settings.weight_decay}
    return adam(parameters, settings.learning_rate, **how)


def adam(
    parameters: list[nn.Parameter],
    learning_rate: float,
    *,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Adam, fused where there is such a kernel; with a decay, that of AdamW."""
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    betas = (0.9, beta2)
    return kind(parameters, learning_rate, betas=betas, eps=epsilon, weight_decay=weight_decay, fused=fused)


class Descent:
    """Some parameters with their own Adam and their own clip: each network of a learner has one.

    Args:
        parameters: What is trained.
        learning_rate: Its step.
        clip: The longest gradient, as a norm over all parameters; 0 clips nothing.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, clip: float) -> None:
        self.parameters, self._clip = list(parameters), clip
        self._adam = adam(self.parameters, learning_rate, epsilon=EPSILON)

    def step(self) -> Tensor:
        """A step along the gradients that are there, which are forgotten; the norm they had."""
        norm = clip(self.parameters, self._clip)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        return norm

    def state(self) -> list[dict[str, Tensor]]:
        """The optimiser's state, without the parameters."""
        return state(self._adam, self.parameters)

    def restore(self, stored: list[dict[str, Any]]) -> None:
        """Give the optimiser its state back.

        Raises:
            ValueError: if it is the state of other parameters.
        """
        restore(self._adam, self.parameters, stored)


def descend(total: Tensor, *networks: Descent) -> list[Tensor]:
    """A step of each network down the gradient of `total`, in float32 even under autocast; the gradients' norms.

    Nothing else takes gradients, whatever else is in the graph.
    """
    with torch.autocast(total.device.type, enabled=False):
        torch.autograd.backward(total, inputs=[p for network in networks for p in network.parameters])
        norms = [network.step() for network in networks]
    torch.clear_autocast_cache()  # it holds the weights as they were
    return norms


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
        optimizer.state.pop(parameter, None)
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
