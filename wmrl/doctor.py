"""`wmrl doctor`: what of this machine and installation works, and what to install.

Each check stands alone and imports what it checks inside, so that one broken package hides no other finding.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from wmrl import stdout
from wmrl.errors import UserError

SCHEMA_VERSION = 1
REINSTALL = "pip install --upgrade --force-reinstall wmrl"
Level = Literal["ok", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        topic: What was looked at.
        level: "ok", "note" (something optional is missing) or "bad" (wmrl cannot do its work).
        text: What was found.
        advice: What to do; empty where nothing is needed.
    """

    topic: str
    level: Level
    text: str
    advice: str = ""


def examine() -> list[Finding]:
    """Look at everything; a check that breaks is a finding itself."""
    return [finding for check in CHECKS for finding in _safely(check)]


def run(as_json: bool = False) -> None:
    """Print the report to stdout.

    Raises:
        UserError: if it cannot be printed; after that, if something that wmrl needs does not work here.
    """
    found = examine()
    bad = [finding for finding in found if finding.level == "bad"]
    if as_json:
        report = {"schema_version": SCHEMA_VERSION, "ok": not bad, "findings": [asdict(f) for f in found]}
        stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        stdout.write(_text(found))
    if bad:
        raise UserError(f"wmrl cannot do its work here: {'; '.join(f'{f.topic} {f.text}' for f in bad)}")


def _safely(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What a check finds; if it breaks, what it found before that, and how it broke."""
    topic, found = check.__name__.removesuffix("_"), []
    try:
        for finding in check():
            found.append(finding)
    except Exception as error:  # noqa: BLE001  whatever is broken here is what the user came to hear about
        level: Level = "note" if check in OPTIONAL else "bad"
        found.append(Finding(topic, level, f"{type(error).__name__}: {_first_line(error)}", REINSTALL))
    return found


def python() -> Iterator[Finding]:
    """The interpreter and the platform."""
    version = platform.python_version()
    where = f"Python {version} on {platform.system()} {platform.machine()}, {sys.prefix}"
    if sys.version_info >= (3, 14):
        yield Finding("python", "note", where, "Box2D (CarRacing) has wheels up to Python 3.13")
    else:
        yield Finding("python", "ok", where)


def packages() -> Iterator[Finding]:
    """Whether every required package imports, and its version."""
    for name, module in REQUIRED.items():
        try:
            importlib.import_module(module)
            yield Finding("package", "ok", f"{name} {_version(name)}")
        except Exception as error:  # noqa: BLE001  a broken binary package raises anything, OSError or AttributeError too
            yield Finding("package", "bad", f"{name}: {_first_line(error)}", f"pip install --force-reinstall '{name}'")


def extras() -> Iterator[Finding]:
    """The optional packages, and what they give."""
    for extra, (module, gives) in EXTRAS.items():
        if importlib.util.find_spec(module) is not None:
            yield Finding("extra", "ok", f"{extra} ({module} {_version(module)}): {gives}")
        else:
            yield Finding("extra", "note", f"{extra} is not installed: {gives}", f"pip install 'wmrl[{extra}]'")


def device() -> Iterator[Finding]:
    """What torch can compute on."""
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            props = torch.cuda.get_device_properties(i)
            yield Finding("device", "ok", f"cuda:{i} {props.name}, {props.total_memory / 2**30:.0f} GiB")
    elif shutil.which("nvidia-smi"):
        advice = "install a torch built for CUDA: https://pytorch.org/get-started"
        yield Finding(
            "device", "note", f"cpu; an NVIDIA driver is here, but torch {torch.__version__} does not see it", advice
        )
    else:
        yield Finding("device", "ok", "cpu")


def threads() -> Iterator[Finding]:
    """Cores, and settings that hold them back."""
    import torch

    from wmrl.run import cores

    usable, torches = cores(), torch.get_num_threads()
    text = f"{usable} of {os.cpu_count()} cores usable, torch uses {torches}"
    low = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ}
    advice = f"unset {' '.join(low)} unless you set it on purpose" if low and torches < usable else ""
    yield Finding("threads", "note" if advice else "ok", text, advice)


def memory() -> Iterator[Finding]:
    """Memory, where the system tells."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return
    low = total < 4
    yield Finding("memory", "note" if low else "ok", f"{total:.1f} GiB", "stages take up to 3 GiB" if low else "")


def disk() -> Iterator[Finding]:
    """Room and permission where data and runs go."""
    for folder in ("datasets", "runs"):
        there = _existing(Path(folder).absolute())
        free = shutil.disk_usage(there).free / 2**30
        text = f"{folder}: {free:.1f} GiB free in {there}"
        if not os.access(there, os.W_OK):
            yield Finding("disk", "bad", f"{folder}: {there} cannot be written", "work in a folder of your own")
        elif free < 2:
            yield Finding("disk", "note", text, "1,000 CarRacing episodes take about 0.6 GiB; use --data and --logdir")
        else:
            yield Finding("disk", "ok", text)


def codecs() -> Iterator[Finding]:
    """Zstandard in HDF5 and H.264 in ffmpeg, by using them."""
    yield _zstd()
    yield _h264()


def _h264() -> Finding:
    import imageio_ffmpeg

    named = "IMAGEIO_FFMPEG_EXE" in os.environ
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
        listed = [program, "-hide_banner", "-encoders"]
        out = subprocess.run(listed, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        advice = "unset IMAGEIO_FFMPEG_EXE" if named else "pip install --force-reinstall imageio-ffmpeg"
        return Finding("codec", "bad", f"ffmpeg does not run: {_first_line(error)}", advice)
    if "libx264" in out.stdout:
        return Finding("codec", "ok", f"H.264 for videos, {program}")
    advice = "unset IMAGEIO_FFMPEG_EXE, or name an ffmpeg with libx264 in it"
    return Finding("codec", "bad", f"{program} cannot write H.264", advice)


def _zstd() -> Finding:
    import h5py
    import hdf5plugin
    import numpy as np

    data = np.arange(1000, dtype=np.uint8)
    with tempfile.TemporaryFile() as scratch, h5py.File(scratch, "w") as file:
        file.create_dataset("x", data=data, chunks=(100,), **hdf5plugin.Zstd(clevel=3))
        file.flush()
        same = bool((file["x"][()] == data).all())
    return Finding("codec", "ok" if same else "bad", "Zstandard for rollouts", "" if same else REINSTALL)


def display() -> Iterator[Finding]:
    """Whether windows can open; nothing but `human` rendering needs one."""
    shown = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if shown or platform.system() in ("Darwin", "Windows"):
        yield Finding("display", "ok", shown or platform.system())
    else:
        yield Finding("display", "ok", "none; every command works without one")


def plugins() -> Iterator[Finding]:
    """Parts that other packages bring."""
    for group in ("representations", "dynamics", "controllers", "trainers", "envs"):
        for entry in importlib.metadata.entry_points(group=f"wmrl.{group}"):
            try:
                entry.load()
                yield Finding("plug-in", "ok", f"{group}: {entry.name} ({entry.value})")
            except Exception as error:  # noqa: BLE001  a stranger's module raises anything
                text = f"{group}: {entry.name} ({entry.value}) is broken: {_first_line(error)}"
                yield Finding("plug-in", "note", text, "upgrade or uninstall the package that brings it")


CHECKS = (python, packages, extras, device, threads, memory, disk, codecs, display, plugins)
OPTIONAL = (extras, display, plugins)
"""Checks of what wmrl can do without: a finding, but no failure, if they break."""

REQUIRED = {
    "wmrl": "wmrl",
    "torch": "torch",
    "numpy": "numpy",
    "gymnasium": "gymnasium",
    "box2d": "Box2D",
    "envpool": "envpool",
    "ale-py": "ale_py",
    "cma": "cma",
    "h5py": "h5py",
    "hdf5plugin": "hdf5plugin",
    "opencv-python-headless": "cv2",
    "pydantic": "pydantic",
    "rich": "rich",
    "typer": "typer",
    "imageio-ffmpeg": "imageio_ffmpeg",
    "matplotlib": "matplotlib",
    "scikit-image": "skimage",
}
"""Distribution -> the module that shows whether it works."""

EXTRAS = {
    "tensorboard": ("tensorboard", "curves in TensorBoard, written by every stage"),
    "wandb": ("wandb", "--track wandb"),
    "trackio": ("trackio", "--track trackio"),
    "minari": ("minari", "wmrl data import and export of Minari datasets"),
    "minatar": ("minatar", "MinAtar's games"),
    "minigrid": ("minigrid", "MiniGrid's mazes"),
}
"""Extra -> the package that it brings (distribution and module), what it is for."""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _existing(path: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def _text(found: list[Finding]) -> str:
    """A line for each finding, its advice below; plain text where rich is what is broken."""
    marks = {"ok": "ok  ", "note": "note", "bad": "BAD "}
    styles = {"ok": "green", "note": "yellow", "bad": "bold red"}
    try:
        from rich.console import Console
        from rich.text import Text

        page = stdout.Page()
        console = Console(file=page, highlight=False)
    except ImportError:
        lines = (f"{marks[f.level]}  {f.topic:<9}{f.text}{'  -> ' + f.advice if f.advice else ''}\n" for f in found)
        return "".join(lines)
    for f in found:
        console.print(Text(marks[f.level], styles[f.level]), Text(f" {f.topic:<9}{f.text}"), soft_wrap=True)
        if f.advice:
            console.print(Text(f"{'':<15}-> {f.advice}", "yellow"), soft_wrap=True)
    return page.getvalue()
