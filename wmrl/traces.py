"""Observations that are no pictures, made visible: their numbers as curves over time."""

from collections.abc import Sequence
from typing import overload

import cv2
import numpy as np

from wmrl.video import PAPER, hues

SIDE = 256  # of a picture, pixels
MARGIN = 6  # above and below the curves
FAINT = 0.3  # what is still to come, as a share of full brightness


class Traces(Sequence[np.ndarray]):
    """Picture t shows every number of a vector up to row t, and faintly what is to come.

    Args:
        values: (T + 1, n) the vectors.
        scale: (2, n) what lies at the bottom and at the top, for each number; from `scale_of`.
    """

    def __init__(self, values: np.ndarray, scale: np.ndarray) -> None:
        self._rows = len(values)
        low, high = scale
        share = np.nan_to_num((np.clip(values, low, high) - low) / np.maximum(high - low, 1e-6))  # (T + 1, n) in 0..1
        x = np.arange(self._rows) * (SIDE - 1) / max(self._rows - 1, 1)
        self._bright = np.full((SIDE, SIDE, 3), PAPER, np.uint8)
        for number, colour in enumerate(hues(values.shape[1])):
            y = MARGIN + (1 - share[:, number]) * (SIDE - 1 - 2 * MARGIN)
            points = np.rint(np.stack([x, y], 1)).astype(np.int32)
            cv2.polylines(self._bright, [points], False, (255 * colour).tolist(), 1, cv2.LINE_AA)
        paper = np.array(PAPER)
        self._faint = (paper + FAINT * (self._bright - paper)).astype(np.uint8)

    def __len__(self) -> int:
        return self._rows

    @overload
    def __getitem__(self, i: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, i: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        if isinstance(i, slice):
            return [self[t] for t in range(*i.indices(self._rows))]
        if not -self._rows <= i < self._rows:
            raise IndexError(i)
        at = round((i % self._rows) * (SIDE - 1) / max(self._rows - 1, 1)) + 1
        return np.concatenate([self._bright[:, :at], self._faint[:, at:]], 1)


def scale_of(values: np.ndarray) -> np.ndarray:
    """The least and the largest (2, n) of each number of vectors (T + 1, n), less what is not finite."""
    finite = np.where(np.isfinite(values), values, np.nan)
    return np.nan_to_num(np.stack([np.nanmin(finite, 0), np.nanmax(finite, 0)]))
