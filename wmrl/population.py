"""Score a whole population: candidates times episodes, cut into waves; on CPUs as many waves at a time as cores.

A wave is a batch: one vector environment, one encoder, one dynamics model and one product for all its controllers. Each
lane plays a wave on one core, so that one wave's network computes while the other's environments step, and the long
tail of a wave, when few rows are left, costs little. Which lane plays a wave changes nothing of its result.
"""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import vector_to_parameters

from wmrl.errors import UserError
from wmrl.protocols import Actor
from wmrl.rollout import OnStep, Policy, Stepper, play, waves

LARGE = 10_000
"""Parameters from which on a lone candidate is one product for all rows, not one of each row with its own copy."""


class _Halt(Exception):
    """Another lane failed."""


@dataclass
class Rollouts:
    """How a wave is set up, awake or asleep; a `Score` function (see `wmrl.trainers.grounds`).

    Args:
        envs: What is stepped, one for each lane.
        actor: Policy -> what acts in it.
        controller: The module whose parameters the candidates are.
        alive: Most rows in a wave.
        device: Where the candidates' parameters live.
        sample: Whether a lone candidate draws its actions; several ones take the best.
    """

    envs: Sequence[Stepper]
    actor: Callable[[Policy], Actor]
    controller: nn.Module
    alive: int
    device: torch.device
    sample: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(
        self,
        parameters: np.ndarray,
        seeds: np.ndarray,
        cells: np.ndarray,
        scores: Any,
        *,
        abort: int = 0,
        after_wave: Callable[[], None] = lambda: None,
        tick: Callable[[int, int], None] = lambda rollouts, steps: None,
    ) -> None:
        """As `wmrl.trainers.grounds.Score`."""
        parts = [cells[part].T for part in waves(len(cells), self.alive, len(self.envs))]
        missing = iter([(k, *part) for k, part in enumerate(parts) if not scores.played[tuple(part)].all()])
        halt = threading.Event()
        watch = _Watch(tick, self._lock, halt)

        def wave(env: Stepper, k: int, who: np.ndarray, what: np.ndarray) -> None:
            actor = self.actor(self._policy(parameters, who))
            wanted = [int(seed) for seed in seeds[what]]
            played = play(env, actor, wanted, on_step=watch.listen(k, len(wanted)), abort=abort)
            if not np.isfinite(played.returns).all():
                raise UserError("the rewards of a rollout are not finite numbers; nothing can be learnt from them")
            with self._lock:
                scores.returns[who, what] = played.returns
                scores.steps[who, what] = played.lengths
                watch.forget(k)
                after_wave()

        self._play(missing, wave, halt)

    def _policy(self, parameters: np.ndarray, who: np.ndarray) -> Policy:
        if len(parameters) > 1 or (parameters.size < LARGE and not self.sample):
            return Policy(self.controller, torch.as_tensor(parameters[who], dtype=torch.float32, device=self.device))
        one = copy.deepcopy(self.controller)
        vector_to_parameters(torch.as_tensor(parameters[0], dtype=torch.float32, device=self.device), one.parameters())
        return Policy(one, sample=self.sample)

    def _play(self, missing: Iterator[Any], wave: Callable[..., None], halt: threading.Event) -> None:
        def lane(env: Stepper) -> None:
            while not halt.is_set():
                with self._lock:
                    part = next(missing, None)
                if part is None:
                    return
                wave(env, *part)

        if len(self.envs) == 1:
            lane(self.envs[0])
            return
        with ThreadPoolExecutor(len(self.envs), "lane", torch.set_num_threads, (1,)) as pool:
            lanes = [pool.submit(lane, env) for env in self.envs]
            try:
                wait(lanes, return_when=FIRST_EXCEPTION)
            finally:
                halt.set()
        errors = [error for future in lanes if (error := future.exception()) is not None]
        for error in sorted(errors, key=lambda e: isinstance(e, _Halt)):
            raise error


class _Watch:
    """Sees every step of every lane: tells `tick` how far the waves in progress are, and halts them together."""

    def __init__(self, tick: Callable[[int, int], None], lock: threading.Lock, halt: threading.Event) -> None:
        self._tick, self._lock, self._halt = tick, lock, halt
        self._ended: dict[int, int] = {}  # wave -> rollouts that have ended

    def listen(self, wave: int, rows: int) -> OnStep:
        """A listener for a wave of so many rows."""

        def on_step(ids: np.ndarray, obs: Any, action: np.ndarray, outcome: Any) -> None:
            if self._halt.is_set():
                raise _Halt
            with self._lock:
                self._ended[wave] = rows - len(ids)
                self._tick(sum(self._ended.values()), len(ids))

        return on_step

    def forget(self, wave: int) -> None:
        """The wave's rollouts stand in the table now."""
        self._ended.pop(wave, None)
