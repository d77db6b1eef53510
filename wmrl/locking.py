"""One process at a time in a folder."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from wmrl.errors import ArtifactError, ConfigError


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the lock ends with the process, however it ends.

    Raises:
        ArtifactError: if the folder cannot be made.
        ConfigError: if another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be used: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another wmrl process is working in {folder}; wait for it or stop it") from None
        yield
