"""What each part of a world-model agent promises to the others.

For readers and for the type checker: no model imports this file, a part fits when it has these attributes and methods.
Shapes: `*n` is any number of leading axes, B the batch, T the steps of a window, A `Actions.size`, N rows alive.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from wmrl.spec import Actions, Batch, Loss, Metrics, Space, State, Step


class Representation(Protocol):
    """Turns observations into latents and back. Built as `Kind(observation: Space, *, ...)`."""

    latent: Space

    def encode(self, obs: Tensor) -> Tensor:
        """What is worth caching of frames, deterministic: obs (*n, *obs) uint8 -> code (*n, *code)."""

    def draw(self, code: Tensor, *, sample: bool, rng: torch.Generator | None = None) -> Tensor:
        """A latent for each code, a draw or the most likely one: (*n, *code) -> (*n, *latent)."""

    def decode(self, latent: Tensor) -> Tensor:
        """Frames of latents: (*n, *latent) -> (*n, C, H, W) float in 0..1."""

    def loss(self, batch: Batch, *, rng: torch.Generator) -> Loss:
        """A scalar with gradient and detached scalars to log; absent where there is nothing to train."""


class Dynamics(Protocol):
    """Predicts what happens next. Built as `Kind(latent: Space, actions: Actions, *, ...)`.

    A state is a tree of batch-first tensors that nobody else looks into; methods return new states and keep none.
    """

    feature_shape: tuple[int, ...]

    def start(self, latent: Tensor, *, rng: torch.Generator) -> State:
        """The state at a first frame, latent (B, *latent)."""

    def observe(self, state: State, action: Tensor, latent: Tensor, *, rng: torch.Generator) -> State:
        """A step with open eyes: action (B, A) was taken at `state` and led to `latent` (B, *latent)."""

    def imagine(self, state: State, action: Tensor, *, rng: torch.Generator, temperature: float = 1.0) -> Step:
        """A step with closed eyes: the next state, its reward (B,) and the chance (B,) that the episode goes on."""

    def features(self, state: State) -> Tensor:
        """What controllers see of a state: (B, *feature_shape)."""

    def latent(self, state: State) -> Tensor:
        """The latent of a state, (B, *latent), for the representation to decode."""

    def log_prob(self, state: State, action: Tensor, latent: Tensor) -> Tensor:
        """Log density (B,) in nats of the latent that `action` leads to; absent where the model has no density."""

    def loss(self, latent: Tensor, batch: Batch, *, rng: torch.Generator) -> Loss:
        """Loss on windows: latent (B, T + 1, *latent) of the frames of `batch`."""

    def learn(self, latent: Tensor, batch: Batch, *, rng: torch.Generator) -> tuple[Tensor, Metrics, State]:
        """As `loss`, and the states (B, T + 1, ...) at all rows, detached; absent where that is no saving."""

    def states(self, latent: Tensor, batch: Batch, *, rng: torch.Generator) -> State:
        """The states (B, T + 1, ...) at all rows, eyes open; absent where they are walked through one by one.

        A model whose attribute `crosses` is true heeds `batch.first`: its windows may go on in the next episode.
        """


class Controller(Protocol):
    """Maps a view of the state and its own memory to an action. Built as `Kind(shape, actions: Actions, *, ...)`.

    `looks_at` says what a view is: `features` (B, *feature_shape) of the dynamics or a decoded `frame` (B, C, H, W).
    """

    looks_at: Literal["features", "frame"]
    actions: Actions

    def initial(self, batch: int) -> State:
        """The memory at the beginning of `batch` episodes; `()` if there is none."""

    def act(
        self, view: Tensor, memory: State, *, sample: bool = False, rng: torch.Generator | None = None
    ) -> tuple[Tensor, State]:
        """Actions (B, A), one-hot or in [-1, 1], and the next memory. Pure: nothing is kept in the module."""


class Critic(Controller, Protocol):
    """A controller with values, for trainers that need them."""

    def __call__(self, view: Tensor, memory: State) -> Any:
        """An output with `policy` (a distribution over (B, A)), `value` (B,) and `memory`."""


class Trainer(Protocol):
    """Improves a controller on the grounds it is given. Built as `Kind(*, ...)`."""

    def train(self, controller: Any, grounds: Any) -> dict[str, Any]:
        """Change the parameters of `controller` in place; see `wmrl.trainers.grounds.Grounds`.

        What it returns (histories, scores) is kept as facts in the controller's artifact.
        """


class Actor(Protocol):
    """Chooses the actions of one wave of episodes that march in step; `rollout.play` calls it.

    Rows are numbered from 0 at `begin`; `keep` drops the finished ones and the others close ranks, in order.
    """

    def begin(self, obs: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """First frames (N, C, H, W) of N new episodes and the episodes' seeds -> actions (N, A) float32."""

    def step(self, obs: np.ndarray) -> np.ndarray:
        """The frames (M, C, H, W) that the last actions of the rows still kept led to -> actions (M, A) float32."""

    def keep(self, index: np.ndarray) -> None:
        """Keep only the rows at `index` (M',), increasing positions among the rows that were left."""
