"""The first Dreamer's trainer, as a set of keywords of `actor-critic`."""

from typing import Literal

from wmrl.nn.mlp import Activation, Norm
from wmrl.trainers.actor_critic import ActorCritic
from wmrl.trainers.dreaming import Offline


def value(
    *,
    horizon: int = 15,
    discount: float = 0.99,
    lambda_: float = 0.95,
    entropy: float = 1e-3,
    critic_layers: int = 3,
    critic_units: int = 512,
    critic_activation: Activation = "relu",
    critic_norm: Norm = "layer",
    slow_fraction: float = 0.005,
    actor_learning_rate: float = 8e-5,
    critic_learning_rate: float = 8e-5,
    clip: float = 100.0,
    reduce: Literal["mean", "sum"] = "mean",
    steps: int = Offline.steps,
    batch: int = Offline.batch,
    length: int = Offline.length,
    validate_every: int = Offline.validate_every,
    validation_episodes: int = Offline.validation_episodes,
    target_return: float | None = None,
) -> ActorCritic:
    """Maximise lambda-returns through the world model, with a critic that a slow copy follows a little at each update.

    Source: Hafner et al. 2020 (Dreamer), as mauicv's RSSM and TSSM have it. Its lambda weights, whose sum is less than
    1 there, are right here, and states behind a likely end weigh less.

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
        steps: As in `actor-critic`, and so are all that follow.
        batch: Windows in a batch.
        length: Steps of a window.
        validate_every: Updates between two validations.
        validation_episodes: Fixed episodes, awake, on which the best weights are chosen.
        target_return: Mean validation return at which the training ends early.

    Raises:
        ValueError: if a number makes no sense.
    """
    return ActorCritic(
        gradient="dynamics",
        slow_every=1,
        horizon=horizon,
        discount=discount,
        lambda_=lambda_,
        entropy=entropy,
        critic_layers=critic_layers,
        critic_units=critic_units,
        critic_activation=critic_activation,
        critic_norm=critic_norm,
        slow_fraction=slow_fraction,
        actor_learning_rate=actor_learning_rate,
        critic_learning_rate=critic_learning_rate,
        actor_clip=clip,
        critic_clip=clip,
        reduce=reduce,
        steps=steps,
        batch=batch,
        length=length,
        validate_every=validate_every,
        validation_episodes=validation_episodes,
        target_return=target_return,
    )
