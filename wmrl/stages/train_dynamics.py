"""Learn what happens next: episodes and a frozen representation -> LOGDIR/dynamics.h5."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmrl import artifact, continuing, seeding
from wmrl.config import build, resolved
from wmrl.data import codes
from wmrl.data.windows import Source, windows
from wmrl.dynamics import DYNAMICS
from wmrl.errors import ConfigError
from wmrl.fit import FitResult, fit
from wmrl.log import Log
from wmrl.pipeline import Pipeline
from wmrl.run import Run
from wmrl.spec import Actions, Batch, Space
from wmrl.store import Store, follow
from wmrl.world import WorldModel

NAME = "dynamics"


@dataclass(frozen=True)
class Windows:
    """Where training and validation windows come from.

    Args:
        source: Codes, or episodes.
        pipe: Sizes and seed.
        train: Numbers of the training episodes.
        valid: Numbers of the validation episodes.
        device: Where batches go.
        crossing: Whether windows go on in the next episode.
    """

    source: Source
    pipe: Pipeline
    train: Any
    valid: Any
    device: str
    crossing: bool = False

    def training(self, start: int = 0) -> Iterator[Batch]:
        """Batch k of training, from k = `start` on."""
        return self._cut("train", start, self.train)

    def validation(self) -> Iterator[tuple[Batch, torch.Generator]]:
        """The fixed validation batches, each with the generator that draws its latents: always the same."""
        return self._noisy("valid", self._cut("valid", 0, self.valid))

    def sample(self) -> Iterator[tuple[Batch, torch.Generator]]:
        """As many batches of training episodes, as fixed: to fit a baseline."""
        return self._noisy("sample", self._cut("sample", 0, self.train))

    def _cut(self, what: str, start: int, episodes: Any) -> Iterator[Batch]:
        fit = self.pipe.fit.dynamics
        key = (self.pipe.seed, NAME, what)
        return windows(
            self.source, fit.batch, fit.length, key=key, start=start, episodes=episodes, crossing=self.crossing
        )

    def _noisy(self, what: str, batches: Iterator[Batch]) -> Iterator[tuple[Batch, torch.Generator]]:
        for k in range(self.pipe.fit.dynamics.validation_batches):
            rng = seeding.generator(self.pipe.seed, NAME, what, k, device=self.device)
            yield next(batches).to(self.device), rng


def train_dynamics(pipe: Pipeline, store: Store, log: Log, run: Run) -> None:
    """Train the dynamics model that the pipeline names, or keep it untrained, and save it.

    Raises:
        ArtifactError: if the dataset or the representation is missing or damaged.
        ContractError: if the parts do not fit together.
        ConfigError: if an untrained model would replace a trained one.
        Stopped: if a signal asked to stop; the training state is saved.
    """
    if "from" in pipe.dynamics:
        _refer(pipe, store, log)
        return
    _protect(store, run)
    representation: Any
    episodes, (representation, hash_) = store.episodes(), store.component("vae", run.device)
    store.sees(episodes.observation)
    parents = {"data": episodes.lineage(), **continuing.lineage({"representation": hash_}, run)}
    if store.exists(NAME) and not run.noreload and not store.anew(NAME):
        made = store.load(NAME)
        if made.parents.get("representation") not in parents["representation"]:
            store.fits(NAME, made, {"representation": hash_})  # before frames are encoded in vain
        if not run.untrained and continuing.settled(store, NAME, pipe.fit.dynamics.steps, parents):
            log.say(f"{store.path(NAME)} is complete: nothing to do")
            return
    given = (representation.latent, episodes.actions)
    world = WorldModel(representation, fresh(pipe, given).to(run.device))
    facts: dict[str, Any] = {"untrained": run.untrained}
    if run.untrained:
        log.say("keeping the dynamics model as it was initialised: the baseline of an untrained memory")
    else:
        near = follow(store.logdir, "vae")[0].parent / "codes"  # of the run whose representation this is
        source = codes.source(episodes, representation, hash_, store.logdir / "codes", log=log, run=run, near=near)
        crossing = getattr(world.dynamics, "crosses", False)
        data = Windows(source, pipe, *episodes.split(pipe.validation, pipe.seed), run.device, crossing)
        facts["fit"] = _fit(world, data, store, log, run, parents).facts()
        before = WorldModel(representation, fresh(pipe, given).to(run.device))
        facts["validation"] = report(world, before, data, log)
    made = artifact.of(
        world.dynamics,
        NAME,
        resolved(DYNAMICS, pipe.dynamics, NAME),
        given,
        parents={"data": episodes.hash, "representation": hash_},
        facts=facts,
    )
    log.say(f"saved {store.path(NAME)}" if store.save(NAME, made) else f"{store.path(NAME)} is up to date")
    log.result({"stage": "train-dynamics", "artifact": str(store.path(NAME)), "hash": made.hash, **facts})


def fresh(pipe: Pipeline, given: tuple[Space, Actions]) -> Any:
    """The dynamics model of the pipeline, with random weights that depend on the pipeline's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.number(pipe.seed, NAME, "init"))
        return build(DYNAMICS, pipe.dynamics, NAME, *given)


def _protect(store: Store, run: Run) -> None:
    """An untrained model does not silently replace a trained one, nor the other way round."""
    if run.noreload or store.anew(NAME):
        return
    if not store.exists(NAME):
        if run.untrained and store.part(NAME).exists():
            raise ConfigError(
                f"{store.part(NAME)} is a training under way; give the untrained baseline a --logdir of its own, "
                "or give the training up with --noreload"
            )
        return
    untrained = bool(store.load(NAME).facts.get("untrained"))
    if run.untrained != untrained:
        there, wanted = ("untrained", "a trained one") if untrained else ("trained", "the untrained baseline")
        raise ConfigError(
            f"{store.path(NAME)} is {there}; give {wanted} a --logdir of its own, or replace it with --noreload"
        )


def _refer(pipe: Pipeline, store: Store, log: Log) -> None:
    target = Path(pipe.dynamics["from"])
    file = target / f"{NAME}.h5" if target.is_dir() else target
    store.fits(NAME, artifact.read(file, NAME), {"representation": store.load("vae").hash})
    store.refer(NAME, str(file))
    log.say(f"{store.path(NAME)} refers to {file}")


def _fit(
    world: WorldModel, data: Windows, store: Store, log: Log, run: Run, parents: Mapping[str, Sequence[str]]
) -> FitResult:
    return fit(
        world.dynamics,
        world.loss,
        data.training,
        lambda: evaluate(world, data),
        settings=data.pipe.fit.dynamics,
        name=NAME,
        seed=data.pipe.seed,
        store=store,
        log=log,
        run=run,
        parents=parents,
    )


@torch.no_grad()
def evaluate(world: WorldModel, data: Windows) -> dict[str, float]:
    """The loss and its parts on the fixed validation windows, each step weighing the same."""
    total: dict[str, float] = {}
    steps = 0.0
    for batch, rng in data.validation():
        loss, metrics = world.loss(batch, rng)
        weight = float(batch.mask.sum())
        steps += weight
        for name, value in {"loss": loss, **metrics}.items():
            total[name] = total.get(name, 0.0) + weight * float(value)
    return {name: value / max(steps, 1.0) for name, value in total.items()}


@torch.no_grad()
def last_latent(world: WorldModel, data: Windows) -> float:
    """Nats per dimension of a Gaussian around the last latent, on the validation windows.

    Its standard deviations, one per dimension, are fitted to training windows.
    """
    variance = spread(world, data.sample()).clamp(min=1e-8)
    nats, steps = 0.0, 0.0
    for batch, rng in data.validation():
        each = 0.5 * (_moves(world, batch, rng).square() / variance + variance.log() + math.log(2 * math.pi)).mean(-1)
        nats += float((each * batch.mask).sum())
        steps += float(batch.mask.sum())
    return nats / max(steps, 1.0)


@torch.no_grad()
def spread(world: WorldModel, batches: Iterable[tuple[Batch, torch.Generator]]) -> Tensor:
    """The mean square (Z,) of what a step changes in each number of the latent.

    Args:
        world: Its representation gives the latents.
        batches: Windows, each with the generator that draws its latents.
    """
    squares, steps = torch.zeros(()), 0.0
    for batch, rng in batches:
        move = _moves(world, batch, rng)
        squares = squares.to(move) + (move.square() * batch.mask[..., None]).sum((0, 1))
        steps += float(batch.mask.sum())
    return squares / max(steps, 1.0)


def _moves(world: WorldModel, batch: Batch, rng: torch.Generator) -> Tensor:
    """How latents change in each step, flat: (B, T, Z)."""
    latent = world.latents(batch, rng).flatten(2).float()
    return latent[:, 1:] - latent[:, :-1]


def report(world: WorldModel, untrained: WorldModel, data: Windows, log: Log) -> dict[str, dict[str, float]]:
    """Print the model beside its baselines on the same windows, and return their numbers."""
    rows = {"model": evaluate(world.eval(), data), "untrained": evaluate(untrained.eval(), data)}
    if "nll" in rows["model"] and world.representation.latent.vocab is None:
        rows["last latent"] = {"nll": last_latent(world, data)}
    names = [name for name in rows["model"] if name != "loss"]
    settings = data.pipe.fit.dynamics
    count = settings.validation_batches * settings.batch
    log.out(f"on {count} fixed validation windows of {settings.length} steps (nll: nats per latent dimension)")
    log.out(f"{'':12}" + "".join(f"{name:>14}" for name in names))
    for label, row in rows.items():
        log.out(f"{label:12}" + "".join(f"{row[name]:14.4f}" if name in row else f"{'-':>14}" for name in names))
    return rows
