"""Make things visible: films of episodes beside reconstructions and dreams, strips, single frames, curves."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmrl import curves, panels
from wmrl.errors import ArtifactError, ConfigError
from wmrl.log import Log
from wmrl.panels import Column
from wmrl.pipeline import Pipeline
from wmrl.recording import Episode
from wmrl.rollout import Policy
from wmrl.run import Run
from wmrl.spec import Space
from wmrl.stages.subject import Subject, choose, seed_of
from wmrl.store import Store
from wmrl.video import Film, Stills, Strip, Video

DREAM_STEPS = 1000  # steps of a pure dream, if nothing else is asked for
STRIP_HEIGHT = 96  # of one picture of a strip, pixels
FPS = (0.1, 1000.0)  # what ffmpeg takes, and people can follow
HEIGHT = (16, 4320)  # of a panel, pixels: 8K is the most that is watched, and fits into memory

IDLE = {
    "native": ("episode", "data", "dream"),
    "fresh": ("episode", "data"),
    "dream": ("reset_every",),
}
"""Flag -> the flags that would mean nothing beside it."""
NEEDS = {"compare": "curves", "moments": "strip"}
"""Flag -> the flag without which it means nothing."""
OF_CURVES = {"out", "curves", "compare"}
"""All the flags that mean something for curves."""


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """The flags of `wmrl render`.

    Args:
        out: The file to write (`--out`), .mp4 or .gif, .png for a strip or curves; None: a name in LOGDIR/videos.
        episode: Which recorded episode (`--episode`), from 0; of the last test, or of the dataset with `data`.
        data: Take the episode from the dataset (`--from-data`).
        fresh: Play a new episode with the controller, or the random policy if there is none (`--fresh`).
        seed: Seed of a fresh episode and of dreams (`--episode-seed`); None: derived from the pipeline's.
        dream: A pure dream from a real first frame, the controller acting in it (`--dream`).
        reset_every: Steps after which the dream column begins again from what happened (`--reset-every`); 0: never.
        temperature: Of the dynamics' draws in dreams (`--temperature`).
        steps: Show at most so many steps (`--steps`); None: all, or 1000 of a pure dream.
        strip: Write a PNG of moments beside each other instead of a film (`--strip`).
        moments: How many moments a strip shows (`--moments`).
        curves: Draw the curves of all metrics instead (`--curves`).
        compare: Other logdirs whose curves to overlay (`--compare`, repeatable).
        frames: Folder for numbered PNG frames (`--frames`), instead of a film unless `out` is given too.
        native: Show the environment's own resolution; plays a fresh episode (`--native`).
        height: Height of a panel, pixels (`--height`); with `native` at least the environment's own.
        fps: Frames per second (`--fps`); None: the environment's own.
    """

    out: Path | None = None
    episode: int | None = None
    data: bool = False
    fresh: bool = False
    seed: int | None = None
    dream: bool = False
    reset_every: int = 50
    temperature: float = 1.0
    steps: int | None = None
    strip: bool = False
    moments: int = 8
    curves: bool = False
    compare: tuple[Path, ...] = ()
    frames: Path | None = None
    native: bool = False
    height: int = 256
    fps: float | None = None


def render(pipe: Pipeline, store: Store, log: Log, run: Run, options: RenderOptions | None = None) -> None:
    """Write a film, a strip, frames or curves of what the run has learnt, and print the paths.

    Raises:
        ArtifactError: if there is nothing to show, or a part for it is missing.
        ConfigError: if the flags do not go together, or an episode is not there.
    """
    paths = draw(pipe, store, log, run, options or RenderOptions())
    for path in paths:
        log.out(str(path))
    log.result({"files": [str(path) for path in paths]})


def draw(pipe: Pipeline, store: Store, log: Log, run: Run, options: RenderOptions) -> list[Path]:
    """What `render` does, without printing the paths.

    Raises:
        ArtifactError, ConfigError: as `render`.
    """
    _check(options)
    with _writing():
        _check_places(store, options)
    if options.curves:
        path = options.out or store.logdir / "videos" / "curves.png"
        with _writing():
            return [curves.draw([store.logdir, *options.compare], path, log.warn)]
    subject = choose(pipe, store, log, run, options)
    if options.steps is not None:
        subject = dataclasses.replace(subject, episode=subject.episode.cut(options.steps))
    if options.dream:
        columns, headers, name = _dream(pipe, store, run, options, subject.episode.obs[0])
    else:
        columns, headers = _columns(pipe, store, log, run, options, subject), _headers(subject.episode)
        name = subject.name
    with _writing():
        return _write(store, options, columns, headers, name, options.fps or subject.fps)


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """A file that cannot be written is the user's affair, in one sentence."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{error.filename or 'the file'} cannot be written: {error.strerror or error}") from error


def _check_places(store: Store, options: RenderOptions) -> None:
    """What cannot be written to is told before an episode is played, not after."""
    file, frames = _file(store, options, "film"), options.frames
    if file is not None:
        _check_above(file)
    if options.out is not None and options.out.is_dir():
        raise ArtifactError(f"--out {options.out} is a folder, not a file")
    if frames is None:
        return
    if file is not None and frames.resolve() in file.resolve().parents:
        raise ConfigError(f"{file} would lie in --frames {frames}, which holds frames only: name another --out")
    _check_above(frames)
    Stills(frames)


def _check_above(place: Path) -> None:
    """There is a folder for it, or one can be made."""
    above = next(folder for folder in place.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        why = "may not be written to" if above.is_dir() else "is a file, not a folder"
        raise ArtifactError(f"{place} cannot be written: {above} {why}")


def _file(store: Store, options: RenderOptions, name: str) -> Path | None:
    """The film or strip to write; None if frames are all that is asked for."""
    if options.out is None and options.frames is not None and not options.strip:
        return None
    return options.out or store.logdir / "videos" / f"{name}{'.png' if options.strip else '.mp4'}"


def _check(options: RenderOptions) -> None:
    _check_kinds(options)
    _check_idle(options)
    if not HEIGHT[0] <= options.height <= HEIGHT[1]:
        raise ConfigError(f"--height lies between {HEIGHT[0]} and {HEIGHT[1]} pixels, got {options.height}")
    if (options.steps is not None and options.steps < 1) or options.moments < 1:
        raise ConfigError("--steps and --moments are at least 1")
    if options.reset_every < 0 or (options.seed is not None and options.seed < 0):
        raise ConfigError("--reset-every and --episode-seed are not negative")
    if not 0 <= options.temperature < math.inf:
        raise ConfigError(f"--temperature is a number from 0 on, got {options.temperature}")
    if options.fps is not None and not FPS[0] <= options.fps <= FPS[1]:
        raise ConfigError(f"--fps lies between {FPS[0]:g} and {FPS[1]:g}, got {options.fps:g}")


def _check_kinds(options: RenderOptions) -> None:
    """The file ends as what is asked for does."""
    if options.curves and options.out is not None and options.out.suffix != ".png":
        raise ConfigError(f"--out {options.out}: curves are a .png")
    if options.strip and options.out is not None and options.out.suffix != ".png":
        raise ConfigError(f"--out {options.out}: a strip is a .png")
    if not options.strip and not options.curves and options.out and options.out.suffix not in (".mp4", ".gif"):
        raise ConfigError(f"--out {options.out}: a film is a .mp4 or a .gif (with --strip or --curves: a .png)")


def _check_idle(options: RenderOptions) -> None:
    """No flag is given that would mean nothing here."""
    given = {f.name for f in dataclasses.fields(options) if getattr(options, f.name) != f.default}
    if options.curves and (idle := sorted(given - OF_CURVES)):
        raise ConfigError(f"--curves draws metrics, to which {_flag(idle[0])} does not apply: leave one of them out")
    for name, others in IDLE.items():
        if name in given and (idle := sorted(given.intersection(others))):
            raise ConfigError(f"{_flag(idle[0])} does not apply with {_flag(name)}: leave one of them out")
    for name, other in NEEDS.items():
        if name in given and other not in given:
            raise ConfigError(f"{_flag(name)} applies to {_flag(other)} only: add that, or leave it out")
    if options.strip and options.frames is None and "height" in given:
        raise ConfigError(f"--height does not apply to a strip, whose pictures are {STRIP_HEIGHT} pixels high")
    if "fps" in given and (options.strip or (options.frames is not None and options.out is None)):
        raise ConfigError("--fps is the speed of a film, and none is written here: leave it out")


def _flag(name: str) -> str:
    """A field of `RenderOptions` as it is typed."""
    return {"data": "--from-data", "seed": "--episode-seed"}.get(name, f"--{name.replace('_', '-')}")


def _columns(
    pipe: Pipeline, store: Store, log: Log, run: Run, options: RenderOptions, subject: Subject
) -> list[Column]:
    """Real, and as much of reconstruction and dream as was trained."""
    columns = [panels.real(subject.episode)]
    if subject.episode.obs.ndim == 2 and not subject.episode.native:
        log.say("observations are vectors: their curves are shown; --fresh shows the environment's own frames")
    if not store.exists("vae"):
        log.say("nothing is trained yet: only what really happened is shown")
        return columns
    store.sees(Space(subject.episode.obs.shape[1:]))
    representation, _ = store.component("vae", run.device)
    if representation.latent.shape != subject.episode.obs.shape[1:]:  # else it shows what it was shown
        columns.append(panels.reconstruction(representation, subject.episode, run.device))
    if not store.exists("dynamics"):
        log.say("there is no dynamics model yet: no dream is shown")
        return columns
    world, _ = store.world(run.device)
    how = panels.Dreaming(seed=seed_of(pipe, options), temperature=options.temperature, device=run.device)
    columns.append(panels.dream(world, subject.episode, how, every=options.reset_every))
    return columns


def _dream(
    pipe: Pipeline, store: Store, run: Run, options: RenderOptions, first: np.ndarray
) -> tuple[list[Column], list[str], str]:
    """The one column of a pure dream, its headers, and its name."""
    world, controller, _ = store.agent(run.device)
    how = panels.Dreaming(seed=seed_of(pipe, options), temperature=options.temperature, device=run.device)
    dreamt = panels.pure_dream(world, Policy(controller), first, how, steps=options.steps or DREAM_STEPS)
    total, returns = len(dreamt.reward), np.concatenate([[0.0], np.cumsum(dreamt.reward)])
    headers = [f"dreamt return {value:.1f}  step {i}/{total}" for i, value in enumerate(returns)]
    return [Column("dream", dreamt.frames)], headers, f"dream-{seed_of(pipe, options)}"


def _headers(episode: Episode) -> list[str]:
    returns, total = np.concatenate([[0.0], np.cumsum(episode.reward, dtype=np.float64)]), len(episode)
    return [f"return {value:.1f}  step {i}/{total}" for i, value in enumerate(returns)]


def _write(
    store: Store, options: RenderOptions, columns: Sequence[Column], headers: Sequence[str], name: str, fps: float
) -> list[Path]:
    """The files asked for."""
    total = min(len(headers), *(len(column.frames) for column in columns))
    height = max(options.height, len(columns[0].frames[0]) if options.native else 0)
    file, paths = _file(store, options, name), []
    with contextlib.ExitStack() as stack:
        films: list[Film] = []
        if options.frames is not None:
            films.append(stack.enter_context(Stills(options.frames)))
            paths.append(options.frames)
        if file is not None:
            paths.append(file)
        if file is not None and not options.strip:
            films.append(stack.enter_context(Video(file, fps)))
        if films:
            for i in range(total):
                frame = panels.side_by_side(columns, i, headers[i], height)
                for film in films:
                    film.add(frame)
    if file is not None and options.strip:
        _strip(file, columns, total, options.moments)
    return paths


def _strip(path: Path, columns: Sequence[Column], total: int, moments: int) -> None:
    with Strip(path, total, moments, first=panels.labels(columns, STRIP_HEIGHT)) as strip:
        for i in strip.wanted:
            strip.add(panels.stacked(columns, i, f"step {i}", STRIP_HEIGHT))
