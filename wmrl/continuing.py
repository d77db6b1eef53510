"""May a stored training state be continued here, and with what?"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from wmrl.config import plain, resolved
from wmrl.errors import ArtifactError, ContractError
from wmrl.log import Log
from wmrl.pipeline import Fit, Pipeline
from wmrl.run import Run
from wmrl.store import WHERE, Store, registry

ALL = "all steps made"
"""Why a training ended that made all the steps it was asked for."""
MAY_CHANGE = ("steps", "log_every")
"""Settings of a training that change nothing of the steps made so far."""


def terms(name: str, seed: int, settings: Fit, pipe: Pipeline) -> dict[str, Any]:
    """What decides the bits of a training beside its parents, by the pipeline's names: `{"fit.vae.batch": 32, ...}`.

    Args:
        name: What is trained; its table in `pipe` counts, if it has one.
        seed: The training's.
        settings: The training's; `MAY_CHANGE` is left out.
        pipe: The run's pipeline.
    """
    tables = {f"fit.{name}": {k: v for k, v in dataclasses.asdict(settings).items() if k not in MAY_CHANGE}}
    if where := WHERE.get(name):
        tables[where] = resolved(registry(where), getattr(pipe, where), where)
    flat = {f"{table}.{key}": value for table, values in tables.items() for key, value in plain(values).items()}
    return {**flat, "seed": seed, "validation": pipe.validation}


def agree(part: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Check that a training goes on as it was begun, whoever brought its state here.

    Args:
        part: The file of the training state, for messages.
        stored: The `terms` it was begun with; a key that an earlier wmrl did not know is not among them.
        asked: Those of this call.

    Raises:
        ContractError: naming the first key that differs.
    """
    for key in sorted(stored):
        if stored[key] != asked.get(key):
            raise ContractError(
                f"{key}: {part} was begun with {stored[key]!r}, this call says {asked.get(key)!r}; "
                "use the same value, or begin anew with --noreload"
            )


def lineage(parents: Mapping[str, str], run: Run) -> dict[str, list[str]]:
    """For each parent the content hashes from which a training may be continued, the present one last.

    Args:
        parents: Name -> present content hash.
        run: Knows the models that were there before, if its caller replaced them.
    """
    return {name: [*run.earlier.get(name, ()), hash_] for name, hash_ in parents.items()}


def grown(name: str, stored: Mapping[str, str], parents: Mapping[str, Sequence[str]]) -> str:
    """The parent of a training that has grown, or was trained on, since; "" if there is none.

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
