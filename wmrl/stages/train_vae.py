"""Learn to see: episodes -> LOGDIR/vae.h5, whatever the representation's kind."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmrl import artifact, continuing, interrupts, seeding
from wmrl.config import build, resolved
from wmrl.data.episodes import Episodes
from wmrl.fit import fit
from wmrl.images import grid
from wmrl.log import Log
from wmrl.pipeline import Fit, Pipeline
from wmrl.representations import REPRESENTATIONS
from wmrl.run import Run
from wmrl.spec import Batch, Loss
from wmrl.store import Store, check_sees, follow

NAME = "vae"
SHOWN = 8
"""Frames in a row of the pictures."""
SHARED = 4
"""Batches that are read together."""


def train_vae(pipe: Pipeline, store: Store, log: Log, run: Run) -> None:
    """Train the representation that the pipeline names, and save it.

    Raises:
        ArtifactError: if the dataset is missing or damaged.
        ConfigError: if the representation cannot see frames of this size.
        ContractError: if it was begun with another dataset, seed, or other settings.
        Stopped: if a signal asked to stop; the training state is saved.
    """
    episodes = store.episodes()
    if "from" in pipe.representation:
        _refer(pipe.representation["from"], episodes, store, log)
        return
    if not run.noreload and continuing.settled(store, NAME, pipe.fit.vae.steps, {"data": episodes.lineage()}):
        log.say(f"{store.path(NAME)} is complete: nothing to do")
        return
    module = fresh(pipe, episodes).to(run.device)
    facts: dict[str, Any] = {}
    if hasattr(module, "loss"):
        facts = _fit(module, pipe, episodes, store, log, run)
    else:
        log.say(f"representation {pipe.representation['kind']!r} has nothing to train")
    component = resolved(REPRESENTATIONS, pipe.representation, "representation")
    parents = {"data": episodes.hash}
    made = artifact.of(module, NAME, component, (episodes.observation,), parents=parents, facts=facts)
    log.say(f"saved {store.path(NAME)}" if store.save(NAME, made) else f"{store.path(NAME)} is up to date")
    log.result({"stage": "train-vae", "artifact": str(store.path(NAME)), "hash": made.hash, **facts})


def fresh(pipe: Pipeline, episodes: Episodes) -> Any:
    """The representation of the pipeline, with random weights that depend on the pipeline's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.number(pipe.seed, NAME, "init"))
        return build(REPRESENTATIONS, pipe.representation, "representation", episodes.observation)


def _refer(target: str, episodes: Episodes, store: Store, log: Log) -> None:
    """Let LOGDIR/vae.h5 be another run's representation, if it sees frames like these."""
    check_sees(follow(Path(target), NAME)[1], Path(target), episodes.observation)
    store.refer(NAME, target)
    log.say(f"{store.path(NAME)} refers to {target}: nothing to train")


def frames(
    episodes: Episodes,
    chosen: np.ndarray,
    count: int,
    run_length: int,
    *,
    key: tuple[seeding.Word, ...],
    start: int = 0,
) -> Iterator[Batch]:
    """Endless batches of single frames, read in short runs; every frame is equally likely.

    A run is read once for `SHARED` batches, and its frames are dealt among them at random: reading them costs a few
    percent of a training step, where each batch for itself would cost a tenth.

    Args:
        episodes: The dataset.
        chosen: Numbers of the episodes to draw from.
        count: B, frames in a batch.
        run_length: Frames of a run that a batch holds, in the mean.
        key: Batch k is a function of (key, k) alone.
        start: The first k.

    Yields:
        Batches of B windows of no steps: obs (B, 1, *obs).
    """
    for group in itertools.count(start // SHARED):
        rng = seeding.rng(*key, group)
        obs = _runs(episodes, chosen, SHARED * count, SHARED * run_length, rng)
        deal = rng.permutation(len(obs)).reshape(SHARED, count)
        for part in deal[max(0, start - group * SHARED) :]:
            yield _batch(obs[part], episodes.actions.size)


def _runs(episodes: Episodes, chosen: np.ndarray, count: int, run_length: int, rng: np.random.Generator) -> np.ndarray:
    """Frames (count, *obs) in runs of `run_length`; every frame is equally likely."""
    # A run may begin up to run_length - 1 rows before its episode: only what lies inside counts. So the first frames
    # of an episode are in as many runs as the others.
    starts = episodes.lengths[chosen] + run_length
    ends = np.cumsum(starts)
    draws = rng.integers(ends[-1], size=count)
    at = np.searchsorted(ends, draws, "right")
    first = draws - ends[at] + starts[at] - (run_length - 1)
    rows = first[:, None] + np.arange(run_length)
    last = episodes.lengths[chosen[at]][:, None]
    inside = (rows >= 0) & (rows <= last)
    needed = int(np.searchsorted(np.cumsum(inside.sum(1)), count)) + 1
    flat = episodes.start[chosen[at]][:, None] + rows.clip(0, last)
    found: np.ndarray = episodes.gather(flat[:needed])["obs"][inside[:needed]][:count]
    return found


def _batch(obs: np.ndarray, actions: int) -> Batch:
    none = torch.zeros(len(obs), 0)
    return Batch(torch.from_numpy(obs)[:, None], torch.zeros(len(obs), 0, actions), none, none, none)


def _fit(module: Any, pipe: Pipeline, episodes: Episodes, store: Store, log: Log, run: Run) -> dict[str, Any]:
    settings = pipe.fit.vae
    train, valid = episodes.split(pipe.validation, pipe.seed)
    count = settings.batch * settings.length
    log.say(f"{len(train)} episodes to train on, {len(valid)} to validate on, {count} frames in a batch")

    def batches(start: int) -> Iterator[Batch]:
        key = (pipe.seed, NAME, "train")
        return frames(episodes, train, count, settings.length, key=key, start=start)

    fixed = _validation(episodes, valid, pipe)

    def loss(batch: Batch, rng: torch.Generator) -> Loss:
        return module.loss(batch, rng=rng)

    result = fit(
        module,
        loss,
        batches,
        lambda: evaluate(module, fixed, pipe.seed, run.device),
        settings=settings,
        name=NAME,
        seed=pipe.seed,
        store=store,
        log=log,
        run=run,
        parents={"data": episodes.lineage()},
        watch=lambda step: draw(module, fixed[0], step, pipe.seed, log, run.device),
    )
    return {"steps": result.steps, "fit": result.facts(), "validation": evaluate(module, fixed, pipe.seed, run.device)}


def _validation(episodes: Episodes, valid: np.ndarray, pipe: Pipeline) -> list[Batch]:
    """The fixed validation batches: frames from all over the validation episodes, in runs of a few."""
    settings: Fit = pipe.fit.vae
    count = settings.batch * settings.length
    stream = frames(episodes, valid, count, 1, key=(pipe.seed, NAME, "valid"))
    return [next(stream) for _ in range(settings.validation_batches)]


@torch.no_grad()
def evaluate(module: Any, fixed: list[Batch], seed: int, device: str) -> dict[str, float]:
    """The mean loss and its parts over the fixed batches; each draws the same noise every time."""
    totals: dict[str, float] = {}
    for k, batch in enumerate(fixed):
        interrupts.check()
        rng = seeding.generator(seed, NAME, "valid", k, device=device)
        loss, metrics = module.loss(batch.to(device), rng=rng)
        for key, value in {"loss": loss, **metrics}.items():
            totals[key] = totals.get(key, 0.0) + float(value) / len(fixed)
    return totals


@torch.no_grad()
def draw(module: Any, batch: Batch, step: int, seed: int, log: Log, device: str) -> None:
    """Log a picture of frames above their reconstructions, and one of samples from the prior."""
    assert batch.obs is not None
    obs = batch.obs[: 2 * SHOWN, 0].to(device)
    seen = module.decode(module.draw(module.encode(obs), sample=False))
    rows: list[Tensor] = []
    for first in range(0, len(obs), SHOWN):
        rows += [obs[first : first + SHOWN], (seen[first : first + SHOWN] * 255).round().byte()]
    log.image("reconstructions", step, grid(rows))
    if module.latent.vocab is None:
        rng = seeding.generator(seed, NAME, "samples", device=device)
        noise = torch.randn(4 * SHOWN, *module.latent.shape, generator=rng, device=device)
        log.image("samples", step, grid(list(module.decode(noise).split(SHOWN))))
