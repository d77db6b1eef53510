"""Stochastic states: what they draw, what gradients they pass, how far two are apart."""

import pytest
import torch
from torch.distributions import Categorical as Reference
from torch.distributions import Normal, kl_divergence

from wmrl.nn.latents import Categorical, Gaussian, balance, floored, latents

SPACES = [Categorical(3, 4), Categorical(2, 5, unimix=0.1), Gaussian(6)]
each_space = pytest.mark.parametrize("space", SPACES, ids=["categorical", "unimix", "gaussian"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(space, *lead, seed=0):
    return torch.randn(*lead, space.parameters, generator=seeded(seed)) * 2


def reference(space, parameters):
    parts = space.parts(parameters)
    return Normal(*parts) if isinstance(space, Gaussian) else Reference(logits=parts[0])


@each_space
def test_kl_and_entropy_are_those_of_torch_distributions(space):
    q, p = some(space, 7, seed=1), some(space, 7, seed=2)
    expected = kl_divergence(reference(space, q), reference(space, p)).sum(-1)
    torch.testing.assert_close(space.kl(space.parts(q), space.parts(p)), expected)
    torch.testing.assert_close(space.entropy(space.parts(q)), reference(space, q).entropy().sum(-1))


@each_space
def test_balancing_teaches_the_prior_by_one_term_and_the_posterior_by_the_other(space):
    q, p = some(space, 5, seed=1).requires_grad_(), some(space, 5, seed=2).requires_grad_()
    dyn, rep = balance(space, q, p)
    torch.testing.assert_close(dyn, rep)
    whole = space.kl(space.parts(q), space.parts(p)).sum()
    to_q, to_p = torch.autograd.grad(whole, (q, p))
    for term, mine, other in ((dyn, (p, to_p), q), (rep, (q, to_q), p)):
        got, none = torch.autograd.grad(term.sum(), (mine[0], other), allow_unused=True, retain_graph=True)
        torch.testing.assert_close(got, mine[1])
        assert none is None or not none.any()


@pytest.mark.parametrize(("each", "expected", "slope"), [(False, 2.0, [0, 0, 0]), (True, 2.5, [0, 0.5, 0])])
def test_free_nats_cost_and_teach_nothing(each, expected, slope):
    """Of 0.5 and 3 nats 2 are free: the mean is below the floor; one of the two is above it. The third is padding."""
    kl = torch.tensor([[0.5, 3.0, 99.0]], requires_grad=True)
    cost = floored(kl, torch.tensor([[1.0, 1.0, 0.0]]), 2.0, each=each)
    assert cost.item() == expected
    cost.backward()
    assert kl.grad.tolist() == [slope]


def test_a_categorical_draw_is_one_hot_and_has_the_gradient_of_probabilities():
    space = Categorical(3, 4, unimix=0.1)
    logits, weight = some(space, 50).requires_grad_(), torch.randn(50, 12, generator=seeded(3))
    drawn = space.sample(logits, seeded(4))
    assert drawn.unflatten(-1, (3, 4)).sum(-1).eq(1).all() and ((drawn == 0) | (drawn == 1)).all()
    (got,) = torch.autograd.grad((drawn * weight).sum(), logits)
    p = 0.9 * logits.unflatten(-1, (3, 4)).softmax(-1) + 0.1 / 4
    (expected,) = torch.autograd.grad((p.flatten(-2) * weight).sum(), logits)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_classes_are_drawn_as_often_as_they_are_likely(temperature):
    space, n = Categorical(1, 4, unimix=0.05), 40_000
    logits = torch.tensor([1.0, -1.0, 0.5, -20.0])
    often = space.sample(logits.expand(n, 4), seeded(1), temperature).mean(0)
    p = space.parts(logits)[0].exp().squeeze(0) ** (1 / temperature)
    torch.testing.assert_close(often, p / p.sum(), atol=0.01, rtol=0)


def test_numbers_are_drawn_with_their_mean_and_spread():
    space, parameters = Gaussian(2), torch.tensor([1.0, -3.0, 0.0, 2.0])
    mean, std = space.parts(parameters)
    drawn = space.sample(parameters.expand(40_000, 4), seeded(1), 0.25)
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(0), 0.5 * std, atol=0.02, rtol=0)
    moved = space.sample(parameters.clone().requires_grad_(), seeded(1))
    assert moved.requires_grad


@each_space
def test_without_chance_the_likeliest_is_taken(space):
    parameters = some(space, 6)
    alone = space.sample(parameters, None)
    assert alone.equal(space.sample(parameters, seeded(), 0.0))
    best = space.log_prob(space.parts(parameters), alone)
    for seed in range(5):
        assert (best >= space.log_prob(space.parts(parameters), space.sample(parameters, seeded(seed)))).all()


def test_log_probabilities_are_those_of_torch_distributions():
    for space in SPACES:
        parameters = some(space, 5)
        drawn = space.sample(parameters, seeded(2))
        value = drawn if isinstance(space, Gaussian) else drawn.unflatten(-1, (space.variables, -1)).argmax(-1)
        expected = reference(space, parameters).log_prob(value).sum(-1)
        torch.testing.assert_close(space.log_prob(space.parts(parameters), drawn), expected)


def test_wrong_sizes_are_refused():
    for kind, variables, classes, more in (
        ("categorical", 2, 1, {}),
        ("gaussian", 0, 1, {}),
        ("gaussian", 1, 1, {"min_std": 0.0}),
    ):
        with pytest.raises(ValueError, match="state needs at least"):
            latents(kind, variables, classes, **more)
