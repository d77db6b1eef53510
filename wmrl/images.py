"""Pictures made of frames."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

GAP = 2
"""Pixels between the frames of a grid."""


def picture(frame: Tensor | np.ndarray) -> np.ndarray:
    """A frame as a picture, whatever its channels.

    Args:
        frame: (C, H, W), uint8 or float in 0..1 or bool; C 3 is RGB, 1 is grey, others are summed up by their maximum.

    Returns:
        (H, W, 3) uint8.
    """
    array = frame.detach().float().cpu().numpy() if isinstance(frame, Tensor) else np.asarray(frame)
    is_bytes = frame.dtype in (torch.uint8, np.uint8)
    array = array if is_bytes else array.astype(np.float32).clip(0, 1) * 255
    array = np.rint(array).astype(np.uint8)
    if len(array) != 3:
        array = np.repeat(array.max(0, keepdims=True), 3, 0)
    return np.ascontiguousarray(array.transpose(1, 2, 0))


def grid(rows: Sequence[Sequence[Tensor | np.ndarray] | Tensor | np.ndarray]) -> np.ndarray:
    """Frames in rows and columns, with gaps between.

    Args:
        rows: Rows of frames (C, H, W) of one size; a row may be shorter than others.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    pictures = [[picture(frame) for frame in row] for row in rows]
    height, width = pictures[0][0].shape[:2]
    columns = max(len(row) for row in pictures)
    sheet = np.full((len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for r, row in enumerate(pictures):
        for c, each in enumerate(row):
            top, left = r * (height + GAP), c * (width + GAP)
            sheet[top : top + height, left : left + width] = each
    return sheet
