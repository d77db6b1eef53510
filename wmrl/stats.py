"""Numbers about scores: mean, standard deviation, interquartile mean, and bootstrap intervals.

Source of the interquartile mean and of stratified bootstrap intervals for RL scores: Agarwal et al., 2021,
"Deep Reinforcement Learning at the Edge of the Statistical Precipice".
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from wmrl.seeding import rng

Statistic = Callable[[np.ndarray], np.ndarray]
RESAMPLES = 20_000
BLOCK = 2_000_000  # numbers resampled at a time


@dataclass(frozen=True)
class Summary:
    """What a list of returns amounts to.

    Args:
        episodes: How many returns.
        mean: Their mean.
        std: Their standard deviation (of the sample itself, divided by n, as the papers print it).
        iqm: The mean of the middle half.
        low: Lower end of the 95 % bootstrap interval of the mean.
        high: Upper end of it.
        iqm_low: Lower end of the 95 % bootstrap interval of the interquartile mean.
        iqm_high: Upper end of it.
        least: The smallest return.
        most: The largest return.
    """

    episodes: int
    mean: float
    std: float
    iqm: float
    low: float
    high: float
    iqm_low: float
    iqm_high: float
    least: float
    most: float

    def record(self) -> dict[str, float]:
        """The same as a dict, for JSON."""
        return asdict(self)

    def words(self) -> list[str]:
        """Mean, deviation, interval of the mean, IQM, least and most, for a row of a table."""
        mean, std, low, high, iqm, least, most = (
            told(x, max(-self.least, self.most))
            for x in (self.mean, self.std, self.low, self.high, self.iqm, self.least, self.most)
        )
        return [mean, std, f"{low} to {high}", iqm, least, most]


def told(value: float, beside: float = 0.0) -> str:
    """A return for people: 737.7, but 0.94 if none `beside` it is larger: in some games all returns lie below 1."""
    return f"{value:.1f}" if max(abs(value), abs(beside)) >= 10 else f"{value:.2f}"


def mean(scores: np.ndarray) -> np.ndarray:
    """The mean over the last two axes: (*n, runs, tasks) -> (*n,)."""
    return scores.mean(axis=(-2, -1))


def iqm(scores: np.ndarray) -> np.ndarray:
    """The interquartile mean over the last two axes: (*n, runs, tasks) -> (*n,).

    A quarter of the numbers, rounded down, is cut off at each end, as scipy's `trim_mean` does.
    """
    flat = scores.reshape(*scores.shape[:-2], -1)
    size = flat.shape[-1]
    cut = size // 4
    if cut == 0:
        return flat.mean(axis=-1)
    ordered = np.partition(flat, (cut, size - cut - 1), axis=-1)
    return ordered[..., cut : size - cut].mean(axis=-1)


def interval(
    scores: np.ndarray,
    statistic: Statistic = mean,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    key: tuple[int | str, ...] = ("bootstrap",),
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic, runs resampled within each task.

    Args:
        scores: (runs,) or (runs, tasks).
        statistic: Maps (resamples, runs, tasks) to (resamples,): `mean` or `iqm`.
        confidence: The share of the bootstrap distribution that lies inside.
        resamples: How often to resample.
        key: Words that seed the resampling: the same words, the same interval.

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: if there is no score.
    """
    table = _table(scores)
    runs, tasks = table.shape
    draw, column = rng(*key), np.arange(tasks)
    block = max(1, BLOCK // table.size)
    parts = []
    for begin in range(0, resamples, block):
        index = draw.integers(0, runs, size=(min(block, resamples - begin), runs, tasks))
        parts.append(statistic(table[index, column]))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.concatenate(parts), [tail, 100 - tail])
    return float(low), float(high)


def summary(returns: np.ndarray) -> Summary:
    """All the numbers about returns (E,), with 95 % intervals.

    Raises:
        ValueError: if there is no return.
    """
    table = _table(returns)
    low, high = interval(table)
    iqm_low, iqm_high = interval(table, iqm)
    return Summary(
        episodes=table.size,
        mean=float(mean(table)),
        std=float(table.std()),
        iqm=float(iqm(table)),
        low=low,
        high=high,
        iqm_low=iqm_low,
        iqm_high=iqm_high,
        least=float(table.min()),
        most=float(table.max()),
    )


def _table(scores: np.ndarray) -> np.ndarray:
    table = np.asarray(scores, dtype=np.float64)
    if table.size == 0:
        raise ValueError("no scores to take statistics of")
    return table.reshape(len(table), -1)
