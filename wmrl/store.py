"""A logdir: the artifacts of one run, what they were made from, and the components rebuilt from them.

LOGDIR/pipeline.json       the pipeline that the run was made with
LOGDIR/vae.h5              complete artifacts; each appears by rename, when its stage is complete
LOGDIR/vae.part.h5         the training state: what an interrupted or prolonged stage continues from
LOGDIR/codes/              frames encoded once     rollouts/   the dataset of an iterated run
LOGDIR/metrics/*.jsonl     logs/*.log     images/     videos/
"""

import contextlib
import importlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmrl import artifact, config, files, memory
from wmrl.artifact import Artifact
from wmrl.errors import ArtifactError, ConfigError, ContractError
from wmrl.pipeline import Pipeline
from wmrl.sources import STORED, place
from wmrl.spec import Space

if TYPE_CHECKING:
    from torch import nn

    from wmrl.data.episodes import Episodes
    from wmrl.world import WorldModel

MAKERS = {"vae": "train-vae", "dynamics": "train-dynamics", "controller": "train-controller", "test": "test-controller"}
"""Artifact -> the command that makes it."""

WHERE = {"vae": "representation", "dynamics": "dynamics", "controller": "controller"}
"""Artifact -> the table of the pipeline that describes it."""


class Store:
    """The files of one run.

    Args:
        logdir: The run's folder; made when something is saved.
        pipe: The run's pipeline.
    """

    def __init__(self, logdir: Path, pipe: Pipeline):
        self.logdir, self.pipe, self.data = Path(logdir), pipe, Path(pipe.data)

    def path(self, name: str) -> Path:
        """The file of the complete artifact `name`."""
        return self.logdir / f"{name}.h5"

    def part(self, name: str) -> Path:
        """The file of the training state of `name`."""
        return self.logdir / f"{name}.part.h5"

    def exists(self, name: str) -> bool:
        """Whether `name` is complete."""
        return self.path(name).exists()

    def begun(self, name: str) -> bool:
        """Whether `name` is complete or in progress."""
        return self.exists(name) or self.part(name).exists()

    def load(self, name: str) -> Artifact:
        """A complete artifact, checked; one that refers to another file (`from`) is followed.

        Raises:
            ArtifactError: if it is missing or damaged; the message says which command makes it.
            ContractError: if it refers to a file that has changed since.
        """
        if not self.exists(name):
            raise ArtifactError(f"{self.path(name)} is missing; make it: wmrl {MAKERS.get(name, name)} {self._where()}")
        return follow(self.path(name), name)[1]

    def save(self, name: str, made: Artifact) -> bool:
        """Write a complete artifact; its training state stays, so that the stage can be prolonged.

        An equal artifact that is there already is left alone, so that it keeps saying who made it.

        Returns:
            Whether it was written.

        Raises:
            ArtifactError: if it cannot be written.
        """
        with contextlib.suppress(ArtifactError):
            if artifact.equal(artifact.read(self.path(name), name), made):
                return False
        artifact.with_facts(made, pipeline=self.pipe.table()).write(self.path(name))
        return True

    def refer(self, name: str, target: str) -> None:
        """Let `name` be an artifact that lies elsewhere: nothing is copied.

        Raises:
            ArtifactError: if there is no such artifact at `target`.
            ConfigError: if that artifact is this very file, which would be lost.
            ContractError: if `target` refers to an artifact that has changed since.
        """
        path, other = follow(Path(target), name)
        if path.resolve() == self.path(name).resolve():
            raise ConfigError(f"{target} is {self.path(name)} itself, or refers to it: name another logdir")
        facts = {"from": os.path.relpath(path.resolve(), self.logdir.resolve()), "hash": other.hash}
        self.save(name, Artifact(name, parents=other.parents, facts=facts))

    def save_part(self, name: str, tree: dict[str, Any]) -> None:
        """Write the training state of `name`: a nested tree of tensors, numbers and text.

        Raises:
            ArtifactError: if it cannot be written; the one before stays.
        """
        files.write(self.part(name), lambda file: files.put_tree(file, tree), role=f"{name}.part")

    def load_part(self, name: str) -> dict[str, Any] | None:
        """The training state of `name` (tensors as NumPy arrays), or None if there is none.

        Raises:
            ArtifactError: if it is damaged.
        """
        if not self.part(name).exists():
            return None
        with files.open(self.part(name), role=f"{name}.part") as file:
            return files.get_tree(file) or None

    def begin_anew(self, name: str) -> None:
        """Note that `name` is made anew: from here on nothing is left to continue, whatever happens.

        The complete artifact stays until the new one takes its place.

        Raises:
            ArtifactError: if it cannot be written; the training state before stays.
        """
        self.save_part(name, {})

    def anew(self, name: str) -> bool:
        """Whether `name` is being made anew and has no training state yet."""
        if not self.part(name).exists():
            return False
        with files.open(self.part(name), role=f"{name}.part", verify=False) as file:  # a state is large: not read whole
            return "arrays" not in file and not files.get_tree(file)

    def drop_part(self, name: str) -> None:
        """Forget the training state of `name`."""
        self.part(name).unlink(missing_ok=True)

    def episodes(self) -> "Episodes":
        """The complete dataset of the pipeline.

        Raises:
            ArtifactError: if it is missing, incomplete or damaged.
            ContractError: if it shows another environment or size than the pipeline asks for.
        """
        from wmrl.data.episodes import Episodes
        from wmrl.envs.names import in_full

        episodes = Episodes(self.data)
        wanted, there = (in_full(env) for env in (config.plain(self.pipe.env), episodes.env))
        for key in ("id", "size", "crop", "frame_skip", "hide", "action_repeat", "sticky", "ramping", "observe"):
            if key in there and there[key] != wanted.get(key):
                raise ContractError(
                    f"{self.data} holds env.{key} = {there[key]!r}, the pipeline asks for {wanted.get(key)!r}; "
                    f"name another folder with --data, or set env.{key}"
                )
        return episodes

    def component(self, name: str, device: str = "cpu") -> tuple["nn.Module", str]:
        """The trained component `name`, frozen, in eval mode, and its content hash.

        Raises:
            ArtifactError, ContractError: as `load`.
        """
        made = self.load(name)
        return rebuild(made, device), made.hash

    def sees(self, frames: Space) -> None:
        """Check that the representation was made for frames like these.

        Raises:
            ArtifactError: if there is none.
            ContractError: if it was made for others.
        """
        check_sees(self.load("vae"), self.path("vae"), frames)

    def world(self, device: str = "cpu") -> tuple["WorldModel", dict[str, str]]:
        """The frozen world model and the hashes of its parts: `{"representation": ..., "dynamics": ...}`.

        Raises:
            ArtifactError: if a part is missing or damaged.
            ContractError: if the dynamics was trained on another representation.
        """
        from wmrl.world import WorldModel

        vae, made = self.load("vae"), self.load("dynamics")
        self.fits("dynamics", made, {"representation": vae.hash})
        world = WorldModel(rebuild(vae, device), rebuild(made, device))
        return world.requires_grad_(False).eval(), {"representation": vae.hash, "dynamics": made.hash}

    def agent(self, device: str = "cpu") -> tuple["WorldModel", Any, dict[str, str]]:
        """The frozen world model, the controller that was made on it, and the hashes of all three parts.

        Raises:
            ArtifactError: if a part is missing or damaged.
            ContractError: if a part was made from others than those that are there.
        """
        world, parents = self.world(device)
        self.fits("controller", self.load("controller"), parents)
        controller, hash_ = self.component("controller", device)
        return world, controller, {**parents, "controller": hash_}

    def fits(self, name: str, made: Artifact, parents: dict[str, str]) -> None:
        """Check that `made` was made from these parents.

        Raises:
            ContractError: naming the parent that changed and the command to run.
        """
        for parent, hash_ in parents.items():
            if made.parents.get(parent, hash_) != hash_:
                raise ContractError(
                    f"{self.path(name)} was made from {parent} {made.parents[parent][:8]}, "
                    f"but {hash_[:8]} is there now; "
                    f"run: wmrl {MAKERS[name]} {self._where()} --noreload"
                )

    def remember(self, sets: Sequence[str] = ()) -> None:
        """Keep the pipeline in the logdir, and the overrides that made it what it is."""
        kept = {"pipeline": self.pipe.table(), "set": list(sets), **place(self.logdir)}
        text = json.dumps(kept, indent=2) + "\n"
        path = self.logdir / STORED
        if not path.exists() or path.read_text() != text:
            files.atomic_text(path, text)

    def _where(self) -> str:
        return f"--logdir {shlex.quote(str(self.logdir))}"


def follow(path: Path, name: str) -> tuple[Path, Artifact]:
    """The artifact `name` in the file or logdir `path`, or the one that it refers to (`from`), and where that lies.

    Raises:
        ArtifactError: if a file is missing or damaged.
        ContractError: if a file refers to one that has changed since.
    """
    path = path / f"{name}.h5" if path.is_dir() else path
    found = memory.read(path, name)
    if "from" not in found.facts:
        return path, found
    target = referred(path, found.facts)
    end, other = follow(target, name)
    if other.hash != found.hash:
        raise ContractError(
            f"{target} has changed since {path} referred to it; "
            f"run: wmrl {MAKERS[name]} --logdir {shlex.quote(str(path.parent))} --noreload"
        )
    return end, other


def referred(path: Path, facts: Mapping[str, Any]) -> Path:
    """The file that the artifact at `path` refers to, as seen from here; references begin at their own folder."""
    return Path(os.path.relpath(path.parent.resolve() / facts["from"]))


def check_sees(made: Artifact, path: Path, frames: Space) -> None:
    """Check that the representation `made`, at `path`, was made for frames like these.

    Raises:
        ContractError: if it was made for others.
    """
    if made.given != (frames,):
        raise ContractError(f"{path} sees {made.given[0]}, but these frames are {frames}")


def rebuild(made: Artifact, device: str = "cpu") -> "nn.Module":
    """The component that an artifact holds, frozen, in eval mode.

    Raises:
        ConfigError: if its kind is not known here (a plug-in is missing).
        ContractError: if its weights do not fit the component that its arguments make.
    """
    import torch

    where = WHERE[made.role]
    module = config.build(registry(where), made.component, where, *made.given)
    try:
        module.load_state_dict({name: torch.from_numpy(array) for name, array in made.tensors.items()})
    except RuntimeError as error:
        raise ContractError(f"the weights do not fit {where} {made.component['kind']!r}: {error}") from error
    return module.to(device).requires_grad_(False).eval()


def registry(where: str) -> dict[str, str]:
    """The kinds of one of the tables "representation", "dynamics", "controller", "trainer"."""
    module = importlib.import_module(config.GROUPS[where])
    return getattr(module, module.__name__.rpartition(".")[2].upper())
