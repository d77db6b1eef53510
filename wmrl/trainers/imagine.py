"""Dreams to learn from: a policy acts in a world model, from many real states at once.

state      0         1         2   ...  H-1          H
view       v0 -a0->  v1 -a1->  v2  ...  vH-1 -aH-1-> vH     reward[h], cont[h]: of state h + 1, that saw action[h]
"""

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wmrl.precision import working
from wmrl.rollout import look
from wmrl.spec import State
from wmrl.world import WorldModel


class Imagined(NamedTuple):
    """N dreams of H steps; all float32 but the views, which are what products are computed in."""

    views: Tensor  # (H + 1, N, *view)
    actions: Tensor  # (H, N, A) as drawn: what leaves [-1, 1] was clipped for the world alone
    log_prob: Tensor  # (H, N) of the actions, which it takes as given; gradients reach the policy
    entropy: Tensor  # (H, N) of the policies
    reward: Tensor  # (H, N)
    cont: Tensor  # (H, N) in 0..1


def imagine(
    world: WorldModel,
    controller: Any,
    starts: State,
    horizon: int,
    *,
    rng: torch.Generator | None,
    through: bool,
) -> Imagined:
    """Dream H = `horizon` steps from N states, without episodes ending: `cont` tells what a step still counts.

    Args:
        world: The world model.
        controller: Has `policy(view, memory) -> (Policy, memory)`; it always sees detached views.
        starts: N states, detached.
        horizon: H.
        rng: Source of all noise.
        through: Whether the world is in the graph, from actions to all that they lead to. Else it is computed without
            gradients, and only `log_prob` and `entropy` have any.
    """
    graph = contextlib.nullcontext if through else torch.no_grad
    with graph():
        state, view = starts, _seen(world, controller, starts)
    memory = controller.initial(len(view))
    views, steps = [view], []
    for _ in range(horizon):
        policy, memory = controller.policy(view.detach(), memory)
        with graph():
            action = policy.sample(rng)
            taken = action if controller.actions.discrete else action.clamp(-1, 1)
            state, reward, cont = world.imagine(state, taken, rng=rng)
            view = _seen(world, controller, state)
        views.append(view)
        steps.append((action, policy.log_prob(action.detach()), policy.entropy(), reward.float(), cont.float()))
    return Imagined(torch.stack(views), *(torch.stack(column) for column in zip(*steps, strict=True)))


def _seen(world: WorldModel, controller: Any, state: State) -> Tensor:
    """The view of a state, cast once for all networks that read it."""
    view = look(world, controller, state)
    return view.to(working(view))
