"""Rewards and ends; numbers of any size as two-hot classes."""

import pytest
import torch
import torch.nn.functional as F

from wmrl.nn.outcomes import ContinueHead, RewardHead
from wmrl.nn.twohot import TwoHot, symexp, symlog

HOW = {"units": 16, "layers": 2, "activation": "elu", "norm": "none"}


def test_two_hot_numbers_come_back():
    bins, x = TwoHot(), torch.tensor([0.0, 1e-3, -0.7, 1.0, 3.3, -250.0, 1e4, 1e6, -1e6])
    weights = bins.weights(x)
    assert ((weights > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(x)))
    torch.testing.assert_close((weights.double() * bins.values.double()).sum(-1).float(), x, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-4, atol=1e-6)


def test_two_hot_begins_at_zero_and_learns_a_number():
    head, features = RewardHead(4, "two-hot", **HOW), torch.randn(32, 4)
    assert not head(features).any()
    target, optimizer = 30 * features[:, 0], torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(150):
        loss = head.losses(features, target)[0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (head(features) - target).abs().mean() < 6


def test_losses_are_likelihoods_of_what_happened():
    reward, goes_on, features = RewardHead(4, "gaussian", **HOW), ContinueHead(4, **HOW), torch.randn(5, 4)
    wrong, error = reward.losses(features, torch.ones(5))
    torch.testing.assert_close(wrong, 0.5 * (reward(features) - 1).square())
    torch.testing.assert_close(error, 2 * wrong.detach())
    ended = torch.tensor([0.0, 1, 0, 1, 0])
    torch.testing.assert_close(
        goes_on.losses(features, ended), F.binary_cross_entropy(goes_on(features), 1 - ended, reduction="none")
    )


def test_bins_are_odd():
    with pytest.raises(ValueError, match="odd"):
        TwoHot(4)
