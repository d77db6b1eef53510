"""How well the chance of an end is predicted: whether it ranks steps rightly, and whether it means what it says."""

from typing import NamedTuple

import numpy as np


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
