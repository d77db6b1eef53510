"""Do frames follow actions by one row? Found from the lag at which frame changes answer surprising actions.

An action of a random policy is news: nothing before it can depend on it. So of all lags between the news in action[t]
and the change from obs[t + k] to obs[t + k + 1], the first with a correlation is the true one: 0 if rows are aligned.
News is what remains of an action after a regression on the one before (brownian actions hardly differ from those).
"""

import numpy as np

LAGS = (-2, -1, 0, 1, 2)
QUIET = tuple(range(-14, -4))
"""Lags so early that nothing can correlate there: what chance looks like."""
SIGNIFICANT = 12.0
"""Standard deviations above chance. CarRacing, brownian, one episode of 1,000 steps: 20 to 70 at lag 0, 4 before."""
DOMINANT = 1.5
SKIP = 50
"""First steps left out: CarRacing zooms in."""
GRID = 8
LEAST_STEPS = 400
"""News needs company: below so many steps nothing is said."""


class Alignment:
    """Accumulates correlations over episodes; `best()` says which lag it is."""

    def __init__(self) -> None:
        self._sums: dict[int, np.ndarray] = {}
        self._steps = 0

    def add(self, obs: np.ndarray, action: np.ndarray) -> None:
        """Take an episode: obs (T + 1, ...) numbers, action (T + 1, A)."""
        skip = SKIP if len(obs) > 4 * SKIP else 0
        change = _scaled(np.diff(_features(obs), axis=0))[skip:]
        news = _scaled(_news(action[:-1]))[skip:]
        steps = len(news)
        if steps < 2 * -min(QUIET):
            return
        for lag in (*QUIET, *LAGS):
            ours, theirs = (news[: steps - lag], change[lag:]) if lag >= 0 else (news[-lag:], change[: steps + lag])
            self._sums[lag] = self._sums.get(lag, 0.0) + ours.T @ theirs
        self._steps += steps

    def scores(self) -> dict[int, float] | None:
        """Lag -> standard deviations above chance; None if there is too little to say anything."""
        if self._steps < LEAST_STEPS:
            return None
        power = {lag: float((total**2).mean()) / self._steps for lag, total in self._sums.items()}
        chance = np.array([power[lag] for lag in QUIET])
        spread = max(float(chance.std()), 0.05 * float(chance.mean()), 1e-12)
        return {lag: (power[lag] - float(chance.mean())) / spread for lag in LAGS}

    def best(self) -> int | None:
        """The lag of the frames behind where they should be; None if no lag stands out."""
        scores = self.scores()
        if scores is None:
            return None
        best = max(scores, key=lambda lag: scores[lag])
        others = max(score for lag, score in scores.items() if lag != best)
        return best if scores[best] > max(SIGNIFICANT, DOMINANT * others) else None


def _features(obs: np.ndarray) -> np.ndarray:
    """Frames (T + 1, C, H, W) as means over a grid of about 8 x 8; vectors as they are: (T + 1, F) float32."""
    if obs.ndim != 4:
        return obs.reshape(len(obs), -1).astype(np.float32)
    rows, columns = (max(1, side // GRID) for side in obs.shape[2:])
    high, wide = obs.shape[2] // rows, obs.shape[3] // columns
    cut = obs[:, :, : high * rows, : wide * columns]
    tiles = cut.reshape(*obs.shape[:2], high, rows, wide, columns)
    return tiles.mean((3, 5), dtype=np.float32).reshape(len(obs), -1)


def _news(action: np.ndarray) -> np.ndarray:
    centred = action - action.mean(0)
    before, now = centred[:-1], centred[1:]
    slope = (before * now).sum(0) / np.maximum((before**2).sum(0), 1e-9)
    return np.concatenate([np.zeros_like(action[:1]), now - slope * before])


def _scaled(values: np.ndarray) -> np.ndarray:
    """Unit variance, outliers clipped, mean zero; constant columns stay zero."""
    values = values - values.mean(0)
    values = np.clip(values / np.maximum(values.std(0), 1e-6), -3, 3)
    centred: np.ndarray = values - values.mean(0)
    return centred
