"""How far a stage is: a rich bar on a terminal, else a plain line now and then."""

import math
import os
import time
from typing import Any, TextIO

EVERY = 30.0  # seconds between plain lines
SOON = 5.0  # seconds until the first line that knows a rate
BRISK = 0.1  # seconds between redraws of a bar


def wants_bar(stream: TextIO, asked: bool | None, verbosity: int) -> bool:
    """Whether a bar can and should be drawn: on a terminal that moves its cursor, not in CI unless asked for."""
    if asked is False or verbosity < 0 or os.environ.get("TERM") == "dumb":
        return False
    terminal = bool(getattr(stream, "isatty", lambda: False)())
    return terminal and (asked is True or not os.environ.get("CI"))


class Meter:
    """Counts units against the clock: rate since the bar began, time left, and when the next plain line is due."""

    def __init__(self) -> None:
        self._began = self._told = -1e9
        self._first = self._last = self._total = self.left = 0.0
        self.rate = 0.0
        self._unit = ""

    def line(self, done: float, total: float, unit: str, note: str) -> str | None:
        """The plain line if one is due: at the start, after 5 s, every 30 s, and at the end; else None."""
        now = time.monotonic()
        if self._begins(done, total, unit):
            self._began, self._first, self._told, self.rate = now, done, now - EVERY, 0.0
        passed = now - self._began
        if passed > 0 and done > self._first:
            self.rate = (done - self._first) / passed
        self.left = (total - done) / self.rate if self.rate > 0 and total else 0.0
        fresh = done != self._last or self.rate == 0
        self._last, self._total, self._unit = done, total, unit
        wait = SOON if self._told == self._began else EVERY
        if now - self._told < wait and not (over(done, total) and fresh):
            return None
        self._told = now
        share = f" ({100 * done / total:.0f} %)" if total else ""
        return ", ".join(part for part in [counted(done, total, unit) + share, self.speed(unit), note] if part)

    def _begins(self, done: float, total: float, unit: str) -> bool:
        """Whether something else is counted than before; an estimated total may change under way."""
        another = total != self._total and over(self._last, self._total)
        return unit != self._unit or done < self._last or another

    def speed(self, unit: str) -> str:
        """Rate and time left in words, empty before both are known."""
        if self.rate <= 0:
            return ""
        rate = f"{self.rate:,.0f} {unit}/s" if self.rate >= 10 else f"{self.rate:.2g} {unit}/s"
        return rate if self.left <= 0 else f"{rate}, {span(self.left)} left"


class Rate:
    """Steps per second over the last seconds.

    Args:
        memory: How many seconds count as the last ones.
    """

    def __init__(self, memory: float = 10.0) -> None:
        self._memory, self._began, self._steps, self._value = memory, 0.0, 0, 0.0

    def add(self, steps: int) -> float:
        """Count `steps` more, and give the rate."""
        if not self._began:
            self._began = time.monotonic()
            return 0.0
        self._steps += steps
        passed = time.monotonic() - self._began
        if passed >= self._memory or (passed > 1 and not self._value):
            self._value = self._steps / passed
        if passed >= self._memory:
            self._began, self._steps = time.monotonic(), 0
        return self._value


def over(done: float, total: float) -> bool:
    """Whether all is done; never if the total is unknown (0)."""
    return 0 < total <= done


def counted(done: float, total: float, unit: str) -> str:
    """35/100 steps, or 35 steps if the total is unknown (0)."""
    some, all_ = (f"{round(number, 1):.12g}" for number in (done, total))
    return f"{some}/{all_} {unit}" if total else f"{some} {unit}"


def span(seconds: float) -> str:
    """A duration for people: 45 s, 3 min 05 s, 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Plain:
    """No bar: lines are printed as they are."""

    live = False

    def update(self, done: float, total: float, unit: str, note: str, speed: str) -> bool:
        """Nothing is drawn, so the caller prints its line."""
        return False

    def print(self, text: str, stream: TextIO) -> None:
        """Print a line."""
        stream.write(text + "\n")
        stream.flush()

    def close(self) -> None:
        """Nothing to end."""


class Bar:
    """A rich progress bar; lines are printed above it."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=stream)
        self._live: Any = None
        self._task: Any = None
        self._drawn = 0.0

    def _open(self) -> Any:
        from rich.progress import BarColumn, Progress, TextColumn

        words = [TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("count", "speed", "note")]
        live = Progress(
            BarColumn(),
            *words,
            console=self._console,
            auto_refresh=False,
            redirect_stdout=False,  # the log sees to what others write
            redirect_stderr=False,
        )
        live.start()
        return live

    def update(self, done: float, total: float, unit: str, note: str, speed: str) -> bool:
        """Draw the bar, at most ten times a second."""
        now = time.monotonic()
        if self._live is not None and now - self._drawn < BRISK and not over(done, total):
            return True
        self._drawn = now
        if self._live is None:
            self._live = self._open()
            self._task = self._live.add_task("", count="", speed="", note="")
        words = {"count": counted(done, total, unit), "speed": speed, "note": note}
        whole = total or math.inf  # an unknown total is a bar that stays empty: rich takes None for "as before"
        self._live.update(self._task, completed=done, total=whole, **words, refresh=True)
        return True

    @property
    def live(self) -> bool:
        """Whether the bar is drawn now."""
        return self._live is not None

    def print(self, text: str, stream: TextIO) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar as it is and go on below."""
        if self._live is not None:
            self._live.stop()
            self._live = None
