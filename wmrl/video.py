"""Pictures and films: panels side by side with a header, mp4, GIF, numbered PNG frames, strips. No display is needed.

All frames are (H, W, 3) uint8, RGB. Files are written beside their place and renamed.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import cv2
import numpy as np

from wmrl.errors import ArtifactError, ConfigError

INK, PAPER = (235, 235, 235), (24, 24, 24)
LINE = 22  # height of a line of text, pixels
GAP = 4  # between panels, pixels
FONT = cv2.FONT_HERSHEY_SIMPLEX
H264 = ["-f", "mp4", "-crf", "18", "-movflags", "+faststart"]
BT709 = ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-colorspace", "bt709", "-color_primaries", "bt709"]
PALETTE = ["-f", "gif", "-filter_complex", "split[a][b];[a]palettegen[p];[b][p]paletteuse", "-loop", "0"]
GIF_FPS = 25.0  # most viewers show no more


class Film(Protocol):
    """Takes frames, one after the other."""

    def add(self, frame: np.ndarray) -> None:
        """Take the next frame; all have one shape."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None: ...


class Video:
    """An mp4 (H.264, yuv420p) or a GIF that grows frame by frame; a context manager, complete when left.

    Args:
        path: Where the film shall be; `.mp4` or `.gif`.
        fps: Frames per second of the episode; a GIF leaves frames out to stay at 25.

    Raises:
        ConfigError: for another ending.
    """

    def __init__(self, path: Path, fps: float) -> None:
        if path.suffix not in (".mp4", ".gif"):
            raise ConfigError(f"{path}: a film ends in .mp4 or .gif")
        self.path = path
        self._beside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        self._every = max(1, round(fps / GIF_FPS)) if path.suffix == ".gif" else 1
        self._fps, self._seen = fps / self._every, 0
        self._pipe: Any = None

    def __enter__(self) -> Self:
        return self

    def add(self, frame: np.ndarray) -> None:
        """Take the next frame."""
        self._seen += 1
        if (self._seen - 1) % self._every == 0:
            data = np.ascontiguousarray(even(frame))
            if self._pipe is None:
                self._pipe = self._open(data.shape[1], data.shape[0])
            self._pipe.send(data)

    def _open(self, width: int, height: int) -> Any:
        import imageio_ffmpeg

        self.path.parent.mkdir(parents=True, exist_ok=True)
        gif = self.path.suffix == ".gif"
        pipe = imageio_ffmpeg.write_frames(
            str(self._beside),
            (width, height),
            fps=self._fps,
            codec="gif" if gif else "libx264",
            pix_fmt_out="pal8" if gif else "yuv420p",
            quality=None,
            macro_block_size=1,
            ffmpeg_log_level="error",
            output_params=PALETTE if gif else H264 + BT709,
        )
        pipe.send(None)
        return pipe

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if error is not None:
            self._beside.unlink(missing_ok=True)
            return
        if not self._beside.exists() or self._beside.stat().st_size == 0:
            raise ArtifactError(f"{self.path} could not be written: ffmpeg made no film of {self._seen} frames")
        self._beside.replace(self.path)


class Stills:
    """A folder of numbered PNG frames, `0000.png` on; frames of an earlier film in it are removed first."""

    def __init__(self, folder: Path) -> None:
        self.path, self._count = folder, 0

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        for old in self.path.glob("[0-9][0-9][0-9][0-9]*.png"):
            old.unlink()
        return self

    def add(self, frame: np.ndarray) -> None:
        """Write the next frame."""
        write_png(self.path / f"{self._count:04d}.png", frame)
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""


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
            write_png(self.path, beside(self._frames))


def write_png(path: Path, frame: np.ndarray) -> None:
    """Write one picture, (H, W, 3) uint8 RGB.

    Raises:
        ArtifactError: if it cannot be encoded.
    """
    ok, data = cv2.imencode(".png", np.ascontiguousarray(frame[:, :, ::-1]))
    if not ok:
        raise ArtifactError(f"{path} could not be encoded as PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    new.write_bytes(data.tobytes())
    new.replace(path)


def picture(obs: np.ndarray) -> np.ndarray:
    """A frame that can be shown, (H, W, 3) uint8, of an observation: uint8 or bool, or floats in 0..1.

    Args:
        obs: (C, H, W); one channel is grey, more than three are summed up in colours of their own.

    Raises:
        ConfigError: if the observation is no picture.
    """
    if obs.ndim != 3:
        raise ConfigError(f"observations of shape {obs.shape} are no pictures: nothing to render")
    if obs.dtype == np.bool_:
        obs = obs.astype(np.float32)
    if obs.dtype != np.uint8:
        obs = (np.clip(obs, 0, 1) * 255).round().astype(np.uint8)
    if obs.shape[0] == 1:
        obs = np.repeat(obs, 3, axis=0)
    if obs.shape[0] != 3:
        hues = np.linspace(0, 1, obs.shape[0], endpoint=False)
        colours = np.stack([np.cos(2 * np.pi * (hues + k / 3)) / 2 + 0.5 for k in range(3)])
        obs = np.clip(np.einsum("kc,chw->khw", colours, obs), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(obs.transpose(1, 2, 0))


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
