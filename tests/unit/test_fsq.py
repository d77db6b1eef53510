"""Quantised numbers: every code is reached, and what is seen lies on the same levels as what is imagined."""

import pytest
import torch
import torch.nn.functional as F

from wmrl.nn.fsq import FSQ

grids = pytest.mark.parametrize("levels", [(8, 8), (5, 2, 3), (2,)], ids=str)


@grids
def test_every_code_is_reached(levels):
    quantise = FSQ(levels)
    x = 1.5 * torch.randn(20_000, 2 * len(levels), generator=torch.Generator().manual_seed(0))
    codes = quantise.index(quantise(x))
    for group in codes.unbind(-1):
        assert group.unique().tolist() == list(range(quantise.vocab))


@grids
def test_what_is_quantised_lies_in_the_table_of_codes(levels):
    quantise = FSQ(levels)
    values = quantise(2 * torch.randn(500, 3 * len(levels), generator=torch.Generator().manual_seed(0)))
    one_hot = F.one_hot(quantise.index(values), quantise.vocab).float().flatten(-2)
    torch.testing.assert_close(quantise.values(one_hot), values)
    assert values.min() == -1 and values.max() == 1
    assert quantise.index(quantise.table).flatten().tolist() == list(range(quantise.vocab))


def test_gradients_are_those_of_the_bound():
    x = torch.linspace(-2, 2, 8).requires_grad_()
    FSQ((8, 5))(x).sum().backward()
    torch.testing.assert_close(x.grad, 1 - x.detach().tanh().square())


def test_levels_that_are_none_are_refused():
    for wrong in ((), (8, 1)):
        with pytest.raises(ValueError, match="levels"):
            FSQ(wrong)
