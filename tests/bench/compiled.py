"""Row q: whether `torch.compile` makes the dreams of MinAtar's agent faster: one step of the model as one kernel."""

import time
from collections.abc import Iterator

import torch
from dreamers import GRID, MINATAR, Parts
from seeds import alternate
from workbench import Bench, Row

from wmrl.trainers.learner import starts_of


def compiled(bench: Bench, wanted: str) -> Iterator[Row]:
    """Updates of the behaviour from the states of 50 x 50 steps, with a compiled step of the model and without."""
    count = bench.amount(6, 1)
    bench.note(f"MinAtar's agent: {count} updates of its behaviour with a compiled step and without, in turns")
    plain, fast = Parts(MINATAR, GRID, "bf16"), Parts(MINATAR, GRID, "bf16")
    fast.world.dynamics.imagine = torch.compile(fast.world.dynamics.imagine)
    batch = plain.batch(*((50, 50) if count > 1 else (10, 10)))
    states = [starts_of(batch, parts.learn(batch)) for parts in (plain, fast)]
    began = time.perf_counter()
    fast.improve(*states[1])
    first = time.perf_counter() - began
    took = alternate({"plain": lambda: plain.improve(*states[0]), "compiled": lambda: fast.improve(*states[1])}, count)
    detail = f"as it is {took['plain']:.2f} s, compiled {took['compiled']:.2f} s after {first:.0f} s of compiling; bf16"
    yield Row("q  dreams compiled, times the speed as they are", took["plain"] / took["compiled"], detail=detail)
