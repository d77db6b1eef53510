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
    return env_id in FAST or env_id in CLOCKS


def home(env_id: str) -> str:
    """The backend whose game a score is of: gymnasium, but for the games that envpool alone has."""
    return "envpool" if env_id in CLOCKS else "gymnasium"


def frame_skip(env_id: str, wanted: int | None) -> int | None:
    """Tics of a step: as wanted, or the game's default; None for games that do not count in tics.

    Raises:
        ConfigError: if one is wanted of a game that has no choice of it.
    """
    clock = CLOCKS.get(env_id)
    if clock is None and wanted is not None:
        raise ConfigError(f"env.frame_skip: {env_id} lets nobody choose it; games that do: {', '.join(CLOCKS)}")
    return (wanted or clock.skip) if clock else None


def with_tics(env: Mapping[str, Any]) -> dict[str, Any]:
    """An environment's table with its frame skip, if it has one, whether it was said or is the game's default.

    Raises:
        ConfigError: as `frame_skip`.
    """
    skip = frame_skip(canonical(str(env.get("id")))[0], env.get("frame_skip"))
    return {**env, **({"frame_skip": skip} if skip else {})}


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
