"""Dreamt reward, maximised through the world model: no critic."""

from dataclasses import dataclass
from typing import Any

import torch

from wmrl.limits import at_least, shares
from wmrl.optimizers import Descent, descend
from wmrl.spec import Metrics, State
from wmrl.trainers.dreaming import Offline
from wmrl.trainers.imagine import imagine
from wmrl.trainers.learner import Kept, Parts
from wmrl.trainers.returns import step_weights
from wmrl.world import WorldModel


@dataclass(frozen=True, kw_only=True)
class Reward(Offline):
    """Follow the gradient of the reward that a dream of `horizon` steps collects, through the world model.

    What lies behind the horizon counts nothing. Source: the reward trainer of mauicv's RSSM and TSSM (after Hafner et
    al. 2020); there nothing is discounted, and a likely end of the episode takes the reward of its own step and of no
    later one. The other keywords are those of `Offline`.

    Args:
        horizon: Steps of a dream.
        discount: Of rewards, per step. Source: mauicv/world-model-rl, none (1).
        entropy: Scale of the entropy bonus.
        learning_rate: Of Adam.
        clip: Longest gradient; 0 clips nothing.

    Raises:
        ValueError: if a number makes no sense.
    """

    horizon: int = 15
    discount: float = 0.99
    entropy: float = 1e-3
    learning_rate: float = 8e-5
    clip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, horizon=self.horizon)
        shares(discount=self.discount)

    def learner(self, controller: Any, shape: tuple[int, ...], device: torch.device) -> "Learner":
        """What takes the steps; see `wmrl.trainers.learner`."""
        return Learner(self, controller)


class Learner(Kept):
    """The controller and its optimiser.

    Args:
        how: The options.
        controller: What is improved, in place.
    """

    def __init__(self, how: Reward, controller: Any) -> None:
        self.how, self.controller = how, controller.requires_grad_(True)
        self.actor_step = Descent(controller.parameters(), how.learning_rate, how.clip)
        self.parts: Parts = {"controller": controller, "actor_step": self.actor_step}

    def update(self, world: WorldModel, starts: State, weight: torch.Tensor, *, rng: torch.Generator) -> Metrics:
        """As `wmrl.trainers.learner.Learner`."""
        how = self.how
        dream = imagine(world, self.controller, starts, how.horizon, rng=rng, through=True)
        weights, count = step_weights(weight, how.discount * dream.cont), weight.sum().clamp(min=1)
        reward, entropy = (weights * dream.reward).sum() / count, (weights.detach() * dream.entropy).sum() / count
        loss = -reward - how.entropy * entropy
        (norm,) = descend(loss, self.actor_step)
        steps = weights.detach().sum().clamp(min=1e-8) / count
        metrics = {"losses/actor": loss, "losses/entropy": entropy / steps, "losses/actor_gradient_norm": norm}
        metrics |= {"dream/reward": reward / steps, "dream/return": reward}
        return {name: x.detach() for name, x in metrics.items()}
