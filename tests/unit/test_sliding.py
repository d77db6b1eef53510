"""The transformer that looks back a fixed number of steps: causal, told places by distances, the same in both forms."""

import math

import pytest
import stepwise
import torch
from torch import Tensor

from wmrl.nn.sliding import Past, SlidingTransformer, skewed
from wmrl.nn.transformer import Sizes
from wmrl.spec import tree_map, where

D, HEADS = 8, 2
each = pytest.mark.parametrize("positions", ["relative", "rotary"])
steps_of = pytest.mark.parametrize("tokens", [1, 3])


def trunk(positions: str = "relative", tokens: int = 3, reach: int = 4) -> SlidingTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = Sizes(width=D, blocks=2, heads=HEADS, feedforward=12)
        return SlidingTransformer(sizes, reach=reach, tokens=tokens, positions=positions)


def inputs(b: int, t: int, tokens: int = 3) -> Tensor:
    return torch.randn(b, t, tokens, D, generator=torch.Generator().manual_seed(1))


def times(b: int, t: int) -> Tensor:
    return torch.arange(t).expand(b, t)


def stepped(model: SlidingTransformer, past: Past, x: Tensor) -> Tensor:
    out = []
    for t in range(x.shape[1]):
        y, past = model.step(past, x[:, t])
        out.append(y)
    return torch.stack(out, 1)


@each
@steps_of
@pytest.mark.parametrize("reach", [2, 4, 50])
def test_step_by_step_it_is_the_whole_pass(positions, tokens, reach):
    """Shorter than it looks back, as long, and several times as long."""
    model, x = trunk(positions, tokens, reach), inputs(3, 14, tokens)
    whole, _ = model(x, times(3, 14))
    torch.testing.assert_close(stepped(model, model.empty(x), x), whole, atol=1e-5, rtol=1e-5)


@each
@steps_of
def test_changing_a_token_changes_nothing_before_it_nor_beyond_its_sight(positions, tokens):
    """Not even the tokens before it in its own step."""
    model, x = trunk(positions, tokens, reach=3), inputs(1, 12, tokens)
    for token in range(tokens):
        changed = x.clone()
        changed[:, 4, token] *= -3
        for form in (lambda z: model(z, times(1, 12))[0], lambda z: stepped(model, model.empty(z), z)):
            differs = ~torch.isclose(form(x), form(changed), atol=1e-6).all(-1).flatten()  # (T K,)
            seen = 4 * tokens + token
            assert not differs[:seen].any() and differs[seen]
            last = 4 + 2 * 2  # two blocks look back over two steps each, beside their own
            assert differs[last * tokens : (last + 1) * tokens].any() and not differs[(last + 1) * tokens :].any()


def naive(by_distance: Tensor) -> Tensor:
    q, n = by_distance.shape[-2:]
    out = torch.zeros_like(by_distance)
    for i in range(q):
        for j in range(n - q + i + 1):
            out[..., i, j] = by_distance[..., i, n - 1 - (n - q + i - j)]
    return out


@pytest.mark.parametrize(("q", "n"), [(1, 5), (3, 9), (6, 6), (1, 1)])
def test_skewed_is_the_naive_form(q, n):
    x = torch.randn(2, 3, q, n)
    seen = torch.ones(q, n, dtype=torch.bool).tril(n - q)
    assert (skewed(x) * seen).equal(naive(x))


def test_relative_positions_are_those_of_shaw_scaled_as_keys_are():
    """Head by head, query by query: (q k + q E[distance]) / sqrt(size of a head), softmax over what is seen."""
    model, x, reach = trunk(tokens=1, reach=3), inputs(1, 6, 1), 3
    block, table = model.blocks[0], model.distances[0]
    q, k, v = (t[0, :, 0].unflatten(-1, (HEADS, -1)) for t in block.ask(x))  # (T, heads, d / heads)
    read = torch.zeros(6, HEADS, D // HEADS)
    for i in range(6):
        near = range(max(0, i - reach + 1), i + 1)
        for h in range(HEADS):
            scores = torch.stack([q[i, h] @ (k[j, h] + table[h, i - j]) for j in near]) / math.sqrt(D // HEADS)
            weights = scores.softmax(0)
            read[i, h] = sum(w * v[j, h] for w, j in zip(weights, near, strict=True))
    model.blocks = torch.nn.ModuleList([block])
    torch.testing.assert_close(model(x, times(1, 6))[0][0, :, 0], model.norm(block(x[0, :, 0], read.flatten(1))))


@each
def test_places_are_told_by_distances_alone(positions):
    """A row that begins later in its window, or in a million steps, meets the same numbers."""
    model, x = trunk(positions), inputs(2, 5)
    early, _ = model(x, times(2, 5))
    late, _ = model(torch.cat([inputs(2, 7), x], 1), torch.cat([times(2, 7), times(2, 5)], 1))
    torch.testing.assert_close(late[:, 7:], early, atol=1e-5, rtol=1e-5)
    far, _ = model(x[:, :4], times(2, 4) + 1_000_000)
    torch.testing.assert_close(far, early[:, :4], atol=1e-5, rtol=1e-5)


@each
def test_pasts_of_a_window_are_those_that_steps_lead_to(positions):
    """Before each step and after the last, in a row that begins anew too."""
    model, x = trunk(positions, reach=4), inputs(2, 9)
    at = torch.stack([torch.arange(10), torch.cat([torch.arange(6), torch.arange(4)])])  # row 1 begins anew at 6
    past, pasts = model.empty(x), model.pasts(model(x, at[:, :9])[1], at)
    for t in range(10):
        here = tree_map(lambda p, t=t: p[:, t], tuple(pasts))
        token = inputs(2, 20)[:, 11]
        torch.testing.assert_close(model.step(Past(*here), token)[0], model.step(past, token)[0], atol=1e-5, rtol=1e-5)
        assert here[-1].equal(past.length)
        if t < 9:
            past = model.step(past, x[:, t])[1]
            past = Past(*where(at[:, t + 1] == 0, tuple(model.empty(x)), tuple(past)))


@each
def test_rows_of_other_lengths_do_not_disturb_each_other(positions):
    together, alone = stepwise.together_and_alone(trunk(positions), inputs(4, 30))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_the_past_does_not_grow_and_a_step_leaves_it_as_it_was():
    model, x = trunk(), inputs(2, 9)
    past = model.empty(x)
    for t in range(9):
        copy = tree_map(torch.clone, tuple(past))
        _, new = model.step(past, x[:, t])
        tree_map(lambda a, b: torch.testing.assert_close(a, b, atol=0, rtol=0) or a, tuple(past), copy)
        assert [k.shape for k in new.keys] == [k.shape for k in past.keys] and new.length.tolist() == [t + 1] * 2
        past = new


@each
def test_gradients_reach_the_steps_in_sight_in_both_forms(positions):
    model, x = trunk(positions, reach=3), inputs(1, 8).requires_grad_()
    for out in (model(x, times(1, 8))[0], stepped(model, model.empty(x), x)):
        (reached,) = torch.autograd.grad(out[:, 7].sum(), x)
        assert (reached.abs().sum((0, 2, 3)) > 0).tolist() == [False] * 3 + [True] * 5
    grads = [
        torch.autograd.grad(f.square().sum(), x)[0]
        for f in (model(x, times(1, 8))[0], stepped(model, model.empty(x), x))
    ]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


@each
def test_dropout_needs_training_and_a_generator_and_changes_no_mean(positions):
    model, x, at = trunk(positions), inputs(2, 5), times(2, 5)
    plain = model(x, at)[0]
    model.dropout = 0.2
    torch.testing.assert_close(model(x, at)[0], plain)
    torch.testing.assert_close(model.eval()(x, at, torch.Generator())[0], plain)
    model.train().norm = torch.nn.Identity()  # what lies before it is the mean of many draws, nearly
    rng, whole = torch.Generator().manual_seed(3), trunk(positions)
    whole.norm = torch.nn.Identity()
    draws = torch.stack([model(x, at, rng)[0] for _ in range(400)])
    assert draws.std(0).mean() > 0.1
    torch.testing.assert_close(draws.mean(0), whole(x, at)[0], atol=0.3, rtol=0.1)


@pytest.mark.parametrize(
    ("heads", "more", "words"),
    [
        (3, {}, "heads must divide the width, got 3 heads for a width of 8"),
        (0, {}, "heads must be at least 1, got 0"),
        (8, {"positions": "rotary"}, "even width of a head, got 1"),
        (2, {"reach": 1}, "reach must be at least 2, got 1"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(heads, more, words):
    with pytest.raises(ValueError, match=words):
        SlidingTransformer(Sizes(width=D, blocks=1, heads=heads, feedforward=4), **{"reach": 4, **more})


def test_each_token_has_a_place_of_its_own():
    """The tokens of a step are as far apart as those of neighbours."""
    turn = trunk("rotary")._angles(times(1, 4))[0, :, 0].float()
    torch.testing.assert_close(turn, torch.stack([torch.arange(12.0).cos(), torch.arange(12.0).sin()], -1))
