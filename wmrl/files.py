"""Sealed HDF5 files: whole or absent, and checked when opened.

A sealed file is an ordinary HDF5 file behind a 512-byte user block, which HDF5 tools skip. The block is one line of
text: a magic word, the format's version, the file's role, the length and the SHA-256 of all that follows. A file is
built in memory, written beside its place, synced, renamed, and its folder synced: a reader finds the old file or the
new one. It holds numbers and text only; opening a stranger's file runs no code.
"""

import builtins
import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the Zstd filter with HDF5
import numpy as np

from wmrl.errors import ArtifactError

MAGIC = "wmrl-sealed"
VERSION = 1
BLOCK = 512


def write(path: Path, fill: Callable[[h5py.File], None], *, role: str) -> str:
    """Write a sealed file at `path`, replacing what is there in one step.

    Args:
        path: Where the file shall be; its folder is made if it is missing.
        fill: Puts groups, datasets and attributes into the (in-memory) file.
        role: What the file is ("vae", "rollouts", ...); `open` can insist on it.

    Returns:
        The SHA-256 of the content, in hex.

    Raises:
        ArtifactError: if it cannot be written (no space, no permission); what was there before is untouched.
    """
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=BLOCK) as file:
        fill(file)
    image = buffer.getbuffer()
    digest = hashlib.sha256(image[BLOCK:]).hexdigest()
    line = f"{MAGIC} {VERSION} {role} {len(image) - BLOCK} {digest}\n"
    image[:BLOCK] = line.encode().ljust(BLOCK, b"\0")
    _replace(path, image)
    return digest


def atomic_text(path: Path, text: str) -> None:
    """Write a small text file with the same guarantees.

    Raises:
        ArtifactError: if it cannot be written.
    """
    _replace(path, memoryview(text.encode()))


@contextlib.contextmanager
def open(path: Path, *, role: str | None = None, verify: bool = True) -> Iterator[h5py.File]:
    """Open a sealed file for reading.

    Args:
        path: The file.
        role: If given, what the file must be.
        verify: Read the whole file once and compare its digest. Leave it out only for a file checked before.

    Raises:
        ArtifactError: if the file is missing, foreign, truncated, altered, of another role, or of a later version.
    """
    header = _header(path, role)
    if verify:
        _verify(path, header)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    with file:
        yield file


def digest(path: Path, *, role: str | None = None) -> str:
    """The digest that the file's own header states; cheap, and not verified.

    Raises:
        ArtifactError: as `open`.
    """
    return _header(path, role)[1]


def put_tree(group: h5py.Group, tree: dict[str, Any]) -> None:
    """Store a nested tree of tensors, arrays, numbers, text and None in `group`.

    Arrays become datasets named by their path; the rest is one JSON text. Keys are strings.
    """
    arrays: dict[str, np.ndarray] = {}
    rest = _strip(tree, "", arrays)
    group.create_dataset("tree", data=json.dumps(rest, sort_keys=True), dtype=h5py.string_dtype())
    for name, array in arrays.items():
        group.create_dataset(f"arrays/{name}", data=array)


def get_tree(group: h5py.Group) -> dict[str, Any]:
    """What `put_tree` stored; tensors come back as NumPy arrays, tuples as lists."""
    stored = group["tree"][()]
    return _fill(json.loads(stored.decode() if isinstance(stored, bytes) else stored), group)


def _strip(node: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(node, dict):
        if bad := [k for k in node if not isinstance(k, str)]:
            raise TypeError(f"keys of a stored tree are strings, got {bad[0]!r} at {path or 'the top'}")
        return {k: _strip(v, f"{path}{k}/", arrays) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_strip(v, f"{path}{i}/", arrays) for i, v in enumerate(node)]
    if hasattr(node, "detach"):
        node = node.detach().cpu().numpy()
    if isinstance(node, np.ndarray):
        name = path.rstrip("/")
        if name in arrays:
            raise TypeError(f"two arrays of a stored tree have the path {name!r}")
        arrays[name] = node
        return {"__array__": name}
    if isinstance(node, np.generic):
        return node.item()
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise TypeError(f"a stored tree holds numbers, text and arrays; {path.rstrip('/')} is a {type(node).__name__}")


def _fill(node: Any, group: h5py.Group) -> Any:
    if isinstance(node, dict):
        if "__array__" in node:
            return group[f"arrays/{node['__array__']}"][()]
        return {k: _fill(v, group) for k, v in node.items()}
    return [_fill(v, group) for v in node] if isinstance(node, list) else node


def _header(path: Path, role: str | None) -> tuple[int, str]:
    try:
        with builtins.open(path, "rb") as file:
            block = file.read(BLOCK)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    words = block.rstrip(b"\0").decode("utf-8", "replace").split()
    if not words or words[0] != MAGIC:
        raise ArtifactError(f"{path} is not a file of wmrl, or its header is damaged")
    if len(words) > 1 and words[1].isdigit() and int(words[1]) > VERSION:
        raise ArtifactError(f"{path} is of format {words[1]}; this wmrl reads up to {VERSION}: upgrade wmrl")
    if len(words) != 5 or words[1] != str(VERSION) or not words[3].isdigit() or block != _block(words):
        raise ArtifactError(f"{path} has a damaged header")
    if role is not None and words[2] != role:
        raise ArtifactError(f"{path} holds {words[2]}, where {role} is wanted")
    return int(words[3]), words[4]


def _block(words: list[str]) -> bytes:
    return (" ".join(words) + "\n").encode().ljust(BLOCK, b"\0")


def _verify(path: Path, header: tuple[int, str]) -> None:
    length, expected = header
    with builtins.open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size - BLOCK
        if size != length:
            kind = "truncated" if size < length else "longer than it was written"
            raise ArtifactError(f"{path} is {kind}: {size} bytes of content, {length} expected; make it again")
        file.seek(BLOCK)
        seen = hashlib.sha256()
        while chunk := file.read(1 << 20):
            seen.update(chunk)
    if seen.hexdigest() != expected:
        raise ArtifactError(f"{path} is damaged: its content does not match its digest; make it again")


def _replace(path: Path, data: memoryview) -> None:
    beside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            done = 0
            while done < len(data):
                done += os.write(handle, data[done:])
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise ArtifactError(f"{path} cannot be written: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder` and below."""
    for leftover in folder.rglob("*.tmp-*"):
        if not _alive(leftover.name.rpartition("-")[2]):
            leftover.unlink(missing_ok=True)


def _alive(pid: str) -> bool:
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
