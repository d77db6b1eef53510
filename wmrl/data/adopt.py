"""Begin a dataset with the shards of another one: hard links where the disk has them, so that nothing is copied."""

import shutil
from pathlib import Path

from wmrl import files
from wmrl.data import shards
from wmrl.data.shards import Index
from wmrl.errors import ArtifactError
from wmrl.locking import lock


def adopt(source: Path, folder: Path) -> Index:
    """Make of `folder` a dataset with the episodes of `source`; what is appended to one later is not in the other.

    Shards are never written in place, so a link is as good as a copy. Interrupted and called again, it goes on.

    Args:
        source: A complete dataset.
        folder: Where the other one shall be: a folder that is not there yet, or one that was begun so.

    Raises:
        ArtifactError: if `source` is missing, unfinished or damaged, or `folder` cannot be written.
    """
    index = shards.read_complete(source)
    with lock(folder):
        files.sweep(folder)
        for stray in set(shards.scan(folder)) - set(index.names):
            (folder / stray.file).unlink()  # of a source that has changed since
        for name in index.names:
            link(source / name.file, folder / name.file)
        return shards.complete(folder, index.names)


def link(source: Path, target: Path) -> None:
    """Let `target` be the same file as `source`, or a copy of it where the disk has no links.

    Raises:
        ArtifactError: if it cannot be written.
    """
    if target.exists() and files.digest(target) == files.digest(source):
        return
    half = files.beside(target)
    try:
        try:
            half.hardlink_to(source)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, half)
        half.replace(target)
        files.sync_folder(target.parent)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise ArtifactError(f"{target} cannot be written: {error.strerror}") from error
