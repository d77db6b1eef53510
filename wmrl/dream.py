"""A world model as something to roll out in: the stepping surface of an environment, and no environment behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from wmrl.data.episodes import Episodes
from wmrl.rollout import Policy, check_finite, look
from wmrl.seeding import generator, number
from wmrl.spec import State, take
from wmrl.world import WorldModel

BANK = 1000
"""First frames, at most, that dreams begin at."""
BLOCK = 64
"""Frames that are read and encoded together."""


@torch.inference_mode()
def first_codes(world: WorldModel, episodes: Episodes, device: torch.device) -> Tensor:
    """The bank that dreams begin at: codes (E, *code) of the first frames of the first real episodes."""
    rows, codes = episodes.start[:-1][:BANK], []
    for i in range(0, len(rows), BLOCK):
        frames = episodes.gather(rows[i : i + BLOCK, None])["obs"][:, 0]
        codes.append(world.encode(torch.from_numpy(frames).to(device)))
    return torch.cat(codes)


Ends = Literal["threshold", "sample"]
"""When an episode ends: where the chance to go on falls below 0.5, or by a draw."""
ENDS: tuple[str, ...] = get_args(Ends)


@dataclass(frozen=True)
class Rules:
    """Where dreams begin, how they go on, and when they end. States and generators are the caller's.

    Args:
        world: The frozen world model.
        bank: (E, *code) encoded first frames of real episodes; an episode's seed picks one.
        temperature: Of the dynamics' draws. Source: Ha & Schmidhuber 2018, 1.25 for Doom.
        ends: When an episode ends.
    """

    world: WorldModel
    bank: Tensor
    temperature: float = 1.0
    ends: Ends = "threshold"

    def begin(self, seeds: Sequence[int], rng: torch.Generator) -> State:
        """The first state of an episode for each seed, (N, ...)."""
        first = torch.tensor([number("first frame", int(s)) % len(self.bank) for s in seeds], device=self.bank.device)
        latent = self.world.draw(self.bank.index_select(0, first), sample=True, rng=rng)
        return self.world.dynamics.start(latent, rng=rng)

    def step(self, state: State, action: Tensor, rng: torch.Generator) -> tuple[State, Tensor, Tensor]:
        """What `action` (N, A) leads to: the next state, reward (N,) float, whether the episode ended (N,) bool."""
        state, reward, cont = self.world.imagine(state, action, rng=rng, temperature=self.temperature)
        if self.ends == "sample":
            return state, reward, torch.rand(cont.shape, generator=rng, device=cont.device) >= cont
        return state, reward, cont < 0.5


@dataclass
class Dreamt:
    """What one dreamt step of K rows led to; the observation is the controller's view of the state."""

    obs: Tensor  # (K, ...)
    reward: np.ndarray  # (K,) float32
    terminated: np.ndarray  # (K,) bool
    truncated: np.ndarray  # (K,) bool


class Dream:
    """Episodes that begin at real first frames and go on as the dynamics model imagines.

    Args:
        world: The frozen world model.
        controller: Decides what is seen of a state (`looks_at`).
        bank: See `Rules`, as `temperature` and `ends`.
        temperature: Of the dynamics' draws.
        ends: When an episode ends.
        max_steps: Steps after which an episode is truncated.
    """

    def __init__(
        self,
        world: WorldModel,
        controller: Any,
        bank: Tensor,
        *,
        temperature: float = 1.0,
        ends: Ends = "threshold",
        max_steps: int = 1000,
    ) -> None:
        self.world, self.controller, self.bank, self.max_steps = world, controller, bank, max_steps
        self._rules = Rules(world, bank, temperature, ends)
        self._state: State = ()
        self._rows, self._steps = np.arange(0), 0

    @torch.inference_mode()
    def reset(self, seeds: Sequence[int]) -> Tensor:
        """Begin an episode per seed; the views (N, ...) of their first states."""
        self._rng = generator("dream", *seeds, device=self.bank.device)
        self._state = self._rules.begin(seeds, self._rng)
        self._rows, self._steps = np.arange(len(seeds)), 0
        return look(self.world, self.controller, self._state)

    @torch.inference_mode()
    def step(self, action: np.ndarray, ids: np.ndarray) -> Dreamt:
        """Move the rows `ids` (K,), a subset of those moved last, in order; the others are forgotten."""
        if len(ids) != len(self._rows):
            index = torch.as_tensor(np.searchsorted(self._rows, ids), device=self.bank.device)
            self._state, self._rows = take(self._state, index), ids
        taken = torch.as_tensor(action, device=self.bank.device)
        self._state, reward, ended = self._rules.step(self._state, taken, self._rng)
        self._steps += 1
        over = np.full(len(ids), self._steps >= self.max_steps)
        view = look(self.world, self.controller, self._state)
        return Dreamt(view, reward.cpu().numpy(), ended.cpu().numpy(), over)


class Dreamer:
    """A policy as an `Actor` inside a `Dream`: what it is shown is its view already.

    Args:
        policy: What acts.
        device: Where its parameters live.
    """

    def __init__(self, policy: Policy, device: torch.device | str = "cpu") -> None:
        self.policy, self.device = policy, device

    @torch.inference_mode()
    def begin(self, obs: Any, seeds: Sequence[int]) -> np.ndarray:
        """As `Actor.begin`."""
        self.policy.begin(len(obs), seeds)
        return self.step(obs)

    @torch.inference_mode()
    def step(self, obs: Any) -> np.ndarray:
        """As `Actor.step`."""
        check_finite(obs)
        return self.policy.act(obs).cpu().numpy()

    @torch.inference_mode()
    def keep(self, index: np.ndarray) -> None:
        """As `Actor.keep`."""
        self.policy.keep(torch.as_tensor(index, device=self.device))
