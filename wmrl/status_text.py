"""`wmrl status` as text: one line for each artifact, the scores, the next command."""

from typing import TYPE_CHECKING, Any

from wmrl import stdout
from wmrl.stats import told

if TYPE_CHECKING:
    from wmrl.status import Report


def text(found: "Report") -> str:
    """The report for people."""
    from rich.console import Console
    from rich.text import Text

    styles = {"complete": "green", "in progress": "yellow", "missing": "dim", "stale": "bold yellow"}
    page = stdout.Page()
    line = Console(file=page, highlight=False, soft_wrap=True).print
    busy = "; a process is working in it now" if found.busy else ""
    line(Text(f"{found.logdir}: {found.pipeline} on {found.env}, seed {found.seed}{busy}", "bold"))
    for entry in found.entries:
        origin = " <- " + ", ".join(f"{k} {v[:8]}" for k, v in entry.parents.items()) if entry.parents else ""
        state = Text(f"{entry.state:<12}", styles.get(entry.state, "bold red"))
        line(Text(f"  {entry.name:<11}"), state, Text(f"{entry.hash[:8]:<9}{entry.detail}{origin}"))
        if entry.why:
            line(Text(f"{'':27}{entry.why}", "yellow"))
    if found.iterations:
        line(Text(f"  iterate: {found.iterations}", "yellow"))
    for score in found.scores:
        line(Text(f"  {score['protocol']}: {_numbers(score)}", "bold"))
    line(Text(f"next: {found.next}" if found.next else "nothing is left to do"))
    return page.getvalue()


def _numbers(score: dict[str, Any]) -> str:
    """A score's statistics in a line; see `wmrl.stats.Summary`."""
    interval = f"95 % {told(score['low'])} to {told(score['high'])}"
    return f"mean {told(score['mean'])} ({interval}), IQM {told(score['iqm'])}, {score['episodes']} episodes"
