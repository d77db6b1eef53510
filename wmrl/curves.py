"""Curves of all metrics of one or more runs, in one picture."""

import math
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from wmrl.errors import ArtifactError
from wmrl.sinks import read_metrics

Curve = tuple[list[float], list[float]]
ACROSS = 3  # plots in a row


def collect(logdir: Path) -> dict[str, Curve]:
    """Every metric of a logdir: `stage: name` -> (steps, values); what is not finite is left out."""
    curves: dict[str, Curve] = defaultdict(lambda: ([], []))
    for path in sorted((logdir / "metrics").glob("*.jsonl")):
        for record in read_metrics(path):
            for name, value in record.items():
                if name not in ("step", "time") and math.isfinite(value):
                    steps, values = curves[f"{path.stem}: {name}"]
                    steps.append(record["step"])
                    values.append(value)
    return dict(curves)


def draw(logdirs: Sequence[Path], path: Path) -> Path:
    """Draw the curves of all metrics of `logdirs`, overlaid, as a PNG at `path`.

    Raises:
        ArtifactError: if there are no metrics.
    """
    runs = {label(logdir, logdirs): collect(logdir) for logdir in logdirs}
    names = sorted({name for curves in runs.values() for name in curves})
    if not names:
        raise ArtifactError(f"{', '.join(map(str, logdirs))}: no metrics yet; train something first")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = math.ceil(len(names) / ACROSS)
    figure = Figure(figsize=(5 * ACROSS, 2.8 * rows), layout="constrained")
    for i, name in enumerate(names):
        plot = figure.add_subplot(rows, ACROSS, i + 1)
        for run, curves in runs.items():
            if name in curves:
                steps, values = curves[name]
                plot.plot(steps, values, label=run, linewidth=1, marker="." if len(steps) == 1 else "")
        plot.set_title(name, fontsize=9)
        plot.tick_params(labelsize=7)
        plot.grid(alpha=0.3)
    if len(runs) > 1:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(runs))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    FigureCanvasAgg(figure).print_png(str(beside))
    beside.replace(path)
    return path


def label(logdir: Path, all_of_them: Sequence[Path]) -> str:
    """The shortest ending of the path that no other run shares."""
    for parts in range(1, len(logdir.parts) + 1):
        name = "/".join(logdir.parts[-parts:])
        if sum("/".join(other.parts[-parts:]) == name for other in set(all_of_them)) == 1:
            return name
    return str(logdir)
