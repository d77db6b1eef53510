"""How well the chance of an end is predicted: whether it ranks steps rightly, and whether it means what it says."""

from typing import Literal, NamedTuple

import numpy as np

from wmrl.seeding import rng

SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")
"""Below, and below or equal: ties count half."""


class Bin(NamedTuple):
    """Steps with about the same prediction."""

    predicted: float
    happened: float
    steps: int


def auc(chance: np.ndarray, ended: np.ndarray) -> float | None:
    """The probability that a step that ended the episode was given a higher chance than one that did not.

    The Mann-Whitney statistic; ties count half. None where nothing, or everything, ended.

    Args:
        chance: (N,) predicted.
        ended: (N,) bool.
    """
    from scipy.stats import mannwhitneyu

    ended = ended.astype(bool)
    if not ended.any() or ended.all():
        return None
    found = mannwhitneyu(chance[ended], chance[~ended], method="asymptotic").statistic
    return float(found) / (int(ended.sum()) * int((~ended).sum()))


def auc_interval(
    chance: np.ndarray, ended: np.ndarray, episode: np.ndarray, *, resamples: int = 5000
) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of `auc`, whole episodes resampled; None where nothing, or everything, ended.

    Resamples without an end, or with nothing else, have no area and are left out.

    Args:
        chance: (N,) predicted.
        ended: (N,) bool.
        episode: (N,) of which episode each step is.
        resamples: How often to resample.
    """
    ended, numbers = ended.astype(bool), np.unique(episode)
    if not ended.any() or ended.all():
        return None
    pairs = np.zeros((len(numbers), len(numbers)))  # in order, of ends of one episode and other steps of another
    quiet = [np.sort(chance[(episode == number) & ~ended]) for number in numbers]
    for i, number in enumerate(numbers):
        last = chance[(episode == number) & ended]
        pairs[i] = [sum(np.searchsorted(q, last, side).sum() / 2 for side in SIDES) for q in quiet] if len(last) else 0
    ends = np.array([ended[episode == number].sum() for number in numbers])
    others = np.array([len(q) for q in quiet])
    drawn = rng("compare", "auc").multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), resamples)
    count = (drawn @ ends) * (drawn @ others)
    area = ((drawn @ pairs) * drawn).sum(1)[count > 0] / count[count > 0]
    if not len(area):
        return None
    low, high = np.percentile(area, [2.5, 97.5])
    return float(low), float(high)


def reliability(chance: np.ndarray, ended: np.ndarray, bins: int = 10) -> list[Bin]:
    """What was predicted against what happened, in bins of about equally many steps; equal predictions stay together.

    Args:
        chance: (N,) predicted.
        ended: (N,) bool.
        bins: How many at most.
    """
    edges = np.quantile(chance, np.linspace(0, 1, bins + 1)[1:-1])
    where = np.searchsorted(edges, chance, "left")
    chosen = [where == i for i in np.unique(where)]
    return [Bin(float(chance[c].mean()), float(ended[c].mean()), int(c.sum())) for c in chosen]


def calibration_error(table: list[Bin]) -> float:
    """The mean distance between what was predicted and what happened, bins weighing as many steps as they hold.

    Source: the expected calibration error with bins of equal mass; Nixon et al. 2019, arXiv 1904.01685.
    """
    return sum(b.steps * abs(b.predicted - b.happened) for b in table) / max(1, sum(b.steps for b in table))
