"""Lambda-returns and weights, against the sums that define them, for any rewards, ends, horizons and batches."""

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wmrl.trainers.returns import lambda_return, percentiles, step_weights

fast = settings(max_examples=40, deadline=None)


def k_step(reward, cont, value, h: int, k: int) -> float:
    """R^k from state h: k rewards, then the value of state h + k; each discounted by all `cont` before it."""
    total, weight = 0.0, 1.0
    for j in range(h, h + k):
        total += weight * reward[j]
        weight *= cont[j]
    return total + weight * value[h + k]


@fast
@given(h=st.integers(1, 6), n=st.integers(1, 4), mix=st.sampled_from([0.0, 0.3, 0.95, 1.0]), seed=st.integers(0, 10**6))
def test_lambda_returns_are_the_weighted_sums_of_k_step_returns(h, n, mix, seed):
    rng = torch.Generator().manual_seed(seed)
    reward, value = torch.randn(h, n, generator=rng).double(), torch.randn(h + 1, n, generator=rng).double()
    cont = 0.9 * (torch.rand(h, n, generator=rng) > 0.3).double() * torch.rand(h, n, generator=rng).double()
    got = lambda_return(reward, cont, value, mix)
    for t, i in itertools.product(range(h), range(n)):
        each = [k_step(reward[:, i], cont[:, i], value[:, i], t, k) for k in range(1, h - t + 1)]
        shares = [(1 - mix) * mix ** (k - 1) for k in range(1, h - t)] + [mix ** (h - t - 1)]
        assert abs(sum(shares) - 1) < 1e-9
        np.testing.assert_allclose(got[t, i], sum(s * r for s, r in zip(shares, each, strict=True)), atol=1e-9)


@fast
@given(h=st.integers(1, 6), n=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_a_state_weighs_by_the_ends_up_to_it_and_by_none_behind_it(h, n, seed):
    rng = torch.Generator().manual_seed(seed)
    start, cont = (torch.rand(n, generator=rng) > 0.3).float(), torch.rand(h, n, generator=rng)
    got = step_weights(start, cont)
    for t, i in itertools.product(range(h), range(n)):
        torch.testing.assert_close(got[t, i], start[i] * cont[:t, i].prod())


@fast
@given(count=st.integers(1, 30), seed=st.integers(0, 10**6))
def test_percentiles_are_those_of_what_counts(count, seed):
    rng = np.random.default_rng(seed)
    x, weight = rng.normal(size=(3, count)), (rng.random((3, count)) > 0.4).astype(float)
    weight[0, 0] = 1
    got = percentiles(torch.tensor(x), torch.tensor(weight))
    np.testing.assert_allclose(got, np.quantile(x[weight > 0], [0.05, 0.95]), rtol=1e-4, atol=1e-5)
