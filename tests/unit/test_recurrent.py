"""Recurrent cells against the same written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wmrl.nn.recurrent import BlockLinear, LayerNormCell, recurrence
from wmrl.nn.unrolled import Apart

HOW = {"hidden": 6, "blocks": 2, "activation": "silu", "norm": "rms"}


def test_a_layer_in_two_parts_is_one_linear_layer():
    torch.manual_seed(0)
    whole = nn.Linear(5, 4)
    torch.manual_seed(0)
    apart = Apart(3, 2, 4)
    x = torch.randn(7, 5)
    torch.testing.assert_close(apart(x[:, :3], apart.ahead(x[:, 3:])), whole(x))


def test_a_block_sees_its_own_numbers_alone():
    layer, x = BlockLinear(6, 4, 2), torch.randn(3, 6)
    parts = [x[:, 3 * g : 3 * g + 3] @ layer.weight[g] + layer.bias[2 * g : 2 * g + 2] for g in range(2)]
    torch.testing.assert_close(layer(x), torch.cat(parts, 1))


def test_the_block_gru_is_a_gru_for_each_block():
    core, size = recurrence("block", 5, 2, 4, **HOW), 4
    h, drawn, action = torch.randn(3, size), torch.randn(3, 5), torch.randn(3, 2)
    shared = torch.cat([core.state(h), core.draw(drawn), core.action(action)], -1)
    mixed = []
    for g in range(2):
        own = torch.cat([h[:, 2 * g : 2 * g + 2], shared], -1)
        mixed.append(own @ core.mix.weight[g] + core.mix.bias[2 * g : 2 * g + 2])
    x, after = core.act(torch.cat(mixed, 1)), []
    for g in range(2):
        gates = x[:, 2 * g : 2 * g + 2] @ core.gates.weight[g] + core.gates.bias[6 * g : 6 * g + 6]
        reset, candidate, update = gates.chunk(3, -1)
        update = torch.sigmoid(update - 1)
        after.append(update * torch.tanh(reset.sigmoid() * candidate) + (1 - update) * h[:, 2 * g : 2 * g + 2])
    torch.testing.assert_close(core(h, drawn, core.ahead(action)), torch.cat(after, 1))


def test_the_layer_norm_gru_is_that_of_dreamer_v2():
    cell, x, h = LayerNormCell(3, 4), torch.randn(2, 3), torch.randn(2, 4)
    gates = F.layer_norm(torch.cat([x, h], -1) @ cell.gates.weight.T, (12,))
    reset, candidate, update = gates.chunk(3, -1)
    update = torch.sigmoid(update - 1)
    torch.testing.assert_close(cell(x, h), update * torch.tanh(reset.sigmoid() * candidate) + (1 - update) * h)


def test_the_plain_cell_is_torchs():
    core = recurrence("gru", 5, 2, 4, **{**HOW, "norm": "none", "activation": "elu"})
    assert isinstance(core.cell, nn.GRUCell)
    h, drawn, action = torch.randn(3, 4), torch.randn(3, 5), torch.randn(3, 2)
    x = F.elu(drawn @ core.embed.left.T + action @ core.embed.right.T + core.embed.bias)
    torch.testing.assert_close(core(h, drawn, core.ahead(action)), core.cell(x, h))


def test_blocks_must_divide():
    with pytest.raises(ValueError, match="blocks must divide"):
        recurrence("block", 5, 2, 5, **HOW)
