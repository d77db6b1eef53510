"""The curves of a comparison as SVG that stands inside a page: its ink is the page's own, light or dark."""

import io
import re
from collections.abc import Sequence
from typing import Any

from wmrl.comparison.results import Comparison, Estimate, Findings

INK = "#010203"
"""Stands for the page's own colour of text."""
COLOURS = ("#2a86c8", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f5fbf", "#a0522d")
"""Of the models. Source: after Okabe and Ito 2008, told apart by colour-blind people; readable on white and black."""
GREY = "#8c8c8c"
"""Of the baselines, which also have lines of their own kind."""
LINES = ("--", ":")
GRADIENTS = {
    "actor_mean": "Gradient of the mean of all rewards at the actor's parameters, norm against the horizon",
    "actor_last": "Gradient of the last reward alone at the actor's parameters",
    "action_mean": "Gradient of the mean of all rewards at the first action",
    "action_last": "Gradient of the last reward alone at the first action",
}
"""Titles of the curves of gradients."""


def draw(comparison: Comparison) -> dict[str, str]:
    """The curves that there is something to show of: title -> SVG."""
    about = comparison.about["held_out"]
    models, warm = comparison.models, about["warmup"]
    sheets = {
        "Nats per dimension against the step of a window, eyes open": _lines(models, "nats", "step", mark=warm),
        "Training: nats on each model's own validation windows": _lines(models, "training", "gradient steps"),
        "Latent error of dreams against the horizon": _lines(models, "latent", "dreamt steps", log=True),
        "Squared error of dreamt observations against the horizon": _lines(models, "seen", "dreamt steps", log=True),
        "Likeness (SSIM) of dreamt frames against the horizon": _lines(models, "ssim", "dreamt steps", limit=True),
        "Squared error of the reward, mean of all dreamt steps so far": _lines(models, "reward", "dreamt steps"),
        **{title: _lines(models, name, "dreamt steps", log=True) for name, title in GRADIENTS.items()},
        "Ends: what happened against what was predicted": _reliability(models),
    }
    return {title: svg for title, svg in sheets.items() if svg}


def styles(models: Sequence[Findings]) -> list[dict[str, Any]]:
    """How each model's line is drawn."""
    found, lines = [], 0
    for i, model in enumerate(models):
        if model.subject.store is None:
            found.append({"color": GREY, "linestyle": LINES[lines % len(LINES)]})
            lines += 1
        else:
            found.append({"color": COLOURS[i % len(COLOURS)], "linestyle": "-" if i < len(COLOURS) else "-."})
    return found


def _lines(
    models: Sequence[Findings], name: str, below: str, *, log: bool = False, mark: int = 0, limit: bool = False
) -> str:
    found = [zip(*model.curves.get(name, ([], [])), strict=True) for model in models]
    there = [[(step, value) for step, value in points if value > 0 or not log] for points in found]
    if not any(there):
        return ""
    sheet, plot = _sheet()
    for i, points in enumerate(there):
        if not points:
            continue
        x, y = zip(*points, strict=True)
        style = styles(models)[i]
        plot.plot(x, y, linewidth=1.6, marker="o" if len(x) < 10 else "", markersize=3.5, **style)
        between = [models[i].numbers.get(f"{name}_{step:g}") for step in x]
        if all(isinstance(number, Estimate) for number in between):
            low, high = ([getattr(number, end) for number in between] for end in ("low", "high"))
            plot.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    if log:
        plot.set_yscale("log")
    shared = all(model.subject.shares and not model.subject.bare for model in models)  # one V is one limit
    if limit and shared and isinstance(top := models[0].numbers.get("ceiling"), Estimate):
        plot.axhline(top.value, color=INK, linewidth=0.8, linestyle="-.")
        plot.annotate("open eyes", (1, top.value), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    if mark and plot.get_xlim()[1] > mark:
        plot.axvline(mark, color=INK, linewidth=0.8, alpha=0.5)
    plot.set_xlabel(below)
    return _svg(sheet, name)


def _reliability(models: Sequence[Findings]) -> str:
    there = [i for i, model in enumerate(models) if model.reliability]
    if not there:
        return ""
    sheet, plot = _sheet()
    for i in there:
        x, y, _ = zip(*models[i].reliability, strict=True)
        plot.plot(x, y, marker="o", markersize=4, linewidth=1.2, **styles(models)[i])
    ends = [edge for model in models for b in model.reliability for edge in (b.predicted, b.happened)]
    least = min((edge for edge in ends if edge > 0), default=1e-4)
    plot.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="-.")
    for scale in (plot.set_xscale, plot.set_yscale):
        scale("symlog", linthresh=max(least, 1e-5))
    plot.set_xlim(0, 1)
    plot.set_ylim(0, 1)
    plot.set_xlabel("predicted chance of an end")
    plot.set_ylabel("share of steps that ended")
    return _svg(sheet, "reliability")


def _sheet() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(5.2, 3.0), layout="constrained", facecolor="none")
    plot = sheet.add_subplot(facecolor="none")
    plot.tick_params(colors=INK, labelsize=9)
    plot.xaxis.label.set_color(INK)
    plot.yaxis.label.set_color(INK)
    plot.grid(color=INK, alpha=0.15)
    for side, spine in plot.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    return sheet, plot


def _svg(sheet: Any, name: str) -> str:
    """The figure as an element of an HTML page: no header, no namespaces, no links, text as text."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}
    written = io.StringIO()
    with rc_context(settings):
        FigureCanvasSVG(sheet).print_svg(written, metadata={"Date": None})
    text = written.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r'\s+(xmlns(:\w+)?|version)="[^"]*"', "", text)
    return text.replace(INK, "currentColor")
