"""Sealed HDF5 files: whole or absent, and checked when opened.

A sealed file is an ordinary HDF5 file behind a 512-byte user block, which HDF5 tools skip. The block is one line of
text: a magic word, the format's version, the file's role, the length and the SHA-256 of all that follows. A file is
built in memory, written beside its place, synced, renamed, and its folder synced: a reader finds the old file or the
new one. It holds numbers and text only; opening a stranger's file runs no code.

Other small files (text, pictures) are replaced in the same way, by `atomic_bytes`, `atomic_text` and `write_png`.
"""

import builtins
import contextlib
import hashlib
import io
import itertools
import json
import os
import re
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
DAMAGE = (KeyError, OSError, RuntimeError, TypeError, ValueError)
"""What h5py raises, and what comes of its answers, where a file is damaged or holds something else."""
LEFTOVER = re.compile(r".+\.(?:h5|json|jsonl|png|gif|mp4)\.tmp-(\d+)")
"""What `beside` names."""


class LaterError(ArtifactError):
    """The file is of a later format: it is not damaged, and must stay as it is."""


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
    atomic_bytes(path, image)
    return digest


def atomic_text(path: Path, text: str) -> None:
    """Write a small text file with the same guarantees.

    Raises:
        ArtifactError: if it cannot be written.
    """
    atomic_bytes(path, text.encode())


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture, whole or not at all; it is not synced, for it can be drawn again.

    Args:
        path: Where the file shall be; its folder is made if it is missing.
        picture: (H, W, 3) uint8 RGB.

    Raises:
        ArtifactError: if it cannot be encoded or written.
    """
    import cv2

    ok, data = cv2.imencode(".png", np.ascontiguousarray(picture[:, :, ::-1]))
    if not ok:
        raise ArtifactError(f"{path} could not be encoded as PNG")
    atomic_bytes(path, data.tobytes(), durable=False)


def beside(path: Path) -> Path:
    """Where this process writes what shall be renamed to `path`; `sweep` removes what a killed one leaves there."""
    return path.with_name(f"{path.name}.tmp-{os.getpid()}")


def atomic_bytes(path: Path, data: bytes | memoryview, *, durable: bool = True) -> None:
    """Write a whole file beside its place and rename it: a reader finds the old file or the new one.

    Args:
        path: Where the file shall be; its folder is made if it is missing.
        data: All of its content.
        durable: Sync file and folder, so that a machine that goes down cannot take either back.

    Raises:
        ArtifactError: if it cannot be written; what was there before is untouched.
    """
    new, rest = beside(path), memoryview(data)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            while rest:
                rest = rest[os.write(handle, rest) :]
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(new, path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise ArtifactError(f"{path} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def open(path: Path, *, role: str | None = None, verify: bool = True) -> Iterator[h5py.File]:
    """Open a sealed file for reading.

    Args:
        path: The file.
        role: If given, what the file must be.
        verify: Read the whole file once and compare its digest. Leave it out only for a file checked before, or where
            nothing depends on what it says: whatever goes wrong inside the `with` is then the file's fault.

    Raises:
        ArtifactError: if the file is missing, foreign, truncated, altered, of another role, or of a later version.
    """
    header = _header(path, role)
    try:
        if verify:
            _verify(path, header)
        file = h5py.File(path, "r")
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    except DAMAGE as error:
        raise _damaged(path, error) from error
    with file:
        try:
            yield file
        except DAMAGE as error:
            if verify:
                raise
            raise _damaged(path, error) from error


def digest(path: Path, *, role: str | None = None) -> str:
    """The digest that the file's own header states; cheap: only the length of the content is compared with it.

    Raises:
        ArtifactError: as `open`, but for a content that was altered in its place.
    """
    header = _header(path, role)
    _measure(path, header)
    return header[1]


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
        raise LaterError(f"{path} is of format {words[1]}; this wmrl reads up to {VERSION}: upgrade wmrl")
    if len(words) != 5 or words[1] != str(VERSION) or not words[3].isdigit() or block != _block(words):
        raise ArtifactError(f"{path} has a damaged header")
    if role is not None and words[2] != role:
        raise ArtifactError(f"{path} holds {words[2]}, where {role} is wanted")
    return int(words[3]), words[4]


def _block(words: list[str]) -> bytes:
    return (" ".join(words) + "\n").encode().ljust(BLOCK, b"\0")


def _damaged(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{path} cannot be read: it is damaged ({type(error).__name__}: {error}); make it again")


def _measure(path: Path, header: tuple[int, str]) -> None:
    size, length = os.stat(path).st_size - BLOCK, header[0]
    if size != length:
        kind = "truncated" if size < length else "longer than it was written"
        raise ArtifactError(f"{path} is {kind}: {size} bytes of content, {length} expected; make it again")


def _verify(path: Path, header: tuple[int, str]) -> None:
    _measure(path, header)
    with builtins.open(path, "rb") as file:
        file.seek(BLOCK)
        seen = hashlib.sha256()
        while chunk := file.read(1 << 20):
            seen.update(chunk)
    if seen.hexdigest() != header[1]:
        raise ArtifactError(f"{path} is damaged: its content does not match its digest; make it again")


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path, *below: str) -> None:
    """Remove what a killed process left half-written: files that bear our names, and no others.

    Args:
        folder: Where to look, itself only: it may hold other people's files and folders.
        below: Folders in it that are ours, with all that is in them.
    """
    found = itertools.chain(folder.glob("*"), *((folder / name).rglob("*") for name in below))
    for leftover in found:
        match = LEFTOVER.fullmatch(leftover.name)
        if match and not _alive(int(match[1])):
            leftover.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
