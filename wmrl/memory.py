"""Artifacts kept in memory, for a caller of many stages: each is read and checked once for each time it is made."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from wmrl import artifact
from wmrl.artifact import Artifact

_Stamp = tuple[int, int, int]
_KEPT: ContextVar[dict[tuple[Path, str], tuple[_Stamp, Artifact]] | None] = ContextVar("kept", default=None)


@contextlib.contextmanager
def in_memory() -> Iterator[None]:
    """While this lasts, `read` keeps what it has read."""
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def read(path: Path, role: str) -> Artifact:
    """As `artifact.read`; not from the disk if it is kept, and the file has been neither replaced nor touched since.

    Raises:
        ArtifactError: as `artifact.read`.
    """
    kept = _KEPT.get()
    if kept is None or not path.is_file():
        return artifact.read(path, role)
    at, key = path.stat(), (path.resolve(), role)
    stamp = (at.st_ino, at.st_size, at.st_mtime_ns)
    if key not in kept or kept[key][0] != stamp:
        kept[key] = stamp, artifact.read(path, role)
    return kept[key][1]
