"""PPO on dreams: steps that stay near the policy that dreamt."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wmrl.limits import at_least, shares
from wmrl.optimizers import Descent, descend
from wmrl.spec import Metrics, State, take
from wmrl.trainers.critic import Critic
from wmrl.trainers.dreaming import Offline
from wmrl.trainers.imagine import Imagined, imagine
from wmrl.trainers.learner import Kept, Parts
from wmrl.trainers.returns import average, lambda_return, step_weights
from wmrl.world import WorldModel


@dataclass(frozen=True, kw_only=True)
class PPO(Offline):
    """Proximal policy optimisation on dreams that begin at the states of replayed windows.

    Actions are drawn, and no gradient goes through the world model. Advantages are lambda-returns less the critic's
    values, which is generalised advantage estimation; the reward of an end counts. States weigh by the chance that the
    episode came so far. Controller and critic share one Adam; epochs end, all of them, when the policy has moved too
    far from the one that dreamt. Source: Schulman et al. 2017; on dreams mauicv/world-model-rl, whose numbers these
    are. The other keywords are those of `Offline`.

    Args:
        horizon: Steps of a dream.
        discount: Of rewards, per step.
        lambda_: Of the lambda-returns.
        clip_ratio: How far the ratio of new to old probability may leave 1 before it gains nothing more.
        target_kl: Divergence from the policy that dreamt, in nats, at which the update ends; 0 never.
        epochs: How often all dreamt steps are gone through.
        minibatches: In how many parts.
        normalize: Whether advantages are shifted and divided so that each minibatch has mean 0 and deviation 1.
        entropy: Scale of the entropy bonus.
        critic_scale: Scale of the critic's loss, which is half the square of its error.
        critic_layers: Hidden layers of the critic.
        critic_units: Units of each, tanh.
        learning_rate: Of Adam.
        clip: Longest gradient, of controller and critic together; 0 clips nothing.

    Raises:
        ValueError: if a number makes no sense.
    """

    horizon: int = 15
    discount: float = 0.99
    lambda_: float = 0.95
    clip_ratio: float = 0.05
    target_kl: float = 0.2
    epochs: int = 3
    minibatches: int = 16
    normalize: bool = True
    entropy: float = 1e-3
    critic_scale: float = 1.0
    critic_layers: int = 3
    critic_units: int = 512
    learning_rate: float = 1e-4
    clip: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, horizon=self.horizon, epochs=self.epochs, minibatches=self.minibatches)
        at_least(0, target_kl=self.target_kl)
        shares(discount=self.discount, lambda_=self.lambda_)
        if self.clip_ratio <= 0:
            raise ValueError(f"clip_ratio must be above 0, got {self.clip_ratio}")

    def learner(self, controller: Any, shape: tuple[int, ...], device: torch.device) -> "Learner":
        """What takes the steps; see `wmrl.trainers.learner`."""
        return Learner(self, controller, shape, device)


class Rows(NamedTuple):
    """M dreamt steps to learn from, in any order."""

    view: Tensor  # (M, F)
    action: Tensor  # (M, A)
    log_prob: Tensor  # (M,) of the action, under the policy that dreamt
    advantage: Tensor  # (M,)
    target: Tensor  # (M,) of the critic
    weight: Tensor  # (M,)


class Learner(Kept):
    """Controller, critic, and their optimiser.

    Args:
        how: The options.
        controller: What is improved, in place.
        shape: Of its view.
        device: Where it is.
    """

    def __init__(self, how: PPO, controller: Any, shape: tuple[int, ...], device: torch.device) -> None:
        self.how, self.controller = how, controller.requires_grad_(True)
        self.critic = Critic(
            shape, kind="gaussian", layers=how.critic_layers, units=how.critic_units, activation="tanh", norm="none"
        ).to(device)
        both = [*controller.parameters(), *self.critic.parameters()]
        self.step = Descent(both, how.learning_rate, how.clip)
        self.parts: Parts = {"controller": controller, "critic": self.critic, "step": self.step}

    def update(self, world: WorldModel, starts: State, weight: Tensor, *, rng: torch.Generator) -> Metrics:
        """As `wmrl.trainers.learner.Learner`."""
        how = self.how
        with torch.no_grad():
            dream = imagine(world, self.controller, starts, how.horizon, rng=rng, through=False)
            rows = self.rows(dream, weight)
        torch.clear_autocast_cache()  # older torch keeps weights that were cast without gradients (its issue 112583)
        seen, norms = [], []
        for index in orders(len(rows.view), how.epochs, how.minibatches, rng):
            loss, metrics = self.losses(take(rows, index))
            seen.append(metrics)
            if how.target_kl and metrics["losses/kl"] > how.target_kl:
                break
            norms += descend(loss, self.step)
        found = {name: torch.stack([metrics[name] for metrics in seen]).mean() for name in seen[0]}
        counted = {"reward": dream.reward, "cont": dream.cont, "lambda_return": rows.target}
        found |= {f"dream/{name}": average(x.flatten(), rows.weight) for name, x in counted.items()}
        found["losses/steps"] = torch.tensor(float(len(norms)), device=weight.device)
        return {
            **found,
            "losses/gradient_norm": torch.stack(norms).mean() if norms else torch.zeros((), device=weight.device),
        }

    @torch.no_grad()
    def rows(self, dream: Imagined, weight: Tensor) -> Rows:
        """N dreams of H steps as M = H N rows; `weight` (N,) as in `update`."""
        values = self.critic(dream.views)  # (H + 1, N)
        target = lambda_return(dream.reward, self.how.discount * dream.cont, values, self.how.lambda_)
        learnt = (target - values[:-1], target, step_weights(weight, dream.cont))
        columns = (dream.views[:-1], dream.actions, dream.log_prob, *learnt)
        return Rows(*(x.flatten(0, 1) for x in columns))

    def losses(self, rows: Rows) -> tuple[Tensor, Metrics]:
        """The loss of controller and critic together on some rows, and what to log."""
        how, weight = self.how, rows.weight
        policy, _ = self.controller.policy(rows.view, self.controller.initial(len(rows.view)))
        log_ratio = policy.log_prob(rows.action) - rows.log_prob
        ratio, gain = log_ratio.exp(), rows.advantage
        if how.normalize:
            gain = gain - average(gain, weight)
            gain = gain / (average(gain.square(), weight).sqrt() + 1e-8)
        near = ratio.clamp(1 - how.clip_ratio, 1 + how.clip_ratio)
        actor = -average(torch.minimum(ratio * gain, near * gain), weight)
        critic = average(self.critic.loss(self.critic.output(rows.view), rows.target), weight)
        entropy = average(policy.entropy(), weight)
        metrics = {"losses/actor": actor, "losses/critic": critic, "losses/entropy": entropy}
        # Unbiased, and never negative. Source: Schulman, "Approximating KL Divergence" (2020), k3.
        metrics["losses/kl"] = average(ratio - 1 - log_ratio, weight)
        metrics["losses/clipped"] = average((near != ratio).float(), weight)
        loss = actor + how.critic_scale * critic - how.entropy * entropy
        return loss, {name: x.detach() for name, x in metrics.items()}


def orders(rows: int, epochs: int, minibatches: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Minibatches as indices: in each epoch every row once, in a new order, cut into parts of (nearly) equal size."""
    for _ in range(epochs):
        order = torch.randperm(rows, generator=rng, device=rng.device)
        yield from order.tensor_split(min(minibatches, rows))
