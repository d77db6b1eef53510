"""Make things visible: films of episodes beside reconstructions and dreams, strips, single frames, curves."""

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from wmrl import artifact, curves, panels
from wmrl.data.policies import White
from wmrl.envs import make
from wmrl.errors import ConfigError
from wmrl.log import Log
from wmrl.panels import Column
from wmrl.pipeline import Pipeline
from wmrl.protocols import Actor
from wmrl.recording import Episode, Recorder, episodes_in
from wmrl.rollout import Agent, Policy, play
from wmrl.run import Run
from wmrl.seeding import number
from wmrl.store import Store
from wmrl.video import Film, Stills, Strip, Video

DREAM_STEPS = 1000  # steps of a pure dream, if nothing else is asked for
STRIP_HEIGHT = 96  # of one picture of a strip, pixels


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """The flags of `wmrl render`.

    Args:
        out: The file to write (`--out`), .mp4 or .gif, .png for a strip or curves; None: a name in LOGDIR/videos.
        episode: Which recorded episode (`--episode`), from 0; of the last test, or of the dataset with `data`.
        data: Take the episode from the dataset (`--from-data`).
        fresh: Play a new episode with the controller, or the random policy if there is none (`--fresh`).
        seed: Seed of a fresh episode and of dreams (`--seed`); None: derived from the pipeline's.
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


@dataclass(frozen=True)
class Subject:
    """The episode to show.

    Args:
        episode: What happened.
        name: What it is, for the file's name and for people.
        fps: Frames per second.
    """

    episode: Episode
    name: str
    fps: float


def render(pipe: Pipeline, store: Store, log: Log, run: Run, options: RenderOptions | None = None) -> None:
    """Write a film, a strip, frames or curves of what the run has learnt, and print the paths.

    Raises:
        ArtifactError: if there is nothing to show, or a part for it is missing.
        ConfigError: if the flags do not go together, or an episode is not there.
    """
    options = options or RenderOptions()
    _check(options)
    if options.curves:
        path = curves.draw([store.logdir, *options.compare], options.out or store.logdir / "videos" / "curves.png")
        _told(log, [path])
        return
    subject = _subject(pipe, store, log, run, options)
    if options.steps is not None:
        subject = dataclasses.replace(subject, episode=_cut(subject.episode, options.steps))
    if options.dream:
        columns, headers, name = _dream(pipe, store, run, options, subject.episode.obs[0])
    else:
        columns, headers = _columns(pipe, store, log, run, options, subject), _headers(subject.episode)
        name = subject.name
    _told(log, _write(store, options, columns, headers, name, options.fps or subject.fps))


def _check(options: RenderOptions) -> None:
    if options.curves and options.out is not None and options.out.suffix != ".png":
        raise ConfigError(f"--out {options.out}: curves are a .png")
    if options.strip and options.out is not None and options.out.suffix != ".png":
        raise ConfigError(f"--out {options.out}: a strip is a .png")
    if not options.strip and not options.curves and options.out and options.out.suffix not in (".mp4", ".gif"):
        raise ConfigError(f"--out {options.out}: a film is a .mp4 or a .gif (with --strip or --curves: a .png)")
    if options.height < 16 or (options.steps is not None and options.steps < 1) or options.moments < 1:
        raise ConfigError("--height is at least 16 pixels, --steps and --moments at least 1")
    if options.data and (options.fresh or options.native):
        raise ConfigError("--from-data shows a recorded episode, --fresh and --native play a new one: choose")


def _subject(pipe: Pipeline, store: Store, log: Log, run: Run, options: RenderOptions) -> Subject:
    """The episode asked for; if nothing is said, one of the last test, else a fresh one, else one of the dataset."""
    if options.data:
        return _from_data(store, options.episode or 0)
    if options.fresh or options.native:
        return _fresh(pipe, store, log, run, options)
    if store.exists("test"):
        return _from_test(store, options.episode or 0)
    if options.episode is None and store.exists("controller"):
        return _fresh(pipe, store, log, run, options)
    log.say(f"no test episodes in {store.logdir} yet: taking one from {store.data}")
    return _from_data(store, options.episode or 0)


def _from_test(store: Store, i: int) -> Subject:
    made = artifact.read(store.path("test"), "test")
    name = made.facts["order"][0]
    found = episodes_in(made.tensors, f"{name}/episodes")
    if not 0 <= i < len(found):
        raise ConfigError(f"--episode {i}: {store.path('test')} holds episodes 0 to {len(found) - 1}; others: --fresh")
    return Subject(found[i], f"{name}-episode-{i}", made.facts["scores"][name]["fps"])


def _from_data(store: Store, i: int) -> Subject:
    episodes = store.episodes()
    if not 0 <= i < len(episodes):
        raise ConfigError(f"--episode {i}: {store.data} holds episodes 0 to {len(episodes) - 1}")
    begin, length = int(episodes.start[i]), int(episodes.lengths[i])
    rows = episodes.gather(np.arange(begin, begin + length + 1)[None])
    episode = Episode(rows["obs"][0], rows["action"][0, :-1], rows["reward"][0, :-1])
    fps = episodes.meta.get("environment", {}).get("fps") or 30.0  # imported data do not say
    return Subject(episode, f"data-episode-{i}", float(fps))


def _fresh(pipe: Pipeline, store: Store, log: Log, run: Run, options: RenderOptions) -> Subject:
    seed = number(pipe.seed, "render") if options.seed is None else options.seed
    table = dataclasses.replace(pipe.env, backend="gymnasium", max_steps=options.steps or pipe.env.max_steps)
    with make(table, 1, threads=1) as games:
        camera = _Camera(_actor(store, log, run, games), games, options.native)
        recorder = Recorder(1)

        def on_step(*args: Any) -> None:
            recorder(*args)
            camera.shoot()
            log.progress(len(camera), games.max_steps or 0, "steps")

        log.say(f"playing an episode of {table.id} with seed {seed}")
        play(games, camera, [seed], max_steps=options.steps, on_step=on_step)
        return Subject(recorder.episodes(camera.native)[0], f"seed-{seed}", games.fps)


def _actor(store: Store, log: Log, run: Run, games: Any) -> Actor:
    if not store.exists("controller"):
        log.say("there is no controller yet: the random policy acts")
        return White(games.actions)
    world, _ = store.world(run.device)
    return Agent(world, Policy(store.component("controller", run.device)[0]))


class _Camera:
    """An actor that photographs the environment's own picture before it acts."""

    def __init__(self, actor: Actor, games: Any, native: bool) -> None:
        self._actor, self._games, self._native = actor, games, native
        self.native: list[bytes] = []
        self._shots = 0

    def __len__(self) -> int:
        return self._shots

    def shoot(self) -> None:
        """Keep what the environment shows now."""
        self._shots += 1
        if self._native:
            frame = self._games.frames(np.zeros(1, np.int64))[0]
            self.native.append(cv2.imencode(".png", np.ascontiguousarray(frame[:, :, ::-1]))[1].tobytes())

    def begin(self, obs: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """As `Actor.begin`."""
        if self._native:
            self.shoot()
            self._shots = 0
        return self._actor.begin(obs, seeds)

    def step(self, obs: np.ndarray) -> np.ndarray:
        """As `Actor.step`."""
        return self._actor.step(obs)

    def keep(self, index: np.ndarray) -> None:
        """As `Actor.keep`."""
        self._actor.keep(index)


def _cut(episode: Episode, steps: int) -> Episode:
    return Episode(
        obs=episode.obs[: steps + 1],
        action=episode.action[:steps],
        reward=episode.reward[:steps],
        terminated=episode.terminated and steps >= len(episode),
        native=episode.native[: steps + 1],
    )


def _columns(
    pipe: Pipeline, store: Store, log: Log, run: Run, options: RenderOptions, subject: Subject
) -> list[Column]:
    """Real, and as much of reconstruction and dream as was trained."""
    columns = [panels.real(subject.episode)]
    if not store.exists("vae"):
        log.say("nothing is trained yet: only the real frames are shown")
        return columns
    columns.append(panels.reconstruction(store.component("vae", run.device)[0], subject.episode, run.device))
    if not store.exists("dynamics"):
        log.say("there is no dynamics model yet: no dream is shown")
        return columns
    world, _ = store.world(run.device)
    seed = number(pipe.seed, "render") if options.seed is None else options.seed
    how = panels.Dreaming(seed=seed, temperature=options.temperature, device=run.device)
    columns.append(panels.dream(world, subject.episode, how, every=options.reset_every))
    return columns


def _dream(
    pipe: Pipeline, store: Store, run: Run, options: RenderOptions, first: np.ndarray
) -> tuple[list[Column], list[str], str]:
    """The one column of a pure dream, its headers, and its name."""
    world, _ = store.world(run.device)
    policy = Policy(store.component("controller", run.device)[0])
    seed = number(pipe.seed, "render") if options.seed is None else options.seed
    how = panels.Dreaming(seed=seed, temperature=options.temperature, device=run.device)
    dreamt = panels.pure_dream(world, policy, first, how, steps=options.steps or DREAM_STEPS)
    total, returns = len(dreamt.reward), np.concatenate([[0.0], np.cumsum(dreamt.reward)])
    headers = [f"dreamt return {value:.1f}  step {i}/{total}" for i, value in enumerate(returns)]
    return [Column("dream", dreamt.frames)], headers, f"dream-{seed}"


def _headers(episode: Episode) -> list[str]:
    returns, total = np.concatenate([[0.0], np.cumsum(episode.reward, dtype=np.float64)]), len(episode)
    return [f"return {value:.1f}  step {i}/{total}" for i, value in enumerate(returns)]


def _write(
    store: Store, options: RenderOptions, columns: Sequence[Column], headers: Sequence[str], name: str, fps: float
) -> list[Path]:
    """The files asked for."""
    total = min(len(headers), *(len(column.frames) for column in columns))
    height = max(options.height, len(columns[0].frames[0]) if options.native else 0)
    at, paths = store.logdir / "videos" / name, []
    with contextlib.ExitStack() as stack:
        films: list[Film] = []
        if options.frames is not None:
            films.append(stack.enter_context(Stills(options.frames)))
            paths.append(options.frames)
        if not options.strip and (options.out is not None or options.frames is None):
            paths.append(options.out or at.with_name(f"{name}.mp4"))
            films.append(stack.enter_context(Video(paths[-1], fps)))
        if films:
            for i in range(total):
                frame = panels.side_by_side(columns, i, headers[i], height)
                for film in films:
                    film.add(frame)
    if options.strip:
        paths.append(options.out or at.with_name(f"{name}.png"))
        _strip(paths[-1], columns, total, options.moments)
    return paths


def _strip(path: Path, columns: Sequence[Column], total: int, moments: int) -> None:
    with Strip(path, total, moments, first=panels.labels(columns, STRIP_HEIGHT)) as strip:
        for i in strip.wanted:
            strip.add(panels.stacked(columns, i, f"step {i}", STRIP_HEIGHT))


def _told(log: Log, paths: Sequence[Path]) -> None:
    for path in paths:
        log.out(str(path))
    log.result({"files": [str(path) for path in paths]})
