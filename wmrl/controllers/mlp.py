"""Hidden layers and a distribution over actions, trained by gradients."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from wmrl.nn.mlp import Activation, Norm, mlp
from wmrl.nn.policies import Normal, OneHot, Policy, TanhNormal, TruncatedNormal
from wmrl.spec import Actions, State


class Spread(NamedTuple):
    """What standard deviations are possible: at least `least`, at most `most`, `first` where the network gives 0."""

    least: float
    most: float
    first: float


SPREADS = {
    "tanh-normal": Spread(1e-4, math.inf, 5.0),
    "truncated-normal": Spread(0.1, 2.1, 1.1),
    "normal": Spread(0.01, 1.01, 0.51),
}
"""Source: Dreamer (Hafner et al. 2020), DreamerV2 (2021), and the actor of mauicv's RSSM and TSSM."""


class MLP(nn.Module):
    """The actor of Dreamer and its relatives: a few layers on the features, then a distribution over actions.

    Discrete actions are one-hot draws, whatever `policy` says. Source: Hafner et al. 2020 (Dreamer), 4 layers of 400
    ELU units; the published MinAtar agent has 3 of 100.

    Args:
        shape: Shape (F,) of the features.
        actions: The environment's actions.
        layers: Hidden layers.
        units: Units of each.
        activation: After each layer.
        norm: Before each activation. Source: DreamerV3, "rms".
        policy: Of continuous actions: "tanh-normal" (Dreamer), "truncated-normal" (DreamerV2), or "normal" with a
            bounded mean, clipped where it is taken (mauicv's RSSM and TSSM, tanh(x / 5); DreamerV3 has tanh(x), and
            other deviations).
        unimix: Of discrete actions: the share of the uniform distribution. Source: DreamerV3, 0.01.
        min_std: Least standard deviation (before tanh); by default that of the policy's source.
        max_std: Largest one; by default that of the policy's source: 2.1 if truncated, 1.01 if normal.
        init_std: Where the network says nothing; by default that of the policy's source: 5, 1.1 or 0.51.

    Raises:
        ValueError: if the features are not a vector, or a number makes no sense.
    """

    looks_at: Literal["features", "frame"] = "features"

    def __init__(
        self,
        shape: tuple[int, ...],
        actions: Actions,
        *,
        layers: int = 4,
        units: int = 400,
        activation: Activation = "elu",
        norm: Norm = "none",
        policy: Literal["tanh-normal", "truncated-normal", "normal"] = "truncated-normal",
        unimix: float = 0.0,
        min_std: float | None = None,
        max_std: float | None = None,
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        if len(shape) != 1:
            raise ValueError(f"an mlp controller reads a vector of features, not shape {tuple(shape)}")
        if layers < 0 or units < 1 or not 0 <= unimix < 1:
            raise ValueError(f"{layers} layers of {units} units and a unimix of {unimix} make no policy")
        given = Spread(*(math.nan if x is None else x for x in (min_std, max_std, init_std)))
        spread = Spread(*(a if math.isnan(b) else b for a, b in zip(SPREADS[policy], given, strict=True)))
        if not 0 <= spread.least < spread.first < spread.most:
            raise ValueError(f"standard deviations need 0 <= min_std < init_std < max_std, got {tuple(spread)}")
        self.actions, self.kind, self.unimix, self.spread = actions, policy, unimix, spread
        outputs = actions.size if actions.discrete else 2 * actions.size
        self.net = mlp(shape[0], outputs, units=units, layers=layers, activation=activation, norm=norm)

    def initial(self, batch: int) -> State:
        """No memory."""
        return ()

    def policy(self, view: Tensor, memory: State) -> tuple[Policy, State]:
        """Features (*n, F) -> a distribution over actions (*n, A)."""
        y = self.net(view).float()
        if self.actions.discrete:
            return OneHot(y, self.unimix), memory
        center, raw = y.chunk(2, -1)
        std = deviation(raw, self.spread)
        if self.kind == "tanh-normal":
            return TanhNormal(5 * torch.tanh(center / 5), std), memory
        if self.kind == "truncated-normal":
            return TruncatedNormal(torch.tanh(center), std), memory
        return Normal(torch.tanh(center / 5), std), memory

    def act(
        self, view: Tensor, memory: State, *, sample: bool = False, rng: torch.Generator | None = None
    ) -> tuple[Tensor, State]:
        """Features (B, F) -> actions (B, A): the policy's mode, or a draw; what leaves [-1, 1] is clipped."""
        policy, memory = self.policy(view, memory)
        return (policy.sample(rng) if sample else policy.mode()).clamp(-1, 1), memory


def deviation(raw: Tensor, spread: Spread) -> Tensor:
    """Standard deviations within `spread` of any numbers: softplus if there is no upper bound, else a sigmoid."""
    if math.isinf(spread.most):
        return nn.functional.softplus(raw + math.log(math.expm1(spread.first - spread.least))) + spread.least
    share = (spread.first - spread.least) / (spread.most - spread.least)
    return spread.least + (spread.most - spread.least) * torch.sigmoid(raw + math.log(share / (1 - share)))
