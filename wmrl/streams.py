"""The streams under a log: one that may go away, and one that is kept in a file too."""

import threading
from collections.abc import Callable
from typing import Any, TextIO, cast

from wmrl import stdout
from wmrl.progress import Bar, Plain


class Lasting:
    """A text stream that may go away, as `2>&1 | head` does: what it does not take any more is dropped.

    Args:
        stream: The stream; None (stderr was closed from the start) takes nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream, self._gone = stream, stream is None

    def write(self, text: str) -> int:
        """Write the text, if there is still somebody to read it."""
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        """Flush, as `write`."""
        self._try("flush")

    def _try(self, method: str, *args: str) -> None:
        if self._gone:
            return
        try:
            getattr(self._stream, method)(*args)
        except BrokenPipeError:
            self._gone = True
            stdout.abandon(cast(TextIO, self._stream))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Tee:
    """A text stream that writes to another one and to the log file: foreign words, of any thread, are kept."""

    def __init__(self, stream: TextIO, bar: Bar | Plain, keep: Callable[[str], None], lock: threading.RLock) -> None:
        self._stream, self._bar, self._keep = stream, bar, keep
        self._lock = lock  # the log's own: with two, two threads could wait for each other
        self._unkept = self._unshown = ""  # what waits for the end of its line

    def write(self, text: str) -> int:
        """Show the text (at once, or by whole lines above a bar) and keep it, line by line, in the log file."""
        with self._lock:
            self._unshown += text
            if self._bar.live:
                *lines, self._unshown = self._unshown.split("\n")
                for line in lines:
                    self._bar.print(line, self._stream)
            else:
                self._show()
            *lines, self._unkept = (self._unkept + text).split("\n")
            for line in lines:
                self._keep(line)
        return len(text)

    def finish(self) -> None:
        """Show and keep a last line without an end; the bar is closed by now."""
        if self._unkept:
            self._keep(self._unkept)
            self._unkept = ""
        if self._unshown:
            self._show()

    def _show(self) -> None:
        text, self._unshown = self._unshown, ""
        self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
