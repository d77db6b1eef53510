"""What stands beside the models always: the same network untrained, and the guess that nothing changes."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wmrl import artifact, seeding
from wmrl.comparison.heldout import HeldOut
from wmrl.comparison.subjects import Split, Subject
from wmrl.data.windows import windows
from wmrl.spec import Batch, Step
from wmrl.stages.train_dynamics import fresh, spread
from wmrl.world import WorldModel

BATCHES, ROWS, STEPS = 8, 64, 32
"""The training windows that a Gaussian is fitted to: batches, windows in each, steps."""


class LastState(NamedTuple):
    """The latent now."""

    z: Tensor  # (B, *Z)


class LastLatent(nn.Module):
    """A dynamics model for which the next latent is a Gaussian around the last one, whatever is done.

    Reward and the chance to go on are those of the mean step.

    Args:
        variance: (Z,) of each number of the latent, flat; None if it stays what it is, and then there is no density:
            of pictures and grids, which noise would only spoil.
        reward: What every step is thought to give.
        end: The chance that a step ends the episode.
    """

    variance: Tensor | None

    def __init__(self, variance: Tensor | None, reward: float, end: float) -> None:
        super().__init__()
        self.register_buffer("variance", None if variance is None else variance.clamp(min=1e-8))
        self.reward, self.end = reward, end

    def start(self, latent: Tensor, *, rng: torch.Generator | None = None) -> LastState:
        """A first frame, latent (B, *Z)."""
        return LastState(latent)

    def observe(
        self, state: LastState, action: Tensor, latent: Tensor, *, rng: torch.Generator | None = None
    ) -> LastState:
        """The latent (B, *Z) that was seen."""
        return LastState(latent)

    def imagine(
        self, state: LastState, action: Tensor, *, rng: torch.Generator | None = None, temperature: float = 1.0
    ) -> Step:
        """A step of a random walk, or none."""
        reward = action.new_full((len(action),), self.reward)
        after = state
        if self.variance is not None:
            noise = torch.empty_like(state.z).normal_(generator=rng)
            after = LastState(state.z + (temperature * self.variance).sqrt().view(state.z.shape[1:]) * noise)
        return Step(after, reward, torch.full_like(reward, 1 - self.end))

    def latent(self, state: LastState) -> Tensor:
        """The latent now, (B, *Z)."""
        return state.z

    @property
    def log_prob(self) -> Callable[[LastState, Tensor, Tensor], Tensor]:
        """Log density (B,) in nats of a latent (B, *Z), after a state and an action; absent where it stays."""
        if self.variance is None:
            raise AttributeError("log_prob")
        variance = self.variance

        def density(state: LastState, action: Tensor, latent: Tensor) -> Tensor:
            move = (latent - state.z).flatten(1)
            return -0.5 * (move.square() / variance + variance.log() + math.log(2 * math.pi)).sum(-1)

        return density


def last_latent(model: Subject, held: HeldOut, *, seed: int, device: str) -> Subject:
    """The guess that nothing changes, in the latent space of a model, fitted to windows of its training episodes.

    Raises:
        ArtifactError: if a shard is damaged.
    """
    assert model.store is not None
    world, pipe = model.world, model.store.pipe
    kept = model.splits[-1] if model.splits else Split(pipe.validation, pipe.seed)
    training = held.episodes.split(kept.fraction, kept.seed)[0]
    training = training[training < held.count]
    source = windows(held.episodes, ROWS, STEPS, key=(seed, "compare", "last latent"), episodes=training)
    batches = [next(source).to(device) for _ in range(BATCHES)]
    draws = [seeding.generator(seed, "compare", "last latent", k, device=device) for k in range(BATCHES)]
    still = model.bare and held.episodes.dtype.kind != "f"
    variance = None if still else spread(world, zip(batches, draws, strict=True))
    dynamics = LastLatent(variance, _mean(batches, "reward"), _mean(batches, "terminated")).to(device)
    return dataclasses.replace(
        model,
        name="last frame" if still else "last latent",
        kind="stays" if still else "Gaussian",
        world=WorldModel(world.representation, dynamics).requires_grad_(False).eval(),
        hashes={"representation": model.hashes["representation"]},
        store=None,
        trained=f"{BATCHES * ROWS} windows",
    )


def untrained(first: Subject, device: str) -> Subject:
    """The first model's network with the random weights that its training began with.

    Raises:
        ArtifactError: if its artifact is damaged.
    """
    assert first.store is not None
    made = first.store.load("dynamics")
    kept = made.facts.get("pipeline", {})
    pipe = dataclasses.replace(first.store.pipe, dynamics=made.component, seed=kept.get("seed", first.store.pipe.seed))
    given: Any = made.given
    dynamics = fresh(pipe, given)
    twin = artifact.of(dynamics, "dynamics", made.component, made.given)
    return dataclasses.replace(
        first,
        name="untrained",
        world=WorldModel(first.world.representation, dynamics.to(device)).requires_grad_(False).eval(),
        hashes={"representation": first.hashes["representation"], "dynamics": twin.hash},
        store=None,
        trained="not at all",
    )


def _mean(batches: Iterable[Batch], column: str) -> float:
    """The mean of a column over all steps."""
    batches = list(batches)
    total = sum(float((getattr(batch, column) * batch.mask).sum()) for batch in batches)
    return total / max(sum(float(batch.mask.sum()) for batch in batches), 1.0)
