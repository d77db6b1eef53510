"""Common random numbers: equal seeds draw equal numbers, whichever way a model draws them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from wmrl.draws import Common

SEEDS = [4, 9, 4, 4, 2, 9]
WAYS: dict[str, Callable[[int, torch.Generator], torch.Tensor]] = {
    "normal_": lambda n, rng: torch.empty(n, 3).normal_(2, 3, generator=rng),
    "exponential_": lambda n, rng: torch.empty(n).exponential_(generator=rng),
    "uniform_": lambda n, rng: torch.empty(n, 2, 2).uniform_(generator=rng),
    "randn": lambda n, rng: torch.randn((n, 3), generator=rng),
    "rand": lambda n, rng: torch.rand(n, 3, generator=rng, device="cpu"),
}


@pytest.mark.parametrize("way", WAYS)
def test_rows_of_one_seed_draw_alike_and_others_do_not(way: str) -> None:
    draws = Common(SEEDS)
    with torch.inference_mode(), draws:
        first, second = (WAYS[way](6, draws.rng) for _ in range(2))
    for drawn in (first, second):
        rows = [tuple(row.flatten().tolist()) for row in drawn]
        assert [rows.index(row) for row in rows] == [0, 1, 0, 0, 4, 1]
    assert not torch.equal(first, second)


@pytest.mark.parametrize("way", WAYS)
def test_a_row_draws_as_if_it_were_alone_whoever_was_dropped(way: str) -> None:
    draws, alone = Common(SEEDS), Common([9])
    with draws:
        together = [WAYS[way](6, draws.rng)[5]]
        draws.keep(np.array([0, 5]))
        together.append(WAYS[way](2, draws.rng)[1])
    with alone:
        expected = [WAYS[way](1, alone.rng)[0] for _ in range(2)]
    torch.testing.assert_close(together, expected, rtol=0, atol=0)


def test_draws_have_the_distribution_that_was_asked_for() -> None:
    draws = Common(range(2000))
    with draws:
        normal, hasty = WAYS["normal_"](2000, draws.rng), WAYS["exponential_"](2000, draws.rng)
    assert normal.mean() == pytest.approx(2, abs=0.15) and normal.std() == pytest.approx(3, abs=0.15)
    assert hasty.mean() == pytest.approx(1, abs=0.1)


def test_other_draws_are_left_as_they_are() -> None:
    """Those with another generator, of another number of rows, and after the block."""
    draws, other = Common(SEEDS), torch.Generator().manual_seed(1)
    with draws:
        mine = WAYS["randn"](6, other)
        few = WAYS["randn"](2, draws.rng)
    torch.testing.assert_close(mine, WAYS["randn"](6, other.manual_seed(1)), rtol=0, atol=0)
    assert not torch.equal(few[0], few[1])
    assert len(WAYS["randn"](6, draws.rng).unique(dim=0)) == 6
