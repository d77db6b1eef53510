"""Artifacts: a trained component, or a result, as numbers and text, with all that is needed to build it again."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import wmrl
from wmrl import files
from wmrl.config import plain
from wmrl.spec import Actions, Space

CHECKOUT = Path(__file__).resolve().parent.parent
"""Where the commit is looked up that wmrl runs from: its own folder's parent, if that is a git checkout."""
PACKAGES = ("torch", "numpy", "gymnasium", "envpool", "ale-py", "cma", "h5py", "hdf5plugin", "opencv-python-headless")


@dataclass(frozen=True)
class Artifact:
    """What one stage makes.

    Args:
        role: What it is, and the name of its file: "vae", "dynamics", "controller", "test".
        component: The registry key and all arguments: `{"kind": "mdn-rnn", "hidden": 256, ...}`; {} for a result.
        given: What the code passed beside them: spaces and shapes.
        tensors: Weights, or columns of a result.
        parents: Content hashes of what it was made from: `{"data": ..., "representation": ...}`.
        facts: Anything else worth keeping: metrics, settings, provenance. Not part of the content hash.
    """

    role: str
    component: dict[str, Any] = field(default_factory=dict)
    given: tuple[Space | Actions | tuple[int, ...], ...] = ()
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def hash(self) -> str:
        """The content hash: of role, component, given and tensors; not of times, hosts, or versions."""
        if "from" in self.facts:
            return self.facts["hash"]
        head = {"role": self.role, "component": plain(self.component), "given": plain(self.given)}
        seen = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for name, array in sorted(self.tensors.items()):
            seen.update(f"{name} {array.dtype.str} {array.shape}".encode())
            seen.update(np.ascontiguousarray(array).tobytes())
        return seen.hexdigest()

    def write(self, path: Path) -> None:
        """Write the artifact to `path`, provenance added.

        Raises:
            ArtifactError: if it cannot be written.
        """
        head = {"component": plain(self.component), "given": plain(self.given), "parents": self.parents}
        tree = {**head, "facts": {**plain(self.facts), "provenance": provenance()}, "hash": self.hash}

        def fill(file: h5py.File) -> None:
            for name, array in self.tensors.items():
                file.create_dataset(f"tensors/{name}", data=array, **_compression(array))
            files.put_tree(file.create_group("about"), tree)

        files.write(path, fill, role=self.role)


def read(path: Path, role: str) -> Artifact:
    """Read an artifact and check its digest.

    Raises:
        ArtifactError: if the file is missing, damaged, foreign, of another role, or of a later version.
    """
    with files.open(path, role=role) as file:
        about = files.get_tree(file["about"])
        tensors: dict[str, np.ndarray] = {}
        if "tensors" in file:
            file["tensors"].visititems(
                lambda name, node: tensors.update({name: node[()]}) if isinstance(node, h5py.Dataset) else None
            )
    given = tuple(_given(g) for g in about["given"])
    return Artifact(role, about["component"], given, tensors, about["parents"], about["facts"])


def equal(one: Artifact, other: Artifact) -> bool:
    """Whether two artifacts have the same content, parents and facts, whoever made them and when."""
    facts = [{k: v for k, v in a.facts.items() if k not in ("provenance", "pipeline")} for a in (one, other)]
    return (one.hash, one.parents, _text(facts[0])) == (other.hash, other.parents, _text(facts[1]))


def _text(facts: dict[str, Any]) -> str:
    """Facts as they are stored, in words."""
    return json.dumps(plain(facts), sort_keys=True, default=lambda value: np.asarray(value).tolist())


def of(module: Any, role: str, component: dict[str, Any], given: tuple, **more: Any) -> Artifact:
    """An artifact of a module's weights.

    Args:
        module: A torch module.
        role: See `Artifact`.
        component: The resolved table (`config.resolved`).
        given: What the constructor got beside the table.
        more: `parents`, `facts`.
    """
    tensors = {name: t.detach().cpu().numpy().copy() for name, t in module.state_dict().items()}
    return Artifact(role, component, given, tensors, **more)


@functools.cache
def provenance() -> dict[str, Any]:
    """Who made this: version, git commit, command line, packages, machine."""
    return {
        "wmrl": wmrl.__version__,
        "git": _git(),
        "argv": list(sys.argv),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _compression(array: np.ndarray) -> dict[str, Any]:
    import hdf5plugin

    big = array.dtype == np.uint8 and array.ndim > 1 and array.size > 4096
    return {"chunks": (1, *array.shape[1:]), **hdf5plugin.Zstd(clevel=3)} if big else {}


def _given(value: Any) -> Space | Actions | tuple[int, ...]:
    if isinstance(value, list):
        return tuple(value)
    if "discrete" in value:
        return Actions(**value)
    return Space(tuple(value["shape"]), value.get("vocab"))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """The commit of the checkout that wmrl runs from; None if it is not a checkout."""
    if not (CHECKOUT / ".git").exists():
        return None
    try:
        call = functools.partial(subprocess.run, cwd=CHECKOUT, capture_output=True, text=True, timeout=10, check=True)
        commit = call(["git", "rev-parse", "HEAD"]).stdout.strip()
        dirty = bool(call(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip())
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": dirty}


def with_facts(artifact: Artifact, **facts: Any) -> Artifact:
    """The same artifact with more facts."""
    return dataclasses.replace(artifact, facts={**artifact.facts, **facts})
