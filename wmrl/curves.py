"""Curves of all metrics of one or more runs, in one picture."""

import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmrl import files
from wmrl.errors import ArtifactError
from wmrl.sinks import STEP, read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = tuple[list[float], list[float]]
Warn = Callable[[str], None] | None
ACROSS = 3  # plots in a row
FEW = 10  # runs that matplotlib's own colours tell apart
BESIDE = {"train-controller: eval/return_mean": "train-controller: dream/return"}
"""What is drawn again, dashed, in the plot of another: what a dream pays beyond the real return is its exploit."""


def collect(logdir: Path, warn: Warn = None) -> dict[str, Curve]:
    """Every metric of a logdir: `stage: name` -> (steps, values); what is not finite is left out.

    Args:
        logdir: The run's folder.
        warn: Is told of files with lines that are no metrics.

    Raises:
        ArtifactError: if a file cannot be read.
    """
    curves: dict[str, Curve] = defaultdict(lambda: ([], []))
    for path in sorted((logdir / "metrics").glob("*.jsonl")):
        for record in read_metrics(path, warn):
            for name, value in record.items():
                if name not in (STEP, "time") and math.isfinite(value):
                    steps, values = curves[f"{path.stem}: {name}"]
                    steps.append(record[STEP])
                    values.append(value)
    return dict(curves)


def draw(logdirs: Sequence[Path], path: Path, warn: Warn = None) -> Path:
    """Draw the curves of all metrics of `logdirs`, overlaid, as a PNG at `path`.

    Args:
        logdirs: The runs' folders.
        path: The picture.
        warn: Is told of files with lines that are no metrics: those are left out.

    Raises:
        ArtifactError: if a logdir is not there, if there are no metrics, or if the file cannot be written.
    """
    for logdir in logdirs:
        if not logdir.is_dir():
            raise ArtifactError(f"there is no folder {logdir}: no curves of it can be drawn")
    runs = {label(logdir, logdirs): collect(logdir, warn) for logdir in logdirs}
    if not any(runs.values()):
        raise ArtifactError(f"{', '.join(map(str, logdirs))}: no metrics yet; train something first")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    png = io.BytesIO()
    FigureCanvasAgg(figure(runs)).print_png(png)
    files.atomic_bytes(path, png.getvalue(), durable=False)
    return path


def figure(runs: Mapping[str, Mapping[str, Curve]]) -> "Figure":
    """One plot for each metric; a run has one colour in all of them, and an entry in the legend if it has any curve.

    Args:
        runs: Label -> metric -> curve; a legend is drawn if there are several.
    """
    from matplotlib.figure import Figure

    names = sorted({name for curves in runs.values() for name in curves})
    rows = math.ceil(len(names) / ACROSS)
    sheet = Figure(figsize=(5 * ACROSS, 2.8 * rows), layout="constrained")
    colours, legend = _colours(runs), {}
    for i, name in enumerate(names):
        plot, title = sheet.add_subplot(rows, ACROSS, i + 1), name
        for run, curves in runs.items():
            if name in curves:
                steps, values = curves[name]
                dot = "." if len(steps) == 1 else ""
                (legend[run],) = plot.plot(steps, values, color=colours[run], linewidth=1, marker=dot)
                if BESIDE.get(name) in curves:
                    plot.plot(*curves[BESIDE[name]], color=colours[run], linewidth=1, linestyle="--")
                    title = f"{name} (dashed: {BESIDE[name].split(': ')[1]})"
        plot.set_title(title, fontsize=9)
        plot.tick_params(labelsize=7)
        plot.grid(alpha=0.3)
    if len(runs) > 1:
        drawn = [run for run in runs if run in legend]
        handles, across = [legend[run] for run in drawn], min(len(drawn), 2 * ACROSS)
        sheet.legend(handles, drawn, loc="outside lower center", ncols=across)
    return sheet


def _colours(runs: Iterable[str]) -> dict[str, Any]:
    """A colour for each run, no two alike."""
    from matplotlib import colormaps

    names = list(runs)
    if len(names) <= FEW:
        return {run: colormaps["tab10"](i) for i, run in enumerate(names)}
    return {run: colormaps["turbo"](i / (len(names) - 1)) for i, run in enumerate(names)}


def label(logdir: Path, all_of_them: Sequence[Path]) -> str:
    """The shortest ending of the path that no other run shares."""
    for parts in range(1, len(logdir.parts) + 1):
        name = "/".join(logdir.parts[-parts:])
        if sum("/".join(other.parts[-parts:]) == name for other in set(all_of_them)) == 1:
            return name
    return str(logdir)
