"""The gradients that dreamt rewards send to an actor, against the steps that they come back through.

Ma et al. 2024 ("Do Transformer World Models Give Better Policy Gradients?") bound them: through a chain of states they
may grow exponentially with the horizon, recurrent or not, and polynomially through the attention of a transformer that
reads actions alone. Here they are measured as trainers take them (`wmrl.trainers.imagine`): in dreams at temperature
1, by an actor that sees detached features.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from wmrl import interrupts, seeding
from wmrl.comparison.heldout import HeldOut
from wmrl.comparison.measures import How
from wmrl.config import build
from wmrl.controllers import CONTROLLERS
from wmrl.data.codes import Codes
from wmrl.spec import Actions, State
from wmrl.world import WorldModel

HORIZONS = (1, 2, 5, 10, 20, 35, 50)
STARTS = 64
"""Windows, at most, in which a dream begins where the warm-up ends."""
ROWS = 16
"""Dreams that are in one graph: memory bounds them."""
NAMES = ("actor_mean", "actor_last", "action_mean", "action_last")
"""Of the actor's parameters or of the first action; of the mean of all rewards so far or of the last one alone."""
ACTOR = {"kind": "mlp", "layers": 2, "units": 128}
"""The actor of all models: fresh, of one form, and with the same noise."""


def norms(world: WorldModel, held: HeldOut, codes: Codes, how: How) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
    """Norms of gradients of what N dreams give, and (N,) in which held-out episode each begins.

    Args:
        world: The world model.
        held: The windows; those that end before their warm-up does are left out.
        codes: The held-out episodes, encoded.
        how: Seed and device.

    Returns:
        Of each of `NAMES` the norms (N, horizons), one dream each; None if no gradient reaches an action.
    """
    if len(getattr(world.dynamics, "feature_shape", ())) != 1:
        return None  # nothing that an actor could see
    actions = held.episodes.actions
    actor = fresh_actor(world.feature_shape, actions, how)
    stride = -(-len(held.window) // STARTS)
    found: list[dict[str, Tensor]] = []
    for i, begin in enumerate(range(0, len(held.window), ROWS * stride)):
        rows = slice(begin, begin + ROWS * stride, stride)
        state = _warm(world, held, codes, rows, how, i)
        dreams = Dreams(world, actor, state, (how.rng("gradient", i), how.rng("gradient actor", i)))
        if not dreams.differentiable:
            return None
        found.append(dreams.norms())
        how.tick()
    chosen = slice(None, None, stride)
    whole = (held.first + held.warmup <= held.lengths[held.window])[chosen]
    together = {name: torch.cat([part[name] for part in found]).cpu().numpy()[whole] for name in NAMES}
    return together, held.window[chosen][whole]


def fresh_actor(shape: tuple[int, ...], actions: Actions, how: How) -> Any:
    """An untrained actor for features of this shape, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.number(how.seed, "compare", "actor"))
        return build(CONTROLLERS, ACTOR, "controller", shape, actions).to(how.device)


@torch.no_grad()
def _warm(world: WorldModel, held: HeldOut, codes: Codes, rows: slice, how: How, number: int) -> State:
    """The states in which the warm-up of some windows ends."""
    batch = held.windows(codes, rows).to(how.device)
    assert batch.code is not None
    latent, rng = world.draw(batch.code[:, : held.warmup + 1], sample=False), how.rng("gradient warm-up", number)
    state = world.dynamics.start(latent[:, 0], rng=rng)
    for t in range(held.warmup):
        interrupts.check()
        state = world.dynamics.observe(state, batch.action[:, t], latent[:, t + 1], rng=rng)
    return state


class Dreams:
    """Dreams of an actor in one graph, to the longest horizon; no dream ends before.

    Args:
        world: The world model.
        actor: An `mlp` controller.
        state: Where the N dreams begin.
        rngs: Sources of the world's noise and of the actor's.
    """

    def __init__(self, world: WorldModel, actor: Any, state: State, rngs: tuple[torch.Generator, torch.Generator]):
        self.actor = actor
        self.views: list[Tensor] = []  # (N, F) each, one for each step
        self.outputs: list[Tensor] = []  # (N, O) of the actor's network
        self.rewards: list[Tensor] = []  # (N,)
        hook = actor.net.register_forward_hook(lambda *call: self.outputs.append(call[-1]))
        with hook, torch.enable_grad():
            for _ in range(HORIZONS[-1]):
                interrupts.check()
                self.views.append(world.features(state).detach().float())
                policy, _ = actor.policy(self.views[-1], ())
                action = policy.sample(rngs[1])
                if len(self.views) == 1:
                    self.first = action
                state, reward, _ = world.imagine(state, action.clamp(-1, 1), rngs[0])
                self.rewards.append(reward.float())

    @property
    def differentiable(self) -> bool:
        """Whether any reward has a gradient."""
        return any(reward.requires_grad for reward in self.rewards)

    def norms(self) -> dict[str, Tensor]:
        """(N, horizons) of each of `NAMES`."""
        found: dict[str, list[Tensor]] = {name: [] for name in NAMES}
        for h in HORIZONS:
            interrupts.check()
            for what, reward in (("mean", torch.stack(self.rewards[:h]).mean(0)), ("last", self.rewards[h - 1])):
                outputs, action = self._pull(reward, h)
                found[f"actor_{what}"].append(self._through_actor(outputs))
                found[f"action_{what}"].append(action.norm(dim=-1))
        return {name: torch.stack(columns, 1) for name, columns in found.items()}

    def _pull(self, reward: Tensor, h: int) -> tuple[Tensor, Tensor]:
        """Gradients of rewards (N,) at the network's first outputs (h, N, O) and the first action (N, A)."""
        at = [*self.outputs[:h], self.first]
        if not reward.requires_grad:
            *outputs, action = [torch.zeros_like(x) for x in at]
        else:
            *outputs, action = torch.autograd.grad(reward.sum(), at, retain_graph=True, materialize_grads=True)
        return torch.stack(outputs), action

    def _through_actor(self, outputs: Tensor) -> Tensor:
        """Norms (N,) of the parameters' gradients, of each dream its own, from those of the outputs (h, N, O)."""
        net = self.actor.net
        weights = {name: weight.detach() for name, weight in net.named_parameters()}

        def pulled(weights: dict[str, Tensor], views: Tensor, outputs: Tensor) -> Tensor:
            return (functional_call(net, weights, (views,)) * outputs).sum()

        each = vmap(grad(pulled), in_dims=(None, 1, 1))(weights, torch.stack(self.views[: len(outputs)]), outputs)
        return torch.stack([g.flatten(1).square().sum(1) for g in each.values()]).sum(0).sqrt()
