"""Frames: which observations are images, and the one function that makes them small."""

import functools

import cv2
import numpy as np

# Measured: a second thread gains nothing at 96 x 96 nor 400 x 600; it would fight the environments.
cv2.setNumThreads(1)

SMALLEST = 16
"""A uint8 array with fewer rows or columns is a board, not an image."""

SIDE = 160
"""Height and width of pictures of observations that no environment renders, pixels."""


def layout(shape: tuple[int, ...], dtype: np.dtype) -> str | None:
    """How an observation of this shape holds an image: "hwc", "chw", "hw" (grey), or None if it holds none."""
    if dtype != np.uint8:
        return None
    order = None
    if len(shape) == 2:
        order = "hw"
    elif len(shape) == 3 and shape[2] in (1, 3):
        order = "hwc"
    elif len(shape) == 3 and shape[0] in (1, 3):
        order = "chw"
    return order if order and min(image_size(shape, order)) >= SMALLEST else None


def image_size(shape: tuple[int, ...], order: str) -> tuple[int, int]:
    """Height and width of an image of this layout, pixels."""
    height = shape[order.index("h")]
    return height, shape[order.index("w")]


def rgb(images: np.ndarray, order: str) -> np.ndarray:
    """Images (n, ...) of a layout as (n, H, W, 3); grey ones are repeated thrice."""
    if order == "chw":
        images = images.transpose(0, 2, 3, 1)
    elif order == "hw":
        images = images[..., None]
    return np.broadcast_to(images, (*images.shape[:3], 3))


def resize(frames: np.ndarray, size: int, crop: int = 0, *, out: np.ndarray | None = None) -> np.ndarray:
    """Square frames, channels first, each pixel the mean of the area that it covers.

    Args:
        frames: (n, H, W, 3) uint8.
        size: Side of the result, pixels.
        crop: Rows cut off at the bottom first.
        out: (n, 3, size, size) uint8 to write into, instead of a new array.

    Returns:
        (n, 3, size, size) uint8; a frame's result does not depend on its neighbours.
    """
    if out is None:
        out = np.empty((len(frames), 3, size, size), np.uint8)
    rows = frames.shape[1] - crop
    for i, frame in enumerate(frames):
        out[i] = _area(frame[:rows], size).transpose(2, 0, 1)
    return out


def _area(frame: np.ndarray, size: int) -> np.ndarray:
    height, width = frame.shape[:2]
    if min(height, width) >= size:
        return cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA)
    # OpenCV weighs areas only where both axes shrink: where one grows it interpolates, at some sizes from wrong pixels.
    small = np.einsum("ij,jkc,lk->ilc", _weights(height, size), frame.astype(np.float32), _weights(width, size))
    return np.rint(small).astype(np.uint8)


@functools.lru_cache(maxsize=16)
def _weights(old: int, new: int) -> np.ndarray:
    """(new, old): the share of each old pixel in each new one."""
    edges = np.arange(new + 1) * (old / new)
    begins, ends = edges[:-1, None], edges[1:, None]
    pixel = np.arange(old)
    covered = np.minimum(ends, pixel + 1) - np.maximum(begins, pixel)
    return (covered.clip(0) * (new / old)).astype(np.float32)
