"""Roll policies out: awake, in an environment, or asleep, in a world model; many rows at once, in lockstep.

A wave is a number of episodes that begin together. Finished rows are dropped from the environment, the encoder, the
dynamics and the controllers, so that they cost nothing.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from wmrl import interrupts
from wmrl.errors import UserError
from wmrl.precision import Choice, autocast
from wmrl.protocols import Actor
from wmrl.seeding import generator
from wmrl.spec import Actions, State, take, tree_map
from wmrl.world import WorldModel


class Outcome(Protocol):
    """What one step of K rows led to."""

    obs: Any  # (K, ...)
    reward: np.ndarray  # (K,) float
    terminated: np.ndarray  # (K,) bool
    truncated: np.ndarray  # (K,) bool


class Stepper(Protocol):
    """The part of a vector environment that a rollout needs; `Dream` has it too."""

    def reset(self, seeds: Sequence[int]) -> Any:
        """Begin an episode per seed; their first observations."""

    def step(self, action: np.ndarray, ids: np.ndarray) -> Any:
        """Move the rows `ids` (K,) by action (K, A); an `Outcome`."""


class Played(NamedTuple):
    """The N episodes of a wave."""

    returns: np.ndarray  # (N,) float64, undiscounted and unclipped
    lengths: np.ndarray  # (N,) int64, steps
    terminated: np.ndarray  # (N,) bool
    aborted: np.ndarray  # (N,) bool, given up before their end


OnStep = Callable[[np.ndarray, Any, np.ndarray, Any], None]


def play(
    env: Stepper,
    actor: Actor,
    seeds: Sequence[int],
    *,
    max_steps: int | None = None,
    on_step: OnStep | None = None,
    abort: int = 0,
) -> Played:
    """Play one wave: an episode for each seed, all rows in step, until the last one ends.

    Args:
        env: What is stepped, an environment or a `Dream`.
        actor: What acts.
        seeds: (N,) seeds of the episodes.
        max_steps: Episodes are truncated after so many steps.
        on_step: Called after each step with (row numbers (K,), observations the actions were chosen on, actions (K, A),
            outcome); for recorders.
        abort: Steps without a new best return after which an episode is given up; 0 never. Its return is what it had.

    Raises:
        Stopped: between two steps, if a signal asked for it; the wave is lost.
    """
    n = len(seeds)
    best, since = np.full(n, -np.inf), np.zeros(n, np.int64)
    played = Played(np.zeros(n), np.zeros(n, np.int64), np.zeros(n, bool), np.zeros(n, bool))
    alive = np.arange(n)
    obs = env.reset(seeds)
    action = actor.begin(obs, seeds)
    while True:
        interrupts.check()
        outcome = env.step(action, alive)
        played.returns[alive] += outcome.reward
        played.lengths[alive] += 1
        if max_steps:
            outcome.truncated[played.lengths[alive] >= max_steps] = True
        if on_step:
            on_step(alive, obs, action, outcome)
        over = outcome.terminated | outcome.truncated
        played.terminated[alive] = outcome.terminated
        if abort:
            better = played.returns[alive] > best[alive]
            best[alive] = np.maximum(best[alive], played.returns[alive])
            since[alive] = np.where(better, 0, since[alive] + 1)
            played.aborted[alive] = ~over & (since[alive] >= abort)
            over |= played.aborted[alive]
        obs = outcome.obs
        if over.any():
            left = np.flatnonzero(~over)
            if not len(left):
                return played
            alive, obs = alive[left], obs[left]
            actor.keep(left)
        action = actor.step(obs)


def waves(rows: int, n: int, least: int = 1) -> list[slice]:
    """Cut `rows` rollouts into equal waves of at most `n`; into `least` waves if there are as many rows."""
    count = min(rows, max(least, -(-rows // n)))
    if not count:
        return []
    edges = [round(i * rows / count) for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def look(world: WorldModel, controller: Any, state: State) -> Tensor:
    """What this controller sees of the state: features (B, *feature_shape) or a frame (B, C, H, W)."""
    return world.frame(state) if controller.looks_at == "frame" else world.features(state)


def noisy(action: Tensor, noise: float, actions: Actions, rng: torch.Generator) -> Tensor:
    """Actions (B, A) with exploration: Gaussian noise, or, of discrete ones, a uniform action with chance `noise`."""
    how: dict[str, Any] = {"generator": rng, "device": rng.device}
    if not actions.discrete:
        return (action + noise * torch.randn(action.shape, **how).to(action)).clamp(-1, 1)
    rows, size = action.shape
    other = one_hot(torch.randint(size, (rows,), **how), size).to(action)
    return torch.where(torch.rand(rows, 1, **how) < noise, other, action)


class _Act(nn.Module):
    """`controller.act` as a forward pass, for `torch.func`."""

    def __init__(self, controller: Any) -> None:
        super().__init__()
        self.controller = controller

    def forward(self, view: Tensor, memory: State) -> tuple[Tensor, State]:
        acted: tuple[Tensor, State] = self.controller.act(view, memory)
        return acted


class Policy:
    """One controller for all rows, or, with `parameters`, one for each.

    R controllers are evaluated as one batch: the parameters of row r are gathered once, and again when rows end; a
    linear controller is one batched product. Between `begin` and the end of a wave it holds the rows' memory.

    Args:
        controller: The module; it is not changed.
        parameters: (R, n), row r's parameters in the order of `controller.parameters()`; None to use the module's own.
        sample: Whether actions are drawn from the controller's distribution (one controller only).
        noise: Standard deviation of Gaussian noise added to continuous actions, units of [-1, 1]; of discrete ones the
            chance that a uniform action is taken instead.
    """

    def __init__(
        self, controller: Any, parameters: Tensor | None = None, *, sample: bool = False, noise: float = 0.0
    ) -> None:
        self.controller, self.parameters, self.sample, self.noise = controller, parameters, sample, noise
        self._module = _Act(copy.deepcopy(controller)).eval()  # torch.func swaps its parameters: one for each thread
        self._many: dict[str, Tensor] = {}
        self._memory: State = ()

    def begin(self, rows: int, seeds: Sequence[int]) -> None:
        """Forget the last wave; `rows` episodes begin."""
        device = next((p.device for p in self._module.parameters()), torch.device("cpu"))
        self._rng = generator("policy", *seeds, device=device)
        self._memory = self.controller.initial(rows)
        if self.parameters is not None:
            if len(self.parameters) != rows:
                raise ValueError(f"{len(self.parameters)} controllers for {rows} rows")
            self._gather(self.parameters)

    def keep(self, index: Tensor) -> None:
        """Drop all rows but these."""
        self._memory = take(self._memory, index)
        self._many = {k: v.index_select(0, index) for k, v in self._many.items()}

    def act(self, view: Tensor) -> Tensor:
        """View (B, ...) of the rows alive -> actions (B, A) float32."""
        if self.parameters is None:
            action, self._memory = self.controller.act(view, self._memory, sample=self.sample, rng=self._rng)
        else:
            action, self._memory = torch.vmap(self._one)(self._many, view, self._memory)
        return noisy(action, self.noise, self.controller.actions, self._rng) if self.noise else action

    def _one(self, parameters: dict[str, Tensor], view: Tensor, memory: State) -> tuple[Tensor, State]:
        memory = tree_map(lambda x: x[None], memory)
        action, memory = torch.func.functional_call(self._module, parameters, (view[None], memory))
        return action[0], tree_map(lambda x: x[0], memory)

    def _gather(self, rows: Tensor) -> None:
        named = list(self._module.named_parameters())
        parts = rows.split([p.numel() for _, p in named], 1)
        self._many = {k: v.reshape(len(rows), *p.shape).contiguous() for (k, p), v in zip(named, parts, strict=True)}


class Agent:
    """A world model and a policy as an `Actor`, eyes open.

    Latents are the most likely ones, or drawn if the controller says so (`latents = "sample"`).

    Args:
        world: The frozen world model.
        policy: What acts on its view.
        precision: Arithmetic in which frames are encoded; all else is float32.
        eyes: What encodes frames in place of the world's representation: the same, `lowered` to that precision.
    """

    def __init__(self, world: WorldModel, policy: Policy, precision: Choice = "fp32", *, eyes: Any = None) -> None:
        self.world, self.policy, self.precision = world, policy, precision
        self.eyes = world.representation if eyes is None else eyes
        self.sample = getattr(policy.controller, "latents", "mean") == "sample"
        self.action = torch.empty(0)
        self.device = next((p.device for p in world.parameters()), torch.device("cpu"))

    @torch.inference_mode()
    def begin(self, obs: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """As `Actor.begin`."""
        self._rng = generator("agent", *seeds, device=self.device)
        self.policy.begin(len(obs), seeds)
        self.state = self.world.dynamics.start(self._latent(obs), rng=self._rng)
        return self._act()

    @torch.inference_mode()
    def step(self, obs: np.ndarray) -> np.ndarray:
        """As `Actor.step`."""
        self.state = self.world.dynamics.observe(self.state, self.action, self._latent(obs), rng=self._rng)
        return self._act()

    @torch.inference_mode()
    def keep(self, index: np.ndarray) -> None:
        """As `Actor.keep`."""
        rows = torch.as_tensor(index, device=self.device)
        self.policy.keep(rows)
        self.state, self.action = take(self.state, rows), self.action.index_select(0, rows)

    def _act(self) -> np.ndarray:
        view = look(self.world, self.policy.controller, self.state)
        check_finite(view)
        self.action = self.policy.act(view)
        return self.action.cpu().numpy()

    def _latent(self, obs: np.ndarray) -> Tensor:
        frames = torch.from_numpy(np.ascontiguousarray(obs)).to(self.device)
        with autocast(self.precision, self.device):
            code = self.eyes.encode(frames)
        return self.world.draw(code, sample=self.sample, rng=self._rng)


def check_finite(view: Tensor) -> None:
    """Raise `UserError` if a view holds NaN or infinity."""
    if not bool(torch.isfinite(view).all()):
        raise UserError(
            "the dynamics model produced features that are not finite; train it again (wmrl train-dynamics)"
        )
