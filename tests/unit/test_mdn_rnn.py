"""The MDN-RNN: sizes, likelihoods, temperature, what controllers see."""

import itertools
import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from wmrl.config import build
from wmrl.dynamics import DYNAMICS
from wmrl.dynamics.mdn_rnn import MDNRNN, MDNState
from wmrl.errors import ConfigError, ContractError
from wmrl.nn.heads import LOG_STD, Mixture, MixtureHead, OutcomeHead, masked_mean
from wmrl.spec import Actions, Batch, Space

Z, A = Space((32,)), Actions(3, False)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def mixture(joint: bool, *lead: int, m: int = 3, z: int = 4, seed: int = 0) -> Mixture:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(*lead, m, *(() if joint else (z,)), generator=rng)
    return Mixture(logits, torch.randn(*lead, m, z, generator=rng), torch.randn(*lead, m, z, generator=rng) * 0.5)


def batch_of(b: int, t: int, a: int = 3, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    ends = (torch.rand(b, t, generator=rng) < 0.2).float()
    return Batch(
        None, torch.rand(b, t, a, generator=rng) * 2 - 1, torch.randn(b, t, generator=rng), ends, torch.ones(b, t)
    )


def test_joint_has_the_published_number_of_parameters():
    """384,071 as in ctallec's code: LSTM 300,032, mixture 83,525, reward and termination 514."""
    model = MDNRNN(Z, A)
    assert (parameters(model.rnn), parameters(model.next), parameters(model.outcome)) == (300_032, 83_525, 514)
    assert parameters(model) == 384_071


def test_per_dimension_has_the_papers_number_of_parameters():
    """The paper's 422,368, and beside it torch's second bias of the LSTM and our two outcome heads."""
    model = MDNRNN(Z, A, mixture="per_dimension")
    second_bias, outcome = model.rnn.bias_hh_l0.numel(), parameters(model.outcome)
    assert (second_bias, outcome) == (1024, 514)
    assert parameters(model) - second_bias - outcome == 422_368


def test_doom_has_the_papers_number_of_parameters():
    """1,678,785: LSTM 512 on z (64), an action and a restart flag; one outcome logit."""
    model = MDNRNN(Space((64,)), Actions(2, False), hidden=512, mixture="per_dimension")
    assert parameters(model) - model.rnn.bias_hh_l0.numel() - 513 == 1_678_785


def test_joint_likelihood_is_that_of_torch_distributions():
    mix, x = mixture(True, 5, 2), torch.randn(5, 2, 4)
    parts = Independent(Normal(mix.mean, mix.log_std.exp()), 1)
    expected = MixtureSameFamily(Categorical(logits=mix.logits), parts).log_prob(x)
    torch.testing.assert_close(mix.log_prob(x), expected)


def test_per_dimension_likelihood_by_brute_force():
    """The product over dimensions of sums is the sum over all choices of components."""
    mix, x = mixture(False, m=2, z=3), torch.randn(3)
    weight, density = mix.logits.softmax(0), Normal(mix.mean, mix.log_std.exp()).log_prob(x).exp()
    total = 0.0
    for choice in itertools.product(range(2), repeat=3):
        total += math.prod(float(weight[k, d] * density[k, d]) for d, k in enumerate(choice))
    assert float(mix.log_prob(x)) == pytest.approx(math.log(total), rel=1e-5)


@pytest.mark.parametrize("joint", [True, False])
def test_one_gaussian_in_closed_form(joint):
    mean, log_std = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, -1.0]])
    mix = Mixture(torch.zeros(1) if joint else torch.zeros(1, 2), mean, log_std)
    x = torch.tensor([0.0, 0.0])
    expected = sum(
        -0.5 * (m / math.exp(s)) ** 2 - s - 0.5 * math.log(2 * math.pi) for m, s in ((1.0, 0.5), (-2.0, -1.0))
    )
    assert float(mix.log_prob(x)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("joint", [True, False])
def test_densities_integrate_to_one(joint):
    mix = mixture(joint, m=3, z=1)
    grid = torch.linspace(-30, 30, 200_001)
    area = torch.trapezoid(mix.log_prob(grid[:, None]).exp(), grid)
    assert float(area) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("b", "t"), [(1, 1), (1, 5), (4, 1), (3, 4)])
@pytest.mark.parametrize("kind", ["joint", "per_dimension"])
def test_loss_of_small_batches_is_the_mean_of_its_steps(b, t, kind):
    """No axis of size one is squeezed away: the loss equals a loop over single steps."""
    torch.manual_seed(0)
    model = MDNRNN(Space((4,)), A, hidden=8, mixtures=2, mixture=kind)
    z, batch = torch.randn(b, t + 1, 4), batch_of(b, t)
    loss, metrics = model.loss(z, batch)
    assert loss.shape == () and set(metrics) == {"nll", "reward", "termination"}
    nll, reward, ends = [], [], []
    for i in range(b):
        state = model.start(z[i : i + 1, 0])
        for k in range(t):
            state = model.observe(state, batch.action[i : i + 1, k], z[i : i + 1, k + 1])
            nll.append(-model.next(state.h[0]).log_prob(z[i, k + 1]) / 4)
            guess, logit = model.outcome(state.h[0])
            reward.append((guess - batch.reward[i, k]) ** 2)
            p = logit.sigmoid()
            ends.append(-torch.log(p if batch.terminated[i, k] else 1 - p))
    expected = [torch.stack(x).mean() for x in (nll, reward, ends)]
    torch.testing.assert_close(
        torch.stack(list(metrics.values())), torch.stack(expected).detach(), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(loss, (4 * expected[0] + expected[1] + expected[2]) / 6, rtol=1e-4, atol=1e-5)


def test_log_std_is_clamped_and_the_loss_stays_finite():
    head = MixtureHead(4, 3, 2)
    torch.nn.init.constant_(head.out.weight, 1e3)
    mix = head(torch.ones(2, 4))
    assert mix.log_std.max() == LOG_STD[1]
    mix = head(-torch.ones(2, 4))
    assert mix.log_std.min() == LOG_STD[0] and torch.isfinite(mix.log_prob(torch.ones(2, 3))).all()


def test_termination_weight_counts_positives_only():
    head, h = OutcomeHead(3), torch.randn(2, 2, 3)
    batch = batch_of(2, 2)
    batch.terminated = torch.zeros(2, 2)
    torch.testing.assert_close(head.losses(h, batch)[1], head.losses(h, batch, positive_weight=10.0)[1])
    batch.terminated = torch.ones(2, 2)
    torch.testing.assert_close(10 * head.losses(h, batch)[1], head.losses(h, batch, positive_weight=10.0)[1])


@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_termination_weight_in_closed_form(weight):
    """The same logit everywhere, one step of four terminates: the weight counts for that one."""
    model, p = MDNRNN(Space((4,)), A, hidden=8, mixtures=2, termination_weight=weight), 0.2
    torch.nn.init.zeros_(model.outcome.out.weight)
    torch.nn.init.constant_(model.outcome.out.bias, math.log(p / (1 - p)))
    batch = batch_of(2, 2)
    batch.terminated = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    total, metrics = model.loss(torch.randn(2, 3, 4), batch)
    expected = -(weight * math.log(p) + 3 * math.log(1 - p)) / 4
    assert float(metrics["termination"]) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(total.detach(), (4 * metrics["nll"] + metrics["reward"] + expected) / 6)


def test_masked_mean_of_nothing_is_zero():
    assert float(masked_mean(torch.ones(2, 2), torch.zeros(2, 2))) == 0.0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.25])
def test_temperature_of_a_joint_draw(temperature):
    """Components are chosen by softmax(logits / t); around a mean the variance is t sigma^2."""
    n = 40_000
    logits = torch.tensor([0.3, -0.7, 1.0])
    mean = torch.tensor([-100.0, 0.0, 100.0])[:, None].expand(3, 2)
    mix = Mixture(logits.expand(n, 3), mean.expand(n, 3, 2), torch.full((n, 3, 2), math.log(2.0)))
    x = mix.sample(torch.Generator().manual_seed(1), temperature)
    index = (x / 100).round()
    assert (index[:, 0] == index[:, 1]).all()  # one component for the whole vector
    shares = torch.stack([(index[:, 0] == k).float().mean() for k in (-1, 0, 1)])
    torch.testing.assert_close(shares, (logits / temperature).softmax(0), atol=0.015, rtol=0)
    assert float((x - 100 * index).var()) == pytest.approx(4 * temperature, rel=0.03)


def test_components_are_independent_per_dimension():
    n = 40_000
    mix = Mixture(
        torch.zeros(n, 2, 2), torch.tensor([[-10.0], [10.0]]).expand(n, 2, 2), torch.full((n, 2, 2), math.log(0.1))
    )
    x = mix.sample(torch.Generator().manual_seed(1)).sign()
    assert abs(float((x[:, 0] * x[:, 1]).mean())) < 0.02 and abs(float(x.mean())) < 0.02


def test_temperature_zero_is_the_likeliest_mean_and_below_is_refused():
    mix = mixture(True, 6)
    expected = mix.mean[torch.arange(6), mix.logits.argmax(-1)]
    torch.testing.assert_close(mix.sample(torch.Generator(), 0.0), expected)
    with pytest.raises(ValueError, match="at least 0"):
        mix.sample(torch.Generator(), -1.0)


def dreamt(model: MDNRNN, temperature: float, rows: int = 20_000) -> tuple[torch.Tensor, Mixture]:
    """The next latents (rows, 4) imagined from one and the same state, and the mixture they come from."""
    state, action = model.start(torch.ones(rows, 4)), torch.zeros(rows, 3)
    step = model.imagine(state, action, rng=torch.Generator().manual_seed(1), temperature=temperature)
    return step.state.z, model.next(step.state.h)


def test_at_temperature_zero_a_dream_goes_to_the_likeliest_mean():
    torch.manual_seed(0)
    z, mix = dreamt(MDNRNN(Space((4,)), A, hidden=6, mixtures=3), 0.0, rows=5)
    torch.testing.assert_close(z, mix.mean[torch.arange(5), mix.logits.argmax(-1)])


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_the_variance_of_dreams_grows_with_the_temperature(temperature):
    z, mix = dreamt(MDNRNN(Space((4,)), A, hidden=6, mixtures=1), temperature)
    torch.testing.assert_close(z.var(0), temperature * mix.log_std[0, 0].exp().square(), rtol=0.06, atol=0)


@pytest.mark.parametrize(("features", "size"), [("zh", 5 + 7), ("z", 5), ("zch", 5 + 7 + 7)])
def test_features(features, size):
    model = MDNRNN(Space((5,)), A, hidden=7, features=features)
    state = MDNState(torch.full((2, 5), 1.0), torch.full((2, 7), 2.0), torch.full((2, 7), 3.0))
    shown = model.features(state)
    assert shown.shape == (2, size) and model.feature_shape == (size,)
    assert shown[0, :5].eq(1).all() and (features == "z" or shown[0, -7:].eq(2).all())
    assert features != "zch" or shown[0, 5:12].eq(3).all()


def test_memory_is_zero_at_a_first_frame_and_then_holds_the_past_only():
    """As published: C reads z of this frame and an h that has seen all frames before it."""
    model, z = MDNRNN(Space((4,)), A, hidden=6), torch.randn(3, 2, 4)
    state = model.start(z[:, 0])
    assert state.z.equal(z[:, 0]) and not state.h.any() and not state.c.any()
    action = torch.rand(3, 3)
    one, other = (model.observe(state, action, latent) for latent in (z[:, 1], z[:, 1] + 1))
    assert one.h.equal(other.h) and one.z.equal(z[:, 1])


def test_what_does_not_fit_is_refused_in_one_sentence():
    with pytest.raises(ContractError, match=r"vector of floats.*\(3, 64, 64\)"):
        build(DYNAMICS, {"kind": "mdn-rnn"}, "dynamics", Space((3, 64, 64)), A)
    with pytest.raises(ContractError, match="tokens"):
        build(DYNAMICS, {"kind": "mdn-rnn"}, "dynamics", Space((16,), vocab=512), A)
    with pytest.raises(ConfigError, match="hidden must be at least 1"):
        build(DYNAMICS, {"kind": "mdn-rnn", "hidden": 0}, "dynamics", Z, A)
    with pytest.raises(ConfigError, match="mixture"):
        build(DYNAMICS, {"kind": "mdn-rnn", "mixture": "both"}, "dynamics", Z, A)
