"""Dreams as observations: how far they are from the real ones, how like real frames, and strips of both."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wmrl import interrupts
from wmrl.comparison.heldout import HORIZONS, HeldOut, blocks, tensor
from wmrl.comparison.measures import SHOWN, Dreams
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


class Apart(NamedTuple):
    """How far dreamt observations are from real ones; where the episode has ended it means nothing."""

    error: np.ndarray  # (K, S) squared, mean over all numbers
    alike: np.ndarray | None  # (K, S) SSIM; None where observations are no pictures


@torch.inference_mode()
def apart(world: WorldModel, held: HeldOut, found: Dreams, step: int) -> Apart:
    """Hold what was dreamt against what was there, after `step` steps; after none, what is shown with open eyes.

    Args:
        world: Its representation decodes.
        held: The windows.
        found: The dreams in them, S from each; after no step there is one state for all.
        step: One of those whose latents were kept.
    """
    real, z = unit(held.frames(np.arange(len(held.window)), step)), found.dreamt[step]
    samples, pictures = z.shape[1], comparable(held.episodes.observation)
    errors, alike, shape = [], [], z.shape[:2]
    for rows in blocks(len(z), max(1, BLOCK // samples)):
        interrupts.check()
        shown, truth = decoded(world, z[rows].flatten(0, 1)), real[rows].repeat(samples, 0)
        errors.append(np.square(shown - truth).reshape(len(truth), -1).mean(1))
        if pictures:
            alike.append(likeness(shown, truth))
    return Apart(np.concatenate(errors).reshape(shape), np.concatenate(alike).reshape(shape) if pictures else None)


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
    """The first dream of window `row` at the same moments; the first picture is of the state that it begins in."""
    latents = torch.stack([found.dreamt[step][row, 0] for step in moments(held)])
    return grid([np.nan_to_num(decoded(world, latents))])


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
    """Frames (n, C, H, W) in 0..1 of latents (n, *Z), or vectors (n, V)."""
    device = next((p.device for p in world.parameters()), torch.device("cpu"))
    shown = world.representation.decode(latent.to(device)).float()
    return (shown if shown.ndim == 2 else shown.clamp(0, 1)).cpu().numpy()


def unit(frames: np.ndarray) -> np.ndarray:
    """Real frames as float in 0..1, vectors in their own units."""
    return frames.astype(np.float32) / (255 if frames.dtype == np.uint8 else 1)


def _seen(world: WorldModel, frames: np.ndarray) -> Tensor:
    device = next((p.device for p in world.parameters()), torch.device("cpu"))
    return world.draw(world.encode(tensor(frames, str(device))), sample=False)
