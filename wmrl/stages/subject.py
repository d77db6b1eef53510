"""Which episode a film shows: one of the last test, one of the dataset, or one that is played for it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from wmrl import artifact
from wmrl.artifact import Artifact
from wmrl.data.policies import White
from wmrl.envs import make
from wmrl.envs.names import canonical, home
from wmrl.errors import ConfigError
from wmrl.log import Log
from wmrl.pipeline import Pipeline
from wmrl.protocols import Actor
from wmrl.recording import Episode, Recorder, episodes_in
from wmrl.rollout import Agent, Policy, play
from wmrl.run import Run
from wmrl.scoring import one_thread
from wmrl.seeding import number
from wmrl.store import WHERE, Store, follow

if TYPE_CHECKING:
    from wmrl.stages.render import RenderOptions


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


def choose(pipe: Pipeline, store: Store, log: Log, run: Run, options: "RenderOptions") -> Subject:
    """The episode asked for; if nothing is said, one of the last test, else a fresh one, else one of the dataset.

    Raises:
        ArtifactError: if there is nothing to show, or it is damaged.
        ConfigError: if the episode asked for is not there.
        Stopped: after a signal, while a fresh episode is played.
    """
    if options.data:
        return _from_data(store, options.episode or 0)
    if options.fresh or options.native:
        return _fresh(pipe, store, log, run, options)
    if store.exists("test"):
        return _from_test(store, log, options.episode or 0)
    if options.episode is None and store.exists("controller"):
        return _fresh(pipe, store, log, run, options)
    log.say(f"no test episodes in {store.logdir} yet: taking one from {store.data}")
    return _from_data(store, options.episode or 0)


def _from_test(store: Store, log: Log, i: int) -> Subject:
    made = artifact.read(store.path("test"), "test")
    if others := moved(made, store.logdir):
        log.warn(f"{store.path('test')} was made with another {' and another '.join(others)} than is there now")
    name = made.facts["order"][0]
    found = episodes_in(made.tensors, f"{name}/episodes")
    if not 0 <= i < len(found):
        raise ConfigError(f"--episode {i}: {store.path('test')} holds episodes 0 to {len(found) - 1}; others: --fresh")
    return Subject(found[i], f"{name}-episode-{i}", made.facts["scores"][name]["fps"])


def moved(made: Artifact, logdir: Path) -> list[str]:
    """Which parts in `logdir` ("controller", ...) are others than those that `made` was made with.

    Raises:
        ArtifactError, ContractError: as `store.follow`, for a part that is there.
    """
    present = {word: follow(logdir, part)[1].hash for part, word in WHERE.items() if (logdir / f"{part}.h5").exists()}
    return [word for word, hash_ in present.items() if made.parents.get(word) != hash_]


def _from_data(store: Store, i: int) -> Subject:
    episodes = store.episodes()
    if not 0 <= i < len(episodes):
        raise ConfigError(f"--episode {i}: {store.data} holds episodes 0 to {len(episodes) - 1}")
    begin, length = int(episodes.start[i]), int(episodes.lengths[i])
    rows = episodes.gather(np.arange(begin, begin + length + 1)[None])
    episode = Episode(rows["obs"][0], rows["action"][0, :-1], rows["reward"][0, :-1])
    fps = episodes.meta.get("environment", {}).get("fps") or 30.0  # imported data do not say
    return Subject(episode, f"data-episode-{i}", float(fps))


def _fresh(pipe: Pipeline, store: Store, log: Log, run: Run, options: "RenderOptions") -> Subject:
    seed = seed_of(pipe, options)
    whose: Any = home(canonical(pipe.env.id)[0])
    table = dataclasses.replace(pipe.env, backend=whose, max_steps=options.steps or pipe.env.max_steps)
    with one_thread(True), make(table, 1, threads=1) as games:
        native = options.native or len(games.observation.shape) == 1  # vectors show nothing of their own
        camera = _Camera(_actor(store, log, run, games), games, native)
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
    world, controller, _ = store.agent(run.device)
    return Agent(world, Policy(controller))


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


def seed_of(pipe: Pipeline, options: "RenderOptions") -> int:
    """The seed of a fresh episode and of dreams."""
    return number(pipe.seed, "render") if options.seed is None else options.seed
