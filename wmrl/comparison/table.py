"""The table: a line for each number, a column for each model; in the terminal, and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wmrl import stdout
from wmrl.comparison.results import Comparison, Estimate, Findings, Number, best

ARROWS = {"lower": "↓", "higher": "↑", "": ""}
WIDE = 18
"""Characters of a column."""
GRADIENTS = (1, 10, 50)
"""Of the horizons of gradients those in the table; the curves and the JSON have all."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        key: Of `Findings.numbers`.
        title: What it is.
        unit: What it is counted in.
        better: "lower", "higher", or "" where neither is.
        digits: Behind the point; of those below 0 so many that count.
        beside: The key of a further number shown behind it.
        interval: Whether the terminal shows the interval too; the page always does.
    """

    key: str
    title: str
    unit: str = ""
    better: str = ""
    digits: int = 3
    beside: str = ""
    interval: bool = False


def sections(comparison: Comparison) -> Iterator[tuple[str, list[Row]]]:
    """The lines of the table under their headings."""
    about = comparison.about["held_out"]
    warm, steps, samples = about["warmup"], about["steps"], comparison.about["settings"]["samples"]
    reached, seen = about["horizons"], "frames" if about["pictures"] else "observations"
    yield (
        "Next latent, one step ahead (eyes open)",
        [
            Row("nats", f"steps 1 to {warm} of a window", "nats per dimension", "lower", interval=True),
            Row("nats_late", f"steps {warm + 1} to {steps}", "nats per dimension", "lower", interval=True),
            Row("gap", "gap: what these cost more than in training windows; 0 is right", "nats"),
        ],
    )
    beside = f"mean of {samples} dreams (best of {samples})"
    yield (
        f"Dreams with the actions taken, after {warm} steps with open eyes: {beside}",
        [
            *(Row(f"latent_{h}", f"latent error at +{h}", "squared", "lower", 3, f"latent_{h}_best") for h in reached),
            Row("floor", "latent error of draws from V's own code", "squared"),
            *(Row(f"seen_{h}", f"error of {seen} at +{h}", "squared", "lower", -3, f"seen_{h}_best") for h in reached),
            Row("seen_0", f"error of {seen} with open eyes: the dreams' limit", "squared", "", -3),
            *(Row(f"ssim_{h}", f"likeness of frames at +{h}", "SSIM", "higher", 3, f"ssim_{h}_best") for h in reached),
            Row("ceiling", "likeness of frames with open eyes: the dreams' limit", "SSIM", "", 3),
        ],
    )
    yield (
        "Reward and end",
        [
            Row("reward", "reward, one step ahead", "squared error", "lower", 4),
            Row("reward_dream", f"reward, {about['horizon']} dreamt steps", "squared error", "lower", 4),
            Row("auc", "end: ranked rightly", "AUC", "higher", 3),
            Row("brier", "end: Brier score", "squared error", "lower", 5),
            Row("ece", "end: calibration error", "probability", "lower", 5),
        ],
    )
    yield (
        "Gradient of dreamt rewards at a fresh actor's parameters (at its first action): norm, median of dreams",
        [
            *(_slope("mean", f"of the mean of {h} rewards", h) for h in GRADIENTS),
            *(_slope("last", f"of reward {h} alone", h) for h in GRADIENTS[1:]),
        ],
    )
    yield (
        "Size and speed, here and now",
        [
            Row("parameters", "parameters", "", "", 0),
            Row("window", "steps of a training window", "", "", 0),
            Row("train", "training", "windows/s", "higher", 0),
            Row("train_steps", "the same", "steps/s", "higher", 0),
            Row("dream", "dreaming, 1,024 rows", "steps/s", "higher", 0),
            Row("awake", "awake, 64 rows", "steps/s", "higher", 0),
        ],
    )
    yield (
        "Controller",
        [
            Row("real", "return in the real environment", "", "higher", 1, interval=True),
            Row("dreamt", "return in its own dream", "", "", 1, interval=True),
        ],
    )


def _slope(what: str, title: str, h: int) -> Row:
    return Row(f"actor_{what}_{h}", title, "", "", -3, f"action_{what}_{h}", interval=True)


def shown(comparison: Comparison) -> Iterator[tuple[str, list[Row]]]:
    """The sections, without the lines in which no model has a number."""
    for title, rows in sections(comparison):
        kept = [row for row in rows if any(model.numbers.get(row.key) is not None for model in comparison.models)]
        if kept:
            yield title, kept


def text(number: Number, digits: int) -> str:
    """A number for people; a dash where there is none."""
    if number is None:
        return "-"
    value = number.value if isinstance(number, Estimate) else number
    return _plain_text(value, digits)


def span(number: Number, digits: int) -> str:
    """Its interval, "" if it has none."""
    if not isinstance(number, Estimate):
        return ""
    return f"{_plain_text(number.low, digits)} to {_plain_text(number.high, digits)}"


def winners(row: Row, models: Sequence[Findings]) -> set[int]:
    """Which models are best in a line, where intervals justify it; scores of different protocols have no best."""
    if row.key == "real" and len({model.score.protocol.hash for model in models if model.score is not None}) > 1:
        return set()
    return best([model.numbers.get(row.key) for model in models], row.better)


def record(comparison: Comparison) -> dict[str, Any]:
    """The whole comparison for JSON; pictures are left out."""
    rows = [row for _, kept in sections(comparison) for row in kept]
    models = []
    for model in comparison.models:
        subject = model.subject
        models.append(
            {
                "name": subject.name,
                "kind": subject.kind,
                "logdir": str(subject.store.logdir) if subject.store else None,
                "hashes": subject.hashes,
                "trained": subject.trained,
                "same_representation": subject.shares,
                "numbers": {key: _plain(number) for key, number in model.numbers.items()},
                "curves": {name: {"x": x, "y": y} for name, (x, y) in model.curves.items()},
                "reliability": [each._asdict() for each in model.reliability],
            }
        )
    keys = [{"key": row.key, "title": row.title, "unit": row.unit, "better": row.better} for row in rows]
    return {**comparison.about, "notes": list(comparison.notes), "rows": keys, "models": models}


def render(comparison: Comparison) -> str:
    """The table for a terminal."""
    models = comparison.models
    sheet = Table(title=comparison.about["title"], title_justify="left", caption_justify="left")
    sheet.add_column("", min_width=24)
    for model in models:
        sheet.add_column(Text(model.subject.name), justify="right", max_width=WIDE, overflow="fold")
    sheet.add_row("kind", *(Text(model.subject.kind) for model in models))
    sheet.add_row("trained", *(Text(model.subject.trained) for model in models), end_section=True)
    for title, rows in shown(comparison):
        sheet.add_row(Text(title, "bold"), *("" for _ in models))
        for row in rows:
            head = f"{row.title} {ARROWS[row.better]}".rstrip() + (f" ({row.unit})" if row.unit else "")
            top = winners(row, models)
            cells = [_cell(row, model, bold=i in top) for i, model in enumerate(models)]
            sheet.add_row(Text(f"  {head}"), *cells, end_section=row is rows[-1])
    page = stdout.Page()
    width = 40 + (WIDE + 3) * len(models)
    console = Console(file=page, highlight=False, width=None if page.isatty() else width)
    console.print(sheet)
    for note in comparison.notes:
        console.print(Text(f"* {note}"))
    return page.getvalue()


def _cell(row: Row, model: Findings, *, bold: bool) -> Text:
    number = model.numbers.get(row.key)
    cell = Text(text(number, row.digits), "bold" if bold else "")
    if row.beside and number is not None:
        cell.append(f" ({text(model.numbers.get(row.beside), row.digits)})", "not bold dim")
    if row.interval and isinstance(number, Estimate):
        cell.append(f"\n{span(number, row.digits)}", "not bold dim")
    return cell


def _plain_text(value: float, digits: int) -> str:
    """A number with so many digits behind the point, or so many that count, and no minus before nothing."""
    if digits < 0:
        return f"{value:.{-digits}g}"
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def _plain(number: Number) -> Any:
    return number.record() if isinstance(number, Estimate) else number
