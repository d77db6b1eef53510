"""Stacks of linear layers."""

from typing import Literal, get_args

from torch import nn

from wmrl.nn.unrolled import Linear

Activation = Literal["elu", "silu", "relu", "tanh", "gelu", "mish"]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "mish": nn.Mish,
}
Norm = Literal["none", "layer", "rms"]
NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
assert set(ACTIVATIONS) == set(get_args(Activation))


def hidden(
    inputs: int, units: int, layers: int, *, activation: Activation = "elu", norm: Norm = "none"
) -> nn.Sequential:
    """`layers` times a linear layer, a norm if there is one, an activation: (*n, inputs) -> (*n, units)."""
    parts: list[nn.Module] = []
    for i in range(layers):
        parts.append(Linear(units if i else inputs, units))
        parts += [NORMS[norm](units)] if norm != "none" else []
        parts.append(ACTIVATIONS[activation]())
    return nn.Sequential(*parts)


def mlp(
    inputs: int, outputs: int, *, units: int, layers: int, activation: Activation = "elu", norm: Norm = "none"
) -> nn.Sequential:
    """`layers` hidden layers and a linear one at the end: (*n, inputs) -> (*n, outputs).

    Source: dreamer and its relatives, for every head; the published MinAtar agent has 3 layers of 100 units, ELU.
    """
    stack = hidden(inputs, units, layers, activation=activation, norm=norm)
    return stack.append(Linear(units if layers else inputs, outputs))
