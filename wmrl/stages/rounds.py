"""The iterations of a run: which are over and with what, and which one is under way."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from wmrl import config
from wmrl.artifact import Artifact
from wmrl.evaluation import Protocol, Score
from wmrl.iteration import Iterate
from wmrl.pipeline import Pipeline
from wmrl.stages import states
from wmrl.store import Store

NAME = "iterate"
COLUMNS = ("returns", "lengths", "terminated")


@dataclass
class Round:
    """One iteration.

    Args:
        number: From 1.
        settings: The `[iterate]` table that it was begun with.
        episodes: That the dataset holds at its end.
        stage: The stage under way; "" when all are over. What follows is known then.
        global_step: Environment steps that the trainer of C has made, in all iterations so far.
        hashes: Content hashes of "data", "vae", "dynamics" and "controller".
        losses: Validation losses of "vae" and "dynamics", as far as they are trained.
        score: The test episodes.
    """

    number: int
    settings: Iterate
    episodes: int
    stage: str = "generate"
    global_step: int = 0
    hashes: dict[str, str] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    score: Score | None = None

    @property
    def over(self) -> bool:
        """Whether nothing is left to do in it."""
        return not self.stage

    def tree(self) -> dict[str, Any]:
        """What to store."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        score = self.score and {
            "protocol": dataclasses.asdict(self.score.protocol),
            **{name: getattr(self.score, name) for name in COLUMNS},
        }
        return {**plain, "settings": config.plain(self.settings), "score": score}

    @classmethod
    def of_tree(cls, tree: dict[str, Any]) -> Self:
        """What was stored."""
        found = tree["score"]
        score = found and Score(Protocol(**found["protocol"]), *(found[name] for name in COLUMNS))
        return cls(**{**tree, "settings": Iterate(**tree["settings"]), "score": score})

    def record(self) -> dict[str, Any]:
        """The iteration in words and numbers, as JSON has it; the returns are apart."""
        assert self.score is not None
        of, losses = self.score.protocol, {f"{name}_loss": loss for name, loss in self.losses.items()}
        head = {"iteration": self.number, "episodes_of_data": self.episodes, "global_step": self.global_step, **losses}
        protocol = {"protocol": of.id, "protocol_hash": of.hash}
        return {**head, **protocol, **self.score.summary().record(), "hashes": self.hashes}


def read(logdir: Path) -> list[Round]:
    """The iterations of a logdir, in order; none if it was never iterated.

    Raises:
        ArtifactError: if what is kept of them is damaged.
    """
    tree = states.read(logdir / f"{NAME}.part.h5", NAME)
    return [Round.of_tree(each) for each in tree["rounds"]] if tree else []


def save(store: Store, rounds: Sequence[Round]) -> None:
    """Keep them, durably."""
    store.save_part(NAME, {"rounds": [each.tree() for each in rounds]})


def planned(pipe: Pipeline, rounds: Sequence[Round]) -> Pipeline:
    """The pipeline as the stages of the last iteration run it.

    Args:
        pipe: The run's pipeline, which is that of the first iteration.
        rounds: The iterations up to that one.
    """
    fits, trainer = pipe.fit, pipe.trainer
    for each in rounds[1:]:
        wanted = each.settings
        vae = dataclasses.replace(fits.vae, steps=wanted.vae_steps if wanted.train_vae else fits.vae.steps)
        fits = dataclasses.replace(
            fits, vae=vae, dynamics=dataclasses.replace(fits.dynamics, steps=wanted.dynamics_steps)
        )
        trainer = {**trainer, "generations": wanted.generations}
    return dataclasses.replace(pipe, fit=fits, trainer=trainer)


def left(rounds: Sequence[Round], pipe: Pipeline) -> bool:
    """Whether there is something to do until there are as many iterations as the pipeline asks for."""
    return len(rounds) < pipe.iterate.iterations or not rounds[-1].over


def words(rounds: Sequence[Round], pipe: Pipeline) -> str:
    """How far the iterations are, in words; "" if there are none."""
    if not rounds:
        return ""
    asked = max(pipe.iterate.iterations, len(rounds))
    if not rounds[-1].over:
        return f"iteration {rounds[-1].number} of {asked}, {rounds[-1].stage}"
    return f"{len(rounds)} of {asked} iterations"


def result(rounds: Sequence[Round]) -> Artifact:
    """All iterations as an artifact: every return, and the numbers about them."""
    scores = {str(each.number): each.score for each in rounds if each.score is not None}
    tensors = {f"{n}/{name}": np.asarray(getattr(score, name)) for n, score in scores.items() for name in COLUMNS}
    facts = {"iterations": [each.record() for each in rounds]}
    return Artifact(NAME, tensors=tensors, parents=rounds[-1].hashes, facts=facts)
