"""`wmrl compare`: put models side by side. Nothing is written into their logdirs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmrl.comparison import acting, baselines, endings, gradients, heldout, measures, pixels, speed, subjects, words
from wmrl.comparison.heldout import HeldOut
from wmrl.comparison.measures import How
from wmrl.comparison.results import Comparison, Estimate, Findings, Number, estimate, median
from wmrl.comparison.subjects import Subject
from wmrl.data.codes import Codes
from wmrl.errors import ConfigError
from wmrl.log import Log


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


PARTS = ("likelihood", "dreams", "observations", "reward and end", "gradients", "controller")


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
        pictures = pixels.comparable(held.episodes.observation)
        self.shown = pixels.shown_windows(held) if pictures else []
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
    reference = subjects.reference_of(found)
    beside.append(baselines.last_latent(reference, held, seed=options.seed, device=options.device))
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
            if rates:
                model.numbers["train_steps"] = rates["train"] * model.subject.length
        work.end(len(found))
    notes += words.notes(models)
    settings = {"samples": options.samples, "seed": options.seed, "device": options.device}
    return Comparison(
        models,
        words.about(first, held, settings),
        notes,
        pixels.moments(held),
        [pixels.real_strip(held, row) for row in work.shown],
        [] if reference.bare else [pixels.seen_strip(reference.world, held, row) for row in work.shown],
    )


def _measured(found: Sequence[Subject], work: _Work) -> list[Findings]:
    """Everything but speed."""
    encoded: dict[str, Codes] = {}
    models = []
    for subject in found:
        key = subject.hashes["representation"]
        if key not in encoded:
            work.begin("encoding held-out frames")
            encoded = {key: work.held.encode(subject.world, work.options.device, work.tick)}
        model = Findings(subject, numbers={"parameters": float(subject.parameters)})
        for name, measure in zip(PARTS, MEASURES, strict=True):
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
    compares = subject.shares and not subject.bare
    for h in pixels.horizons(held) if compares else ():
        errors, mask = found.latent[..., h - 1], found.mask[:, h - 1]
        model.put(f"latent_{h}", held.by_episode(errors.mean(1), mask))
        model.put(f"latent_{h}_best", held.by_episode(errors.min(1), mask))
    if compares:
        model.curves["latent"] = _curve(found.latent.mean(1), found.mask)
        drawn = measures.noise(subject.world, held, codes, work.how)
        model.put("floor", held.by_episode(drawn, np.ones(len(drawn))))


def _observations(model: Findings, codes: Codes, work: _Work) -> None:
    found, model.dreams = model.dreams, None  # many latents: they are not kept
    assert found is not None
    world, held = model.subject.world, work.held
    reached = pixels.horizons(held)
    masks, each = [found.mask[:, h - 1] for h in reached], []
    for h, mask in zip(reached, masks, strict=True):
        each.append(pixels.apart(world, held, found, h))
        model.put(f"seen_{h}", held.by_episode(each[-1].error.mean(1), mask))
        model.put(f"seen_{h}_best", held.by_episode(each[-1].error.min(1), mask))
        if (alike := each[-1].alike) is not None:
            model.put(f"ssim_{h}", held.by_episode(alike.mean(1), mask))
            model.put(f"ssim_{h}_best", held.by_episode(alike.max(1), mask))
        work.tick()
    opened = pixels.apart(world, held, found, 0)
    model.put("seen_0", held.by_episode(opened.error[:, 0], np.ones(len(opened.error))))
    curves = {"seen": np.stack([at.error.mean(1) for at in each], 1)}
    if opened.alike is not None:
        model.put("ceiling", held.by_episode(opened.alike[:, 0], np.ones(len(opened.alike))))
        curves["ssim"] = np.stack([at.alike.mean(1) for at in each if at.alike is not None], 1)
    for name, values in curves.items():
        at, mean = _curve(values, np.stack(masks, 1))
        model.curves[name] = ([float(reached[int(i) - 1]) for i in at], mean)
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


def _gradients(model: Findings, codes: Codes, work: _Work) -> None:
    found = gradients.norms(model.subject.world, work.held, codes, work.how)
    if found is None:
        return
    model.slopes = True
    norms, episode = found
    for name, each in norms.items():
        middle = [median(np.where(np.isnan(at), np.inf, at), episode) for at in each.T]
        model.diverged |= len(episode) > 0 and None in middle
        model.numbers |= {f"{name}_{h}": number for h, number in zip(gradients.HORIZONS, middle, strict=True)}
        there = [(float(h), x.value) for h, x in zip(gradients.HORIZONS, middle, strict=True) if x is not None]
        model.curves[name] = ([h for h, _ in there], [value for _, value in there])


def _acting(model: Findings, codes: Codes, work: _Work) -> None:
    subject = model.subject
    model.score = acting.real(subject, work.log)
    model.numbers["real"] = estimate(model.score.returns) if model.score is not None else None
    returns = acting.dreamt(subject, work.held.episodes, work.how, work.log)
    model.numbers["dreamt"] = None
    if returns is not None:
        model.put("dreamt", returns)


MEASURES = (_likelihood, _dreams, _observations, _outcomes, _gradients, _acting)
"""One for each of `PARTS`."""


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
