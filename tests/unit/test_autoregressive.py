"""The autoregressive density: exact, causal over the numbers of a vector, and drawn as it says."""

import pytest
import torch

from wmrl.nn.autoregressive import AutoregressiveHead
from wmrl.nn.heads import MixtureHead

GRID = torch.linspace(-24, 24, 481)
CELL = float(GRID[1] - GRID[0])


def head(size: int = 2) -> AutoregressiveHead:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = AutoregressiveHead(5, size, 3, width=16, blocks=2, heads=2, feedforward=16)
        for p in made.trunk.parameters():
            p.data *= 1.5  # so that the numbers depend on each other
    return made.requires_grad_(False)


def given(n: int) -> torch.Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(0))


def on_the_grid(h: torch.Tensor) -> torch.Tensor:
    """Densities (G, G) of one condition h (5,)."""
    points = torch.cartesian_prod(GRID, GRID)
    return head()(h.expand(len(points), -1)).log_prob(points).exp().view(len(GRID), -1)


def test_it_integrates_to_one():
    for h in given(3):
        assert float(on_the_grid(h).sum() * CELL**2) == pytest.approx(1, abs=1e-4)


def test_a_conditional_by_brute_force_is_that_of_the_masked_pass():
    h, x = given(1)[0], torch.tensor([0.3, -0.7])
    whole = head()
    row = whole(h.expand(len(GRID), -1)).log_prob(torch.stack([x[0].expand(len(GRID)), GRID], -1)).exp()
    at = whole(h).log_prob(x).exp()
    brute = at / (row.sum() * CELL)  # p(x1, x2) / p(x1)
    alone = first_factor(whole, h, x)
    torch.testing.assert_close(brute, at / alone, atol=1e-3, rtol=1e-3)


def first_factor(whole: AutoregressiveHead, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """p(x1) from the first token alone."""
    token = whole.place[0] + whole.given(h)
    return whole.factor(whole.trunk(token[None, None])).log_prob(x[None, None, :1]).exp()[0, 0]


def test_a_number_does_not_know_those_after_it():
    whole, h = head(4), given(1)
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    tokens = whole(h)
    before = torch.cat([torch.zeros(1, 1), x[:, :-1]], -1)[..., None]
    seen = whole.trunk(whole.before(before) + whole.place + tokens.given[:, None])
    for d in range(4):
        (slope,) = torch.autograd.grad(seen[0, d, 0], x, retain_graph=True, allow_unused=True)
        assert not slope[:, d:].any() and slope[:, :d].all()


def test_draws_have_the_density_they_come_from():
    h = given(1)[0]
    density = on_the_grid(h)
    drawn = head()(h.expand(40_000, -1)).sample(torch.Generator().manual_seed(0))
    edges = [torch.arange(-24, 24.5, 2.0)] * 2
    seen = torch.histogramdd(drawn, edges).hist / len(drawn)
    inner = density[:-1, :-1].reshape(24, 20, 24, 20).sum((1, 3)) * CELL**2  # the grid's cells, twenty by twenty
    assert (seen - inner).abs().max() < 0.03
    assert (
        drawn.mean(0) - (torch.cartesian_prod(GRID, GRID) * density.view(-1, 1)).sum(0) * CELL**2
    ).abs().max() < 0.05


@torch.no_grad()  # else the cache is copied at each number
def test_drawing_with_the_cache_sees_what_the_whole_pass_sees():
    """At temperature 0 each number is the mean of its likeliest Gaussian, given those before it."""
    whole, h = head(5), given(6)
    drawn = whole(h).sample(torch.Generator().manual_seed(0), temperature=0.0)
    before = torch.cat([torch.zeros(6, 1), drawn[:, :-1]], -1)[..., None]
    factors = whole.factor(whole.trunk(whole.before(before) + whole.place + whole.given(h)[:, None]))
    index = factors.logits.argmax(-1)[..., None, None]
    torch.testing.assert_close(drawn, factors.mean.gather(-2, index)[..., 0, 0], atol=1e-5, rtol=1e-5)


def test_any_leading_shape_will_do():
    whole, h = head(3), given(6)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    flat = whole(h).log_prob(x)
    torch.testing.assert_close(whole(h.view(2, 3, 5)).log_prob(x.view(2, 3, 3)), flat.view(2, 3))
    assert whole(h.view(2, 3, 5)).sample(torch.Generator().manual_seed(0)).shape == (2, 3, 3)


def test_temperature_is_the_noise_squared():
    whole, h = head(1), given(6)
    whole.factor = MixtureHead(16, 1, 1).requires_grad_(False)
    cold, warm, hot = (whole(h).sample(torch.Generator().manual_seed(0), temperature=t) for t in (0.0, 1.0, 4.0))
    torch.testing.assert_close(hot - cold, 2 * (warm - cold))
