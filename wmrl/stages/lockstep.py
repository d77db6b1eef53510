"""Environments in lockstep whose episodes follow each other, and the agent that acts in them with open eyes."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmrl.data.policies import Random
from wmrl.data.shards import Episode
from wmrl.errors import UserError
from wmrl.rollout import check_finite, look, noisy
from wmrl.spec import State, leaves, rebuilt, where
from wmrl.world import WorldModel


@dataclass
class Finished:
    """Episodes that ended since it was last emptied."""

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)


class Player:
    """A world model and a controller in N slots; states and memories are carried on, whatever happens to the weights.

    Args:
        world: The world model, whose weights may change between two steps.
        controller: What acts, likewise.
        device: Where both are. They compute in float32: for a few rows, casting weights costs more than it saves.
    """

    def __init__(self, world: WorldModel, controller: Any, device: torch.device) -> None:
        self.world, self.controller, self.device = world, controller, device
        self._state: State = ()
        self._memory: State = ()

    @torch.inference_mode()
    def begin(self, obs: np.ndarray, rng: torch.Generator) -> None:
        """All slots are at first observations (N, *obs)."""
        self._state = self.world.start(self._tensor(obs), rng)
        self._memory = self.controller.initial(len(obs))

    @torch.inference_mode()
    def act(self, rng: torch.Generator, noise: float) -> np.ndarray:
        """Actions (N, A) float32, drawn from the policy, with exploration noise."""
        view = look(self.world, self.controller, self._state)
        check_finite(view)
        action, self._memory = self.controller.act(view, self._memory, sample=True, rng=rng)
        if noise:
            action = noisy(action, noise, self.controller.actions, rng)
        elif not self.controller.actions.discrete:
            action = action.clamp(-1, 1)
        return action.cpu().numpy()

    @torch.inference_mode()
    def look(self, action: np.ndarray, obs: np.ndarray, first: np.ndarray, rng: torch.Generator) -> None:
        """The actions (N, A) led to obs (N, *obs); where `first` (N,), an episode begins there instead."""
        frames = self._tensor(obs)
        latent = self.world.draw(self.world.encode(frames), sample=False, rng=rng)
        self._state = self.world.dynamics.observe(self._state, self._tensor(action), latent, rng=rng)
        if first.any():
            begun = torch.as_tensor(first, device=self.device)
            self._state = where(begun, self.world.dynamics.start(latent, rng=rng), self._state)
            self._memory = where(begun, self.controller.initial(len(obs)), self._memory)

    def state(self) -> list[Tensor]:
        """The tensors of state and memory, in order."""
        return [tensor.clone() for tensor in leaves((self._state, self._memory))]

    def restore(self, stored: Sequence[Any], obs: np.ndarray) -> None:
        """Take the tensors that `state` gave; obs (N, *obs) are any, for their shape."""
        self.begin(obs, torch.Generator(self.device).manual_seed(0))
        given = [torch.as_tensor(value, device=self.device) for value in stored]
        self._state, self._memory = rebuilt((self._state, self._memory), given)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


class Lockstep:
    """N slots of an environment, in each an episode after the other; all that happens goes into the replay.

    Args:
        env: Has N slots, and begins an episode in any of them (`restart`).
        replay: Remembers.
        seed_of: Number of an episode -> its seed.
    """

    def __init__(self, env: Any, replay: Any, seed_of: Callable[[int], int]) -> None:
        self.env, self.replay, self.seed_of = env, replay, seed_of
        self.ids = np.arange(env.n)
        self.begun, self.seeds = 0, dict[int, int]()  # slot -> seed of its episode
        self.returns, self.lengths = np.zeros(env.n), np.zeros(env.n, np.int64)
        self.finished = Finished()

    def begin(self) -> np.ndarray:
        """Begin an episode in each slot; their first observations (N, *obs)."""
        seeds = self._seeds(self.ids)
        obs: np.ndarray = self.env.reset(seeds)
        self.replay.begin(self.ids, seeds, obs)
        return obs

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Move all slots by action (N, A); what they see now (N, *obs), and where an episode begins with that (N,)."""
        outcome = self.env.step(action, self.ids)
        self.replay.add(self.ids, action, outcome)
        self.returns += outcome.reward
        self.lengths += 1
        over = outcome.terminated | outcome.truncated
        if not over.any():
            return outcome.obs, over
        ended = np.flatnonzero(over)
        self.finished.returns += self.returns[ended].tolist()
        self.finished.lengths += self.lengths[ended].tolist()
        self.returns[ended], self.lengths[ended] = 0, 0
        seeds, obs = self._seeds(ended), outcome.obs.copy()
        obs[ended] = self.env.restart(seeds, ended)
        self.replay.begin(ended, seeds, obs[ended])
        return obs, over

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from, beside the episodes in progress, which the replay keeps."""
        return {
            "begun": self.begun,
            "returns": self.returns,
            "lengths": self.lengths,
            "finished": {"returns": self.finished.returns, "lengths": self.finished.lengths},
        }

    def restore(self, tree: dict[str, Any], playing: Mapping[int, Episode]) -> np.ndarray:
        """Bring each slot to where it was, by its seed and the actions since.

        Args:
            tree: What `state` gave.
            playing: Slot -> its episode in progress, with the rows so far.

        Returns:
            What they see now (N, *obs).

        Raises:
            UserError: if that is not what they saw then. The replay is left as it is.
        """
        self.begun = int(tree["begun"])
        self.returns, self.lengths = np.array(tree["returns"]), np.array(tree["lengths"])
        self.finished = Finished(*(list(tree["finished"][name]) for name in ("returns", "lengths")))
        episodes = [playing[int(slot)] for slot in self.ids]
        self.seeds = {int(slot): playing[int(slot)].seed for slot in self.ids}
        obs: np.ndarray = self.env.reset([episode.seed for episode in episodes])
        steps = np.array([len(episode.reward) - 1 for episode in episodes])
        for t in range(steps.max()):
            ids = np.flatnonzero(t < steps)
            obs[ids] = self.env.step(np.stack([episodes[i].action[t] for i in ids]), ids).obs
        if any(not np.array_equal(seen, episode.obs[-1]) for seen, episode in zip(obs, episodes, strict=True)):
            raise UserError(
                f"{self.env.info['id']} does not come back to where it was when its actions are repeated: it cannot be "
                "continued; begin in another --logdir"
            )
        return obs

    def _seeds(self, slots: np.ndarray) -> list[int]:
        self.begun += len(slots)
        seeds = [self.seed_of(number) for number in range(self.begun - len(slots), self.begun)]
        self.seeds |= dict(zip(slots.tolist(), seeds, strict=True))
        return seeds


class Wanderers:
    """A random policy in all slots of a lockstep; the actions of an episode depend on its seed alone.

    Args:
        policy: What each slot follows.
        lockstep: Tells which episode a slot plays, and how far it is.
    """

    def __init__(self, policy: Random, lockstep: Lockstep) -> None:
        self.policy, self.lockstep = policy, lockstep
        self._walks: dict[int, tuple[tuple[int, int], Iterator[np.ndarray]]] = {}

    def act(self) -> np.ndarray:
        """Actions (N, A) float32."""
        return np.stack([self._next(int(slot)) for slot in self.lockstep.ids])

    def _next(self, slot: int) -> np.ndarray:
        seed, step = self.lockstep.seeds[slot], int(self.lockstep.lengths[slot])
        at, walk = self._walks.get(slot, ((-1, 0), iter(())))
        if at != (seed, step):  # a new episode, or a run that goes on
            walk = itertools.islice(self.policy.walk(seed), step, None)
        self._walks[slot] = (seed, step + 1), walk
        return next(walk)
