"""Dreams as pictures: how like the real frames they are, and strips of both to look at."""

import numpy as np
import torch
from torch import Tensor

from wmrl import interrupts
from wmrl.comparison.heldout import HORIZONS, HeldOut, blocks, tensor
from wmrl.comparison.measures import SHOWN, Dreams, Tick
from wmrl.images import grid
from wmrl.spec import Space
from wmrl.world import WorldModel

BLOCK = 256
"""Frames that are decoded together."""
SIDE = 7
"""Side of the squares that are compared: no picture may be smaller."""


def comparable(frames: Space) -> bool:
    """Whether observations are pictures whose likeness can be measured."""
    return frames.vocab is None and len(frames.shape) == 3 and min(frames.shape[1:]) >= SIDE


def horizons(held: HeldOut) -> list[int]:
    """The horizons that the windows reach."""
    return [h for h in HORIZONS if h <= held.horizon]


def likeness(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM (n,) of pictures (n, C, H, W) in 0..1: 1 where they are equal.

    Source: Wang et al. 2004, as scikit-image computes it, in squares of 7 x 7 pixels, channel by channel.
    """
    from skimage.metrics import structural_similarity

    pairs = zip(a, b, strict=True)
    return np.array([structural_similarity(x, y, win_size=SIDE, channel_axis=0, data_range=1.0) for x, y in pairs])


@torch.inference_mode()
def similarity(world: WorldModel, held: HeldOut, found: Dreams, tick: Tick) -> np.ndarray:
    """SSIM (K, S, horizons) of dreamt and real frames; where the episode has ended it means nothing.

    Args:
        world: Its representation decodes.
        held: The windows.
        found: The dreams in them.
        tick: Called after each horizon.
    """
    columns = []
    for h in horizons(held):
        real, z = unit(held.frames(np.arange(len(held.window)), h)), found.dreamt[h]
        samples = z.shape[1]
        pairs = []
        for rows in blocks(len(z), max(1, BLOCK // samples)):
            interrupts.check()
            shown = decoded(world, z[rows].flatten(0, 1))
            pairs.append(likeness(shown, real[rows].repeat(samples, 0)))
        columns.append(np.concatenate(pairs).reshape(len(z), samples))
        tick()
    return np.stack(columns, -1)


@torch.inference_mode()
def ceiling(world: WorldModel, held: HeldOut) -> np.ndarray:
    """SSIM (K,) of the real frames when the dreams begin and what the representation makes of them: dreams' limit."""
    frames = held.frames(np.arange(len(held.window)), 0)
    shown = [decoded(world, _seen(world, frames[rows])) for rows in blocks(len(frames), BLOCK)]
    return likeness(np.concatenate(shown), unit(frames))


@torch.inference_mode()
def real_strip(held: HeldOut, row: int) -> np.ndarray:
    """Real frames of window `row`, from the beginning of the dream on, beside each other: (height, width, 3) uint8."""
    return grid([[held.frames(np.array([row]), step)[0] for step in moments(held)]])


@torch.inference_mode()
def seen_strip(world: WorldModel, held: HeldOut, row: int) -> np.ndarray:
    """The same frames as the representation sees them."""
    frames = np.concatenate([held.frames(np.array([row]), step) for step in moments(held)])
    return grid([decoded(world, _seen(world, frames))])


@torch.inference_mode()
def dream_strip(world: WorldModel, held: HeldOut, found: Dreams, row: int) -> np.ndarray:
    """The first dream of window `row` at the same moments; the first picture is the last that was seen."""
    first = decoded(world, _seen(world, held.frames(np.array([row]), 0)))
    latents = torch.stack([found.dreamt[step][row, 0] for step in moments(held)[1:]])
    return grid([[*first, *np.nan_to_num(decoded(world, latents))]])


def moments(held: HeldOut) -> list[int]:
    """Steps of a dream that strips show."""
    return [0, *(step for step in SHOWN if step <= held.horizon)]


def shown_windows(held: HeldOut) -> list[int]:
    """The windows of strips: those, of two episodes, whose real frames change most from first to last moment."""
    ends = held.first + held.warmup + moments(held)[-1] <= held.lengths[held.window]
    rows = np.flatnonzero(ends)
    if not len(rows):
        return []
    change = np.abs(unit(held.frames(rows, moments(held)[-1])) - unit(held.frames(rows, 0))).mean((1, 2, 3))
    rows = rows[np.argsort(-change, kind="stable")]
    _, most = np.unique(held.window[rows], return_index=True)  # of each episode the first: the one that changes most
    return [int(row) for row in rows[np.sort(most)][:2]]


def decoded(world: WorldModel, latent: Tensor) -> np.ndarray:
    """Frames (n, C, H, W) in 0..1 of latents (n, *Z)."""
    device = next((p.device for p in world.parameters()), torch.device("cpu"))
    return world.representation.decode(latent.to(device)).float().clamp(0, 1).cpu().numpy()


def unit(frames: np.ndarray) -> np.ndarray:
    """Real frames as float in 0..1."""
    return frames.astype(np.float32) / (255 if frames.dtype == np.uint8 else 1)


def _seen(world: WorldModel, frames: np.ndarray) -> Tensor:
    device = next((p.device for p in world.parameters()), torch.device("cpu"))
    return world.draw(world.encode(tensor(frames, str(device))), sample=False)
