"""Collect rollouts: an environment and a policy -> a dataset.

Episode i has the seed number(seed, "episode", i) and, with a random policy, actions drawn from that seed alone: the
dataset is the same whatever the threads, the waves and the interruptions. A trained controller's actions depend, in the
last bits, on how many rows are computed together: so its waves are fixed, their size is stored, and they are replayed.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import wmrl
from wmrl import files, seeding
from wmrl.data import plan, policies, shards
from wmrl.data.recorder import Recorder, Writer
from wmrl.data.shards import Episode, Index, Name
from wmrl.envs import make
from wmrl.errors import ConfigError, Stopped, UserError
from wmrl.log import Log
from wmrl.pipeline import Pipeline
from wmrl.protocols import Actor
from wmrl.rollout import play
from wmrl.run import Run
from wmrl.store import Store, lock

WAVE_BYTES = 1 << 30
"""The most raw bytes of observations of the episodes that are being played."""
PER_THREAD = 8
"""Environments for each thread: more keep the threads busy while others are waited for, and cost memory."""
PROGRESS_SECONDS = 0.5


def generate(pipe: Pipeline, store: Store, log: Log, run: Run) -> None:
    """Fill the pipeline's dataset up to the number of episodes it asks for; what is there is never made again.

    Raises:
        ConfigError: if the folder holds episodes of another environment, policy or seed, or another process fills it.
        UserError: if the disk is too small.
        ArtifactError: if a shard cannot be written, or one that is there is damaged.
        Stopped: after a signal; finished shards are kept, and the same command continues.
    """
    folder = store.data
    with lock(folder):
        files.sweep(folder)
        pipe, recipe = _settle(pipe, folder, run)
        total = plan.total(folder, pipe.generate.rollouts, run.append)
        if plan.missing(shards.scan(folder), total, total):
            _collect(pipe, recipe, folder, total, log, run)
        elif plan.base(folder) == total:
            log.say(f"{folder} is complete: nothing to do")
        index = shards.read_complete(folder) if plan.base(folder) == total else shards.complete(folder)
        _report(index, folder, log)


def _collect(pipe: Pipeline, recipe: dict[str, Any], folder: Path, total: int, log: Log, run: Run) -> None:
    with make(pipe.env, _environments(pipe, recipe, run), threads=run.threads) as env:
        recipe["policy"].update({"environments": env.n} if pipe.generate.policy == "controller" else {})
        job = Job(pipe, folder, env, _actor(pipe, env, run), _meta(recipe, env), total)
        job.announce(log, run)
        job.work(log)


def _settle(pipe: Pipeline, folder: Path, run: Run) -> tuple[Pipeline, dict[str, Any]]:
    """The pipeline with the choices that the dataset was begun with, and its recipe."""
    first, current = plan.stored(folder, run.append)
    if first is not None:
        plan.check(folder, plan.recipe(pipe), first, ("env", "seed"))
        pipe = replace(pipe, env=replace(pipe.env, backend=first["env"]["backend"]))
    recipe = plan.recipe(pipe)
    if pipe.generate.policy == "controller":
        recipe["policy"]["controller_hash"] = _controller_hash(pipe)
    if current is not None:
        environments = current["policy"].get("environments")
        recipe["policy"].update({"environments": environments} if environments else {})
        plan.check(folder, recipe, current, ("policy",))
    return pipe, recipe


def _environments(pipe: Pipeline, recipe: dict[str, Any], run: Run) -> int:
    """How many environments play side by side."""
    if stored := recipe["policy"].get("environments"):
        if stored > run.max_workers:
            raise ConfigError(f"--max-workers: the episodes so far were made {stored} at a time; allow as many")
        return int(stored)
    bytes_each = 3 * pipe.env.size**2 * ((pipe.env.max_steps or 1000) + 1)
    return int(max(1, min(PER_THREAD * run.threads, run.max_workers, WAVE_BYTES // bytes_each)))


def _meta(recipe: dict[str, Any], env: Any) -> dict[str, Any]:
    """What every shard says of its making; nothing in it depends on time, host or threads."""
    actions: dict[str, Any] = {"size": env.actions.size, "discrete": env.actions.discrete}
    if not env.actions.discrete:
        low, high = _box(env)
        actions |= {"low": low.tolist(), "high": high.tolist()}
    table = {**recipe["env"], "backend": env.info["backend"]}
    about = {"fps": env.fps, "native": list(env.native), **env.info}
    return {**recipe, "env": table, "environment": about, "actions": actions, "wmrl": wmrl.__version__}


def _box(env: Any) -> tuple[np.ndarray, np.ndarray]:
    one = np.ones((1, env.actions.size), np.float32)
    return env.native_action(-one).reshape(-1), env.native_action(one).reshape(-1)


def _actor(pipe: Pipeline, env: Any, run: Run) -> Actor:
    if pipe.generate.policy == "controller":
        return _agent(pipe, env, run)
    low, high = (None, None) if env.actions.discrete else _box(env)
    return policies.make(pipe.generate, env.actions, low, high)


def _other(pipe: Pipeline) -> Store:
    """The run whose controller acts."""
    from wmrl import pipeline

    logdir = Path(pipe.generate.controller or "")
    return Store(logdir, pipeline.load(logdir))


def _controller_hash(pipe: Pipeline) -> str:
    other = _other(pipe)
    parts = [other.load(name).hash for name in ("vae", "dynamics", "controller")]
    return shards.hash_of(parts)


def _agent(pipe: Pipeline, env: Any, run: Run) -> Actor:
    from wmrl.rollout import Agent, Policy

    other = _other(pipe)
    world, parents = other.world(run.device)
    other.fits("controller", other.load("controller"), parents)
    controller, _ = other.component("controller", run.device)
    if controller.actions != env.actions:
        raise ConfigError(
            f"generate.controller: {other.logdir} acts with {controller.actions}, {pipe.env.id} takes {env.actions}"
        )
    return Agent(world, Policy(controller, noise=pipe.generate.noise))


@dataclass
class Job:
    """What is to be played and written.

    Args:
        pipe: The pipeline.
        folder: The dataset.
        env: The vector environment.
        actor: What acts.
        meta: What every shard says of its making.
        total: Number of episodes that there shall be.
    """

    pipe: Pipeline
    folder: Path
    env: Any
    actor: Actor
    meta: dict[str, Any]
    total: int

    def __post_init__(self) -> None:
        row = int(np.prod(self.env.observation.shape))
        per_shard = shards.episodes_per_shard(row, self.env.max_steps)
        self.names = plan.missing(shards.scan(self.folder), self.total, per_shard)
        self.todo = [i for name in self.names for i in range(name.first, name.first + name.count)]
        self.steps, self.finished, self.finished_steps = 0, 0, 0

    def waves(self) -> list[list[int]]:
        """The numbers of the episodes that are played together."""
        n = self.env.n
        if self.pipe.generate.policy != "controller":
            return [self.todo[i : i + n] for i in range(0, len(self.todo), n)]
        wanted = sorted({i // n for i in self.todo})
        return [list(range(w * n, min((w + 1) * n, self.total))) for w in wanted]

    def seeds(self, numbers: Sequence[int]) -> list[int]:
        """The seeds of episodes."""
        return [seeding.number(self.pipe.seed, "episode", i) for i in numbers]

    def announce(self, log: Log, run: Run) -> None:
        """Say what is to come, and stop if the disk has no room for it.

        Raises:
            UserError: if it has not.
        """
        from wmrl.data.estimate import estimate

        guess = estimate(self.env, self.seeds(self.waves()[0]), len(self.todo), self._bytes_each())
        have = self.total - len(self.todo)
        log.say(
            f"{self.folder}: {len(self.todo)} episodes of {self.pipe.env.id} ({self.pipe.generate.policy})"
            f"{f' beside the {have} that are there' if have else ''}, {guess.text()}; "
            f"{self.env.n} environments of {self.env.info['backend']} on {run.threads} threads"
        )
        for note in self.env.info.get("notes", ()):
            log.say(note)
        free = shutil.disk_usage(self.folder).free
        needs = f"{self.folder} needs up to {guess.bytes / 1e6:,.0f} MB, its disk has {free / 1e6:,.0f} MB free"
        if guess.bytes > 2 * free:
            raise UserError(f"{needs}: free some, name another folder with --data, or ask for fewer --rollouts")
        if guess.bytes > free:
            log.warn(needs)

    def _bytes_each(self) -> float | None:
        """Of a frame, on disk, of the first shard that is there."""
        names = shards.scan(self.folder)
        if not names:
            return None
        index = shards.index(self.folder, names[:1]) if names[0].first == 0 else None
        rows = int((index.lengths + 1).sum()) if index else 0
        return (self.folder / names[0].file).stat().st_size / rows if rows else None

    def work(self, log: Log) -> None:
        """Play all waves.

        Raises:
            Stopped, ArtifactError: as `generate`.
        """
        written: list[Name] = []
        try:
            with Writer(self.folder, self.names, self.meta, written.append) as writer:
                for numbers in self.waves():
                    self._wave(numbers, writer, log)
        except Stopped:
            have = sum(name.count for name in shards.scan(self.folder))
            log.say(f"stopped: {have} of {self.total} episodes are on disk; the same command continues")
            raise
        log.progress(self.steps, self.steps, "steps", f"{self.total} episodes")

    def _wave(self, numbers: Sequence[int], writer: Writer, log: Log) -> None:
        def finished(row: int, episode: Episode) -> None:
            self.finished += 1
            self.finished_steps += len(episode.reward) - 1
            writer.add(numbers[row], episode)

        seeds = self.seeds(numbers)
        recorder = Recorder(seeds, finished, self.env.max_steps)
        shown = time.monotonic()

        def on_step(ids: np.ndarray, obs: np.ndarray, action: np.ndarray, outcome: Any) -> None:
            nonlocal shown
            recorder(ids, obs, action, outcome)
            self.steps += len(ids)
            if time.monotonic() - shown > PROGRESS_SECONDS:
                shown = time.monotonic()
                self._show(log)

        play(self.env, self.actor, seeds, on_step=on_step)

    def _show(self, log: Log) -> None:
        each = self.finished_steps / self.finished if self.finished else float(self.env.max_steps or 1000)
        note = f"{self.total - len(self.todo) + self.finished} of {self.total} episodes"
        log.progress(self.steps, max(self.steps, round(each * len(self.todo))), "steps", note)


def _report(index: Index, folder: Path, log: Log) -> None:
    steps, size = int(index.lengths.sum()), sum((folder / name.file).stat().st_size for name in index.names)
    mean, deviation = index.returns.mean(), index.returns.std()
    log.out(
        f"{folder}: {len(index.seeds)} episodes, {steps:,} steps, return {mean:.1f} +- {deviation:.1f}, "
        f"{size / 1e6:,.1f} MB ({size / (steps + len(index.seeds)):,.0f} bytes a frame)"
    )
    log.result({"data": str(folder), "episodes": len(index.seeds), "steps": steps, "bytes": size, "return_mean": mean})
