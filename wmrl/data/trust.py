"""Shards are verified before a number of theirs is used, once per process; what to do about one that is damaged."""

from pathlib import Path

from wmrl import files
from wmrl.errors import ArtifactError, ContractError

ROLE = "rollouts"
AGAIN = "the same wmrl generate (or wmrl data import)"
_verified: set[tuple[int, int, int, int]] = set()
"""Files whose digest this process has checked: device, inode, size, time of change. A link is the same file."""


def verify(path: Path) -> None:
    """Check a shard's digest, once per process and version of the file.

    Raises:
        ArtifactError: if it is missing or damaged; the message says what to do.
    """
    try:
        stat = path.stat()
        key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if key not in _verified:
            with files.open(path, role=ROLE):
                _verified.add(key)
    except (ArtifactError, OSError) as error:
        raise _with_remedy(path, error) from error


def match(path: Path, digest: str, index: str) -> None:
    """Compare what a shard's header says, and its length, with a list of shards; reads 512 bytes.

    Args:
        path: The shard.
        digest: The listed one.
        index: Name of the list, for messages.

    Raises:
        ArtifactError: if the shard is missing or visibly damaged; the message says what to do.
        ContractError: if it is another shard.
    """
    if stated(path) != digest:
        raise ContractError(f"{path} is not the shard that {index} lists; {AGAIN} brings the list up to date")


def stated(path: Path) -> str:
    """The digest that a shard's header states.

    Raises:
        ArtifactError: as `match`.
    """
    try:
        return files.digest(path, role=ROLE)
    except ArtifactError as error:
        raise _with_remedy(path, error) from error


def _with_remedy(path: Path, error: Exception) -> Exception:
    if isinstance(error, files.LaterError):
        return error
    if not path.exists():
        return ArtifactError(f"{path} is missing; {AGAIN} makes it again")
    return ArtifactError(f"{str(error).removesuffix('; make it again')}; delete it, and {AGAIN} makes it again")
