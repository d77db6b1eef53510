"""What is said about a comparison: what it was made of, and what a reader of its numbers has to know."""

from collections.abc import Sequence
from typing import Any

from wmrl.comparison import acting, pixels
from wmrl.comparison.heldout import HeldOut
from wmrl.comparison.results import Findings
from wmrl.comparison.subjects import Subject

LATENT = "numbers in latent space would not compare, and are left out"
DIVERGED = "what it gave is not finite everywhere, and the numbers that it spoils are left out"
NO_END = "no end in the data: the held-out episodes all ran into the time limit"
PLAIN = (
    "on pixels, latents are the observations: errors are those of observations, and there is no error in latent space"
)
NO_NATS = "no density of observations, and so no nats"
EYES = "parameters and speed on pixels include a model's own eyes; on a V they are those of what comes behind V alone"
FLAT = "no gradient of its rewards reaches an action, so gradients have no norms"


def notes(models: Sequence[Findings]) -> list[str]:
    """What has to be said of the models (the baselines behind them), a sentence each."""
    own = [model for model in models if model.subject.store is not None]
    reference = next(model.subject for model in own if model.subject.shares)
    others = [model for model in own if not model.subject.shares and not model.subject.bare]
    bare = [model for model in own if model.subject.bare]
    found = [f"{model.subject.name} has another representation than {reference.name}: {LATENT}" for model in others]
    found += _of(bare, PLAIN)
    blind = [m for m in own if not hasattr(m.subject.world.dynamics, "log_prob") and m not in others]
    found += _of(blind, NO_NATS)
    found += _of(bare if len(bare) < len(own) else [], EYES)
    found += [f"{model.subject.name} diverged: {DIVERGED}" for model in models if model.diverged]
    found += _of([model for model in own if not model.slopes], FLAT)
    if said := acting.protocols({model.subject.name: model.score for model in models if model.score is not None}):
        found.append(said)
    if not models[0].ends:
        found.append(NO_END)
    elif models[0].ends < 30:
        found.append(f"the held-out episodes hold only {models[0].ends} ends: AUC and calibration are rough")
    return found


def _of(models: Sequence[Findings], what: str) -> list[str]:
    return [f"{', '.join(model.subject.name for model in models)}: {what}"] if models else []


def about(first: Subject, held: HeldOut, settings: dict[str, Any]) -> dict[str, Any]:
    """What was compared on what, in words and numbers."""
    episodes = held.episodes
    count = len(held.numbers)
    title = f"{episodes.env['id']}: {count} held-out episodes of {episodes.path}, {len(held.window)} windows"
    return {
        "title": title,
        "environment": episodes.env["id"],
        "dataset": {"path": str(episodes.path), "hash": first.hashes["data"], "episodes": held.count},
        "representation": first.hashes["representation"],
        "held_out": {
            "episodes": [int(number) for number in held.numbers],
            "windows": len(held.window),
            "steps": held.steps,
            "warmup": held.warmup,
            "horizon": held.horizon,
            "horizons": pixels.horizons(held),
            "pictures": len(episodes.observation.shape) == 3,
        },
        "settings": settings,
    }
