"""What was found: numbers with intervals, and which of them is best."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wmrl.comparison.endings import Bin
from wmrl.comparison.measures import Dreams
from wmrl.comparison.subjects import Subject
from wmrl.evaluation import Score
from wmrl.seeding import rng
from wmrl.stats import interval

RESAMPLES = 5000


@dataclass(frozen=True)
class Estimate:
    """A mean over episodes, with its 95 % bootstrap interval.

    Args:
        each: (E,) the number of each episode; NaN where it has none.
        value: The mean of the others.
        low: Lower end of the interval.
        high: Upper end of it.
    """

    each: np.ndarray
    value: float
    low: float
    high: float

    def record(self) -> dict[str, float]:
        """The same for JSON, without the episodes."""
        return {"value": self.value, "low": self.low, "high": self.high}


Number = Estimate | float | None


@dataclass
class Findings:
    """All that is known of one model.

    Args:
        subject: The model.
        numbers: By the keys of `table.sections`; None where a number means nothing here.
        curves: Name -> (x, y): `nats`, `training`, `latent`, `seen`, `ssim`, `reward`, those of `gradients.NAMES`.
        reliability: Predicted and true frequencies of an end.
        strips: Pictures (height, width, 3) uint8, one for each window that is shown.
        ends: How many ends the held-out episodes hold.
        slopes: Whether gradients of its rewards reach actions.
        diverged: Whether something that was measured is no finite number.
        score: Of its controller in the real environment.
        dreams: What it dreamt, until the frames have been compared.
    """

    subject: Subject
    numbers: dict[str, Number] = field(default_factory=dict)
    curves: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    reliability: list[Bin] = field(default_factory=list)
    strips: list[np.ndarray] = field(default_factory=list)
    ends: int = 0
    slopes: bool = False
    diverged: bool = False
    score: Score | None = None
    dreams: Dreams | None = None

    def put(self, key: str, each: np.ndarray) -> None:
        """Keep the mean of the episodes (E,) and its interval as a number."""
        self.numbers[key] = estimate(each)
        self.diverged |= bool(np.isinf(each).any())


@dataclass(frozen=True)
class Comparison:
    """The whole comparison.

    Args:
        models: The models first, then the baselines.
        about: What was compared on what, in words and numbers, for JSON.
        notes: What a reader has to know.
        moments: Steps that the strips show.
        real: Strips of the real frames, one for each window that is shown.
        seen: The same frames as the V sees them that latents are compared on; none if there is no V.
    """

    models: Sequence[Findings]
    about: dict[str, Any]
    notes: Sequence[str]
    moments: Sequence[int]
    real: Sequence[np.ndarray]
    seen: Sequence[np.ndarray]


def estimate(each: np.ndarray) -> Estimate | None:
    """The mean of the episodes that have a number (E,), and its interval; None if none has, or one is infinite."""
    there = each[~np.isnan(each)]
    if not len(there) or not np.isfinite(there).all():
        return None
    low, high = interval(there, resamples=RESAMPLES, key=("compare", "interval"))
    return Estimate(each, float(there.mean()), low, high)


def median(each: np.ndarray, episode: np.ndarray) -> Estimate | None:
    """The (lower) median of numbers of which some may be infinite, and its interval, whole episodes resampled.

    Args:
        each: (N,), not NaN.
        episode: (N,) of which episode each is.

    Returns:
        None if there is no number, or an infinite one would have to be told.
    """
    if not len(each):
        return None
    order = np.argsort(each, kind="stable")
    names, of = np.unique(episode[order], return_inverse=True)
    drawn = rng("compare", "median").multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    weight = np.concatenate([np.ones((1, len(names)), int), drawn])[:, of].cumsum(1)  # (1 + resamples, N)
    middle = each[order][(2 * weight >= weight[:, -1:]).argmax(1)]
    value, (low, high) = middle[0], np.percentile(middle[1:], [2.5, 97.5], method="nearest")
    if not np.isfinite([value, low, high]).all():
        return None
    return Estimate(np.empty(0), float(value), float(low), float(high))


def best(numbers: Sequence[Number], better: str) -> set[int]:
    """Which numbers are best, as far as intervals justify it: usually none or one.

    The best number must differ from every other by more than the 95 % interval of the differences between the same
    episodes; numbers equal to it in every episode are best with it.

    Args:
        numbers: One for each model; only estimates are judged.
        better: "lower", "higher" or "": nothing is best.
    """
    sign = {"lower": 1.0, "higher": -1.0}.get(better)
    there = {i: number for i, number in enumerate(numbers) if isinstance(number, Estimate)}
    if sign is None or len(there) < 2 or len({len(number.each) for number in there.values()}) > 1:
        return set()
    first = min(there, key=lambda i: sign * there[i].value)
    found = {first}
    for i, other in there.items():
        away = sign * (other.each - there[first].each)
        away = away[np.isfinite(away)]
        if not len(away):
            return set()
        if not away.any():
            found.add(i)
        elif interval(away, resamples=RESAMPLES, key=("compare", "best"))[0] <= 0:
            return set()
    return found if len(found) < len(there) else set()
