"""A comparison as one HTML page that needs nothing else: no network, no script, readable in light and dark."""

import base64
import importlib.resources
from collections.abc import Iterable, Sequence
from html import escape
from string import Template
from typing import Any

import cv2
import numpy as np

from wmrl.comparison import gradients, plots, speed, table
from wmrl.comparison.results import Comparison, Findings

READING = (
    "An arrow says which way is better. Small numbers are 95 % bootstrap intervals over held-out episodes (of returns: "
    "over played ones). A number is bold only where the interval of its difference to every other, episode by "
    "episode, leaves zero out. In brackets: the best of the dreams from the same start."
)


def render(comparison: Comparison) -> str:
    """The page."""
    about = comparison.about
    template = Template((importlib.resources.files("wmrl.comparison") / "page.html").read_text())
    names = [model.subject.name for model in comparison.models if model.subject.store is not None]
    return template.substitute(
        title=escape(f"{about['environment']}: {', '.join(names)}"),
        heading=escape(f"World models of {about['environment']}, compared"),
        subtitle=escape(_subtitle(about)),
        notes=_notes(comparison.notes),
        reading=escape(READING),
        table=_table(comparison),
        legend="\n".join(_legend(comparison.models)),
        curves="\n".join(_figure(title, svg) for title, svg in plots.draw(comparison).items()),
        strips=_strips(comparison),
        method="\n".join(f"<p>{escape(text)}</p>" for text in _method(about)),
    )


def _subtitle(about: dict[str, Any]) -> str:
    held, data = about["held_out"], about["dataset"]
    return (
        f"{len(held['episodes'])} episodes of {data['path']} ({data['hash'][:8]}, {data['episodes']} episodes) that no "
        f"model has learnt from, {held['windows']} windows of {held['steps']} steps; "
        f"representation {about['representation'][:8]}; seed {about['settings']['seed']}"
    )


def _notes(notes: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>" if notes else ""


def _table(comparison: Comparison) -> str:
    models = comparison.models
    heads = "".join(f"<th>{escape(model.subject.name)}</th>" for model in models)
    lines = [f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>"]
    for word in ("kind", "trained"):
        cells = "".join(f"<td>{escape(getattr(model.subject, word))}</td>" for model in models)
        lines.append(f"<tr><th>{word}</th>{cells}</tr>")
    for title, rows in table.shown(comparison):
        lines.append(f'<tr class="section"><th colspan="{len(models) + 1}">{escape(title)}</th></tr>')
        lines += [_line(row, models) for row in rows]
    return "\n".join([*lines, "</tbody></table>"])


def _line(row: table.Row, models: Sequence[Findings]) -> str:
    top = table.winners(row, models)
    cells = []
    for i, model in enumerate(models):
        number = model.numbers.get(row.key)
        text = escape(table.text(number, row.digits))
        text = f"<strong>{text}</strong>" if i in top else text
        if row.beside and number is not None:
            text += f" ({escape(table.text(model.numbers.get(row.beside), row.digits))})"
        if between := table.span(number, row.digits):
            text += f"<small>{escape(between)}</small>"
        cells.append(f"<td>{text}</td>")
    unit = f" <small>{escape(row.unit)}</small>" if row.unit else ""
    return f"<tr><th>{escape(row.title)} {table.ARROWS[row.better]}{unit}</th>{''.join(cells)}</tr>"


def _legend(models: Sequence[Findings]) -> Iterable[str]:
    dashes = {"-": "", "--": "6 3", ":": "2 2", "-.": "6 2 2 2"}
    for model, style in zip(models, plots.styles(models), strict=True):
        line = f'<line x1="0" y1="5" x2="26" y2="5" stroke-width="3" stroke="{style["color"]}"'
        dash = dashes[style["linestyle"]]
        line += f' stroke-dasharray="{dash}"/>' if dash else "/>"
        yield f'<span><svg class="swatch" viewBox="0 0 26 10">{line}</svg> {escape(model.subject.name)}</span>'


def _figure(title: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def _strips(comparison: Comparison) -> str:
    if not comparison.real:
        return ""
    parts = [
        "<h2>Real and dreamt frames</h2>",
        "<p>The first dream of each model from the same moment, with the actions that were taken; numbers are dreamt "
        "steps. Shown are the windows, of two episodes, in which the real frames change most.</p>",
    ]
    for k, real in enumerate(comparison.real):
        steps = "".join(f"<span>{'seen' if step == 0 else f'+{step}'}</span>" for step in comparison.moments)
        rows = [("", f'<div class="moments">{steps}</div>'), ("real", _image(real))]
        rows += [(f"reconstructed by V{_whose(comparison)}", _image(strip)) for strip in comparison.seen[k : k + 1]]
        rows += [(model.subject.name, _image(model.strips[k])) for model in comparison.models if model.strips]
        parts.append(
            f'<div class="strip">{"".join(f"<div>{escape(n)}</div><div>{cell}</div>" for n, cell in rows)}</div>'
        )
    return "\n".join(parts)


def _whose(comparison: Comparison) -> str:
    """Says whose V, where models have several."""
    several = not all(model.subject.shares for model in comparison.models)
    return f" of {next(model.subject.name for model in comparison.models if model.subject.shares)}" if several else ""


def _image(strip: np.ndarray) -> str:
    data = cv2.imencode(".png", np.ascontiguousarray(strip[:, :, ::-1]))[1].tobytes()
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def _method(about: dict[str, Any]) -> list[str]:
    held, samples = about["held_out"], about["settings"]["samples"]
    warm, steps = held["warmup"], held["steps"]
    return [
        f"All models see the same windows, whatever they were trained on: {held['windows']} windows of {steps} steps, "
        "equally many of each held-out episode, beginning at random steps. An episode is held out if no part of any "
        "model, representations included, was trained on it.",
        f"Nats: latents are drawn from V's code with one fixed noise for all models. Steps 1 to {warm} begin with an "
        f"empty memory; steps {warm + 1} to {steps} go on through observe. The gap takes the same steps once through "
        "observe and once inside windows of the length that the model was trained on: 0 means that what was learnt in "
        "windows holds step by step, more than 0 that it does not, less than 0 that the longer memory helps. Of "
        "models with a stochastic state (rssm, tssm) nats are estimated by weighted draws, and from above.",
        f"Dreams: {warm} steps with open eyes, then {samples} dreams at temperature 1 with the recorded actions. "
        "Latent error is the mean squared distance per dimension from the most likely latent of the real frame. Models "
        "learn to predict draws from V's code, and one that predicts them rightly errs no less than they do; in the "
        "mean by twice the spread of its distribution, less in the best of its dreams. A model with a decoder of its "
        "own (rssm, tssm, latent) shows a mean and not a draw, and may err less than V's draws do. Models with another "
        "representation compare in observations: decoded frames, in 0..1, are held against the real ones (vectors in "
        "their own units), by squared error and by SSIM (Wang et al. 2004, as scikit-image computes it, channel by "
        "channel). What a model shows of the state that the dream begins in, of V's latent or of its own, limits both.",
        "Rewards and ends: before every step of every held-out episode, eyes open, the model is asked what the step "
        "will lead to. AUC is the Mann-Whitney statistic over all steps, its interval from whole episodes resampled; "
        "the calibration error uses ten bins of equal mass.",
        "Baselines: the first model's network with the weights that its training began with; and a Gaussian around the "
        "last latent whose scale per dimension is fitted on training windows (where pictures are their own latents, "
        "the last picture), with the mean reward and the share of steps that end.",
        f"Gradients (after Ma et al. 2024): up to {gradients.STARTS} dreams at temperature 1 that begin where the eyes "
        "close and never end, by one freshly initialised mlp actor, the same and with the same noise for all models "
        "but for the size of the features, which it sees detached, as in training. Norms of each dream's own gradient; "
        "the median over dreams, whole episodes resampled. Of discrete draws it is the straight-through estimate. "
        "Where a model cannot look back far enough from a reward to an action, there is none.",
        f"Speed: the dynamics alone, in float32, all models in turns, the best of {speed.ROUNDS} rounds; training in "
        f"the model's own batches, of at most {speed.TRAIN_ROWS} windows. "
        "Returns in the dream are what the controller thinks it gets: higher is not better.",
    ]
