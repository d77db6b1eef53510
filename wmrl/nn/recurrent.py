"""Recurrent cells of world models: the deterministic state takes in what was drawn and what was done."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from wmrl.nn.mlp import ACTIVATIONS, NORMS, Activation, Norm
from wmrl.nn.unrolled import Apart, GRUCell, Linear

Cell = Literal["gru", "layer-norm", "block"]


def norm_layer(norm: Norm, units: int) -> nn.Module:
    """The norm of that name over `units` numbers, or nothing."""
    return nn.Identity() if norm == "none" else NORMS[norm](units)


class BlockLinear(nn.Module):
    """A linear layer whose matrix is block diagonal: (*n, inputs) -> (*n, outputs).

    Source: DreamerV3 (2024), for recurrent weights.

    Args:
        inputs: A multiple of `blocks`.
        outputs: Another.
        blocks: Block g of the outputs sees block g of the inputs alone.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int):
        super().__init__()
        if inputs % blocks or outputs % blocks:
            raise ValueError(f"blocks must divide {inputs} and {outputs}, got {blocks}")
        self.blocks, bound = blocks, 1 / math.sqrt(inputs // blocks)
        self.weight = nn.Parameter(torch.empty(blocks, inputs // blocks, outputs // blocks).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """(*n, inputs) -> (*n, outputs)."""
        parts = x.reshape(-1, self.blocks, self.weight.shape[1]).transpose(0, 1)  # (blocks, n, inputs / blocks)
        out = torch.bmm(parts, self.weight).transpose(0, 1)
        return out.reshape(*x.shape[:-1], -1) + self.bias


class LayerNormCell(nn.Module):
    """A GRU whose gates are normalised together, and which at first keeps most of what it has.

    Source: Hafner et al. 2021 (DreamerV2): one linear layer without bias, a layer norm, update gate minus 1, and the
    reset gate on the candidate.
    """

    def __init__(self, inputs: int, size: int):
        super().__init__()
        self.gates = Linear(inputs + size, 3 * size, bias=False)
        self.norm = nn.LayerNorm(3 * size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Input (B, inputs), state (B, D) -> the next state."""
        return _gated(self.norm(self.gates(torch.cat([x, h], -1))).float().chunk(3, -1), h)


def _gated(gates: tuple[Tensor, ...], h: Tensor) -> Tensor:
    """Reset, candidate and update (B, D) before their activations -> the next state."""
    reset, candidate, update = gates
    keep = torch.sigmoid(1 - update)
    return torch.lerp(torch.tanh(torch.sigmoid(reset) * candidate), h, keep)


class Recurrence(nn.Module):
    """The deterministic path of an RSSM: the action and the last draw are embedded, a GRU takes them in.

    Args:
        drawn: S, numbers of a draw.
        actions: A, numbers of an action.
        size: D, the state.
        hidden: Units of the embedding.
        cell: "gru", torch's; "layer-norm", DreamerV2's.
        activation: Of the embedding.
        norm: Of the embedding.
    """

    def __init__(
        self, drawn: int, actions: int, size: int, *, hidden: int, cell: Cell, activation: Activation, norm: Norm
    ):
        super().__init__()
        self.embed = Apart(drawn, actions, hidden)
        self.act = nn.Sequential(norm_layer(norm, hidden), ACTIVATIONS[activation]())
        self.cell = GRUCell(hidden, size) if cell == "gru" else LayerNormCell(hidden, size)

    def ahead(self, action: Tensor) -> Tensor:
        """What does not depend on the state: (*n, A) -> (*n, hidden)."""
        return self.embed.ahead(action)

    def forward(self, h: Tensor, drawn: Tensor, ahead: Tensor) -> Tensor:
        """State (B, D), draw (B, S) and the action's part (B, hidden) -> the next state (B, D) float32."""
        after: Tensor = self.cell(self.act(self.embed(drawn, ahead)), h)
        return after.float()


class BlockRecurrence(nn.Module):
    """The deterministic path of DreamerV3 (2024): a GRU of blocks; state, draw and action reach each of them.

    Args: as `Recurrence`, and
        blocks: They divide the state's size.
    """

    def __init__(
        self, drawn: int, actions: int, size: int, *, hidden: int, blocks: int, activation: Activation, norm: Norm
    ):
        super().__init__()
        if blocks < 1 or size % blocks:
            raise ValueError(f"blocks must divide the deterministic state of {size}, got {blocks}")
        self.size, self.blocks = size, blocks
        act = ACTIVATIONS[activation]
        self.state, self.draw, self.action = (
            nn.Sequential(Linear(inputs, hidden), norm_layer(norm, hidden), act()) for inputs in (size, drawn, actions)
        )
        self.mix = BlockLinear(size + blocks * 3 * hidden, size, blocks)
        self.act = nn.Sequential(norm_layer(norm, size), act())
        self.gates = BlockLinear(size, 3 * size, blocks)

    def ahead(self, action: Tensor) -> Tensor:
        """What does not depend on the state: (*n, A) -> (*n, hidden)."""
        part: Tensor = self.action(action)
        return part

    def forward(self, h: Tensor, drawn: Tensor, ahead: Tensor) -> Tensor:
        """State (B, D), draw (B, S) and the action's part (B, hidden) -> the next state (B, D) float32."""
        parts = torch.cat([self.state(h), self.draw(drawn), ahead], -1)  # (B, 3 hidden)
        seen = parts.unsqueeze(1).expand(-1, self.blocks, -1)
        x = torch.cat([h.unflatten(-1, (self.blocks, -1)), seen], -1).flatten(1)
        gates = (
            self.gates(self.act(self.mix(x))).float().unflatten(-1, (self.blocks, 3, -1))
        )  # (B, blocks, 3, D / blocks)
        return _gated(tuple(gate.flatten(1) for gate in gates.unbind(2)), h)


def recurrence(
    cell: Cell, drawn: int, actions: int, size: int, *, hidden: int, blocks: int, activation: Activation, norm: Norm
) -> Recurrence | BlockRecurrence:
    """The recurrence with that cell."""
    assert cell in get_args(Cell), cell
    if cell == "block":
        return BlockRecurrence(drawn, actions, size, hidden=hidden, blocks=blocks, activation=activation, norm=norm)
    return Recurrence(drawn, actions, size, hidden=hidden, cell=cell, activation=activation, norm=norm)
