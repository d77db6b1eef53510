"""Does a call agree with what a logdir was begun with? And are all tables of a pipeline right?"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wmrl import config
from wmrl.errors import ConfigError
from wmrl.pipeline import Pipeline
from wmrl.sources import PATHS
from wmrl.store import MAKERS, Store, registry

SECTIONS = {
    "vae": ("representation", "fit.vae", "validation"),
    "dynamics": ("dynamics", "fit.dynamics", "validation"),
    "controller": ("controller", "trainer"),
    "online": ("representation", "dynamics", "controller", "trainer", "fit.dynamics", "online"),
}
"""Artifact -> the parts of a pipeline that its stage reads: once it has begun, they hold."""

OWN = ("seed", "env")
"""The parts of a pipeline that hold as soon as there is anything: a wrong value of a first call shall not."""

MAY_GROW = ("fit.vae.steps", "fit.dynamics.steps", "trainer.generations", "trainer.steps", "online.steps")
"""Keys that continue a stage when they are larger."""

LOOKS = ("log_every", "evaluate_every", "evaluate_episodes", "keep_every")
"""Keys of `[online]` that say when to look, and change nothing of what is learnt."""

MAY_CHANGE = ("trainer.target_return", *(f"online.{key}" for key in LOOKS))
"""Keys that say when to stop or to look, and nothing of what is computed; so does `trainer.steps` of a search, which
has none of its own: there it bounds the steps of its rollouts."""


def check_components(pipe: Pipeline) -> None:
    """Check the tables of all components, so that a wrong key is an error now and not hours later.

    Raises:
        ConfigError: naming the key, or what the trainer refuses.
    """
    for where in config.GROUPS:
        table = getattr(pipe, where)
        if "from" not in table:
            config.resolved(registry(where), table, where)
    trainer = config.build(registry("trainer"), pipe.trainer, "trainer")  # its refusals must not become the logdir's
    _check_controller(pipe, getattr(trainer, "needs", ""))
    _check_window(pipe)
    _check_sizes(pipe)


def _check_controller(pipe: Pipeline, needs: str) -> None:
    """A trainer that learns by gradients needs a controller that tells its distribution, as a method `needs`."""
    if needs and not hasattr(config.lookup(registry("controller"), pipe.controller, "controller")[0], needs):
        own, kinds = pipe.controller["kind"], registry("controller")
        fit = [kind for kind in kinds if hasattr(config.lookup(kinds, {"kind": kind}, "controller")[0], needs)]
        raise ConfigError(
            f"controller.kind: {own!r} has no {needs}, and trainer {pipe.trainer['kind']!r} needs one; "
            f"use one of: {', '.join(fit)}"
        )


def _check_window(pipe: Pipeline) -> None:
    """A model with a window is trained on windows of that length: at rollout it meets no position that is new to it."""
    if "from" in pipe.dynamics:
        return
    context = config.resolved(registry("dynamics"), pipe.dynamics, "dynamics").get("context")
    if context not in (None, pipe.fit.dynamics.length):
        raise ConfigError(
            f"dynamics.context is {context} and fit.dynamics.length is {pipe.fit.dynamics.length}: a model is trained "
            "on windows as long as those it sees at rollout; give both one value"
        )


def _check_sizes(pipe: Pipeline) -> None:
    """What a dynamics model refuses of its own numbers is told now; what latents it gets, only its stage knows."""
    if "from" in pipe.dynamics:
        return
    import torch

    from wmrl.spec import Actions, Space

    refused = None
    for latent in (Space((32,)), Space((16,), vocab=512), Space((3, 64, 64))):
        try:
            with torch.random.fork_rng(devices=[]):
                config.build(registry("dynamics"), pipe.dynamics, "dynamics", latent, Actions(3, False))
            return
        except ConfigError as error:
            refused = error
        except Exception:  # noqa: BLE001  latents of a kind that it does not take, which a model may say in any way
            continue
    if refused is not None:
        raise refused


def reconcile(logdir: Path, stored: Pipeline, asked: Pipeline, anew: str | None = None) -> None:
    """Check that `asked` may continue what `stored` began in `logdir`.

    Args:
        logdir: The run's folder.
        stored: The pipeline kept there.
        asked: The pipeline of this call.
        anew: The artifact that this call begins anew (`--noreload`), if any.

    Raises:
        ConfigError: naming the first key that differs and may not.
    """
    store = Store(logdir, stored)
    held = [s for name, parts in SECTIONS.items() if name != anew and store.begun(name) for s in parts]
    if held or any(store.begun(name) for name in MAKERS) or any(store.data.glob("shard-*.h5")):
        held += OWN
    old, new = _flat(stored.table()), _flat(asked.table())
    for key in sorted(old.keys() | new.keys(), key=_kinds_first):
        if _same(key, old.get(key), new.get(key)) or not holds(key, held):
            continue
        if key in MAY_CHANGE or (key in MAY_GROW and _grows(key, stored, asked)):
            continue
        if _same_component(key, stored, asked):
            continue
        fixed = holds(key, OWN) or store.begun("online")  # an online run has no stage to begin anew
        anew_helps = "" if fixed else ", or begin the stage anew with --noreload"
        before, now = (repr(table[key]) if key in table else "its default" for table in (old, new))
        raise ConfigError(
            f"{key}: {logdir} was begun with {before}, this call says {now}; take another --logdir{anew_helps}"
        )


def _kinds_first(key: str) -> tuple[str, bool, str]:
    """Another kind takes other keys along: it is what is named."""
    where, _, name = key.partition(".")
    return where, name != "kind", name


def _same(key: str, old: Any, new: Any) -> bool:
    if key in PATHS and isinstance(old, str) and isinstance(new, str):
        return os.path.realpath(old) == os.path.realpath(new)
    return bool(old == new)


def _grows(key: str, stored: Pipeline, asked: Pipeline) -> bool:
    default = config.resolved(registry("trainer"), {"kind": asked.trainer["kind"]}, "trainer")
    if key == "trainer.steps" and default.get("steps") is None:
        return True
    grows: bool = _value(key, asked) >= _value(key, stored)
    return grows


def _value(key: str, pipe: Pipeline) -> Any:
    """The value of a key that may grow, its default included."""
    where, _, name = key.partition(".")
    table = pipe.table()[where]
    table = config.resolved(registry(where), table, where) if where in config.GROUPS else _flat(table)
    return table.get(name, 0)


def holds(key: str, sections: Iterable[str]) -> bool:
    """Whether a key of a pipeline lies in one of these sections."""
    return any(key == s or key.startswith(f"{s}.") for s in sections)


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _same_component(key: str, stored: Pipeline, asked: Pipeline) -> bool:
    """Whether a differing key of a component's table is only a default spelt out."""
    where = key.partition(".")[0]
    tables = getattr(stored, where), getattr(asked, where)
    if where not in config.GROUPS or any("kind" not in table or "from" in table for table in tables):
        return False
    full = [config.resolved(registry(where), table, where) for table in tables]
    name = key.partition(".")[2]
    return full[0].get(name) == full[1].get(name)
