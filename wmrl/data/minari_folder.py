"""Minari's local folder, in which a dataset of ours appears whole or not at all.

Minari writes a dataset in its place, readable from the first episode on. So it is made in a scratch folder beside the
others, whose dot hides it from Minari, and renamed when all is in.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from wmrl import files
from wmrl.errors import ArtifactError, ConfigError
from wmrl.locking import lock

ROOT = "MINARI_DATASETS_PATH"
SCRATCH = ".wmrl-export"


@contextlib.contextmanager
def whole(dataset_id: str) -> Iterator[Path]:
    """Make a Minari dataset inside the `with`: meanwhile Minari's folder is a scratch one.

    Without an error it is then renamed to its place, which this yields; with one, or killed, nothing of it stays:
    leftovers of a killed process are removed by the next.

    Raises:
        ConfigError: if there is a dataset of this id, or another process is exporting.
        ArtifactError: if the folder cannot be used.
    """
    from minari.storage import get_dataset_path

    root = get_dataset_path()
    target, scratch = root / dataset_id, root / SCRATCH
    if target.exists():
        raise ConfigError(f"--id {dataset_id}: there is a Minari dataset of this id in {target}; choose another")
    try:
        with lock(scratch):
            made = scratch / "datasets"
            shutil.rmtree(made, ignore_errors=True)
            try:
                made.mkdir()
                with _root(made):
                    yield target
                _publish(made / dataset_id, target, dataset_id)
            finally:
                shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(f"{target} cannot be written: {error}") from error


def _publish(made: Path, target: Path, dataset_id: str) -> None:
    from minari.namespace import create_namespace, list_local_namespaces

    for path in made.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    namespace = dataset_id.rpartition("/")[0]
    if namespace and namespace not in list_local_namespaces():
        create_namespace(namespace)
    target.parent.mkdir(parents=True, exist_ok=True)
    made.rename(target)
    files.sync_folder(target.parent)


@contextlib.contextmanager
def _root(folder: Path) -> Iterator[None]:
    """Let Minari, which looks at the environment at each call, take `folder` for its own."""
    before = os.environ.get(ROOT)
    os.environ[ROOT] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[ROOT]
        else:
            os.environ[ROOT] = before
