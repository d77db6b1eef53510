"""The processes of ViZDoom's games, which envpool starts: where they run, and that none of them outlives us.

envpool starts one process for each environment. Left alone, they write `_vizdoom.ini` into the working directory, stop
at Ctrl-C before we do, and live on after a kill -9 of their parent. So envpool is given another program to start: a
launcher, which goes into a temporary directory, ignores the signals that are for us, asks the kernel to be killed with
its parent, and only then becomes the game.

What a kill -9 leaves, the directory and the games' shared memory (2.6 MB each), the next start sweeps away; that of a
game which had not yet noted its number there (envpool makes it before the launcher runs), one a minute later. A game
that crashes ends us with SIGABRT: envpool's threads throw where nobody can catch; the same command continues.
"""

import contextlib
import fcntl
import os
import shlex
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wmrl.errors import UserError

PREFIX = "wmrl-doom-"
SHARED = Path("/dev/shm")
"""Where POSIX shared memory has names, on Linux."""

STARTS = 60.0
"""Seconds after which shared memory that no process has mapped is no longer that of a game that starts."""

SIDES = (64, 240)
"""The least and the most rows that the game is asked for: it draws 320 x 240, envpool averages the areas of pixels."""


def options(size: int, skip: int) -> dict[str, Any]:
    """What `envpool.make` is told of a game: one button at a time, square frames, no stacks of them.

    Args:
        size: Side of the frames that are wanted, pixels.
        skip: Tics of a step.
    """
    side = min(max(size, SIDES[0]), SIDES[1])
    return {"use_combined_action": True, "stack_num": 1, "frame_skip": skip, "img_height": side, "img_width": side}


def program() -> str:
    """The game that envpool brings."""
    import envpool

    path: str = envpool.make_spec("TakeCover-v1").config.vzd_path
    return path


_STARTING = threading.Lock()


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """To be held while a pool of games is built, which forks from several threads at once.

    Before each fork OpenBLAS (NumPy's and SciPy's) waits for its threads to end, and two forks that meet there can wait
    for ever. So a fork that does nothing ends them first; they come back when they are needed.
    """
    with _STARTING:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a child that does nothing waits for no lock
            child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        yield


class Den:
    """A temporary directory that games run in, and the launcher that starts them there; removed with `close`.

    Its file lock says that its owner is alive.

    Args:
        game: The program to launch.

    Raises:
        UserError: if no program can be started in temporary directories.
    """

    def __init__(self, game: str):
        sweep()
        self._lock = None
        while self._lock is None:
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            self._lock = _hold(self.folder, wait=True)  # None: a sweep took it before we did
        (self.folder / "_vizdoom").mkdir()  # two games that make it at the same time end with "File exists"
        words = [sys.executable, "-I", "-S", str(Path(__file__).with_name("tethered.py"))]
        words += [str(os.getpid()), str(self.folder), game]
        self.launcher = self.folder / "launch"
        self.launcher.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        self.launcher.chmod(0o700)
        if not os.access(self.launcher, os.X_OK):  # mounted with noexec; envpool would abort
            raise UserError(f"no program can be started in {tempfile.gettempdir()}; name another folder with TMPDIR")

    def close(self) -> None:
        """Remove the directory; the games have ended."""
        if self._lock is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self._lock)
            self._lock = None

    def __del__(self) -> None:
        self.close()


def sweep() -> None:
    """Remove what processes left that were killed: their directories, and the shared memory of their games."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        held = _hold(folder, wait=False)
        if held is None:
            continue
        for number in (note.name.removeprefix("game-") for note in folder.glob("game-*")):
            for name in ("MQCtr", "MQDoom", "SM"):
                (SHARED / f"ViZDoom{name}{number}").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)
    _sweep_unnoted()


def _sweep_unnoted() -> None:
    """Remove the shared memory of games whose parent was killed before they could note their number."""
    old = {}
    for path in SHARED.glob("ViZDoom*"):
        with contextlib.suppress(OSError):
            about = path.stat()
            if about.st_uid == os.getuid() and time.time() - about.st_ctime > STARTS:
                old[str(path)] = path
    for maps in Path("/proc").glob("[0-9]*/maps") if old else ():
        with contextlib.suppress(OSError):
            for line in maps.read_text().splitlines():
                old.pop("/" + line.partition("/")[2], None)
    for path in old.values():
        path.unlink(missing_ok=True)


def _hold(folder: Path, *, wait: bool) -> int | None:
    """Lock a directory of our own; None if it is another's, or held by a process that lives, or gone."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        if os.fstat(handle).st_uid == os.getuid():
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if folder.exists():
                return handle
    os.close(handle)
    return None
