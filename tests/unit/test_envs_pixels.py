"""The one resize function against a brute-force mean over areas; layouts of observed images."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wmrl.envs.pixels import layout, resize, rgb


def weights(big, small):
    """How much of each input cell each output cell covers: (small, big), rows sum to one."""
    edges = np.arange(small + 1) * big / small
    cells = np.arange(big)
    low = np.maximum(edges[:-1, None], cells)
    high = np.minimum(edges[1:, None], cells + 1)
    return np.clip(high - low, 0, None) * small / big


def brute(frame, size):
    height, width = frame.shape[:2]
    down, across = weights(height, size), weights(width, size)
    return np.stack([down @ frame[..., c].astype(float) @ across.T for c in range(3)])


SIDE = st.integers(1, 130)


@settings(max_examples=80, deadline=None)
@given(SIDE, SIDE, st.integers(1, 96), st.integers(0, 2**32 - 1), st.booleans())
@example(96, 96, 64, 0, False)
@example(84, 96, 64, 0, False)
@example(84, 84, 64, 0, True)
@example(210, 160, 64, 0, False)
@example(40, 100, 64, 1, True)
@example(100, 40, 64, 1, True)
@example(10, 10, 64, 2, True)
@example(1, 38, 42, 0, False)
@example(400, 600, 64, 3, False)
def test_resize_is_the_mean_of_areas(height, width, size, seed, extreme):
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if extreme:
        frame = np.where(frame > 127, 255, 0).astype(np.uint8)
    got = resize(frame[None], size)
    assert got.shape == (1, 3, size, size) and got.dtype == np.uint8
    assert np.abs(got[0] - brute(frame, size)).max() <= 1.0


def test_resize_crops_the_bottom_and_knows_no_neighbours():
    frames = np.random.default_rng(0).integers(0, 256, (5, 96, 96, 3), dtype=np.uint8)
    cut = resize(frames, 64, 12)
    assert (cut == resize(np.ascontiguousarray(frames[:, :84]), 64)).all()
    assert (cut != resize(frames, 64)).any()
    assert all((resize(frames[i : i + 1], 64, 12)[0] == cut[i]).all() for i in range(5))
    out = np.zeros((5, 3, 64, 64), np.uint8)
    assert resize(frames, 64, 12, out=out) is out and (out == cut).all()


def test_resize_leaves_a_frame_of_the_right_size_alone():
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    assert (resize(frames, 64) == frames.transpose(0, 3, 1, 2)).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "order"),
    [
        ((96, 96, 3), np.uint8, "hwc"),
        ((96, 96, 1), np.uint8, "hwc"),
        ((3, 64, 80), np.uint8, "chw"),
        ((210, 160), np.uint8, "hw"),
        ((128,), np.uint8, None),
        ((10, 10, 3), np.uint8, None),
        ((96, 96, 3), np.float32, None),
        ((4, 84, 84), np.uint8, None),
    ],
)
def test_layout(shape, dtype, order):
    assert layout(shape, np.dtype(dtype)) == order


def test_rgb():
    grey = np.arange(600, dtype=np.uint8).reshape(1, 20, 30)
    assert (rgb(grey, "hw") == np.stack([grey] * 3, -1)).all()
    assert (rgb(grey[..., None], "hwc") == np.stack([grey] * 3, -1)).all()
    colours = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    assert rgb(colours, "hwc").base is not None and (rgb(colours, "hwc") == colours).all()
    assert (rgb(colours.transpose(0, 3, 1, 2), "chw") == colours).all()
