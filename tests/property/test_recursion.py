"""A sequence is its steps: a recurrent model in windows and the same model step by step, for any sizes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wmrl.dynamics.mdn_rnn import MDNRNN
from wmrl.spec import Actions, Batch, Space, take, where

sizes = st.integers(1, 6)
kinds = st.sampled_from(["joint", "per_dimension"])
fast = settings(max_examples=25, deadline=None)


def model(z: int, a: int, hidden: int, mixtures: int, kind: str) -> MDNRNN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MDNRNN(Space((z,)), Actions(a, False), hidden=hidden, mixtures=mixtures, mixture=kind)


def window(b: int, t: int, z: int, a: int) -> tuple[torch.Tensor, Batch]:
    rng = torch.Generator().manual_seed(b + 10 * t)
    action, zero = torch.rand(b, t, a, generator=rng), torch.zeros(b, t)
    return torch.randn(b, t + 1, z, generator=rng), Batch(
        None, action, torch.randn(b, t, generator=rng), zero, zero + 1
    )


@fast
@given(b=sizes, t=sizes, z=sizes, a=sizes, hidden=sizes, mixtures=sizes, kind=kinds)
def test_the_step_form_equals_the_sequence_form(b, t, z, a, hidden, mixtures, kind):
    m, (latent, batch) = model(z, a, hidden, mixtures, kind), window(b, t, z, a)
    sequence, _ = m.rnn(torch.cat([latent[:, :-1], batch.action], -1))
    state, total = m.start(latent[:, 0]), torch.zeros(())
    for k in range(t):
        state = m.observe(state, batch.action[:, k], latent[:, k + 1])
        torch.testing.assert_close(state.h, sequence[:, k], atol=1e-5, rtol=1e-4)
        total = total - m.next(state.h).log_prob(latent[:, k + 1]).mean() / (z * t)
    torch.testing.assert_close(m.loss(latent, batch)[1]["nll"], total.detach(), atol=1e-4, rtol=1e-4)


@fast
@given(t=st.integers(2, 6), kind=kinds, data=st.data())
def test_the_past_does_not_know_the_future(t, kind, data):
    """With the mask up to a step, no later latent, action, reward or flag moves the loss."""
    cut = data.draw(st.integers(1, t - 1))
    m, (latent, batch) = model(3, 2, 5, 2, kind), window(2, t, 3, 2)
    batch.mask[:, cut:] = 0
    before, _ = m.loss(latent, batch)
    latent[:, cut + 1 :] += 50
    for column in (batch.action, batch.reward, batch.terminated):
        column[:, cut:] += 50
    assert before.equal(m.loss(latent, batch)[0])
    latent[:, cut] += 1  # the last one that counts
    assert not before.equal(m.loss(latent, batch)[0])


@fast
@given(mask=st.lists(st.booleans(), min_size=4, max_size=4), kind=kinds)
def test_rows_that_begin_anew_are_like_fresh_ones(mask, kind):
    """where(first, start, observe): the rule by which a vector of environments resets rows."""
    m, (latent, batch), first = model(3, 2, 5, 2, kind), window(4, 3, 3, 2), torch.tensor(mask)
    state = m.start(latent[:, 0])
    state = m.observe(state, batch.action[:, 0], latent[:, 1])
    state = where(first, m.start(latent[:, 2]), m.observe(state, batch.action[:, 1], latent[:, 2]))
    after = m.observe(state, batch.action[:, 2], latent[:, 3])
    fresh = m.observe(m.start(latent[:, 2]), batch.action[:, 2], latent[:, 3])
    index = first.nonzero().squeeze(-1)
    for a, b in zip(take(after, index), take(fresh, index), strict=True):
        torch.testing.assert_close(a, b)
