"""Layers whose weight gradients are taken behind a loop."""

import pytest
import torch

from wmrl.nn.recurrent import recurrence
from wmrl.nn.unrolled import Apart, Linear, Taped, unrolled

STYLE = {"hidden": 6, "blocks": 2, "activation": "elu", "norm": "layer"}


def walk(cell, drawn, action, h):
    """A loop of T steps; the gradients of all parameters and of what came in."""
    leaves = [x.clone().requires_grad_() for x in (drawn, action, h)]
    inputs, state, total = leaves[0].unbind(1), leaves[2], 0.0
    for x, acted in zip(inputs, cell.ahead(leaves[1]).unbind(1), strict=True):
        state = cell(state, x, acted)
        total = total + (state * torch.arange(8.0)).sum()
    return total, torch.autograd.grad(total, [*cell.parameters(), *leaves])


@pytest.mark.parametrize("kind", ["gru", "layer-norm", "block"])
@pytest.mark.parametrize("spare", [0, 3])
def test_gradients_are_those_of_plain_layers(kind, spare):
    torch.manual_seed(0)
    cell = recurrence(kind, 5, 2, 8, **STYLE)
    with_steps = torch.randn(3, 4, 5), torch.randn(3, 4, 2), torch.randn(3, 8)
    plain = walk(cell, *with_steps)
    with unrolled(cell, 4 + spare):
        taped = walk(cell, *with_steps)
    torch.testing.assert_close(taped, plain)


def test_an_error_inside_leaves_plain_layers_behind():
    layer, apart = Linear(2, 3), Apart(2, 2, 3)
    with pytest.raises(ZeroDivisionError), unrolled(torch.nn.ModuleList([layer, apart]), 5):
        layer(torch.ones(1, 2))
        apart.ahead(torch.ones(1, 5, 2))
        raise ZeroDivisionError
    assert all(part.steps == 0 and part.tapes == {} for part in (layer, apart))


def test_under_autocast_a_loop_computes_in_bfloat16_and_weights_have_gradients_of_their_own_type():
    layer, x = Linear(4, 4), torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16), unrolled(layer, 2):
        y = layer(layer(x))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and layer.weight.grad.dtype == torch.float32
    assert isinstance(layer, Taped) and layer.weight.grad.abs().sum() > 0
