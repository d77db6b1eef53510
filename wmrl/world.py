"""A world model: a representation and a dynamics model, seen as one."""

from typing import Any

import torch
from torch import Tensor, nn

from wmrl.spec import Batch, Loss, Metrics, State, Step, tree_map, where


class WorldModel(nn.Module):
    """`observe` takes a step with open eyes, `imagine` with closed eyes; both give the next state.

    Awake, the latent of a frame is the most likely one, unless the controller wants it drawn (see `rollout.Agent`); in
    `loss` it is drawn anew for every batch, since that is the noise which the dynamics model is to describe.

    Args:
        representation: Turns frames into latents and back.
        dynamics: Predicts latents.
    """

    representation: Any
    dynamics: Any

    def __init__(self, representation: nn.Module, dynamics: nn.Module):
        super().__init__()
        self.representation, self.dynamics = representation, dynamics

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of one row of `features`."""
        shape: tuple[int, ...] = self.dynamics.feature_shape
        return shape

    def start(self, obs: Tensor, rng: torch.Generator | None = None) -> State:
        """The state at first frames, obs (B, *obs)."""
        return self.start_code(self.encode(obs), rng)

    def start_code(self, code: Tensor, rng: torch.Generator | None = None) -> State:
        """The state at first frames that were encoded before, code (B, *code)."""
        return self.dynamics.start(self.draw(code, sample=False, rng=rng), rng=rng)

    def observe(self, state: State, action: Tensor, obs: Tensor, rng: torch.Generator | None = None) -> State:
        """The state after `action` (B, A) led to `obs` (B, *obs)."""
        latent = self.draw(self.encode(obs), sample=False, rng=rng)
        return self.dynamics.observe(state, action, latent, rng=rng)

    def imagine(
        self, state: State, action: Tensor, rng: torch.Generator | None = None, temperature: float = 1.0
    ) -> Step:
        """A dreamt step: the next state, reward (B,) and the chance (B,) that the episode goes on."""
        return self.dynamics.imagine(state, action, rng=rng, temperature=temperature)

    def features(self, state: State) -> Tensor:
        """What controllers see of a state, (B, *feature_shape)."""
        return self.dynamics.features(state)

    def frame(self, state: State) -> Tensor:
        """The state as a picture, (B, C, H, W) in [0, 1]."""
        return self.representation.decode(self.dynamics.latent(state))

    def loss(self, batch: Batch, rng: torch.Generator | None = None) -> Loss:
        """The dynamics model's loss on windows, with latents drawn anew from their cached codes or from frames."""
        return self.dynamics.loss(self.latents(batch, rng), batch, rng=rng)

    def learn(self, batch: Batch, rng: torch.Generator | None = None) -> tuple[Tensor, Metrics, State]:
        """As `loss`, and the states (B, T + 1, ...) at all rows of the windows, detached, that it met on the way."""
        latent = self.latents(batch, rng)
        if hasattr(self.dynamics, "learn"):
            learnt: tuple[Tensor, Metrics, State] = self.dynamics.learn(latent, batch, rng=rng)
            return learnt
        return (*self.dynamics.loss(latent, batch, rng=rng), self._walk(latent, batch, rng))

    def states(self, batch: Batch, rng: torch.Generator | None = None) -> State:
        """The states (B, T + 1, ...) at all rows of windows, eyes open, without gradients: where dreams may begin."""
        latent = self.latents(batch, rng)
        if hasattr(self.dynamics, "states"):
            with torch.no_grad():
                return self.dynamics.states(latent, batch, rng=rng)
        return self._walk(latent, batch, rng)

    @torch.no_grad()
    def _walk(self, latent: Tensor, batch: Batch, rng: torch.Generator | None) -> State:
        state = self.dynamics.start(latent[:, 0], rng=rng)
        states = [state]
        for t in range(batch.action.shape[1]):
            state = self.dynamics.observe(state, batch.action[:, t], latent[:, t + 1], rng=rng)
            if batch.first is not None:
                state = where(batch.first[:, t + 1] > 0, self.dynamics.start(latent[:, t + 1], rng=rng), state)
            states.append(state)
        return tree_map(lambda *each: torch.stack(each, 1), *states)

    def latents(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        """Latents (B, T + 1, *latent) of the frames of a batch, drawn with `rng`.

        Raises:
            ValueError: if the batch has neither codes nor frames.
        """
        if batch.code is not None:
            return self.draw(batch.code, sample=True, rng=rng)
        if batch.obs is None:
            raise ValueError("a batch for the world model has neither codes nor frames")
        return self.draw(self.encode(batch.obs), sample=True, rng=rng)

    @torch.no_grad()
    def encode(self, obs: Tensor) -> Tensor:
        """What is worth caching of frames: (*n, *obs) -> (*n, *code)."""
        return self.representation.encode(obs)

    @torch.no_grad()
    def draw(self, code: Tensor, *, sample: bool, rng: torch.Generator | None = None) -> Tensor:
        """Latents of codes, which may be stored in few bits: float16 and int16 become float32 and int64."""
        if code.dtype in (torch.float16, torch.bfloat16):
            code = code.float()
        elif code.dtype in (torch.int16, torch.int32):
            code = code.long()
        return self.representation.draw(code, sample=sample, rng=rng)
