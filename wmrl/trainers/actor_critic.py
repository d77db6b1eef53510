"""Actor and critic learn from dreams alone: the agent of Dreamer and its relatives."""

import contextlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from wmrl.limits import at_least, shares
from wmrl.nn.mlp import Activation, Norm
from wmrl.optimizers import Descent, descend
from wmrl.spec import Metrics, State
from wmrl.trainers.critic import Critic, Kind, follow, slow_copy
from wmrl.trainers.dreaming import Offline
from wmrl.trainers.imagine import Imagined, imagine
from wmrl.trainers.learner import Kept, Parts
from wmrl.trainers.returns import lambda_return, percentiles, step_weights
from wmrl.world import WorldModel

RANGE_RATE = 0.01
"""How fast the percentiles of returns are followed. Source: DreamerV3."""


@dataclass(frozen=True, kw_only=True)
class ActorCritic(Offline):
    """Learn a policy and its values in dreams that begin at the states of replayed windows.

    The critic learns lambda-returns of the dreams, which a slow copy of it bootstraps. The actor follows REINFORCE with
    the slow critic as its baseline, or the gradient of the return through the world model, or both. States weigh by
    their discount and by the chance that the episode came so far; ends of episodes that terminated are no starts.
    Source: Hafner et al. 2021 (DreamerV2), whose discount weights are off by one; 2020 (Dreamer), 2023 (DreamerV3).
    The other keywords are those of `Offline`.

    Args:
        horizon: Steps of a dream.
        discount: Of rewards, per step.
        lambda_: Of the lambda-returns.
        gradient: "reinforce"; "dynamics", through the world model; or "mix", both.
        mix: The share of the dynamics in a mix. Source: DreamerV2, 0.1.
        entropy: Scale of the entropy bonus.
        normalize: What the actor's returns are divided by: "none"; "advantage", shifted and divided so that advantages
            have mean 0 and deviation 1; "percentile", the running range of the 5th to the 95th percentile of returns,
            if that is more than 1. Source: DreamerV3, "percentile".
        critic: "gaussian", or "two-hot" (DreamerV3).
        critic_layers: Hidden layers of the critic.
        critic_units: Units of each.
        critic_activation: After each layer.
        critic_norm: Before each activation.
        slow_every: Updates between two moves of the slow critic. Source: DreamerV2, 100.
        slow_fraction: How far it moves. Source: DreamerV2, 1, a copy; DreamerV3, 0.02 at every update.
        actor_learning_rate: Of Adam.
        critic_learning_rate: Of Adam.
        actor_clip: Longest gradient of the actor; 0 clips nothing.
        critic_clip: Longest gradient of the critic; 0 clips nothing.
        hard_ends: Whether chances to go on are rounded to 0 or 1, as the published MinAtar agent does.
        reduce: Whether losses are means over the horizon, or sums, as the published MinAtar agent's actor has them.

    Raises:
        ValueError: if a number makes no sense.
    """

    horizon: int = 15
    discount: float = 0.99
    lambda_: float = 0.95
    gradient: Literal["reinforce", "dynamics", "mix"] = "reinforce"
    mix: float = 0.1
    entropy: float = 1e-3
    normalize: Literal["none", "advantage", "percentile"] = "none"
    critic: Kind = "gaussian"
    critic_layers: int = 4
    critic_units: int = 400
    critic_activation: Activation = "elu"
    critic_norm: Norm = "none"
    slow_every: int = 100
    slow_fraction: float = 1.0
    actor_learning_rate: float = 4e-5
    critic_learning_rate: float = 1e-4
    actor_clip: float = 100.0
    critic_clip: float = 100.0
    hard_ends: bool = False
    reduce: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, horizon=self.horizon, slow_every=self.slow_every)
        shares(discount=self.discount, lambda_=self.lambda_, mix=self.mix, slow_fraction=self.slow_fraction)

    @property
    def through(self) -> float:
        """The share of the gradient through the world model, in 0..1; the rest is REINFORCE's."""
        return {"reinforce": 0.0, "dynamics": 1.0, "mix": self.mix}[self.gradient]

    def learner(self, controller: Any, shape: tuple[int, ...], device: torch.device) -> "Learner":
        """What takes the steps; see `wmrl.trainers.learner`."""
        return Learner(self, controller, shape, device)


class Learner(Kept):
    """Controller, critic, slow critic, and the optimisers of the first two.

    Args:
        how: The options.
        controller: What is improved, in place.
        shape: Of its view.
        device: Where it is.
    """

    def __init__(self, how: ActorCritic, controller: Any, shape: tuple[int, ...], device: torch.device) -> None:
        self.how, self.controller = how, controller.requires_grad_(True)
        style: dict[str, Any] = {"layers": how.critic_layers, "units": how.critic_units}
        style |= {"activation": how.critic_activation, "norm": how.critic_norm}
        self.critic = Critic(shape, kind=how.critic, **style).to(device)
        self.slow = slow_copy(self.critic)
        self.actor_step = Descent(controller.parameters(), how.actor_learning_rate, how.actor_clip)
        self.critic_step = Descent(self.critic.parameters(), how.critic_learning_rate, how.critic_clip)
        self.range, self.updates = torch.zeros(2, device=device), 0
        networks = {"controller": controller, "critic": self.critic, "slow": self.slow}
        self.parts: Parts = {**networks, "actor_step": self.actor_step, "critic_step": self.critic_step}

    def update(self, world: WorldModel, starts: State, weight: Tensor, *, rng: torch.Generator) -> Metrics:
        """As `wmrl.trainers.learner.Learner`."""
        how = self.how
        dream = imagine(world, self.controller, starts, how.horizon, rng=rng, through=how.through > 0)
        actor, critic, metrics = self.losses(dream, weight)
        norms = descend(actor + critic, self.actor_step, self.critic_step)
        self.updates += 1
        if self.updates % how.slow_every == 0:
            follow(self.slow, self.critic, how.slow_fraction)
        return {**metrics, "losses/actor_gradient_norm": norms[0], "losses/critic_gradient_norm": norms[1]}

    def losses(self, dream: Imagined, weight: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        """The losses of actor and critic, and what to log; `weight` (N,) as in `update`."""
        how = self.how
        with contextlib.nullcontext() if how.through else torch.no_grad():
            cont = how.discount * (dream.cont.round() if how.hard_ends else dream.cont)
            values = self.slow(dream.views)  # (H + 1, N)
            returns = lambda_return(dream.reward, cont, values, how.lambda_)
        target, base = returns.detach(), values[:-1].detach()
        weights = step_weights(weight, cont.detach())
        gain, scale = self._scaled(target, target - base, weights)
        merit = how.entropy * dream.entropy
        if how.through < 1:
            merit = merit + (1 - how.through) * dream.log_prob * gain
        if how.through:
            merit = merit + how.through * returns / scale
        output = self.critic.output(dream.views[:-1].detach())
        error = self.critic.loss(output, target)
        starts = weight.sum().clamp(min=1)
        steps = starts if how.reduce == "sum" else starts * len(weights)
        actor, critic = -(weights * merit).sum() / steps, (weights * error).sum() / (starts * len(weights))
        metrics = {"losses/actor": actor, "losses/critic": critic}
        shown = {"losses/entropy": dream.entropy, "dream/reward": dream.reward, "dream/cont": dream.cont}
        shown |= {"dream/value": values[:-1], "dream/lambda_return": returns}
        total = weights.sum().clamp(min=1e-8)
        metrics |= {name: (x * weights).sum() / total for name, x in shown.items()}
        return actor, critic, {name: x.detach() for name, x in metrics.items()}

    @torch.no_grad()
    def _scaled(self, returns: Tensor, advantage: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages (H, N) as the actor takes them, and what it divides returns by."""
        one = torch.ones((), device=returns.device)
        if self.how.normalize == "none":
            return advantage, one
        if self.how.normalize == "percentile":
            self.range.lerp_(percentiles(returns, weights), RANGE_RATE)
            scale = torch.maximum(self.range[1] - self.range[0], one)
            return advantage / scale, scale
        total = weights.sum().clamp(min=1e-8)
        mean = (weights * advantage).sum() / total
        scale = ((weights * (advantage - mean).square()).sum() / total).sqrt().clamp(min=1e-5)
        return (advantage - mean) / scale, scale

    def state(self) -> dict[str, Any]:
        """As `wmrl.trainers.learner.Learner`."""
        return {**super().state(), "range": self.range, "updates": self.updates}

    def restore(self, tree: dict[str, Any]) -> None:
        """As `wmrl.trainers.learner.Learner`."""
        super().restore(tree)
        self.range.copy_(torch.as_tensor(tree["range"]))
        self.updates = int(tree["updates"])
