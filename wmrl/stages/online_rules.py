"""What a run that learns online refuses, before anything is changed."""

import contextlib
import dataclasses
from typing import Any

from wmrl import config, continuing
from wmrl.agreement import LOOKS
from wmrl.data import plan, shards
from wmrl.data.replay import Replay
from wmrl.errors import ArtifactError, ConfigError, ContractError
from wmrl.pipeline import Pipeline
from wmrl.run import Run
from wmrl.store import MAKERS, Store, registry
from wmrl.trainers import TRAINERS


def trainer_of(pipe: Pipeline) -> Any:
    """The trainer of a pipeline that can be learnt online.

    Raises:
        ConfigError: if its trainer cannot, or if a model is another run's.
    """
    trainer = config.build(TRAINERS, pipe.trainer, "trainer")
    if not hasattr(trainer, "learner"):
        raise ConfigError(
            f"trainer.kind: {pipe.trainer['kind']!r} scores whole episodes and cannot learn online; actor-critic can"
        )
    for name in ("dynamics", "controller"):
        if "from" in getattr(pipe, name):
            raise ConfigError(f"{name}.from: online, {name} is trained on, and another run's must not change")
    return trainer


def check_room(pipe: Pipeline, run: Run) -> None:
    """Check that all environments of a run may be alive at once: fewer would give other curves.

    Raises:
        ConfigError: naming their numbers.
    """
    how = pipe.online
    beside = how.evaluate_episodes if how.evaluate_every else 0
    if how.environments + beside > run.max_workers:
        words = f" and the {beside} of online.evaluate_episodes beside them" if beside else ""
        raise ConfigError(
            f"--max-workers: {run.max_workers} are too few for online.environments = {how.environments}{words}; "
            f"allow {how.environments + beside}"
        )


def check_restarts(env: Any, backend: str) -> None:
    """Check that an environment can begin an episode in one slot while the others go on.

    Args:
        env: The environment.
        backend: The pipeline's name of what made it.

    Raises:
        ConfigError: if it cannot, as a plug-in of another author may.
    """
    if not hasattr(env, "restart"):
        raise ConfigError(
            f"env.backend: the environments of {backend!r} have no restart, which begins an episode in one slot while "
            "the others go on; learning online needs it: take another backend"
        )


def check_own(store: Store) -> None:
    """Check that no model here was made by a stage of its own: at its end a run replaces what it finds.

    Raises:
        ContractError: naming the file and the command.
    """
    for name in ("dynamics", "controller"):
        with contextlib.suppress(ArtifactError):  # there is none, or it is damaged
            if "data" in store.load(name).parents:  # online, nothing is made from a finished dataset
                raise ContractError(
                    f"{store.path(name)} was made by wmrl {MAKERS[name]}, and learning online would replace it: "
                    "move it away, or begin in another --logdir"
                )


def check_unused(store: Store, replay: Replay) -> None:
    """Check that a run may begin here: without its state, what it lived and made before would be mixed or replaced.

    Raises:
        ArtifactError: if there are episodes, or the result of an earlier run.
    """
    if replay.begun or store.exists("iterate"):
        what = store.path("iterate") if store.exists("iterate") else store.data
        raise ArtifactError(
            f"{store.part('online')} is missing: without it the run of {what} cannot go on; "
            "put it back, or begin in another --logdir"
        )


def recipe(pipe: Pipeline) -> dict[str, Any]:
    """What shards say of their making, as `plan.recipe`: a random policy for some steps, then an agent that learns."""
    how = pipe.online
    policy: dict[str, Any] = {"policy": "online", "seed_policy": how.seed_policy, "seed_steps": how.seed_steps}
    policy |= {"hold": pipe.generate.hold} if how.seed_policy == "held" else {}
    return {**plan.recipe(pipe), "policy": policy}


def terms(pipe: Pipeline) -> dict[str, Any]:
    """What decides the bits of all that is learnt online, by the pipeline's names."""
    kinds = ("dynamics", "controller", "trainer")
    tables = {name: config.resolved(registry(name), getattr(pipe, name), name) for name in kinds}
    tables |= {"representation": pipe.representation, "env": pipe.env.table()}
    tables |= {"online": {k: v for k, v in dataclasses.asdict(pipe.online).items() if k not in ("steps", *LOOKS)}}
    tables |= {"fit.dynamics": dataclasses.asdict(pipe.fit.dynamics)}
    flat = {f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()}
    flat |= {"seed": pipe.seed} | ({"generate.hold": pipe.generate.hold} if pipe.online.seed_policy == "held" else {})
    dropped = ("fit.dynamics.steps", "env.backend")
    kept: dict[str, Any] = config.plain({k: v for k, v in flat.items() if k not in dropped})
    return kept


def check_same(store: Store, tree: dict[str, Any]) -> None:
    """Check that a run goes on as it was begun, with the episodes that it has played itself.

    Args:
        store: The logdir.
        tree: The state of the run.

    Raises:
        ContractError: naming a key that differs; or if another command has added episodes, which would be lost.
    """
    continuing.agree(store.part("online"), tree["terms"], terms(store.pipe))
    played = tree["replay"]["episodes"] + len(tree["replay"]["finished"]["seed"])
    with contextlib.suppress(ArtifactError):  # there is no list of episodes before the end
        there = len(shards.read_complete(store.data).lengths)
        if there > played:
            raise ContractError(
                f"{store.data} holds {there} episodes, and this run has played {played}: another command has added "
                "some; begin in another --logdir"
            )
