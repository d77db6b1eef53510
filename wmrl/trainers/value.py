"""The first Dreamer's trainer, as a set of keywords of `actor-critic`."""

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from wmrl.nn.mlp import Activation, Norm
from wmrl.trainers.actor_critic import ActorCritic, Learner
from wmrl.trainers.dreaming import Offline


@dataclass(frozen=True, kw_only=True)
class Value(Offline):
    """Maximise lambda-returns through the world model, with a critic that a slow copy follows a little at each update.

    Source: Hafner et al. 2020 (Dreamer), as mauicv's RSSM and TSSM have it. Its lambda weights, whose sum is less than
    1 there, are right here, and states behind a likely end weigh less. The other keywords are those of `Offline`.

    Args:
        horizon: Steps of a dream.
        discount: Of rewards, per step.
        lambda_: Of the lambda-returns.
        entropy: Scale of the entropy bonus.
        critic_layers: Hidden layers of the critic.
        critic_units: Units of each.
        critic_activation: After each layer.
        critic_norm: Before each activation.
        slow_fraction: How far the slow critic follows at each update.
        actor_learning_rate: Of Adam.
        critic_learning_rate: Of Adam.
        clip: Longest gradient of either network.
        reduce: Whether the actor's loss is a mean over the horizon, or a sum.

    Raises:
        ValueError: if a number makes no sense.
    """

    horizon: int = 15
    discount: float = 0.99
    lambda_: float = 0.95
    entropy: float = 1e-3
    critic_layers: int = 3
    critic_units: int = 512
    critic_activation: Activation = "relu"
    critic_norm: Norm = "layer"
    slow_fraction: float = 0.005
    actor_learning_rate: float = 8e-5
    critic_learning_rate: float = 8e-5
    clip: float = 100.0
    reduce: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        self.same()  # its checks are all there are

    def same(self) -> ActorCritic:
        """The `actor-critic` that this is."""
        shared = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "clip"}
        return ActorCritic(**shared, gradient="dynamics", slow_every=1, actor_clip=self.clip, critic_clip=self.clip)

    def learner(self, controller: Any, shape: tuple[int, ...], device: torch.device) -> Learner:
        """What takes the steps; see `wmrl.trainers.learner`."""
        return self.same().learner(controller, shape, device)
