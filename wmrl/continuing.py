"""May a stored training state be continued here, and with what?"""

from collections.abc import Mapping, Sequence

import torch

from wmrl.errors import ArtifactError, ContractError
from wmrl.log import Log
from wmrl.store import Store

ALL = "all steps made"
"""Why a training ended that made all the steps it was asked for."""


def grown(name: str, stored: Mapping[str, str], parents: Mapping[str, Sequence[str]]) -> str:
    """The parent of a training that has grown since, or "".

    Args:
        name: What is trained, for messages.
        stored: The parents' content hashes when the training state was kept.
        parents: The hashes from which a training may be continued, the present one last.

    Raises:
        ContractError: if a parent is another one.
    """
    found = ""
    for key, hashes in parents.items():
        if stored.get(key) not in hashes:
            raise ContractError(f"the training of {name} was begun with another {key}; begin anew with --noreload")
        found = found if stored[key] == hashes[-1] else key
    return found


def settled(store: Store, name: str, steps: int, parents: Mapping[str, Sequence[str]]) -> bool:
    """Whether `name` is complete and nothing is left to do, though its training state is gone (the logdir was copied).

    Args:
        store: The logdir.
        name: The artifact.
        steps: Steps that are asked for.
        parents: As in `grown`.

    Raises:
        ArtifactError: if something is left to do, which cannot be done without the training state.
    """
    if not store.exists(name) or store.part(name).exists():
        return False
    made = store.load(name)
    if "fit" not in made.facts:
        return False
    fit = made.facts["fit"]
    done = fit["steps"] >= steps or (fit["complete"] and fit["ended"] != ALL)
    if done and all(made.parents.get(key) == hashes[-1] for key, hashes in parents.items()):
        return True
    raise missing(store, name)


def missing(store: Store, name: str) -> ArtifactError:
    """What to say where a training is to go on whose state is gone."""
    return ArtifactError(
        f"{store.part(name)} is missing: without it {store.path(name)} cannot be trained on; begin anew with --noreload"
    )


def threads(name: str, stored: int, log: Log) -> None:
    """Compute with as many threads as before: the same bits need the same number."""
    if stored != torch.get_num_threads():
        log.say(f"computing with {stored} threads, because {name} was begun so (the bits depend on it)")
        torch.set_num_threads(stored)


def precision(name: str, stored: str, asked: str, log: Log) -> str:
    """The precision to go on in: the one before, unless another is asked for."""
    if asked in ("auto", stored):
        return stored
    log.warn(f"{name} was begun in {stored} and goes on in {asked}, as --precision asks")
    return asked
