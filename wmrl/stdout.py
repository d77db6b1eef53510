"""What a report says on stdout, to a reader that may have gone: for commands that load little, as doctor does."""

import contextlib
import io
import os
import sys
from pathlib import Path

from wmrl.errors import UserError


class Page(io.StringIO):
    """Text that is printed here first, and then written in one go; coloured where stdout would be."""

    def isatty(self) -> bool:
        """Whether stdout is a terminal."""
        return sys.stdout is not None and sys.stdout.isatty()


def write(text: str) -> None:
    """Write text to stdout, at once; a reader that has gone (`| head`) has seen what it wanted.

    Raises:
        UserError: if stdout takes no more for another reason: a full disk.
    """
    if sys.stdout is None:  # closed from the start
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon()
    except OSError as error:
        _abandon()
        raise UserError(f"the report cannot be written to stdout: {error.strerror or error}") from error


def _abandon() -> None:
    """Send what is still buffered nowhere: Python would complain of it at its end."""
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
