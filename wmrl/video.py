"""Pictures and films: panels side by side with a header, mp4, GIF, numbered PNG frames, strips. No display is needed.

All frames are (H, W, 3) uint8, RGB. Files are written beside their place and renamed.
"""

import contextlib
import os
import re
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import cv2
import numpy as np
import torch
from torch import Tensor

from wmrl import files, interrupts
from wmrl.errors import ArtifactError, ConfigError

INK, PAPER = (235, 235, 235), (24, 24, 24)
LINE = 22  # height of a line of text, pixels
GAP = 4  # between panels, pixels
FONT = cv2.FONT_HERSHEY_SIMPLEX
H264 = ["-vcodec", "libx264", "-pix_fmt", "yuv420p", "-f", "mp4", "-crf", "18", "-movflags", "+faststart"]
BT709 = ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-colorspace", "bt709", "-color_primaries", "bt709"]
COLOURS = ["-filter_complex", "split[a][b];[a]palettegen[p];[b][p]paletteuse"]
PALETTE = ["-vcodec", "gif", "-pix_fmt", "pal8", "-f", "gif", *COLOURS, "-loop", "0"]
GIF_FPS = 25.0  # most viewers show no more
MARK = ".wmrl-frames"
"""The file by which a folder of frames is known as ours; it says whether they are whole."""
UNFINISHED = "unfinished"
LEFT = re.compile(rf"(\d{{4,}}\.png|{re.escape(MARK)})\.tmp-\d+")
"""What a kill leaves of a frame or a mark that was half written."""


class Film(Protocol):
    """Takes frames, one after the other."""

    def add(self, frame: np.ndarray) -> None:
        """Take the next frame; all have one shape. Raises `Stopped` if a signal asked to stop."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None: ...


class Video:
    """An mp4 (H.264, yuv420p) or a GIF that grows frame by frame; a context manager, complete when left.

    Args:
        path: Where the film shall be; `.mp4` or `.gif`.
        fps: Frames per second of the episode; a GIF leaves frames out to stay at 25.

    Raises:
        ConfigError: for another ending.
        ArtifactError: on the way or at the end, if ffmpeg fails; then there is no film, or the one that was there.
    """

    def __init__(self, path: Path, fps: float) -> None:
        if path.suffix not in (".mp4", ".gif"):
            raise ConfigError(f"{path}: a film ends in .mp4 or .gif")
        self.path = path
        self._beside = files.beside(path)
        self._every = max(1, round(fps / GIF_FPS)) if path.suffix == ".gif" else 1
        self._fps, self._seen = fps / self._every, 0
        self._ffmpeg: Any = None  # a Popen, from the first frame on
        self._said: deque[bytes] = deque(maxlen=1)  # its last line

    def __enter__(self) -> Self:
        return self

    def add(self, frame: np.ndarray) -> None:
        """Take the next frame."""
        interrupts.check()
        self._seen += 1
        if (self._seen - 1) % self._every == 0:
            data = np.ascontiguousarray(even(frame))
            if self._ffmpeg is None:
                self._open(data.shape[1], data.shape[0])
            try:
                self._ffmpeg.stdin.write(data)
            except BrokenPipeError:
                self._end()
                raise self._failure() from None

    def _open(self, width: int, height: int) -> None:
        import imageio_ffmpeg  # for the program only: its writer of films hides how ffmpeg ended

        self.path.parent.mkdir(parents=True, exist_ok=True)
        rate = str(Fraction(self._fps).limit_denominator())
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", rate, "-i", "-"]
        how = PALETTE if self.path.suffix == ".gif" else H264 + BT709
        self._ffmpeg = subprocess.Popen(
            [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *source, "-an", *how, str(self._beside)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            process_group=0,  # what a terminal sends on Ctrl-C is ours to decide
        )
        self._listener = threading.Thread(target=self._said.extend, args=(self._ffmpeg.stderr,), daemon=True)
        self._listener.start()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if self._ffmpeg is not None:
                if error is not None:
                    self._ffmpeg.kill()
                self._end()
            if error is None:
                self._finish()
        finally:
            with contextlib.suppress(OSError):
                self._beside.unlink(missing_ok=True)

    def _end(self) -> None:
        """Wait until ffmpeg has done with what it got."""
        with contextlib.suppress(BrokenPipeError):
            self._ffmpeg.stdin.close()
        self._ffmpeg.wait()
        self._listener.join()
        self._ffmpeg.stderr.close()

    def _finish(self) -> None:
        if self._ffmpeg is None:
            raise ArtifactError(f"{self.path} could not be written: there is no film of no frames")
        if self._ffmpeg.returncode != 0:
            raise self._failure()
        try:
            with self._beside.open("rb") as film:
                os.fsync(film.fileno())
            self._beside.replace(self.path)
            files.sync_folder(self.path.parent)
        except OSError as error:
            raise ArtifactError(f"{self.path} cannot be written: {error.strerror}") from error

    def _failure(self) -> ArtifactError:
        said = b"".join(self._said).decode(errors="replace").strip()
        why = re.sub(r"^\[[^]]*\] ", "", said) or "it does not say why"  # less the part of ffmpeg that speaks
        return ArtifactError(f"{self.path} cannot be written: ffmpeg ended with code {self._ffmpeg.returncode}: {why}")


class Stills:
    """A folder of numbered PNG frames, `0000.png` on, in place of those of an earlier film.

    Nothing is removed that was not written here: a folder that holds anything else is refused. From the first change
    until the last frame its `MARK` says that the frames are unfinished.

    Args:
        folder: A new one, an empty one, or one that was filled like this before.

    Raises:
        ConfigError: if the folder holds other files.
        ArtifactError: if it is no folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self._count = folder, 0
        self._old = _frames_in(folder)

    def __enter__(self) -> Self:
        files.atomic_text(self.path / MARK, f"{UNFINISHED}\n")
        for old in reversed(self._old):  # what a kill leaves is numbered from 0 on, and so known as ours
            old.unlink()
        return self

    def add(self, frame: np.ndarray) -> None:
        """Write the next frame."""
        interrupts.check()
        files.write_png(self.path / f"{self._count:04d}.png", frame)
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say that the frames are whole, if they are."""
        if error is None:
            files.atomic_text(self.path / MARK, f"{self._count} frames\n")


def _frames_in(folder: Path) -> list[Path]:
    """The frames of an earlier film in a folder that holds nothing else, and what a kill left of one half-written."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is no folder: frames cannot be written to it")
    names = sorted(path.name for path in folder.iterdir())
    frames = sorted((name for name in names if name.endswith(".png")), key=len)  # 10000.png comes after 9999.png
    ours = {f"{i:04d}.png" for i in range(len(frames))} if MARK in names else set()
    left = [name for name in names if LEFT.fullmatch(name) and (MARK in names or name.startswith(MARK))]
    if other := [name for name in names if name not in {MARK, *ours, *left}]:
        raise ConfigError(f"{folder} holds {other[0]}, which wmrl render did not write: name a new or an empty folder")
    return [folder / name for name in [*frames, *left]]


class Strip:
    """A PNG of some moments, evenly spaced in time, side by side: for papers and READMEs.

    Args:
        path: Where the picture shall be.
        total: How many moments there are.
        shown: How many of them to show.
        first: A picture of the same height to put in front, or None.

    Attributes:
        wanted: The moments to add, in order.
    """

    def __init__(self, path: Path, total: int, shown: int, first: np.ndarray | None = None) -> None:
        self.path = path
        self.wanted: list[int] = np.linspace(0, total - 1, min(shown, total)).round().astype(int).tolist()
        self._frames = [] if first is None else [first]

    def __enter__(self) -> Self:
        return self

    def add(self, frame: np.ndarray) -> None:
        """Take the picture of the next moment."""
        self._frames.append(frame)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            files.write_png(self.path, beside(self._frames))


def picture(frame: Tensor | np.ndarray) -> np.ndarray:
    """A frame that can be shown, (H, W, 3) uint8 RGB, of an observation or of what a model decodes.

    Args:
        frame: (C, H, W), uint8, bool, or floats in 0..1; three channels are RGB, one is grey, and others are summed up
            in colours of their own, so that the planes of a board can be told apart.

    Raises:
        ConfigError: if the frame is no picture.
    """
    array = _array(frame)
    if array.ndim != 3:
        raise ConfigError(f"observations of shape {array.shape} are no pictures: nothing to render")
    if array.dtype != np.uint8:
        array = np.rint(np.clip(array.astype(np.float32), 0, 1) * 255).astype(np.uint8)
    if array.shape[0] == 1:
        array = np.repeat(array, 3, axis=0)
    if array.shape[0] != 3:
        array = np.rint(np.clip(np.einsum("ck,chw->khw", hues(len(array)), array), 0, 255)).astype(np.uint8)
    return np.ascontiguousarray(array.transpose(1, 2, 0))


def hues(count: int) -> np.ndarray:
    """So many colours (count, 3) in 0..1 that can be told apart."""
    turns = np.linspace(0, 1, count, endpoint=False)
    return np.stack([np.cos(2 * np.pi * (turns + k / 3)) / 2 + 0.5 for k in range(3)], 1)


def _array(frame: Tensor | np.ndarray) -> np.ndarray:
    if not isinstance(frame, Tensor):
        return np.asarray(frame)
    frame = frame.detach().cpu()
    return (frame if frame.dtype == torch.uint8 else frame.float()).numpy()  # NumPy has no bfloat16


def scaled(frame: np.ndarray, height: int) -> np.ndarray:
    """The frame at another height, its proportions kept: sharp pixels when enlarged, area means when reduced."""
    width = max(1, round(frame.shape[1] * height / frame.shape[0]))
    how = cv2.INTER_NEAREST if height >= frame.shape[0] else cv2.INTER_AREA
    return cv2.resize(frame, (width, height), interpolation=how)


def beside(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Frames of one height in a row, with a gap between."""
    gap = np.full((frames[0].shape[0], GAP, 3), PAPER, np.uint8)
    row = [part for frame in frames for part in (frame, gap)][:-1]
    return np.concatenate(row, axis=1)


def titled(frame: np.ndarray, *lines: str) -> np.ndarray:
    """The frame below a header with lines of text, made narrower where the frame is narrow."""
    header = np.full((LINE * len(lines), frame.shape[1], 3), PAPER, np.uint8)
    for i, line in enumerate(lines):
        wide = cv2.getTextSize(line, FONT, 0.5, 1)[0][0]
        size = 0.5 * min(1.0, (frame.shape[1] - 8) / max(wide, 1))
        cv2.putText(header, line, (4, LINE * i + 16), FONT, size, INK, 1, cv2.LINE_AA)
    return np.concatenate([header, frame])


def even(frame: np.ndarray) -> np.ndarray:
    """The frame with even sides, the last row and column repeated where needed: yuv420p halves both."""
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
