"""TD3 on dreams: deterministic actions, a pool of critics, targets of a few dreamt steps."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wmrl.errors import ConfigError
from wmrl.limits import at_least, shares
from wmrl.nn.policies import Normal
from wmrl.optimizers import Descent, descend
from wmrl.spec import Metrics, State, take
from wmrl.trainers.critic import Critic, follow, slow_copy
from wmrl.trainers.dreaming import Offline
from wmrl.trainers.imagine import Imagined, imagine
from wmrl.trainers.learner import Kept, Parts
from wmrl.trainers.returns import average, step_weights
from wmrl.world import WorldModel


@dataclass(frozen=True, kw_only=True)
class TD3(Offline):
    """Twin delayed deterministic policy gradient on dreams that begin at the states of replayed windows.

    An update dreams once, with noise on the policy's modes, and draws minibatches from the dreamt transitions. All
    critics of a pool regress to targets of n steps, bootstrapped by the smaller of two slow critics that are drawn at
    random, at a slow copy's action with noise. Every few of these steps the controller climbs two critics that are
    drawn at random, and all slow copies follow. No gradient goes through the world model. The controller's deviation is
    not trained: act by mode, or set it with `controller.init_std`. For continuous actions.
    Source: Fujimoto et al. 2018; the pool Chen et al. 2021 (REDQ); on dreams mauicv/world-model-rl, whose numbers these
    are where it has one. The other keywords are those of `Offline`.

    Args:
        horizon: Steps of a dream.
        discount: Of rewards, per step.
        n_steps: Dreamt steps in a target; fewer at the end of a dream.
        critics: Size of the pool.
        minibatches: Minibatches in an update.
        transitions: Dreamt transitions in each.
        exploration: Deviation of the noise on dreamt actions. Source: Fujimoto et al. 2018.
        smoothing: Deviation of the noise on the target's actions.
        smoothing_clip: The largest such noise.
        delay: Minibatches from one step of the controller to the next. Source: Fujimoto et al. 2018.
        slow_fraction: How far slow copies move at each step of the controller.
        critic_layers: Hidden layers of each critic.
        critic_units: Units of each, with layer norm and Mish.
        actor_learning_rate: Of Adam.
        critic_learning_rate: Of Adam.
        clip: Longest gradient, of the controller and of the pool; 0 clips nothing.

    Raises:
        ValueError: if a number makes no sense.
    """

    horizon: int = 15
    discount: float = 0.98
    n_steps: int = 1
    critics: int = 2
    minibatches: int = 16
    transitions: int = 256
    exploration: float = 0.1
    smoothing: float = 0.2
    smoothing_clip: float = 0.5
    delay: int = 2
    slow_fraction: float = 5e-3
    critic_layers: int = 3
    critic_units: int = 512
    actor_learning_rate: float = 3e-4
    critic_learning_rate: float = 3e-4
    clip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, horizon=self.horizon, n_steps=self.n_steps, delay=self.delay, transitions=self.transitions)
        at_least(2, critics=self.critics)
        at_least(self.delay, minibatches=self.minibatches)  # each update has steps of both
        shares(discount=self.discount, slow_fraction=self.slow_fraction)
        at_least(0, exploration=self.exploration, smoothing=self.smoothing, smoothing_clip=self.smoothing_clip)

    def learner(self, controller: Any, shape: tuple[int, ...], device: torch.device) -> "Learner":
        """What takes the steps; see `wmrl.trainers.learner`.

        Raises:
            ConfigError: if actions are discrete.
        """
        if controller.actions.discrete:
            raise ConfigError(
                f"trainer.kind: 'td3' is for continuous actions, and there are {controller.actions.size} discrete "
                "ones; take 'ppo' or 'actor-critic'"
            )
        return Learner(self, controller, shape, device)


class Rows(NamedTuple):
    """M dreamt transitions of up to n steps."""

    view: Tensor  # (M, F)
    action: Tensor  # (M, A) in [-1, 1]
    total: Tensor  # (M,) rewards on the way
    left: Tensor  # (M,) how much the value of `after` counts
    after: Tensor  # (M, F) where they lead
    weight: Tensor  # (M,)


class Learner(Kept):
    """Controller, a pool of critics, slow copies of both, and the optimisers of the first two.

    Args:
        how: The options.
        controller: What is improved, in place.
        shape: Of its view.
        device: Where it is.
    """

    def __init__(self, how: TD3, controller: Any, shape: tuple[int, ...], device: torch.device) -> None:
        self.how, self.controller = how, controller.requires_grad_(True)
        inputs = (*shape[:-1], shape[-1] + controller.actions.size)
        self.pool: Any = nn.ModuleList(_critic(inputs, how) for _ in range(how.critics)).to(device)
        self.slow_controller, self.slow_pool = slow_copy(controller), slow_copy(self.pool)
        self.actor_step = Descent(controller.parameters(), how.actor_learning_rate, how.clip)
        self.critic_step = Descent(self.pool.parameters(), how.critic_learning_rate, how.clip)
        self.steps = 0
        networks = {"controller": controller, "slow_controller": self.slow_controller}
        networks |= {"pool": self.pool, "slow_pool": self.slow_pool}
        self.parts: Parts = {**networks, "actor_step": self.actor_step, "critic_step": self.critic_step}

    def update(self, world: WorldModel, starts: State, weight: Tensor, *, rng: torch.Generator) -> Metrics:
        """As `wmrl.trainers.learner.Learner`."""
        how = self.how
        with torch.no_grad():
            explorer = Explorer(self.controller, how.exploration)
            dream = imagine(world, explorer, starts, how.horizon, rng=rng, through=False)
            dreamt = self.rows(dream, weight)
        torch.clear_autocast_cache()  # older torch keeps weights that were cast without gradients (its issue 112583)
        seen: dict[str, list[Tensor]] = {}
        for _ in range(how.minibatches):
            index = torch.randint(len(dreamt.view), (how.transitions,), generator=rng, device=rng.device)
            rows = take(dreamt, index)
            found = self._learn_values(rows, rng)
            self.steps += 1
            if self.steps % how.delay == 0:
                found |= self._improve(rows, rng)
            for name, x in found.items():
                seen.setdefault(name, []).append(x)
        metrics = {f"losses/{name}": torch.stack(each).mean() for name, each in seen.items()}
        shown = {"reward": dream.reward, "cont": dream.cont}
        return metrics | {f"dream/{name}": average(x.flatten(), dreamt.weight) for name, x in shown.items()}

    @torch.no_grad()
    def rows(self, dream: Imagined, weight: Tensor) -> Rows:
        """N dreams of H steps as M = H N transitions; `weight` (N,) as in `update`."""
        horizon = len(dream.reward)
        total, left = n_steps(dream.reward, self.how.discount * dream.cont, self.how.n_steps)
        later = (torch.arange(horizon, device=total.device) + self.how.n_steps).clamp(max=horizon)
        after, weights = dream.views[later], step_weights(weight, dream.cont)
        columns = (dream.views[:-1], dream.actions.clamp(-1, 1), total, left, after, weights)
        return Rows(*(x.flatten(0, 1) for x in columns))

    @torch.no_grad()
    def targets(self, rows: Rows, rng: torch.Generator) -> Tensor:
        """What the critics are to say of each row, (M,)."""
        action = _mode(self.slow_controller, rows.after)
        noise = self.how.smoothing * torch.empty_like(action).normal_(generator=rng)
        action = (action + noise.clamp(-self.how.smoothing_clip, self.how.smoothing_clip)).clamp(-1, 1)
        return rows.total + rows.left * self._two(self.slow_pool, rows.after, action, rng).amin(0)

    def _learn_values(self, rows: Rows, rng: torch.Generator) -> Metrics:
        target, seen = self.targets(rows, rng), torch.cat([rows.view, rows.action], -1)
        errors = torch.stack([average(critic.loss(critic.output(seen), target), rows.weight) for critic in self.pool])
        (norm,) = descend(errors.sum(), self.critic_step)
        return {"critic": errors.detach().mean(), "target": average(target, rows.weight), "critic_gradient_norm": norm}

    def _improve(self, rows: Rows, rng: torch.Generator) -> Metrics:
        values = self._two(self.pool, rows.view, _mode(self.controller, rows.view), rng).mean(0)
        loss = -average(values, rows.weight)
        (norm,) = descend(loss, self.actor_step)
        follow(self.slow_pool, self.pool, self.how.slow_fraction)
        follow(self.slow_controller, self.controller, self.how.slow_fraction)
        return {"actor": loss.detach(), "actor_gradient_norm": norm}

    def _two(self, pool: Any, view: Tensor, action: Tensor, rng: torch.Generator) -> Tensor:
        """What two critics of the pool, drawn at random, say of actions: (2, M)."""
        drawn = range(2) if len(pool) == 2 else torch.randperm(len(pool), generator=rng, device=rng.device)[:2].tolist()
        seen = torch.cat([view, action], -1)
        return torch.stack([pool[k](seen) for k in drawn])

    def state(self) -> dict[str, Any]:
        """As `wmrl.trainers.learner.Learner`."""
        return {**super().state(), "steps": self.steps}

    def restore(self, tree: dict[str, Any]) -> None:
        """As `wmrl.trainers.learner.Learner`."""
        super().restore(tree)
        self.steps = int(tree["steps"])


class Explorer:
    """A controller that acts by the modes of its policy and noise.

    Args:
        controller: With a policy over continuous actions.
        noise: The standard deviation.
    """

    def __init__(self, controller: Any, noise: float) -> None:
        self.controller, self.noise = controller, noise
        self.actions, self.looks_at, self.initial = controller.actions, controller.looks_at, controller.initial

    def policy(self, view: Tensor, memory: State) -> tuple[Normal, State]:
        """As that of the controller."""
        policy, memory = self.controller.policy(view, memory)
        mode = policy.mode()
        return Normal(mode, torch.full_like(mode, self.noise)), memory


def n_steps(reward: Tensor, cont: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """What the next n steps of each row bring, and how much of what follows counts.

    With m = min(h + n, H), where the dream ends:

        total[h] = reward[h] + cont[h] reward[h + 1] + ... + cont[h] ... cont[m - 2] reward[m - 1]
        left[h] = cont[h] ... cont[m - 1]

    reward[h] and cont[h] belong to state h + 1, so total[h] + left[h] V(state m) is a target for state h.

    Args:
        reward: (H, N).
        cont: (H, N), discount times the chance that the episode goes on.
        n: Steps, at least 1.

    Returns:
        total and left, (H, N).
    """
    horizon, total, left = len(reward), torch.zeros_like(reward), torch.ones_like(cont)
    for k in range(min(n, horizon)):
        total[: horizon - k] += left[: horizon - k] * reward[k:]
        left[: horizon - k] *= cont[k:]
    return total, left


def _mode(controller: Any, view: Tensor) -> Tensor:
    policy, _ = controller.policy(view, controller.initial(len(view)))
    mode: Tensor = policy.mode()
    return mode


def _critic(shape: tuple[int, ...], how: TD3) -> Critic:
    """A critic that begins near zero, so that its first errors do not push the controller into a corner."""
    critic = Critic(
        shape, kind="gaussian", layers=how.critic_layers, units=how.critic_units, activation="mish", norm="layer"
    )
    last: Any = critic.net[-1]
    nn.init.uniform_(last.weight, -3e-3, 3e-3)
    nn.init.uniform_(last.bias, -3e-4, 3e-4)
    return critic
