"""What dreamt steps are worth: lambda-returns, the weights of steps, and the scale of returns.

Time: reward[h] and cont[h] belong to state h + 1, values to states 0..H (see `wmrl.trainers.imagine`).
"""

import torch
from torch import Tensor


def lambda_return(reward: Tensor, cont: Tensor, value: Tensor, mix: float) -> Tensor:
    """G (H, N) of the states 0..H - 1, with G_H = V(s_H).

    G_h = r(s_{h+1}) + c(s_{h+1}) [(1 - mix) V(s_{h+1}) + mix G_{h+1}]

    Args:
        reward: (H, N).
        cont: (H, N) discount times the chance that the episode goes on.
        value: (H + 1, N); only those of the states 1..H have a part.
        mix: lambda in 0..1: 0 looks one step ahead, 1 to the horizon.
    """
    after = value[1:]
    base = reward + cont * (1 - mix) * after
    found, g = [], after[-1]
    for now, c in zip(base.flip(0), cont.flip(0), strict=True):
        g = now + c * mix * g
        found.append(g)
    return torch.stack(found[::-1])


def step_weights(start: Tensor, cont: Tensor) -> Tensor:
    """How much the states 0..H - 1 count, (H, N): discounted, and less where the episode may have ended before.

    w_0 = start, w_h = w_{h-1} c(s_h): a state weighs by all ends before it and its own, and not by those behind it.

    Args:
        start: (N,) weights of the first states.
        cont: (H, N), as in `lambda_return`.
    """
    return torch.cat([start[None], cont[:-1]]).cumprod(0)


def average(x: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean of all numbers of `x`; 0 where nothing counts."""
    return (x * weight).sum() / weight.sum().clamp(min=1e-8)


def percentiles(x: Tensor, weight: Tensor, low: float = 0.05, high: float = 0.95) -> Tensor:
    """The two quantiles (2,) of the numbers in `x` whose weight is not 0. Source: DreamerV3 (Hafner et al. 2023)."""
    counted = torch.where(weight > 0, x, torch.nan).flatten().float()
    order = counted.sort().values  # those that do not count come last
    last = (weight > 0).sum().clamp(min=1) - 1
    at = torch.tensor([low, high], device=x.device) * last
    below = at.floor()
    ends = [order[i.long().clamp(max=last)] for i in (below, below + 1)]
    return torch.lerp(ends[0], ends[1], at - below)
