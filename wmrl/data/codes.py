"""Frames encoded once: what a representation's `encode` gives, kept in memory and, shard by shard, on disk.

LOGDIR/codes/<digest of the shard>.h5 holds the codes of one shard of episodes (floats as float16) and its actions,
rewards and flags. A file counts only for the representation and the shard it was made of; any other is made again.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from wmrl import files, interrupts
from wmrl.data.episodes import Episodes
from wmrl.errors import ArtifactError
from wmrl.log import Log
from wmrl.run import Run

ROLE = "codes"
COLUMNS = ("code", "action", "reward", "terminated")
ENCODED_AT_ONCE = 256
"""Frames that go through the encoder together."""
MEMORY = 1 << 30
"""The most bytes of codes that are kept in memory; larger ones are made anew for each batch."""


@dataclass
class Codes:
    """Encoded episodes in memory, a source of `windows` in place of `Episodes`.

    Args:
        start: (E + 1,) first row of each episode; an episode of T steps has T + 1 rows.
        lengths: (E,) steps.
        columns: `code` (R, *code), `action` (R, A), `reward` (R,), `terminated` (R,).
    """

    start: np.ndarray
    lengths: np.ndarray
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.lengths)

    def gather(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The columns at row numbers: (B, L) int64 -> column -> (B, L, ...)."""
        return {name: column[rows] for name, column in self.columns.items()}


def source(
    episodes: Episodes, representation: Any, hash_: str, folder: Path, *, log: Log, run: Run
) -> "Codes | Episodes":
    """Where `windows` shall read from: codes, or the episodes themselves where codes would be no smaller.

    Args:
        episodes: The dataset.
        representation: Frozen, on the run's device.
        hash_: The representation's content hash.
        folder: Where codes are kept.
        log: Says what is done.
        run: Device and precision of the encoder.

    Returns:
        `Codes`, or `episodes` if a code is as large as its frame, or all codes exceed `MEMORY`.
    """
    frame = episodes.read(0, 1)["obs"]
    code = _encoder(representation, run)(frame)
    size = code.nbytes * int(episodes.start[-1])
    if code.nbytes >= frame.nbytes:
        return episodes
    if size > MEMORY:
        log.warn(f"codes would take {size / 2**30:.1f} GiB: frames are encoded anew for every batch, which is slow")
        return episodes
    return encoded(episodes, representation, hash_, folder, log=log, run=run)


def encoded(episodes: Episodes, representation: Any, hash_: str, folder: Path, *, log: Log, run: Run) -> Codes:
    """The codes of all episodes: read where they are on disk, else made and saved shard by shard.

    Args:
        episodes: The dataset.
        representation: Frozen, on the run's device.
        hash_: The representation's content hash.
        folder: Where codes are kept.
        log: Says what is done.
        run: Device and precision of the encoder.

    Raises:
        Stopped: if a signal asks to stop; finished shards are kept.
        ArtifactError: if a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
    key = hashlib.sha256(f"{hash_} {_half(run)}".encode()).hexdigest()
    columns: dict[str, np.ndarray] = {}
    total, made, wanted = int(episodes.start[-1]), 0, set()
    for (low, high), digest in _shards(episodes):
        path = folder / f"{digest[:32]}.h5"
        part = _load(path, key, high - low, log, said=made > 0)
        if part is None:
            if not made:
                log.say(f"encoding {total:,} frames once, into {folder}")
            part = _encode(
                episodes, low, high, _encoder(representation, run), lambda done: log.progress(done, total, "frames")
            )
            _save(path, key, part)
            made += high - low
        wanted.add(path.name)
        _place(columns, part, low, total)
        interrupts.check()
    _tidy(folder, wanted)
    return Codes(episodes.start, episodes.lengths, columns)


def _shards(episodes: Episodes) -> Iterator[tuple[tuple[int, int], str]]:
    """The rows of each shard, and its digest."""
    for name, digest in zip(episodes.names, episodes.shards, strict=True):
        yield (int(episodes.start[name.first]), int(episodes.start[name.first + name.count])), digest


def _half(run: Run) -> bool:
    return run.precision == "bf16"


def _encoder(representation: Any, run: Run) -> Callable[[np.ndarray], np.ndarray]:
    """Frames (n, *obs) -> codes (n, *code) in as few bits as they need."""

    def encode(frames: np.ndarray) -> np.ndarray:
        obs = torch.from_numpy(np.ascontiguousarray(frames)).to(run.device)
        kind = torch.device(run.device).type
        with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=_half(run)):
            return compact(representation.encode(obs), representation.latent.vocab)

    return encode


def compact(code: Tensor, vocab: int | None = None) -> np.ndarray:
    """Codes in few bits: floats as float16, tokens below `vocab` as int16 if they fit, uint8 and bool as they are."""
    if code.is_floating_point():
        return code.to(torch.float16).cpu().numpy()
    if code.dtype in (torch.uint8, torch.bool):
        return code.cpu().numpy()
    small = torch.int16 if vocab is not None and vocab <= 1 << 15 else torch.int32
    return code.to(small).cpu().numpy()


def _encode(
    episodes: Episodes, low: int, high: int, encode: Callable[[np.ndarray], np.ndarray], progress: Callable[[int], None]
) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    for a in range(low, high, ENCODED_AT_ONCE):
        b = min(a + ENCODED_AT_ONCE, high)
        found = episodes.read(a, b)
        found["code"] = encode(found["obs"])
        for name in COLUMNS:
            parts[name].append(found[name])
        progress(b)
        interrupts.check()
    return {name: np.concatenate(part) for name, part in parts.items()}


def _save(path: Path, key: str, part: dict[str, np.ndarray]) -> None:
    def fill(file: h5py.File) -> None:
        file.attrs["key"] = key
        for name, column in part.items():
            file.create_dataset(name, data=column)

    files.write(path, fill, role=ROLE)


def _load(path: Path, key: str, rows: int, log: Log, *, said: bool) -> dict[str, np.ndarray] | None:
    """The codes in a file, or None if they are missing, of something else, or damaged."""
    if not path.exists():
        return None
    try:
        with files.open(path, role=ROLE) as file:
            if file.attrs.get("key") == key and file["code"].shape[0] == rows:
                return {name: file[name][()] for name in COLUMNS}
    except ArtifactError as error:
        log.warn(f"{error}: its frames are encoded again")
        return None
    if not said:
        log.say(f"{path.parent} holds codes of another representation or precision: frames are encoded again")
    return None


def _place(columns: dict[str, np.ndarray], part: dict[str, np.ndarray], low: int, total: int) -> None:
    for name, column in part.items():
        if name not in columns:
            columns[name] = np.empty((total, *column.shape[1:]), column.dtype)
        columns[name][low : low + len(column)] = column


def _tidy(folder: Path, wanted: set[str]) -> None:
    """Remove codes of shards that the dataset no longer has."""
    for path in folder.glob("*.h5"):
        if path.name not in wanted:
            path.unlink()
