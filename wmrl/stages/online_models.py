"""The models of a run that learns online: as they begin, and as they are written."""

from typing import Any

import torch
from torch import nn

from wmrl import artifact, config, seeding
from wmrl.controllers import CONTROLLERS
from wmrl.dynamics import DYNAMICS
from wmrl.errors import ConfigError
from wmrl.pipeline import Pipeline
from wmrl.representations import REPRESENTATIONS
from wmrl.store import Store, rebuild
from wmrl.trainers import TRAINERS
from wmrl.world import WorldModel


def fresh(pipe: Pipeline, store: Store, env: Any, device: torch.device) -> tuple[WorldModel, Any]:
    """The world model and the controller of a pipeline; their random weights depend on its seed alone.

    Raises:
        ConfigError: if the representation would have to be trained.
        ArtifactError: if it is another run's and is not there.
        ContractError: if it has changed since the run was begun.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.number(pipe.seed, "dynamics", "init"))
        representation: Any = _representation(pipe, store, env)
        dynamics = config.build(DYNAMICS, pipe.dynamics, "dynamics", representation.latent, env.actions)
    world = WorldModel(representation.requires_grad_(False), dynamics).to(device).eval()  # it acts before it learns
    kind: Any = config.lookup(CONTROLLERS, pipe.controller, "controller")[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.number(pipe.seed, "controller", "init"))
        shape = view_shape(world, kind, env)
        controller = config.build(CONTROLLERS, pipe.controller, "controller", shape, env.actions)
    return world, controller.to(device)


def _representation(pipe: Pipeline, store: Store, env: Any) -> nn.Module:
    """That of another run, or one that needs no training."""
    if "from" in pipe.representation:
        if store.begun("online") and store.exists("vae"):
            store.load("vae")  # what was learnt so far was learnt on that one
        store.refer("vae", pipe.representation["from"])
        store.sees(env.observation)
        return rebuild(store.load("vae"))
    made = config.build(REPRESENTATIONS, pipe.representation, "representation", env.observation)
    if hasattr(made, "loss"):
        raise ConfigError(
            f"representation.kind: {pipe.representation['kind']!r} is not trained online; take a trained one "
            "(representation.from), or 'pixels'"
        )
    return made


def view_shape(world: WorldModel, controller: Any, env: Any) -> tuple[int, ...]:
    """The shape of what a controller, or a kind of controllers, looks at."""
    looks_at = getattr(controller, "looks_at", "features")
    return tuple(env.observation.shape if looks_at == "frame" else world.feature_shape)


def write(store: Store, world: WorldModel, controller: Any, env: Any, facts: dict[str, Any]) -> None:
    """Write V, M and C as they are now, as artifacts."""
    pipe = store.pipe
    if "from" in pipe.representation:
        store.refer("vae", pipe.representation["from"])
    else:
        table = config.resolved(REPRESENTATIONS, pipe.representation, "representation")
        store.save("vae", artifact.of(world.representation, "vae", table, (env.observation,)))
    parents = {"representation": store.load("vae").hash}
    table = config.resolved(DYNAMICS, pipe.dynamics, "dynamics")
    given: tuple[Any, ...] = (world.representation.latent, env.actions)
    dynamics = artifact.of(world.dynamics, "dynamics", table, given, parents=parents, facts=facts)
    store.save("dynamics", dynamics)
    table, parents = config.resolved(CONTROLLERS, pipe.controller, "controller"), {**parents, "dynamics": dynamics.hash}
    given = (view_shape(world, controller, env), env.actions)
    facts = {**facts, "trainer": config.resolved(TRAINERS, pipe.trainer, "trainer")}
    store.save("controller", artifact.of(controller, "controller", table, given, parents=parents, facts=facts))
