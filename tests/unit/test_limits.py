"""Numbers that make no sense are refused by their names."""

import math

import pytest

from wmrl.limits import at_least, shares


@pytest.mark.parametrize("wrong", [0, -1, -math.inf, math.nan])
def test_what_is_less_or_no_number_is_named(wrong):
    at_least(1, steps=1, batch=2)
    with pytest.raises(ValueError, match=f"^batch must be at least 1, got {wrong}$"):
        at_least(1, steps=1, batch=wrong)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_shares_lie_between_nothing_and_all(wrong):
    shares(mix=0, discount=1)
    with pytest.raises(ValueError, match=rf"^discount must be in 0\.\.1, got {wrong}$"):
        shares(mix=0.5, discount=wrong)
