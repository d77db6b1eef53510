"""Frames encoded once: what a representation's `encode` gives, kept in memory and, shard by shard, on disk.

LOGDIR/codes/<digest of the shard>.h5 holds the codes of one shard of episodes (floats as float16) and its actions,
rewards and flags. A file counts only for the representation and the shard it was made of; any other is made again.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from wmrl import files, interrupts, precision
from wmrl.data.adopt import link
from wmrl.data.episodes import Episodes
from wmrl.errors import ArtifactError
from wmrl.log import Log
from wmrl.run import Run

ROLE = "codes"
COLUMNS = ("code", "action", "reward", "terminated")
ENCODED_AT_ONCE = 256
"""Frames that go through the encoder together."""
WORTH_MEASURING = 10_000
"""Frames from which on it pays to measure which precision encodes faster."""
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
    episodes: Episodes, representation: Any, hash_: str, folder: Path, *, log: Log, run: Run, near: Path | None = None
) -> Codes | Episodes:
    """Where `windows` shall read from: codes, or the episodes themselves where codes would be no smaller.

    Codes are read where they are on disk, else made, and saved shard by shard.

    Args:
        episodes: The dataset.
        representation: Frozen, on the run's device.
        hash_: The representation's content hash.
        folder: Where codes are kept.
        log: Says what is done.
        run: Device and precision of the encoder. With "auto" the precision of codes that are there is kept.
        near: Where another run keeps its codes: those of the same representation are linked, not made.

    Returns:
        `Codes`, or `episodes` if a code is its frame, or as large, or all codes exceed `MEMORY`.

    Raises:
        Stopped: if a signal asks to stop; finished shards are kept.
        ArtifactError: if a file cannot be written.
    """
    encoder = Encoder(representation, run.device)
    frame, total = episodes.read(0, 1)["obs"], int(episodes.start[-1])
    code = encoder(frame)
    if code.nbytes >= frame.nbytes or code.shape == frame.shape:  # vectors as they are would lose half their digits
        return episodes
    if (size := code.nbytes * total) > MEMORY:
        log.warn(f"codes would take {size / 2**30:.1f} GiB: frames are encoded anew for every batch, which is slow")
        return episodes
    files.sweep(folder)
    if near is not None and near.resolve() != folder.resolve():
        _borrow(near, folder, hash_, episodes.shards, log)
    cache = Cache(folder, hash_, run.precision, log)
    columns: dict[str, np.ndarray] = {}
    for (low, high), digest in _shards(episodes):
        part = cache.load(digest, high - low)
        if part is None:
            cache.begin(encoder, episodes, total)
            part = _encode(episodes, low, high, encoder, lambda done: log.progress(done, total, "frames"))
            cache.save(digest, part)
        _place(columns, part, low, total)
        interrupts.check()
    cache.tidy(episodes.shards)
    return Codes(episodes.start, episodes.lengths, columns)


def _borrow(near: Path, folder: Path, maker: str, digests: Iterable[str], log: Log) -> None:
    """Link what another run has encoded with the same representation."""
    theirs, own = Cache(near, maker, "auto", log), Cache(folder, maker, "auto", log)
    if not theirs.precision or own.precision not in ("", theirs.precision):
        return
    folder.mkdir(parents=True, exist_ok=True)
    for digest in digests:
        if theirs.path(digest).exists() and not own.path(digest).exists():
            with contextlib.suppress(ArtifactError):  # gone meanwhile: it is encoded like any other
                link(theirs.path(digest), own.path(digest))


def _shards(episodes: Episodes) -> Iterator[tuple[tuple[int, int], str]]:
    """The rows of each shard, and its digest."""
    for name, digest in zip(episodes.names, episodes.shards, strict=True):
        yield (int(episodes.start[name.first]), int(episodes.start[name.first + name.count])), digest


class Encoder:
    """Frames (n, *obs) -> codes (n, *code), in as few bits as they need.

    Args:
        representation: Frozen, on `device`.
        device: Where it computes.
    """

    def __init__(self, representation: Any, device: str):
        self.representation, self.device, self.precision = representation, device, "fp32"

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Encode some frames."""
        obs = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device)
        with precision.autocast(self.precision, self.device):
            return compact(self.representation.encode(obs), self.representation.latent.vocab)

    @torch.no_grad()
    def choose(self, frames: np.ndarray) -> tuple[str, str]:
        """The faster precision for these frames, and what was measured."""
        obs = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device)
        return precision.choose(lambda: self.representation.encode(obs), self.device)


class Cache:
    """Codes on disk, a file per shard.

    Args:
        folder: Where the files lie.
        maker: Content hash of the representation.
        asked: "auto", or the precision that codes must have been made in.
        log: Says what does not fit.
    """

    def __init__(self, folder: Path, maker: str, asked: str, log: Log):
        self.folder, self.maker, self.log = folder, maker, log
        self.precision = self._settled() if asked == "auto" else asked
        self.begun = self.warned = False

    def load(self, digest: str, rows: int) -> dict[str, np.ndarray] | None:
        """The codes of a shard, or None if they are missing, of something else, or damaged."""
        path = self.path(digest)
        if not path.exists():
            return None
        try:
            with files.open(path, role=ROLE) as file:
                maker, made_in = file.attrs.get("maker"), file.attrs.get("precision")
                if (maker, made_in) == (self.maker, self.precision) and len(file["code"]) == rows:
                    return {name: file[name][()] for name in COLUMNS}
        except ArtifactError as error:
            self.log.warn(f"{error}: its frames are encoded again")
            return None
        if not self.warned:
            self.warned = True
            self.log.say(f"{self.folder} holds codes of another representation or precision: encoding again")
        return None

    def begin(self, encoder: Encoder, episodes: Episodes, total: int) -> None:
        """Settle the precision of what is encoded from now on, and say so, once."""
        if self.begun:
            return
        self.begun, why = True, ""
        if not self.precision and total < WORTH_MEASURING:
            self.precision = "fp32"
        elif not self.precision:
            self.precision, measured = encoder.choose(episodes.read(0, min(total, ENCODED_AT_ONCE))["obs"])
            why = f" ({measured})"
        encoder.precision = self.precision
        self.log.say(f"encoding {total:,} frames once, in {self.precision}{why}, into {self.folder}")

    def save(self, digest: str, part: dict[str, np.ndarray]) -> None:
        """Keep the codes of a shard."""

        def fill(file: h5py.File) -> None:
            file.attrs["maker"], file.attrs["precision"] = self.maker, self.precision
            for name, column in part.items():
                file.create_dataset(name, data=column)

        files.write(self.path(digest), fill, role=ROLE)

    def tidy(self, digests: Iterable[str]) -> None:
        """Remove the codes of all other shards."""
        wanted = {self.path(digest) for digest in digests}
        for path in self.folder.glob("*.h5"):
            if path not in wanted:
                path.unlink()

    def _settled(self) -> str:
        """The precision of the codes that are there already, or ""."""
        for path in sorted(self.folder.glob("*.h5")):
            with contextlib.suppress(ArtifactError), files.open(path, role=ROLE) as file:
                if file.attrs.get("maker") == self.maker:
                    return str(file.attrs.get("precision", ""))
        return ""

    def path(self, digest: str) -> Path:
        """Where the codes of a shard lie."""
        return self.folder / f"{digest[:32]}.h5"


def compact(code: Tensor, vocab: int | None = None) -> np.ndarray:
    """Codes in few bits: floats as float16, tokens below `vocab` as int16 if they fit, uint8 and bool as they are."""
    if code.is_floating_point():
        return code.to(torch.float16).cpu().numpy()
    if code.dtype in (torch.uint8, torch.bool):
        return code.cpu().numpy()
    small = torch.int16 if vocab is not None and vocab <= 1 << 15 else torch.int32
    return code.to(small).cpu().numpy()


def _encode(
    episodes: Episodes, low: int, high: int, encode: Encoder, progress: Callable[[int], None]
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


def _place(columns: dict[str, np.ndarray], part: dict[str, np.ndarray], low: int, total: int) -> None:
    for name, column in part.items():
        if name not in columns:
            columns[name] = np.empty((total, *column.shape[1:]), column.dtype)
        columns[name][low : low + len(column)] = column
