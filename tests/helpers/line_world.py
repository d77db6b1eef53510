"""A dream of a point on a line: an action moves it, the nearer to zero the more reward, beyond 1.4 the episode ends."""

import torch
from torch import Tensor, nn

from wmrl.spec import Actions, Step
from wmrl.world import WorldModel


class Line(nn.Module):
    """A dynamics model whose only parameter is how far an action moves."""

    feature_shape = (1,)
    actions = Actions(1, False)

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def imagine(self, state: Tensor, action: Tensor, *, rng: torch.Generator, temperature: float = 1.0) -> Step:
        x = state + self.gain * action + 0.02 * torch.empty_like(state).normal_(generator=rng)
        return Step(x, 1 - x.abs().sum(-1), (x.abs() < 1.4).float().prod(-1))

    def features(self, state: Tensor) -> Tensor:
        return state


def world() -> WorldModel:
    return WorldModel(nn.Identity(), Line())


def starts(rows: int = 64) -> Tensor:
    return torch.linspace(-1, 1, rows)[:, None]


def distance(world: WorldModel, controller: nn.Module, steps: int = 6) -> float:
    """How far from zero the point is, on average, after some steps by the modes of the controller's policy."""
    x, rng = starts(), torch.Generator().manual_seed(9)
    with torch.no_grad():
        for _ in range(steps):
            x = world.imagine(x, controller.act(x, ())[0], rng).state
    return float(x.abs().mean())
