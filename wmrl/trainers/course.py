"""The course of an evolutionary search: all that is needed to continue it exactly, as arrays and numbers."""

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from wmrl.stats import iqm, told
from wmrl.trainers.grounds import Scores


@dataclass(frozen=True)
class Generation:
    """A finished generation."""

    number: int  # from 1
    steps: int  # environment steps of training so far
    seconds: float  # of search so far
    sigma: float  # step size after it
    fitness: np.ndarray  # (P,) mean return of each candidate


@dataclass(frozen=True)
class Check:
    """A validation of the distribution's mean, in one world."""

    generation: int
    steps: int
    seconds: float
    returns: np.ndarray  # (E,) on the fixed validation episodes

    @property
    def mean(self) -> float:
        """The mean return."""
        return float(self.returns.mean())

    @property
    def words(self) -> str:
        """Mean and deviation for people."""
        std = float(self.returns.std())
        return f"{told(self.mean, std)} +- {told(std, self.mean)}"

    def metrics(self, name: str, mean: str = "_mean") -> dict[str, float]:
        """The returns under `<name>_...`; the mean is called `<name><mean>`."""
        spread = {f"{name}_std": float(self.returns.std()), f"{name}_iqm": float(iqm(self.returns[:, None]))}
        return {f"{name}{mean}": self.mean, **spread}


@dataclass
class Course:
    """A search so far.

    Args:
        x0: (n,) where it began.
        mean: (n,) the distribution's mean after the last generation.
        best: (n,) the mean that validated best; x0 before the first validation that counts.
        best_return: Its mean validation return.
        steps: Environment (or dreamt) steps of all finished generations.
        seconds: Time spent searching, over all sessions.
        generations: The finished generations.
        checks: The validations, in the world that is searched in.
        awake: Those in the environment, of a search in dreams.
        kept: (generation, mean (n,)) snapshots.
        scores: Rollouts of the generation in progress.
        looking: Rollouts of the validation in progress.
    """

    x0: np.ndarray
    mean: np.ndarray
    best: np.ndarray
    best_return: float = -np.inf
    steps: int = 0
    seconds: float = 0.0
    generations: list[Generation] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    awake: list[Check] = field(default_factory=list)
    kept: list[tuple[int, np.ndarray]] = field(default_factory=list)
    scores: Scores | None = None
    looking: Scores | None = None

    @classmethod
    def begin(cls, x0: np.ndarray) -> Self:
        """A search that begins at x0."""
        return cls(x0, x0, x0)

    def judged(self, mean: np.ndarray, check: Check) -> None:
        """A validation that counts: its mean becomes the best if it is."""
        if check.mean > self.best_return:
            self.best, self.best_return = mean, check.mean

    def tree(self) -> dict[str, Any]:
        """The course as a tree of arrays and numbers."""
        return {
            "x0": self.x0,
            "mean": self.mean,
            "best": self.best,
            "best_return": float(self.best_return) if np.isfinite(self.best_return) else None,
            "steps": self.steps,
            "seconds": self.seconds,
            "fitness": _stack([g.fitness for g in self.generations]),
            "history": np.array([[g.number, g.steps, g.seconds, g.sigma] for g in self.generations]).reshape(-1, 4),
            **checks_tree("check", self.checks),
            **checks_tree("awake", self.awake),
            "kept": _stack([mean for _, mean in self.kept]),
            "kept_generations": np.array([k for k, _ in self.kept], np.int64),
            "scores": _scores(self.scores),
            "looking": _scores(self.looking),
        }

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> Self:
        """The course that `tree` was made from."""
        past = zip(tree["history"], tree["fitness"], strict=True)
        kept = zip(tree["kept_generations"], tree["kept"], strict=True)
        return cls(
            tree["x0"],
            tree["mean"],
            tree["best"],
            -np.inf if tree["best_return"] is None else tree["best_return"],
            int(tree["steps"]),
            float(tree["seconds"]),
            [Generation(int(h[0]), int(h[1]), float(h[2]), float(h[3]), f) for h, f in past],
            checks_of("check", tree),
            checks_of("awake", tree),
            [(int(k), mean) for k, mean in kept],
            tree["scores"] and Scores(**tree["scores"]),
            tree["looking"] and Scores(**tree["looking"]),
        )

    def facts(self, last: np.ndarray, judges: list[Check]) -> dict[str, Any]:
        """What an artifact keeps of the search.

        Args:
            last: (n,) the distribution's mean at the end.
            judges: The validations that decided which mean is the best: `checks` or `awake`.
        """
        fitness = _stack([g.fitness for g in self.generations])
        return {
            "history": {
                "generation": np.array([g.number for g in self.generations], np.int64),
                "steps": np.array([g.steps for g in self.generations], np.int64),
                "seconds": np.array([g.seconds for g in self.generations]),
                "mean": fitness.mean(1) if len(fitness) else np.zeros(0),
                "std": fitness.std(1) if len(fitness) else np.zeros(0),
                "best": fitness.max(1) if len(fitness) else np.zeros(0),
                "sigma": np.array([g.sigma for g in self.generations]),
            },
            "validation": _curve(self.checks),
            "awake": _curve(self.awake),
            "best": self._best(judges),
            "last": np.asarray(last),
            "kept": {
                "generation": np.array([k for k, _ in self.kept], np.int64),
                "means": _stack([m for _, m in self.kept]),
            },
            "steps": self.steps,
            "seconds": self.seconds,
        }

    def _best(self, judges: list[Check]) -> dict[str, Any]:
        """The best mean's generation, and what it returned in each world."""
        k = max(judges, key=lambda c: c.mean).generation if judges else 0
        found = {"return": self.best_return, "generation": k}
        both = {"dreamt": self.checks, "awake": self.awake} if self.awake else {}
        return found | {name: c.mean for name, checks in both.items() for c in checks if c.generation == k}


def checks_tree(name: str, checks: list[Check]) -> dict[str, np.ndarray]:
    """Validations as arrays, under `<name>s` and `<name>_history`."""
    history = np.array([[c.generation, c.steps, c.seconds] for c in checks]).reshape(-1, 3)
    return {f"{name}s": _stack([c.returns for c in checks]), f"{name}_history": history}


def checks_of(name: str, tree: dict[str, Any]) -> list[Check]:
    """The validations that `checks_tree` wrote."""
    if f"{name}_history" not in tree:  # a search that an earlier wmrl began
        return []
    seen = zip(tree[f"{name}_history"], tree[f"{name}s"], strict=True)
    return [Check(int(h[0]), int(h[1]), float(h[2]), returns) for h, returns in seen]


def _curve(checks: list[Check]) -> dict[str, np.ndarray]:
    return {
        "generation": np.array([c.generation for c in checks], np.int64),
        "steps": np.array([c.steps for c in checks], np.int64),
        "seconds": np.array([c.seconds for c in checks]),
        "returns": _stack([c.returns for c in checks]),
    }


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    return np.stack(rows) if rows else np.zeros((0, 0))


def _scores(scores: Scores | None) -> dict[str, np.ndarray] | None:
    return None if scores is None else {"returns": scores.returns, "steps": scores.steps}
