"""What logdirs tell of themselves: how the model learnt, and what its controller scores, tested and in its dreams."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from wmrl import artifact, config, seeding
from wmrl.comparison.measures import How
from wmrl.comparison.subjects import Subject
from wmrl.curves import Curve, collect
from wmrl.data.episodes import Episodes
from wmrl.dream import Dream, Dreamer, first_codes
from wmrl.errors import ContractError, UserError
from wmrl.evaluation import Score, scores_in
from wmrl.log import Log
from wmrl.rollout import Policy, play
from wmrl.stages.subject import moved
from wmrl.store import Store, follow
from wmrl.trainers import TRAINERS

DREAMS = 64
"""Dreams that a controller is scored in."""


def check(found: Iterable[Subject]) -> None:
    """Read what the controllers are and scored, so that damage is told before the work.

    Raises:
        ArtifactError: if a test or a controller is damaged.
    """
    for store in (subject.store for subject in found if subject.store is not None):
        for name in ("test", "controller"):
            if store.exists(name):
                artifact.read(store.path(name), name)


def real(subject: Subject, log: Log) -> Score | None:
    """The score in `test.h5`; None if there is none, or it is one of other parts than are there now.

    Raises:
        ArtifactError: if the test is damaged.
    """
    store = subject.store
    if store is None or not store.exists("test"):
        return None
    made = artifact.read(store.path("test"), "test")
    if others := moved(made, store.logdir):
        log.warn(f"{store.path('test')} was made with another {' and another '.join(others)}: its score is left out")
        return None
    return next(iter(scores_in(made).values()))


def learning(store: Store) -> Curve | None:
    """Nats per dimension on a model's own validation windows against gradient steps; None where nothing is noted.

    The trainings of an iterated model, which are noted as `train-dynamics-2` and so on, follow each other.

    Raises:
        ArtifactError: if its metrics cannot be read.
    """
    found, stage, number = collect(follow(store.logdir, "dynamics")[0].parent), "train-dynamics", 1
    steps: list[float] = []
    values: list[float] = []
    while curve := found.get(f"{stage}: eval/nll"):
        before = steps[-1] if steps else 0
        steps += [before + step for step in curve[0]]
        values += curve[1]
        number += 1
        stage = f"train-dynamics-{number}"
    return (steps, values) if steps else None


def protocols(scores: Mapping[str, Score]) -> str:
    """What has to be said if scores, by the models' names, are of different protocols; "" if they are not."""
    if len({score.protocol.hash for score in scores.values()}) < 2:
        return ""
    names = ", ".join(f"{name} {score.protocol.id}" for name, score in scores.items())
    return f"returns in the real environment are of different protocols, and do not compare: {names}"


def dreamt(subject: Subject, episodes: Episodes, how: How, log: Log) -> np.ndarray | None:
    """Returns (64,) of the stored controller in dreams, as its trainer would dream them.

    One that is infinite if the dream diverges; None if there is no controller, or one of other parts than are there
    now.

    Raises:
        ArtifactError: if the controller is damaged.
        Stopped: if a signal asked for it.
    """
    store = subject.store
    if store is None or not store.exists("controller"):
        return None
    try:
        world, controller, _ = store.agent(how.device)
    except ContractError as error:
        log.warn(f"{error}: its dreams are left out")
        return None
    trainer = config.resolved(TRAINERS, store.pipe.trainer, "trainer")
    names = {"temperature": "temperature", "ends": "ends", "dream_steps": "max_steps"}
    settings: dict[str, Any] = {"max_steps": int(episodes.lengths.max())}  # no real episode is longer
    settings |= {mine: trainer[its] for its, mine in names.items() if its in trainer}
    bank = first_codes(world, episodes, torch.device(how.device))
    dream = Dream(world, controller, bank, **settings)
    seeds = [seeding.number(how.seed, "compare", "dreams", i) for i in range(DREAMS)]
    try:
        return play(dream, Dreamer(Policy(controller), how.device), seeds).returns
    except UserError:  # features that are not finite
        return np.array([np.inf])
