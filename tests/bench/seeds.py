"""Row p: whether several seeds of a world model are learnt faster as one batch of models than one after the other.

What `torch.vmap` cannot take (the order of pixels in memory, weight gradients behind the loop) is left out on both
sides, and nothing is drawn.
"""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from dreamers import GRID, KINDS, Parts
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state
from workbench import Bench, Row, middle

from wmrl import pipeline
from wmrl.dynamics import rssm
from wmrl.nn.conv import ChannelsLast
from wmrl.spec import Batch

SEEDS = 4


class _Loss(nn.Module):
    """A world model's loss as a forward pass, for `torch.func`."""

    def __init__(self, dynamics: nn.Module, batch: Batch):
        super().__init__()
        self.dynamics, self.batch = dynamics, batch

    def forward(self, latent: Tensor) -> Tensor:
        """Observations (B, T + 1, *obs) -> the loss."""
        total: Tensor = self.dynamics.loss(latent, self.batch)[0]
        return total


def seeds(bench: Bench, wanted: str) -> Iterator[Row]:
    """Gradients of the quick MinAtar agent's world model, 16 x 32, in turns."""
    count = bench.amount(6, 1)
    bench.note(f"{SEEDS} seeds of MinAtar's world model: {count} gradients of each, in turns")
    parts = Parts(pipeline.load("minatar-breakout-dreamerv2-quick"), GRID)
    batch = parts.batch(16, 32)
    models = [_Loss(copy.deepcopy(parts.world.dynamics), batch) for _ in range(SEEDS)]
    latent = parts.world.latents(batch)
    weights, buffers = stack_module_state(models)  # type: ignore[arg-type]
    one = torch.vmap(grad(lambda w, b: functional_call(models[0], (w, b), (latent,))))

    def in_turn() -> None:
        for model in models:
            torch.autograd.grad(model(latent), list(model.parameters()))

    with (
        mock.patch.object(ChannelsLast, "forward", lambda self, x: x),
        mock.patch.object(rssm, "unrolled", lambda *args: contextlib.nullcontext()),
    ):
        took = alternate({"vmap": lambda: one(weights, buffers), "turn": in_turn}, count)
    detail = f"{SEEDS} gradients: in turn {took['turn']:.2f} s, under vmap {took['vmap']:.2f} s; {KINDS[0]}"
    yield Row("p  seeds under vmap, times the speed in turn", took["turn"] / took["vmap"], detail=detail)


def alternate(works: dict[str, Callable[[], object]], count: int) -> dict[str, float]:
    """Seconds of each, the middle of `count` after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(count + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - began)
    return {name: middle(each[1:]) for name, each in times.items()}
