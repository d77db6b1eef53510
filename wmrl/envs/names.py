"""Which game an id means: old names, and what is known of a game beyond gymnasium's registry."""

import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from wmrl.errors import ConfigError

STATUS_BAR = {"CarRacing-v3": 12 / 96}
"""id -> the part of the frame's height, at the bottom, that shows instruments instead of the world."""

FAST = ("CarRacing-v3",)
"""Ids for which envpool was checked to follow the same rules as gymnasium; "auto" takes it for these."""


class Clock(NamedTuple):
    """The time of a game that counts in tics, and that is about surviving: each step gives reward 1."""

    rate: float  # tics a second
    limit: int  # tics that an episode lasts at most
    skip: int  # tics of a step, if nothing is said


CLOCKS = {"TakeCover-v1": Clock(rate=35.0, limit=2100, skip=4)}
"""Games of ViZDoom, which envpool alone has. Source: DoomTakeCover-v0 ends after a minute."""

MINATAR = {
    "MinAtar/Asterix-v1": "asterix",
    "MinAtar/Breakout-v1": "breakout",
    "MinAtar/Freeway-v1": "freeway",
    "MinAtar/Seaquest-v1": "seaquest",
    "MinAtar/SpaceInvaders-v1": "space_invaders",
}
"""id -> the package's name of the game; `-v1` has the actions that do something, `-v0` all six."""

_MINATAR = {**MINATAR, **{env_id.replace("-v1", "-v0"): game for env_id, game in MINATAR.items()}}
_CONTROL = (
    "Acrobot|BallInCup|Cartpole|Cheetah|Dog|Finger|Fish|Hopper|Humanoid|HumanoidCMU|Lqr|Manipulator|Pendulum|"
    "PointMass|Quadruped|Reacher|Stacker|Swimmer|Walker"
)
_MUJOCO = (
    "Ant|HalfCheetah|Hopper|Humanoid|HumanoidStandup|InvertedDoublePendulum|InvertedPendulum|Pusher|Reacher|Swimmer|"
    "Walker2d"
)
_BODIES = re.compile(rf"(({_CONTROL})[A-Z]\w*-v1|({_MUJOCO})-v[45])")
"""Tasks of the DeepMind Control Suite, and MuJoCo's of gymnasium, which envpool steps without further packages."""

_OLD_CARRACING = re.compile(r"CarRacing-v[012]")
_OLD_ATARI = re.compile(r"(\w+)NoFrameskip-v[04]")
_OLD_DOOM = ("DoomTakeCover-v0", "VizdoomTakeCover-v0", "VizdoomTakeCover-v1")


def canonical(env_id: str) -> tuple[str, str | None]:
    """The id that stands for `env_id` today, and one line for the user if anything differs from what was asked."""
    if _OLD_CARRACING.fullmatch(env_id):
        differs = "a finished lap terminates the episode there, and the tracks of a seed are others"
        return "CarRacing-v3", f"{env_id} is taken as CarRacing-v3: {differs}"
    atari = _OLD_ATARI.fullmatch(env_id)
    if atari:
        differs = f"it shows every single frame, ALE/{atari[1]}-v5 every fourth with sticky actions"
        return env_id, f"{env_id} is the old Atari game without frame skip and sticky actions: {differs}"
    if env_id in _OLD_DOOM:
        differs = "Doom's skill 4 and not 5, three actions, 4 tics a step unless env.frame_skip says otherwise"
        return "TakeCover-v1", f"{env_id} is taken as envpool's TakeCover-v1: {differs}"
    return env_id, None


def fast(env_id: str) -> bool:
    """Whether "auto" steps this id with envpool, if it is installed."""
    return env_id in FAST or home(env_id) == "envpool"


def home(env_id: str) -> str:
    """The backend whose game a score is of: gymnasium, but for MinAtar's and those that envpool surely has."""
    if env_id.startswith("MinAtar/"):
        return "minatar"
    return "envpool" if env_id in CLOCKS or _BODIES.fullmatch(env_id) else "gymnasium"


def minatar(env_id: str) -> str:
    """MinAtar's own name of a game.

    Raises:
        ConfigError: if it has no such game.
    """
    if env_id not in _MINATAR:
        raise ConfigError(f"env.id: MinAtar has no {env_id!r}; it has {', '.join(MINATAR)}, and -v0 with all actions")
    return _MINATAR[env_id]


def frame_skip(env_id: str, wanted: int | None) -> int | None:
    """Tics of a step: as wanted, or the game's default; None for games that do not count in tics.

    Raises:
        ConfigError: if one is wanted of a game that has no choice of it.
    """
    clock = CLOCKS.get(env_id)
    if clock is None and wanted is not None:
        raise ConfigError(f"env.frame_skip: {env_id} lets nobody choose it; games that do: {', '.join(CLOCKS)}")
    return (wanted or clock.skip) if clock else None


STICKY, RAMPING = 0.1, True
"""MinAtar's own: the chance that the last action is repeated, whether games grow harder. Source: Young & Tian 2019."""


def difficulty(env_id: str, sticky: float | None, ramping: bool | None) -> dict[str, Any]:
    """What of MinAtar's difficulty differs from the published one, `{}` if nothing does.

    Raises:
        ConfigError: if something is said of a game that is not MinAtar's.
    """
    if home(env_id) != "minatar":
        for key, value in {"sticky": sticky, "ramping": ramping}.items():
            if value is not None:
                raise ConfigError(f"env.{key}: only MinAtar's games have it, {env_id} is none")
    found: dict[str, Any] = {"sticky": sticky} if sticky not in (None, STICKY) else {}
    return found | ({"ramping": ramping} if ramping not in (None, RAMPING) else {})


def in_full(env: Mapping[str, Any]) -> dict[str, Any]:
    """An environment's table with what decides which game it is, whether it was said or is the default.

    What is observed is left out of a table of imported data, which need not say it.

    Raises:
        ConfigError: as `frame_skip` and `difficulty`.
    """
    env_id = canonical(str(env.get("id")))[0]
    skip = frame_skip(env_id, env.get("frame_skip"))
    hard = {"sticky": STICKY, "ramping": RAMPING} | difficulty(env_id, env.get("sticky"), env.get("ramping"))
    own = hard if home(env_id) == "minatar" else {}
    own |= {"observe": observes(env_id, env.get("observe"))} if env.get("backend") != "imported" else {}
    return {"hide": [], "action_repeat": 1, **env, **({"frame_skip": skip} if skip else {}), **own}


def observes(env_id: str, wanted: str | None) -> str:
    """What is observed, "pixels" or "state": as wanted, or what is usual for the game."""
    if wanted not in (None, "auto"):
        return str(wanted)
    return "pixels" if home(env_id) == "gymnasium" or env_id in CLOCKS else "state"


def is_atari(env_id: str) -> bool:
    """Whether ale-py has to be registered for this id."""
    return env_id.startswith("ALE/") or _OLD_ATARI.fullmatch(env_id) is not None


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of packages, for provenance; what is not installed under this name is left out."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
