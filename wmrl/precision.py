"""Which arithmetic is faster here: float32, or bfloat16 under autocast where it is safe."""

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

Choice = Literal["fp32", "bf16"]

GAIN = 0.9
"""bfloat16 is taken where it needs less than this share of float32's time."""


def autocast(choice: str, device: torch.device | str) -> AbstractContextManager:
    """The context in which a model computes: bfloat16 where `choice` is "bf16", else float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=choice == "bf16")


def working(x: Tensor) -> torch.dtype:
    """What products of `x` are computed in: that of autocast where it is on, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def lowered(module: nn.Module, choice: str) -> nn.Module:
    """What infers the same as `module` under `autocast(choice)`, without casting its weights anew at each call.

    Args:
        module: Frozen; it is not changed.
        choice: "fp32" gives `module` itself; "bf16" a copy whose convolutions and linear layers hold bfloat16.
    """
    if choice != "bf16":
        return module
    module = copy.deepcopy(module)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.to(torch.bfloat16)
        if isinstance(part, nn.Conv2d):
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)
    return module


def choose(work: Callable[[], object], device: torch.device | str, *, repeats: int = 3) -> tuple[Choice, str]:
    """Measure `work` in both precisions, in turns.

    Args:
        work: What is to be fast: one step, or one encoding. It is called a few times in either precision.
        device: Where it computes.
        repeats: Measurements of each, after one to warm up.

    Returns:
        The faster precision, and what was measured, in words.
    """
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return "fp32", "this GPU has no bfloat16"
    times: dict[Choice, list[float]] = {"fp32": [], "bf16": []}
    choices: tuple[Choice, ...] = ("fp32", "bf16")
    try:
        for _ in range(repeats + 1):
            for choice in choices:
                times[choice].append(_timed(work, choice, device))
    except RuntimeError as error:
        if "bf16" not in str(error).lower() and "bfloat16" not in str(error).lower():
            raise
        return "fp32", f"bfloat16 does not work here: {error}"
    slow, fast = (1e3 * min(times[choice][1:]) for choice in choices)  # other work on the machine only adds
    return ("bf16" if fast < GAIN * slow else "fp32"), f"fp32 {slow:.1f} ms, bf16 {fast:.1f} ms"


def for_training(module: nn.Module, loss: Callable[[], Tensor], device: torch.device | str) -> tuple[Choice, str]:
    """The faster precision for a forward and a backward pass of `loss`; `module` stays as it was.

    Returns:
        As `choose`.
    """
    before = {key: value.clone() for key, value in module.state_dict().items()}

    def work() -> None:
        total = loss()
        with torch.autocast(torch.device(device).type, enabled=False):
            total.backward()

    module.train()
    choice = choose(work, device)
    for parameter in module.parameters():
        parameter.grad = None
    module.load_state_dict(before)
    return choice


def _timed(work: Callable[[], object], choice: Choice, device: torch.device) -> float:
    began = time.perf_counter()
    with autocast(choice, device):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
