"""Sheets of pictures: frames in rows and columns."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from wmrl.video import picture

GAP = 2
"""Pixels between the frames of a grid."""


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
