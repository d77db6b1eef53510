"""What gymnasium knows of an id, and whether we can show and steer it."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # its greeting would go to stdout
if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # rendering to arrays needs no screen; SDL would complain

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from wmrl.envs.actions import ActionMap
from wmrl.envs.board import Layout
from wmrl.envs.names import canonical, is_atari, versions
from wmrl.envs.pixels import SIDE, SMALLEST, image_size, layout
from wmrl.envs.views import State, state_of
from wmrl.envs.worker import FAILURES, Plan, aside, prepare
from wmrl.errors import ArtifactError, ConfigError, UserError, missing_extra
from wmrl.pipeline import Env

MINIGRID = ("MiniGrid-", "BabyAI-")
"""How the ids of the package of that name begin."""

PARTIAL = {"agent_pov": True, "tile_size": 16}
"""MiniGrid draws what the agent sees, 7 x 7 cells, and not the whole maze."""


@dataclass(frozen=True)
class Found:
    """An environment that can be shown and steered.

    Args:
        spec: gymnasium's description.
        modules: Modules that have to be imported first.
        action_map: How actions become native.
        state: How its own observation is seen; None if frames are looked at.
        order: Layout of the observed image; None if frames are not observed.
        options: What it is made with, besides.
        native: Height and width of frames, pixels.
        limit: Steps of its longest episode; None if it does not tell.
        fps: Frames a second.
        versions: Packages that the results depend on.
    """

    spec: EnvSpec
    modules: tuple[str, ...]
    action_map: ActionMap
    state: State | None
    order: str | None
    options: dict[str, Any]
    native: tuple[int, int]
    limit: int | None
    fps: float
    versions: dict[str, str]

    @property
    def pixels(self) -> str:
        """Where frames come from."""
        return "observation" if self.order else "render" if "render_mode" in self.options else "drawn"


def find(env: Env) -> Found:
    """Look an id up, make one such environment, look at its spaces, and close it.

    Raises:
        ConfigError: if the id is unknown, or the environment cannot be shown or steered.
        ArtifactError: if a package that it needs is missing.
        UserError: if it fails when it is made or rendered.
    """
    with aside():
        return _find(canonical(env.id)[0], env)


def _find(env_id: str, env: Env) -> Found:
    spec, modules = _spec(env_id)
    probe = _make(env_id, spec, modules)
    try:
        action_map = ActionMap(probe.action_space, env_id)
        seen = _look(probe, env_id, env)
        own = getattr(probe.unwrapped, "max_steps", None) if env_id.startswith(MINIGRID) else None
        fps = float(probe.metadata.get("render_fps") or 30.0)
    finally:
        probe.close()
    return Found(spec, modules, action_map, *seen, spec.max_episode_steps or own, fps, _versions(spec))


def _spec(env_id: str) -> tuple[EnvSpec, tuple[str, ...]]:
    module, colon, name = env_id.rpartition(":")
    modules = (module,) if colon else _register(env_id)
    if colon:
        _import(module, env_id)
    try:
        return gymnasium.spec(name), modules
    except gymnasium.error.Error as error:
        raise ConfigError(f"env.id: {env_id!r} is not known: {_line(error)}") from error


def _register(env_id: str) -> tuple[str, ...]:
    """Plug-ins that gymnasium does not load by itself."""
    package = "ale_py" if is_atari(env_id) else "minigrid" if env_id.startswith(MINIGRID) else None
    if package is None:
        return ()
    try:
        prepare([package])
    except ImportError:
        raise missing_extra(package) from None
    return (package,)


def _import(module: str, env_id: str) -> None:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # a console script does not see the folder that it is called from
    try:
        prepare([module])
    except FAILURES as error:
        raise ConfigError(f"env.id: the module of {env_id!r} cannot be imported: {_line(error)}") from error


def _make(env_id: str, spec: EnvSpec, modules: tuple[str, ...]) -> gymnasium.Env:
    plan = Plan(spec, modules, None, "hwc", {}, 0, Layout(1, (1, 1), (), "u1", (), "f4"))
    try:
        return plan.make()
    except gymnasium.error.DependencyNotInstalled as error:
        raise ArtifactError(f"{env_id} needs a package that is not installed: {_line(error)}") from error
    except FAILURES as error:
        raise UserError(f"{env_id} cannot be made: {_line(error)}") from error


Seen = tuple[State | None, str | None, dict[str, Any], tuple[int, int]]


def _look(probe: gymnasium.Env, env_id: str, env: Env) -> Seen:
    """How its own observation is seen, the layout of the observed image, how to make it, the size of frames."""
    space: Any = probe.observation_space
    order = layout(space.shape, space.dtype) if getattr(space, "shape", None) else None
    if order and env.observe != "state":
        return None, order, {}, image_size(space.shape, order)
    renders = "rgb_array" in (probe.metadata.get("render_modes") or ())
    options = {"render_mode": "rgb_array", **(PARTIAL if env_id.startswith(MINIGRID) else {})} if renders else {}
    if env.observe == "state":
        state = state_of(space, env)
        return state, None, *_pictured(probe, env_id, options)
    if not renders:
        raise ConfigError(
            f"env.id: {env_id} shows no pixels: its observations are {_seen(space)} and it has no render_mode "
            f"'rgb_array'; it needs that, or one grey or RGB image of uint8, {SMALLEST} pixels or more a side; "
            "env.observe = 'state' takes numbers and boolean planes as they are"
        )
    return None, None, options, _rendered(probe, env_id, options)


def _pictured(probe: gymnasium.Env, env_id: str, options: dict[str, Any]) -> tuple[dict[str, Any], tuple[int, int]]:
    """How to make an environment whose pictures are for people only, and their size: it may do without."""
    try:
        return options, _rendered(probe, env_id, options) if options else (SIDE, SIDE)
    except UserError:
        return {}, (SIDE, SIDE)


def _seen(space: Any) -> str:
    """An observation space in words."""
    kind = type(space).__name__
    shape = getattr(space, "shape", None)
    return f"{kind}{shape} of {space.dtype}" if shape else f"a {kind} and not an array"


def _rendered(probe: gymnasium.Env, env_id: str, options: dict[str, Any]) -> tuple[int, int]:
    spec = probe.spec
    assert spec is not None
    try:
        shower = gymnasium.make(spec, max_episode_steps=-1, disable_env_checker=True, **options)
        try:
            shower.reset(seed=0)
            frame = np.asarray(shower.render())
        finally:
            shower.close()
    except gymnasium.error.DependencyNotInstalled as error:
        raise ArtifactError(f"{env_id} needs a package to render: {_line(error)}") from error
    except FAILURES as error:
        raise UserError(f"{env_id} cannot be rendered: {_line(error)}") from error
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ConfigError(f"env.id: {env_id} renders {frame.shape} of {frame.dtype}, not (H, W, 3) of uint8")
    return frame.shape[0], frame.shape[1]


def _versions(spec: EnvSpec) -> dict[str, str]:
    entry = spec.entry_point if isinstance(spec.entry_point, str) else ""
    packages = ["gymnasium", "numpy", "opencv-python-headless"]
    packages += ["box2d"] if "box2d" in entry else []
    packages += ["ale-py"] if entry.startswith("ale_py") else []
    packages += ["minigrid"] if entry.startswith("minigrid") else []
    return versions(*packages)


def _line(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    return " ".join(str(error).split()) or type(error).__name__
