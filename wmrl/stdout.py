"""What is said on stdout, to a reader that may have gone; it loads little, for doctor does not either."""

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from wmrl.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table


class Page(io.StringIO):
    """Text that is printed here first, and then written in one go; coloured where stdout would be."""

    def isatty(self) -> bool:
        """Whether stdout is a terminal."""
        return sys.stdout is not None and sys.stdout.isatty()


def write(text: str) -> None:
    """Write text to stdout, at once; a reader that has gone (`| head`) has seen what it wanted.

    What stdout's encoding does not have becomes a question mark.

    Raises:
        UserError: if stdout takes no more for another reason: a full disk.
    """
    if sys.stdout is None:  # closed from the start
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        abandon(sys.stdout)
    except OSError as error:
        abandon(sys.stdout)
        raise UserError(f"the report cannot be written to stdout: {error.strerror or error}") from error


def table_text(table: "Table") -> str:
    """A table as plain text of at most 200 columns, without lines that are empty."""
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=200, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().split("\n") if line.strip())


def abandon(stream: TextIO) -> None:
    """Send nowhere what a stream still holds, and what other code and child processes write to it from here on."""
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
