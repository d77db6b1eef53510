"""Policies: draws, densities and entropies fit together, gradients arrive, and nothing leaves its bounds."""

import pytest
import torch

from wmrl.controllers.mlp import MLP
from wmrl.nn.policies import Normal, OneHot, TanhNormal, TruncatedNormal
from wmrl.spec import Actions

CONTINUOUS = [Normal, TanhNormal, TruncatedNormal]
MANY = 100_000


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(kind, rows: int = 1):
    mean, std = torch.tensor([[0.3, -0.9], [-0.5, 0.0], [1.0, 0.7]]), torch.tensor([[0.4, 1.5], [0.1, 0.8], [0.3, 1.0]])
    return kind(mean.expand(rows, 3, 2), std.expand(rows, 3, 2))


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_entropy_is_the_mean_of_minus_log_density_over_draws(kind):
    many = some(kind, MANY)
    torch.testing.assert_close(-many.log_prob(many.sample(rng())).mean(0), some(kind).entropy()[0], atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_densities_integrate_to_one(kind):
    edge = 1 - 1e-4 if kind is TanhNormal else 6.0 if kind is Normal else 1.0
    x = torch.linspace(-edge, edge, 200_001)[:, None]
    one = kind(torch.tensor([0.3]), torch.tensor([0.6]))
    assert torch.trapezoid(one.log_prob(x).exp(), x[:, 0]) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("kind", [TanhNormal, TruncatedNormal])
def test_draws_stay_in_bounds_and_have_finite_densities_even_at_extremes(kind):
    for mean in (-1.0, 0.0, 1.0):
        for std in (1e-3, 0.1, 50.0):
            policy = kind(torch.full((1000, 1), mean), torch.full((1000, 1), std))
            x = policy.sample(rng())
            assert x.abs().max() <= 1 and policy.log_prob(x).isfinite().all() and policy.entropy().isfinite().all()


@pytest.mark.parametrize("kind", CONTINUOUS)
@pytest.mark.parametrize("std", [0.4, 5.0])
def test_over_draws_the_gradient_of_log_probabilities_is_zero(kind, std):
    """So REINFORCE has no bias; at Dreamer's first deviation of 5 too, where tanh rounds many draws to the ends."""
    numbers = [torch.full((MANY, 1), x, requires_grad=True) for x in (0.5, std)]
    policy = kind(*numbers)
    grads = torch.autograd.grad(policy.log_prob(policy.sample(rng()).detach()).sum(), numbers)
    assert all(abs(g.mean()) < 5 * g.std() / MANY**0.5 for g in grads)


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_draws_are_reparametrised(kind):
    mean, std = torch.tensor([[0.2]], requires_grad=True), torch.tensor([[0.5]], requires_grad=True)
    x = kind(mean, std).sample(rng())
    got = torch.autograd.grad(x, [mean, std])
    moved = [kind(mean + e, std + f).sample(rng()) for e, f in ((1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3))]
    wanted = [(moved[0] - moved[1]) / 2e-3, (moved[2] - moved[3]) / 2e-3]
    torch.testing.assert_close([g.detach() for g in got], [w.detach() for w in wanted], atol=2e-3, rtol=2e-3)


def test_one_hot_draws_have_the_probabilities_and_their_gradient():
    logits = torch.tensor([1.0, -0.5, 0.0], requires_grad=True)
    policy = OneHot(logits.expand(MANY, 3), unimix=0.1)
    draws = policy.sample(rng())
    wanted = 0.9 * logits.softmax(-1) + 0.1 / 3
    assert draws.detach().sort(-1).values.allclose(torch.tensor([0.0, 0.0, 1.0]))
    many = OneHot(torch.randn(1000, 5, generator=rng()).requires_grad_()).sample(rng()).detach()
    assert ((many == 0) | (many == 1)).all(), "to the last bit"
    torch.testing.assert_close(draws.mean(0), wanted, atol=0.01, rtol=0)
    torch.testing.assert_close(policy.log_prob(torch.eye(3)[:, None])[:, 0].exp(), wanted)
    torch.testing.assert_close(policy.entropy()[0], -(wanted * wanted.log()).sum())
    value = torch.tensor([1.0, 2.0, 4.0])
    (got,) = torch.autograd.grad((draws * value).sum(-1).mean(), logits, retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad((wanted * value).sum(), logits)[0], atol=1e-5, rtol=1e-4)


def test_an_action_that_is_all_but_impossible_keeps_a_chance_with_unimix():
    policy = OneHot(torch.tensor([100.0, -100.0]), unimix=0.01)
    assert policy.log_prob(torch.tensor([0.0, 1.0])).exp() == pytest.approx(0.005)


@pytest.mark.parametrize("kind", ["tanh-normal", "truncated-normal", "normal"])
def test_the_controller_begins_with_the_deviation_it_was_given(kind):
    controller = MLP((3,), Actions(2, False), policy=kind, layers=0, min_std=0.2, max_std=0.9, init_std=0.5)
    for parameter in controller.parameters():
        torch.nn.init.zeros_(parameter)
    policy, _ = controller.policy(torch.ones(4, 3), ())
    torch.testing.assert_close(getattr(policy, "inner", policy).std, torch.full((4, 2), 0.5))
    assert (controller.act(torch.ones(4, 3), ())[0] == 0).all()


def test_the_controller_draws_only_when_asked_and_clips_what_leaves_the_bounds():
    controller = MLP((3,), Actions(2, False), policy="normal", layers=1, units=8, max_std=3.0, init_std=2.0)
    view = torch.randn(200, 3, generator=rng())
    drawn = [controller.act(view, (), sample=True, rng=rng(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert drawn[0].abs().max() == 1 and torch.equal(controller.act(view, ())[0], controller.act(view, ())[0])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"min_std": 0.5, "init_std": 0.4}, "standard deviations need 0 <= min_std < init_std < max_std"),
        ({"units": 0}, "make no policy"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(table, words):
    with pytest.raises(ValueError, match=words):
        MLP((3,), Actions(2, False), **table)
