"""Environments: one vector interface over envpool's C++ threads, gymnasium's in processes, and MinAtar's games.

    with make(Env(id="CarRacing-v3"), 16, threads=2) as env:
        obs = env.reset(range(16))                      # (16, 3, 64, 64) uint8: one fresh episode for each seed
        out = env.step(actions, ids)                    # only the named slots move; out.obs is in the order of ids
        obs[ended] = env.restart(seeds, ended)          # fresh episodes in these slots

Nothing is ever reset behind the caller's back: an ended slot keeps its last frame and refuses to step. A further
backend is one more module and one more line in `BACKENDS`, or an entry point in the group `wmrl.envs`.

Dreams of a finished run are gymnasium environments as well: `gym.make("wmrl.envs:wmrl/Dream-v0", logdir=...)` and
`gym.make_vec` (see `wmrl.dream_env`), registered when this file is imported.

This file does not import torch, so that worker processes start quickly; gymnasium they import anyway.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

from wmrl.envs.names import canonical, fast, home
from wmrl.errors import ConfigError

if TYPE_CHECKING:
    from wmrl.envs.base import Outcome as Outcome
    from wmrl.envs.base import VectorEnv as VectorEnv
    from wmrl.envs.pixels import resize as resize
    from wmrl.pipeline import Env

BACKENDS = {
    "envpool": "wmrl.envs.pool:PoolEnv",
    "gymnasium": "wmrl.envs.processes:ProcessEnv",
    "minatar": "wmrl.envs.arcade:ArcadeEnv",
}
"""backend -> "module:callable", called as `callable(env, n, threads=threads)`."""

DREAM = "wmrl/Dream-v0"
"""The id of dreams among gymnasium's environments."""

if DREAM not in registry:  # this file may be executed again (importlib.reload)
    register(DREAM, "wmrl.dream_env:DreamEnv", vector_entry_point="wmrl.dream_env:DreamVectorEnv")

_LAZY = {"Outcome": "wmrl.envs.base", "VectorEnv": "wmrl.envs.base", "resize": "wmrl.envs.pixels"}


def make(env: "Env", n: int, *, threads: int) -> "VectorEnv":
    """A vector environment of at most `n` episodes at once.

    Args:
        env: The environment and what is seen of it.
        n: Slots: the most episodes that are alive at once.
        threads: Threads (envpool) or processes (gymnasium; 1 steps in this process) that step them.

    Raises:
        ConfigError: if the id is unknown, its spaces are not supported, or the backend cannot step it.
        ArtifactError: if the environment needs a package that is not installed.
    """
    if n < 1 or threads < 1:
        raise ValueError(f"make needs at least one environment and one thread, got n={n}, threads={threads}")
    return backend(env)(env, n, threads=threads)


def backend(env: "Env") -> Callable[..., "VectorEnv"]:
    """The constructor that `env.backend` names; "auto" takes envpool where it is known to be the same game.

    Raises:
        ConfigError: if there is no such backend.
    """
    name: str = env.backend
    if name == "auto":
        env_id = canonical(env.id)[0]
        name = "envpool" if fast(env_id) and _importable("envpool") else home(env_id)
    address = BACKENDS.get(name) or _plugins().get(name)
    if address is None:
        raise ConfigError(f"env.backend: {name!r} is not known; known: auto, {', '.join(BACKENDS)}")
    module, _, attribute = address.partition(":")
    found: Callable[..., VectorEnv] = getattr(importlib.import_module(module), attribute)
    return found


def _plugins() -> dict[str, str]:
    from wmrl.config import plugins

    return plugins("envs")


def _importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
