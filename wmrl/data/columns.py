"""Columns of rows on disk: chunked along time, compressed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import h5py
import hdf5plugin
import numpy as np

if TYPE_CHECKING:
    from wmrl.data.shards import Episode

COLUMNS = ("obs", "action", "reward", "terminated", "truncated")
CHUNK_BYTES = 16 * 3 * 64 * 64
"""Observation chunks hold 16 to 64 rows, 16 of 64 x 64 RGB. Measured on CarRacing, one core, random reads:

    rows a chunk    8        16       32       64
    bytes a frame   433      403      377      365
    33-row windows  3,900/s  3,800/s  3,400/s  2,800/s
    single frames   24,000/s 13,500/s 9,600/s  5,200/s
"""


def put_columns(file: h5py.File, episodes: "Sequence[Episode]") -> None:
    """Store the rows of episodes one after the other, and where each of them begins."""
    lengths = np.array([len(e.reward) for e in episodes], np.int64)
    start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    for column in COLUMNS:
        parts = [getattr(e, column) for e in episodes]
        dataset = file.create_dataset(
            column,
            (int(start[-1]), *parts[0].shape[1:]),
            parts[0].dtype,
            chunks=_chunks(column, parts[0], int(start[-1])),
            **hdf5plugin.Zstd(clevel=3),
        )
        for a, part in zip(start, parts, strict=False):
            dataset[a : a + len(part)] = part
    file.create_dataset("start", data=start)
    file.create_dataset("seed", data=np.array([e.seed for e in episodes], np.int64))
    file.create_dataset("return", data=np.array([e.score for e in episodes], np.float64))


def _chunks(column: str, part: np.ndarray, rows: int) -> tuple[int, ...]:
    if column != "obs":
        return (min(rows, 4096), *part.shape[1:])
    return (min(rows, chunk_rows(part.shape[1:], part.dtype)), *part.shape[1:])


def chunk_rows(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Rows in a chunk of observations."""
    row = int(np.prod(shape)) * dtype.itemsize
    return int(np.clip(CHUNK_BYTES // max(row, 1), 16, 64))
