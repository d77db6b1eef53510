"""What train-controller keeps besides the trainer's own state, and how it goes on."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from wmrl import config, continuing
from wmrl.log import Log
from wmrl.pipeline import Pipeline
from wmrl.run import Run
from wmrl.seeding import number
from wmrl.store import Store
from wmrl.trainers import TRAINERS

NAME = "controller"


@dataclass
class Progress:
    """What the stage keeps besides the trainer's own state, and where both are kept.

    Args:
        store: The logdir.
        parents: Content hashes of what the controller is made from.
        trainer: The trainer's table, all defaults filled in.
        choices: What was decided at the first start and holds ever after, so that results stay the same.
        tree: The trainer's state, or None before its first save.
        step: Global step of the last row of metrics.
        complete: Whether the trainer came to its end.
        began: Global step at which the trainer began: more than 0 if it goes on, in a world that has changed since,
            from the controller that it made before.
    """

    store: Store
    parents: dict[str, str]
    trainer: dict[str, Any]
    choices: dict[str, Any]
    tree: dict[str, Any] | None = None
    step: int = 0
    complete: bool = False
    began: int = 0

    @classmethod
    def load(
        cls,
        store: Store,
        parents: dict[str, str],
        lineage: Sequence[str],
        choices: dict[str, Any],
        pipe: Pipeline,
        log: Log,
        run: Run,
    ) -> "Progress":
        """The state in the logdir, or a fresh one.

        Args:
            store: The logdir.
            parents: See the class.
            lineage: Hashes of the datasets that the present one grew from, itself last.
            choices: What a fresh one decides, as far as it is known at the start.
            pipe: The pipeline.
            log: Metrics after the state are dropped from it.
            run: The settings of this call.

        Raises:
            ContractError: if it was begun with other parents.
        """
        trainer = config.resolved(TRAINERS, pipe.trainer, "trainer")
        part = None if run.noreload else store.load_part(NAME)
        if part is None:
            there = store.exists(NAME) and not store.part(NAME).exists()
            complete = not run.noreload and there and _settled(store, parents, trainer)
            if not complete:
                log.rewind(-1)
            choices = {**choices, "torch_threads": torch.get_num_threads()}
            return cls(store, parents, trainer, choices, complete=complete)
        may_be = continuing.lineage(parents, run) | {"data": lineage}
        grown = continuing.grown(NAME, part["parents"], may_be)
        if grown == "data":
            log.say("episodes were added since the search began; they change where dreams begin, nothing else")
        log.rewind(part["step"])
        choices = part["choices"]
        if choices["environments"] > run.max_workers:
            log.warn(f"the search was begun with {choices['environments']} environments at once and keeps them")
        if "dreams" in choices:
            choices.setdefault("dream_lanes", 1)  # a search that an earlier wmrl began
        for name in ("precision", "arithmetic"):
            if name in choices:
                choices[name] = continuing.precision(NAME, choices[name], run.precision, log)
        if grown not in ("", "data"):
            log.say(f"{grown} has changed: a new search begins with the controller that the last one made")
            return cls(store, parents, trainer, choices, None, part["step"], began=part["step"])
        complete = part["complete"] and config.resolved(TRAINERS, part["trainer"], "trainer") == trainer
        return cls(store, parents, trainer, choices, part["tree"], part["step"], complete, part.get("began", 0))

    def seed(self, pipe: Pipeline) -> int:
        """From what the trainer draws: a search that goes on from another one plays other episodes."""
        return number(pipe.seed, "search", self.began) if self.began else pipe.seed

    def save(self, tree: dict[str, Any]) -> None:
        """Keep the trainer's state, durably."""
        self.tree = tree
        names = ("parents", "trainer", "choices", "tree", "step", "complete", "began")
        self.store.save_part(NAME, {name: getattr(self, name) for name in names})

    def finish(self, *, complete: bool) -> None:
        """Note that the artifact of this state is written."""
        self.complete = complete
        self.save(self.tree or {})

    @contextlib.contextmanager
    def threads(self) -> Iterator[None]:
        """Compute with the number of threads that the stage began with: rounding depends on it."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.choices["torch_threads"])
        try:
            yield
        finally:
            torch.set_num_threads(before)


def more(trainer: Mapping[str, Any]) -> str:
    """What continues a complete training of this trainer, in words."""
    ends = [key for key in ("generations", "steps", "target_return") if trainer.get(key) is not None]
    return f"a larger trainer.{' or '.join(ends)}"


def _settled(store: Store, parents: dict[str, str], trainer: dict[str, Any]) -> bool:
    """Whether nothing is left to do, though the training state is gone (the logdir was copied)."""
    made = store.load(NAME)
    before = config.resolved(TRAINERS, made.facts["trainer"], "trainer")  # an earlier wmrl had fewer keys
    if made.parents == parents and before == trainer:
        return True
    raise continuing.missing(store, NAME)
