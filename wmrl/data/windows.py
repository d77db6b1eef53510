"""Batches of random windows, prefetched by a thread."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import torch

from wmrl import seeding
from wmrl.spec import Batch

T = TypeVar("T")


class Source(Protocol):
    """Rows of episodes: `Episodes`, or cached codes of them."""

    @property
    def lengths(self) -> np.ndarray:
        """(E,) steps of each episode."""

    @property
    def start(self) -> np.ndarray:
        """(E + 1,) the first row of each; an episode of T steps has T + 1 rows."""

    def gather(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The rows (B, L) of each column."""


def windows(
    source: Source,
    batch: int,
    length: int,
    *,
    key: tuple[seeding.Word, ...],
    start: int = 0,
    episodes: np.ndarray | None = None,
    crossing: bool = False,
) -> Iterator[Batch]:
    """Endless random batches; every step of every episode is equally likely to begin a window.

    Windows stay within one episode: behind its end the last row is repeated, and the mask is 0. Crossing ones go on in
    the next of the chosen episodes instead (`Batch.first`): any T + 1 rows in succession are equally likely, and only
    where there are fewer rows than that, the last one is repeated.

    Args:
        source: Where rows come from. Of one that grows, call again after each change.
        batch: B, windows in a batch.
        length: T, steps in a window; it has T + 1 observations. 0 gives single frames.
        key: What randomness depends on: batch k is a function of (key, k) and the source alone.
        start: The first k.
        episodes: Numbers of the episodes to draw from, in this order; all if left out.
        crossing: Whether windows go on in the next episode.

    Yields:
        Batches with `obs` and `code` as far as the source has them.

    Raises:
        ValueError: if there is no step to begin a window at.
    """
    chosen = np.arange(len(source.lengths)) if episodes is None else np.asarray(episodes)
    lengths = source.lengths[chosen]
    if not lengths.sum():
        raise ValueError("there are no steps to draw windows from")
    draw = _crossing if crossing else _inside
    return _endless(draw(source, chosen, np.cumsum(lengths + crossing), length), batch, key, start)


_Draw = Callable[[np.random.Generator, int], Batch]


def _endless(draw: _Draw, batch: int, key: tuple[seeding.Word, ...], k: int) -> Iterator[Batch]:
    while True:
        yield draw(seeding.rng(*key, k), batch)
        k += 1


def _inside(source: Source, chosen: np.ndarray, ends: np.ndarray, length: int) -> _Draw:
    def draw(rng: np.random.Generator, batch: int) -> Batch:
        draws = rng.integers(ends[-1], size=batch)
        at = np.searchsorted(ends, draws, "right")
        episode = chosen[at]
        return cut(source, episode, draws - ends[at] + source.lengths[episode], length)

    return draw


def _crossing(source: Source, chosen: np.ndarray, ends: np.ndarray, length: int) -> _Draw:
    def draw(rng: np.random.Generator, batch: int) -> Batch:
        first = rng.integers(max(int(ends[-1]) - length, 1), size=batch)
        return _cut_crossing(source, chosen, ends, first, length)

    return draw


def cut(source: Source, episode: np.ndarray, first: np.ndarray, length: int) -> Batch:
    """The windows that begin at step `first` (B,) of the episodes `episode` (B,).

    Args:
        source: Where rows come from.
        episode: Numbers of episodes.
        first: Steps, from 0 on.
        length: T.
    """
    steps = first[:, None] + np.arange(length + 1)  # (B, T + 1)
    last = source.lengths[episode][:, None]
    rows = source.start[episode][:, None] + np.minimum(steps, last)
    return _batch(source.gather(rows), (steps < last)[:, :length])


def _cut_crossing(source: Source, chosen: np.ndarray, ends: np.ndarray, first: np.ndarray, length: int) -> Batch:
    """The windows that begin at row `first` (B,) of the chosen episodes laid end to end, whose rows end at `ends`."""
    rows = first[:, None] + np.arange(length + 1)  # (B, T + 1)
    real = rows < ends[-1]
    rows = np.minimum(rows, ends[-1] - 1)
    at = np.searchsorted(ends, rows, "right")
    last = rows == ends[at] - 1
    begins = np.zeros_like(real)
    begins[:, 1:] = last[:, :-1] & real[:, 1:]
    columns = source.gather(source.start[chosen[at] + 1] - ends[at] + rows)
    return _batch(columns, real[:, 1:] & ~last[:, :-1], begins)


def _batch(columns: dict[str, np.ndarray], mask: np.ndarray, first: np.ndarray | None = None) -> Batch:
    """Rows (B, T + 1) and the mask (B, T) of their steps as a batch; `first` (B, T + 1) where windows cross."""
    length = mask.shape[1]
    return Batch(
        obs=_tensor(columns, "obs"),
        action=torch.from_numpy(columns["action"])[:, :length].float(),
        reward=torch.from_numpy(columns["reward"])[:, :length].float(),
        terminated=torch.from_numpy(columns["terminated"])[:, :length].float(),
        mask=torch.from_numpy(mask).float(),
        code=_tensor(columns, "code"),
        first=None if first is None else torch.from_numpy(first).float(),
    )


def _tensor(columns: dict[str, np.ndarray], name: str) -> torch.Tensor | None:
    return torch.from_numpy(columns[name]) if name in columns else None


class prefetch(Generic[T]):
    """Run an iterator in a background thread, a few items ahead; a context manager.

    Its exceptions are raised in the caller, in their place in the order. Closing it (or dropping it) ends the thread.

    Args:
        iterator: What to run ahead.
        depth: Items at most that wait.
    """

    def __init__(self, iterator: Iterator[T], depth: int = 2):
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=_fill, args=(iterator, self._queue, self._closed), daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._over or self._closed.is_set():
            raise StopIteration
        item, error = self._queue.get()
        if error is not None:
            self._over = True
            raise error
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """End the thread; what it made ahead is dropped."""
        self._closed.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._thread.join(timeout=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._closed.set()


def _fill(iterator: Iterator[T], into: queue.Queue, closed: threading.Event) -> None:
    """The thread: a function that does not hold the prefetcher, so that dropping it ends the thread."""
    try:
        for item in iterator:
            if not _put(into, (item, None), closed):
                return
        _put(into, (None, StopIteration()), closed)
    except BaseException as error:  # noqa: BLE001  raised again in the caller
        _put(into, (None, error), closed)


def _put(into: queue.Queue, item: tuple, closed: threading.Event) -> bool:
    while not closed.is_set():
        try:
            into.put(item, timeout=0.2)
            return True
        except queue.Full:
            continue
    return False
