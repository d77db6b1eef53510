"""What is compared: the models of some logdirs, and whether they may stand beside each other."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmrl import curves, pipeline
from wmrl.artifact import Artifact
from wmrl.data.episodes import Episodes
from wmrl.errors import ArtifactError, ConfigError, ContractError
from wmrl.pipeline import Fit, Pipeline
from wmrl.spec import Space
from wmrl.store import Store
from wmrl.world import WorldModel


@dataclass(frozen=True)
class Split:
    """How a part was kept from some episodes while it was trained.

    Args:
        fraction: Expected share of the validation episodes.
        seed: What else divided them.
    """

    fraction: float
    seed: int


@dataclass
class Subject:
    """A model, or a baseline, that is compared.

    Args:
        name: A column's head.
        kind: The kind of its dynamics: "mdn-rnn".
        world: Frozen, in eval mode.
        hashes: Content hashes: `data`, `representation`, `dynamics`; of a baseline no data, and of a guess no model.
        length: Steps of the windows that it was trained on.
        store: Its logdir; None for a baseline.
        trained: How long it was trained, or on how much, in words.
        splits: How its parts were kept from the held-out episodes; of a model none of a part that was never trained.
        fit: The settings that it was trained with.
        sees: The frames and the actions that it was made for.
        bare: Whether its latents are the observations themselves.
        shares: Whether its representation is that of the first model whose latents are none, or of the first model
            where there is none: only then do numbers in latent space compare.
    """

    name: str
    kind: str
    world: WorldModel
    hashes: dict[str, str]
    length: int
    fit: Fit
    sees: tuple[Any, ...] = ()
    store: Store | None = None
    trained: str = ""
    splits: tuple[Split, ...] = ()
    bare: bool = False
    shares: bool = True

    @property
    def parameters(self) -> int:
        """How many numbers the dynamics model learns."""
        return sum(p.numel() for p in self.world.dynamics.parameters())


def load(logdirs: Sequence[Path], names: Sequence[str], device: str) -> list[Subject]:
    """The models of logdirs, in order.

    Args:
        logdirs: At least one.
        names: A name for each, or none: then the shortest that tells them apart.
        device: Where they compute.

    Raises:
        ArtifactError: if a part is missing or damaged.
        ConfigError: if a logdir is named twice, or names do not fit.
        ContractError: if the parts of a logdir do not fit together, or its model has learnt online.
    """
    real = [path.resolve() for path in logdirs]
    for path, there in zip(logdirs, real, strict=True):
        if real.count(there) > 1:
            raise ConfigError(f"{path} is named twice")
    if names and (len(names) != len(logdirs) or len(set(names)) < len(names)):
        raise ConfigError(f"--name is given once for each logdir, all different: {len(logdirs)} logdirs, {names}")
    found = [_subject(path, device) for path in logdirs]
    reference = reference_of(found)
    for subject, name in zip(found, names or labels(real, [subject.kind for subject in found]), strict=True):
        subject.name = name
        subject.shares = subject.hashes["representation"] == reference.hashes["representation"]
    return found


def reference_of(found: Sequence[Subject]) -> Subject:
    """The model in whose latent space the others are compared: the first that has one, else the first."""
    return next((subject for subject in found if not subject.bare), found[0])


def bare(world: WorldModel, observation: Space) -> bool:
    """Whether a world's latents are the observations themselves."""
    return bool(world.representation.latent == observation) and not any(True for _ in world.representation.parameters())


def labels(paths: Sequence[Path], kinds: Sequence[str]) -> list[str]:
    """Short names that differ: the kinds of the models, if they differ; else the ends of the paths.

    `runs/NAME/seed-1` is NAME where that is enough.
    """
    if len(set(kinds)) == len(kinds):
        return list(kinds)
    parents = [path.parent if re.fullmatch(r"seed-\d+", path.name) else path for path in paths]
    ends = parents if len(set(parents)) == len(parents) else list(paths)
    return [curves.label(path, ends) for path in ends]


def check(subjects: Sequence[Subject], episodes: Episodes, *, anyway: bool) -> list[str]:
    """Whether all models were trained on one dataset, and `episodes` are it; what has to be said, if not.

    Raises:
        ContractError: if they were not, unless `anyway`; or if they see other frames or actions than the first.
    """
    first = subjects[0]
    notes = []
    for other in subjects[1:]:
        if other.sees != first.sees:
            raise ContractError(
                f"{other.name} was made for {other.sees}, {first.name} for {first.sees}: they cannot be compared"
            )
        if other.hashes["data"] != first.hashes["data"]:
            notes.append(
                f"{other.name} was trained on dataset {other.hashes['data'][:8]}, "
                f"{first.name} on {first.hashes['data'][:8]}"
            )
    if first.hashes["data"] not in episodes.lineage():
        before, now = first.hashes["data"][:8], episodes.hash[:8]
        notes.append(f"{first.name} was trained on dataset {before}, {episodes.path} is {now} now")
    if notes and not anyway:
        raise ContractError(f"{'; '.join(notes)}: not equal terms; --anyway compares them all the same")
    return notes


def _fit(made: Artifact, pipe: Pipeline) -> Fit:
    """The settings that a dynamics model was trained with: those that it keeps itself, if it does."""
    kept = made.facts.get("pipeline", {}).get("fit", {}).get("dynamics")
    return Fit(**kept) if kept else pipe.fit.dynamics


def _subject(logdir: Path, device: str) -> Subject:
    if not logdir.is_dir():
        raise ArtifactError(f"there is no folder {logdir}; name logdirs in which wmrl train-dynamics has run")
    pipe = pipeline.load(logdir)
    store = Store(logdir, pipe)
    world, hashes = store.world(device)
    vae, made = store.load("vae"), store.load("dynamics")
    if "data" not in made.parents:
        raise ContractError(
            f"{logdir} has learnt online, from all that it lived: no episode is held out of it; "
            "name logdirs in which wmrl train-dynamics has run"
        )
    fit = _fit(made, pipe)
    splits = (_split(vae, pipe) if vae.tensors else None, None if _untrained(made) else _split(made, pipe))
    return Subject(
        name=str(logdir),
        kind=made.component["kind"],
        world=world,
        hashes={**hashes, "data": made.parents["data"]},
        length=fit.length,
        fit=fit,
        sees=(*vae.given, made.given[1]),
        bare=bare(world, vae.given[0]),  # type: ignore[arg-type]  # a representation is given its observations' space
        store=store,
        trained=_words(made),
        splits=tuple(split for split in splits if split is not None),
    )


def _untrained(made: Artifact) -> bool:
    return bool(made.facts.get("untrained"))


def _split(made: Artifact, pipe: Pipeline) -> Split:
    """The split of the pipeline that trained a part, which may be another than that of the logdir (`from`)."""
    kept = made.facts.get("pipeline", {})
    return Split(kept.get("validation", pipe.validation), kept.get("seed", pipe.seed))


def _words(made: Artifact) -> str:
    if _untrained(made):
        return "not at all"
    fit = made.facts.get("fit", {})
    return f"{fit.get('steps', 0):,} steps, {fit.get('seconds', 0.0) / 60:.1f} min"
