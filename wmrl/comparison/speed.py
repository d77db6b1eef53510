"""How fast models learn, dream and walk: measured here and now, all in turns, so that the machine's noise meets all."""

import copy
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wmrl import interrupts, optimizers
from wmrl.comparison.measures import Tick
from wmrl.comparison.subjects import Subject
from wmrl.seeding import generator
from wmrl.spec import Batch, State, take

TRAIN_ROWS, DREAM_ROWS, AWAKE_ROWS, AWAKE_STEPS = 64, 1024, 64, 200
"""Windows in a batch of training at most; dreams together; rows together with open eyes, and for how many steps."""
ROUNDS = 5
SECONDS = 0.5
"""How long a training or a dream is measured in each round, at least; one step of each is always made."""
NAMES = ("train", "dream", "awake")

Rates = dict[str, float]


def measure(subjects: Sequence[Subject], device: str, tick: Tick) -> list[Rates]:
    """The best rates of each model, of the dynamics alone: `train` windows/s, `dream` and `awake` steps/s.

    The best, for other work on the machine only slows. Training is in float32, on batches as the model was trained on,
    of 64 windows at most. Dreams begin where 200 steps with open eyes have filled whatever memory there is.

    Args:
        subjects: The models.
        device: Where they compute.
        tick: Called after each measurement.
    """
    found: list[dict[str, list[float]]] = [{name: [] for name in NAMES} for _ in subjects]
    for _ in range(ROUNDS):
        for subject, rates in zip(subjects, found, strict=True):
            if not subject.parameters:  # a guess is no model: its speed says nothing
                continue
            rates["train"].append(_train(subject, device))
            awake, state = _awake(subject, device)
            rates["awake"].append(awake)
            rates["dream"].append(_dream(subject, state, device))
            tick()
    return [{name: max(values) for name, values in rates.items() if values} for rates in found]


def _train(subject: Subject, device: str) -> float:
    """Windows/s of gradient steps on a copy, on noise: what the numbers are costs nothing."""
    dynamics = copy.deepcopy(subject.world.dynamics).requires_grad_(True).train()
    parameters = list(dynamics.parameters())
    optimizer = optimizers.make(parameters, subject.fit)
    rows, steps, rng = min(TRAIN_ROWS, subject.fit.batch), subject.length, generator("speed", device=device)
    flat = torch.zeros(rows, steps, device=device)
    action = torch.zeros(rows, steps, _actions(subject), device=device)
    batch = Batch(None, action, flat, flat, torch.ones_like(flat))
    latent_shape = subject.world.representation.latent.shape
    latent = _latent(subject, rows, device)[:, None].expand(-1, steps + 1, *latent_shape)

    def step() -> int:
        optimizer.zero_grad(set_to_none=True)
        dynamics.loss(latent, batch, rng=rng)[0].backward()
        optimizers.clip(parameters, subject.fit.clip)
        optimizer.step()
        return rows

    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator
        step()
        return _rate(step, device)


@torch.inference_mode()
def _awake(subject: Subject, device: str) -> tuple[float, State]:
    """Steps/s with open eyes, and the state that they end in."""
    dynamics, rng = subject.world.dynamics, generator("speed", device=device)
    latent = _latent(subject, AWAKE_ROWS, device)
    action = torch.zeros(AWAKE_ROWS, _actions(subject), device=device)
    state = dynamics.start(latent, rng=rng)
    began = time.perf_counter()
    for _ in range(AWAKE_STEPS):
        interrupts.check()
        state = dynamics.observe(state, action, latent, rng=rng)
    _settle(device)
    return AWAKE_ROWS * AWAKE_STEPS / (time.perf_counter() - began), state


@torch.inference_mode()
def _dream(subject: Subject, state: State, device: str) -> float:
    """Steps/s with closed eyes, from `state` on, its rows repeated."""
    dynamics, rng = subject.world.dynamics, generator("speed", device=device)
    state = take(state, torch.arange(DREAM_ROWS, device=device) % AWAKE_ROWS)
    action = torch.zeros(DREAM_ROWS, _actions(subject), device=device)

    def step() -> int:
        nonlocal state
        state = dynamics.imagine(state, action, rng=rng, temperature=1.0).state
        return DREAM_ROWS

    step()
    return _rate(step, device)


def _rate(step: Callable[[], int], device: str) -> float:
    _settle(device)
    done, began = 0, time.perf_counter()
    while not done or time.perf_counter() - began < SECONDS:
        interrupts.check()
        done += step()
        _settle(device)
    return done / (time.perf_counter() - began)


def _settle(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _actions(subject: Subject) -> int:
    return int(subject.sees[-1].size)


def _latent(subject: Subject, rows: int, device: str) -> Tensor:
    """Latents (rows, *Z) to compute with: what they are changes no time."""
    space = subject.world.representation.latent
    if space.vocab is not None:
        return torch.zeros(rows, *space.shape, dtype=torch.long, device=device)
    return torch.ones(rows, *space.shape, device=device)
