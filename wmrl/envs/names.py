"""Which game an id means: old names, and what is known of a game beyond gymnasium's registry."""

import importlib.metadata
import re

STATUS_BAR = {"CarRacing-v3": 12 / 96}
"""id -> the part of the frame's height, at the bottom, that shows instruments instead of the world."""

FAST = ("CarRacing-v3",)
"""Ids for which envpool was checked to follow the same rules as gymnasium; "auto" takes it for these."""

_OLD_CARRACING = re.compile(r"CarRacing-v[012]")
_OLD_ATARI = re.compile(r"(\w+)NoFrameskip-v[04]")


def canonical(env_id: str) -> tuple[str, str | None]:
    """The id that stands for `env_id` today, and one line for the user if anything differs from what was asked."""
    if _OLD_CARRACING.fullmatch(env_id):
        differs = "a finished lap terminates the episode there, and the tracks of a seed are others"
        return "CarRacing-v3", f"{env_id} is taken as CarRacing-v3: {differs}"
    atari = _OLD_ATARI.fullmatch(env_id)
    if atari:
        differs = f"it shows every single frame, ALE/{atari[1]}-v5 every fourth with sticky actions"
        return env_id, f"{env_id} is the old Atari game without frame skip and sticky actions: {differs}"
    return env_id, None


def fast(env_id: str) -> bool:
    """Whether "auto" steps this id with envpool."""
    return env_id in FAST


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
