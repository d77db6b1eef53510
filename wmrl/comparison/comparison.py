"""`wmrl compare`: put models side by side. Nothing is written into their logdirs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmrl.comparison import acting, baselines, endings, heldout, measures, pixels, speed, subjects
from wmrl.comparison.heldout import HeldOut
from wmrl.comparison.measures import How
from wmrl.comparison.results import Comparison, Estimate, Findings, Number, estimate
from wmrl.comparison.subjects import Subject
from wmrl.data.codes import Codes
from wmrl.errors import ConfigError
from wmrl.log import Log

LATENT = "numbers in latent space would not compare, and are left out"
DIVERGED = "what it gave is not finite everywhere, and the numbers that it spoils are left out"
NO_END = "no end in the data: the held-out episodes all ran into the time limit"


@dataclass(frozen=True)
class Options:
    """How to compare.

    Args:
        names: A name for each logdir; none: the shortest that tell them apart.
        anyway: Compare models of different datasets too.
        starts: Windows of held-out episodes.
        samples: Dreams from each.
        seed: From which all randomness follows.
        speed: Whether speed is measured.
        device: Where to compute.
    """

    names: Sequence[str] = ()
    anyway: bool = False
    starts: int = 128
    samples: int = 8
    seed: int = 0
    speed: bool = True
    device: str = "cpu"


PARTS = ("likelihood", "dreams", "likeness", "reward and end", "controller")


class _Work:
    """What the measurements share, and how far they are.

    Args:
        held: What every model is measured on.
        options: How.
        log: Shows progress.
        models: How many there are.
    """

    def __init__(self, held: HeldOut, options: Options, log: Log, models: int) -> None:
        self.held, self.options, self.log = held, options, log
        self.pictures = pixels.comparable(held.episodes.observation)
        self.shown = pixels.shown_windows(held) if self.pictures else []
        self.how = How(options.seed, options.device, self.tick)
        self.done, self.total, self.what = 0, (len(PARTS) + int(options.speed)) * models, ""

    def begin(self, what: str) -> None:
        """The next part."""
        self.what = what
        self.tick()

    def end(self, parts: int = 1) -> None:
        """Parts are done."""
        self.done += parts
        self.tick()

    def tick(self) -> None:
        """Time has passed."""
        self.log.progress(self.done, self.total, "parts", self.what)


def compare(logdirs: Sequence[Path], options: Options, log: Log) -> Comparison:
    """Measure the models of some logdirs, an untrained one and the guess that nothing changes.

    Args:
        logdirs: At least one.
        options: How.
        log: Shows progress.

    Raises:
        ArtifactError: if an artifact or the dataset is missing or damaged.
        ConfigError: if a number in the options means nothing.
        ContractError: if the models were not trained on one dataset, or too few episodes are held out of all.
        Stopped: if a signal asked to stop.
    """
    if options.starts < 1 or options.samples < 1:
        raise ConfigError(f"--starts and --samples must be at least 1, got {options.starts} and {options.samples}")
    found = subjects.load(logdirs, options.names, options.device)
    first = found[0]
    assert first.store is not None
    episodes = first.store.episodes()
    notes = subjects.check(found, episodes, anyway=options.anyway)
    acting.check(found)
    held = heldout.hold_out(episodes, found, starts=options.starts, seed=options.seed)
    log.say(f"{len(held.numbers)} held-out episodes, {len(held.window)} windows of {held.steps} steps")
    twin = baselines.untrained(first, options.device)
    beside = [] if twin.hashes["dynamics"] in {subject.hashes["dynamics"] for subject in found} else [twin]
    beside.append(baselines.last_latent(first, held, seed=options.seed, device=options.device))
    for baseline in beside:
        if baseline.name in {subject.name for subject in found}:
            baseline.name += " (baseline)"
    found += beside
    work = _Work(held, options, log, len(found))
    models = _measured(found, work)
    if options.speed:
        work.begin("speed")
        for model, rates in zip(models, speed.measure(found, options.device, work.tick), strict=True):
            model.numbers.update(rates)
        work.end(len(found))
    notes += _notes(models)
    return Comparison(
        models,
        _about(first, held, options),
        notes,
        pixels.moments(held),
        [pixels.real_strip(held, row) for row in work.shown],
        [pixels.seen_strip(first.world, held, row) for row in work.shown],
    )


def _measured(found: Sequence[Subject], work: _Work) -> list[Findings]:
    """Everything but speed."""
    encoded: dict[str, Codes] = {}
    models = []
    for subject in found:
        key = subject.hashes.get("representation", found[0].hashes["representation"])
        if key not in encoded:
            work.begin("encoding held-out frames")
            encoded = {key: work.held.encode(subject.world, work.options.device, work.tick)}
        model = Findings(subject, numbers={"parameters": float(subject.parameters)})
        for name, measure in zip(PARTS, (_likelihood, _dreams, _likeness, _outcomes, _acting), strict=True):
            work.begin(f"{subject.name}: {name}")
            measure(model, encoded[key], work)
            work.end()
        models.append(model)
    return models


def _likelihood(model: Findings, codes: Codes, work: _Work) -> None:
    subject, held = model.subject, work.held
    model.numbers["window"] = float(subject.length) if hasattr(subject.world.dynamics, "loss") else None
    model.numbers |= dict.fromkeys(("nats", "nats_late", "gap"))
    if not subject.shares:
        return
    found = measures.likelihood(subject.world, held, codes, work.how, subject.length)
    if found is None:
        return
    parts = {"nats": slice(0, held.warmup), "nats_late": slice(held.warmup, None)}
    for name, part in parts.items():
        model.put(name, held.by_episode(found.awake[:, part], found.mask[:, part]))
    model.put("gap", found.gap)
    model.curves["nats"] = _curve(found.awake, found.mask)
    if subject.store is not None and (learnt := acting.learning(subject.store)):
        model.curves["training"] = learnt


def _dreams(model: Findings, codes: Codes, work: _Work) -> None:
    subject, held = model.subject, work.held
    model.dreams = found = measures.dreams(subject.world, held, codes, work.how, work.options.samples)
    model.put("reward_dream", held.by_episode(found.reward.mean(1), found.mask))
    steps, wrong = _curve(found.reward.mean(1), found.mask)
    model.curves["reward"] = (steps, [float(x) for x in np.cumsum(wrong) / np.arange(1, len(wrong) + 1)])
    for h in pixels.horizons(held) if subject.shares else ():
        errors, mask = found.latent[..., h - 1], found.mask[:, h - 1]
        model.put(f"latent_{h}", held.by_episode(errors.mean(1), mask))
        model.put(f"latent_{h}_best", held.by_episode(errors.min(1), mask))
    if subject.shares:
        model.curves["latent"] = _curve(found.latent.mean(1), found.mask)
        drawn = measures.noise(subject.world, held, codes, work.how)
        model.put("floor", held.by_episode(drawn, np.ones(len(drawn))))


def _likeness(model: Findings, codes: Codes, work: _Work) -> None:
    found, model.dreams = model.dreams, None  # many latents: they are not kept
    if not work.pictures or found is None:
        return
    world, held = model.subject.world, work.held
    reached = pixels.horizons(held)
    alike = pixels.similarity(world, held, found, work.tick)
    for i, h in enumerate(reached):
        mask = found.mask[:, h - 1]
        model.put(f"ssim_{h}", held.by_episode(alike[..., i].mean(1), mask))
        model.put(f"ssim_{h}_best", held.by_episode(alike[..., i].max(1), mask))
    at, mean = _curve(alike.mean(1), np.stack([found.mask[:, h - 1] for h in reached], 1))
    model.curves["ssim"] = ([float(reached[int(i) - 1]) for i in at], mean)
    limit = pixels.ceiling(world, held)
    model.put("ceiling", held.by_episode(limit, np.ones(len(limit))))
    model.strips = [pixels.dream_strip(world, held, found, row) for row in work.shown]


def _outcomes(model: Findings, codes: Codes, work: _Work) -> None:
    held = work.held
    found = measures.outcomes(model.subject.world, held, codes, work.how)
    numbers, count = model.numbers, len(held.numbers)
    model.put("reward", _per_episode(found.reward, found.episode, count))
    model.ends = int(found.ended.sum())
    numbers |= dict.fromkeys(("auc", "brier", "ece"))
    if model.ends and np.isfinite(found.end).all():
        model.reliability = endings.reliability(found.end, found.ended)
        numbers["auc"] = _auc(found.end, found.ended, found.episode)
        numbers["ece"] = endings.calibration_error(model.reliability)
        model.put("brier", _per_episode((found.end - found.ended) ** 2, found.episode, count))


def _acting(model: Findings, codes: Codes, work: _Work) -> None:
    subject = model.subject
    model.score = acting.real(subject, work.log)
    model.numbers["real"] = estimate(model.score.returns) if model.score is not None else None
    returns = acting.dreamt(subject, work.held.episodes, work.how, work.log)
    model.numbers["dreamt"] = None
    if returns is not None:
        model.put("dreamt", returns)


def _per_episode(values: np.ndarray, episode: np.ndarray, count: int) -> np.ndarray:
    """Means (count,) of the steps of each episode; infinite where one is no number."""
    sums = np.bincount(episode, values, count)
    return np.where(np.isnan(sums), np.inf, sums) / np.maximum(np.bincount(episode, minlength=count), 1)


def _auc(chance: np.ndarray, ended: np.ndarray, episode: np.ndarray) -> Number:
    """The area over all steps, episodes resampled as a whole for its interval: it is no mean that differences have."""
    value = endings.auc(chance, ended)
    between = endings.auc_interval(chance, ended, episode)
    return value if value is None or between is None else Estimate(np.empty(0), value, *between)


def _curve(values: np.ndarray, mask: np.ndarray) -> tuple[list[float], list[float]]:
    """The mean over windows at each step, from 1 on, where any window is left and the mean is a number."""
    count = (mask > 0).sum(0)
    total = np.where(mask > 0, values, 0).sum(0, dtype=np.float64)
    steps = [i for i in range(len(count)) if count[i] and np.isfinite(total[i])]
    return [float(i + 1) for i in steps], [float(total[i] / count[i]) for i in steps]


def _notes(models: Sequence[Findings]) -> list[str]:
    others = [model.subject.name for model in models if not model.subject.shares]
    notes = [f"{name} has another representation than {models[0].subject.name}: {LATENT}" for name in others]
    notes += [f"{model.subject.name} diverged: {DIVERGED}" for model in models if model.diverged]
    if said := acting.protocols({model.subject.name: model.score for model in models if model.score is not None}):
        notes.append(said)
    if not models[0].ends:
        notes.append(NO_END)
    elif models[0].ends < 30:
        notes.append(f"the held-out episodes hold only {models[0].ends} ends: AUC and calibration are rough")
    return notes


def _about(first: Subject, held: HeldOut, options: Options) -> dict:
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
        },
        "settings": {"samples": options.samples, "seed": options.seed, "device": options.device},
    }
