"""SIGINT and SIGTERM become a polite request: loops look at `pending()`, save, and call `check()`.

A second signal of the same kind ends the process at once, as without wmrl.
"""

import signal
from types import FrameType

from wmrl.errors import Stopped

_pending: int | None = None


def install() -> None:
    """Catch SIGINT and SIGTERM in this process. Called by the command line only."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _ask)


def pending() -> int | None:
    """The number of the signal that asked to stop, or None."""
    return _pending


def check() -> None:
    """Raise `Stopped` if a signal asked to stop. Call it right after saving."""
    if _pending is not None:
        raise Stopped(_pending)


def clear() -> None:
    """Forget a request (tests and long-lived programs)."""
    global _pending
    _pending = None


def _ask(signum: int, frame: FrameType | None) -> None:
    global _pending
    _pending = signum
    signal.signal(signum, signal.SIG_DFL if signum != signal.SIGINT else signal.default_int_handler)
