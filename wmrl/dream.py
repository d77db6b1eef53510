"""A world model as something to roll out in: the stepping surface of an environment, and no environment behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from wmrl.data.episodes import Episodes
from wmrl.draws import Common
from wmrl.rollout import Policy, check_finite, look
from wmrl.seeding import number
from wmrl.spec import State, take
from wmrl.world import WorldModel

BANK = 1000
"""First frames, at most, that dreams begin at."""
BLOCK = 64
"""Frames that are read and encoded together."""
SLACK = 0.1
"""Rows that ended dream on unseen until they are more than this share of a batch. That costs an MDN-RNN 3 to 7 % of its
speed; a state as large as a window of keys and values is copied at each drop: 70 times for 1,024 rows, not 1,024."""


@torch.inference_mode()
def first_codes(world: WorldModel, episodes: Episodes, device: torch.device) -> Tensor:
    """The bank that dreams begin at: codes (E, *code) of the first frames of the first real episodes.

    They are encoded in float32 whatever --precision says: it takes a second, and the bank is the same everywhere.
    """
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

    The first frame and all noise are those of the episode's seed: all who play a seed dream the same dream, up to what
    they do in it. For CMA-ES this is worth many episodes: on a trained CarRacing model (32 candidates at the end of a
    search, 16 dreams of 200 steps each) ranks agree with the true ones to 0.91, with noise of each row's own to 0.58.

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
        self._held, self._steps = np.arange(0), 0

    @torch.inference_mode()
    def reset(self, seeds: Sequence[int]) -> Tensor:
        """Begin an episode per seed; the views (N, ...) of their first states."""
        self._draws = Common(seeds, self.bank.device)
        with self._draws as draws:
            self._state = self._rules.begin(seeds, draws.rng)
        self._held, self._steps = np.arange(len(seeds)), 0
        return look(self.world, self.controller, self._state)

    @torch.inference_mode()
    def step(self, action: np.ndarray, ids: np.ndarray) -> Dreamt:
        """Move the rows `ids` (K,), a subset of those moved last, in order; the others are forgotten."""
        device, at = self.bank.device, np.searchsorted(self._held, ids)
        if len(ids) < (1 - SLACK) * len(self._held):
            self._state, self._held = take(self._state, torch.as_tensor(at, device=device)), ids
            self._draws.keep(at)
            at = np.arange(len(ids))
        taken = np.zeros((len(self._held), *action.shape[1:]), np.float32)
        taken[at] = action
        with self._draws as draws:
            moved = self._rules.step(self._state, torch.as_tensor(taken, device=device), draws.rng)
        self._state, reward, ended = moved
        self._steps += 1
        over = np.full(len(ids), self._steps >= self.max_steps)
        view = look(self.world, self.controller, self._state)
        if len(ids) < len(self._held):
            view = view.index_select(0, torch.as_tensor(at, device=device))
        return Dreamt(view, reward.cpu().numpy()[at], ended.cpu().numpy()[at], over)


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
