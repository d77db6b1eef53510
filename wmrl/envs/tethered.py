"""Becomes another program that ends when its parent does: `python tethered.py PARENT FOLDER PROGRAM ARGUMENT...`.

It is run as a script and imports nothing of wmrl, so that a game starts quickly.
"""

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, folder: str, program: str, arguments: list[str]) -> None:
    """Note the game's number in `folder`, tie it to its parent's life, and run it."""
    os.chdir(folder)  # games write their settings where they are
    if "+viz_instance_id" in arguments:
        note = f"game-{arguments[arguments.index('+viz_instance_id') + 1]}"
        os.close(os.open(note, os.O_WRONLY | os.O_CREAT))
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # the parent gets them too, and decides
    with contextlib.suppress(AttributeError):  # only Linux has it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:  # it may have died before it could be watched
        os.execv(program, [program, *arguments])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
