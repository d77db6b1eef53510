"""Collect rollouts: an environment and a policy -> a dataset.

Episode i has the seed number(seed, "episode", i) and, with a random policy, actions drawn from that seed alone: the
dataset is the same whatever the threads, the waves and the interruptions. A trained controller's actions depend, in the
last bits, on how many rows are computed together: so its waves are fixed, their size is stored, and they are replayed.
"""

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import wmrl
from wmrl import files
from wmrl.data import parts, plan, policies, shards
from wmrl.data.estimate import estimate
from wmrl.data.ingest import actions_meta, box
from wmrl.data.shards import Index
from wmrl.envs import make
from wmrl.envs.names import canonical, observes
from wmrl.errors import ConfigError, UserError
from wmrl.locking import lock
from wmrl.log import Log
from wmrl.pipeline import Env, Pipeline
from wmrl.protocols import Actor
from wmrl.run import Run
from wmrl.stages.collect import Job, Lane
from wmrl.stats import told
from wmrl.store import Store

WAVE_BYTES = 1 << 30
"""The most raw bytes of observations of the episodes that are being played."""
PER_THREAD = 16
"""Environments for each thread: more keep the threads busy while others are waited for, and cost memory."""
LANES = ("envpool",)
"""Backends whose threads run beside Python: of two waves, one is resized and recorded while the other is stepped."""


def generate(pipe: Pipeline, store: Store, log: Log, run: Run) -> None:
    """Fill the pipeline's dataset up to the number of episodes it asks for; what is there is never made again.

    Raises:
        ConfigError: if the folder holds episodes of another environment, policy or seed, or another process fills it,
            or it is the logdir.
        UserError: if the disk is too small.
        ArtifactError: if a shard cannot be written, or one that is there is damaged.
        Stopped: after a signal; finished shards are kept, and the same command continues.
    """
    folder = store.data
    if folder.resolve() == store.logdir.resolve():
        raise ConfigError(f"--logdir and --data are the same folder, {folder}; name another one with --data")
    with lock(folder):
        files.sweep(folder)
        shards.disjoint(folder, shards.scan(folder))
        pipe, recipe = _settle(pipe, folder, run)
        total = plan.total(folder, pipe.generate.rollouts, run.append)
        if incomplete := plan.missing(shards.scan(folder), total, total):
            plan.trusted(folder)
            _collect(pipe, recipe, folder, total, log, run)
        index, written = plan.finish(folder, total, log.warn)
        if not incomplete and not written:
            log.say(f"{folder} is complete: nothing to do")
        parts.clear(folder)
        _report(index, folder, log)


def _collect(pipe: Pipeline, recipe: dict[str, Any], folder: Path, total: int, log: Log, run: Run) -> None:
    row_bytes, looks = _row_bytes(pipe.env), pipe.generate.policy == "controller"
    n = _environments(pipe, recipe, run, row_bytes)
    with contextlib.ExitStack() as stack:
        env = stack.enter_context(make(pipe.env, n, threads=run.threads))
        recipe["policy"].update({"environments": n} if looks else {})
        names = plan.missing(shards.scan(folder), total, shards.episodes_per_shard(row_bytes, env.max_steps))
        _sight(pipe, env, log)
        meta = meta_of(recipe, env)
        begun = parts.load(folder, names, meta, log.warn, exact=looks)
        first = plan.base(folder) if run.append else 0
        job = Job(folder, names, total, pipe.seed, n, looks, env.max_steps, begun, first)
        lanes = _lanes(pipe, job, env, run, stack)
        _announce(pipe, job, env, log, run)
        if all(env is not lane for lane, _ in lanes):
            env.close()  # it was only tried: Doom's environments are processes, not to be kept for nothing
        job.work(lanes, meta, log)


def _sight(pipe: Pipeline, env: Any, log: Log) -> None:
    """Say before the work, and not after it, that the pipeline's representation will not see these frames."""
    if pipe.env.size == Env().size or "from" in pipe.representation:
        return
    from wmrl import config
    from wmrl.representations import REPRESENTATIONS

    try:
        config.build(REPRESENTATIONS, pipe.representation, "representation", env.observation)
    except UserError as error:
        log.warn(f"train-vae will refuse these rollouts: {error}")


def _lanes(pipe: Pipeline, job: Job, env: Any, run: Run, stack: contextlib.ExitStack) -> list[Lane]:
    """What plays: `env`, or two environments that share its slots and threads."""
    n, threads = env.n, run.threads
    if env.info["backend"] not in LANES or job.fixed or min(n, threads, len(job.todo)) < 2:
        return [(env, _actor(pipe, env, run))]
    halves = [(n // 2, threads // 2), (n - n // 2, threads - threads // 2)]
    envs = [stack.enter_context(make(pipe.env, slots, threads=each)) for slots, each in halves]
    return [(half, _actor(pipe, half, run)) for half in envs]


def _announce(pipe: Pipeline, job: Job, env: Any, log: Log, run: Run) -> None:
    """Say what is to come, and stop if the disk has no room for it."""
    guess = estimate(env, job.seeds(job.waves(1)[0]), len(job.todo), plan.bytes_each(job.folder))
    job.slow_down(guess, run.threads)
    have = job.total - len(job.todo)
    log.say(
        f"{job.folder}: {len(job.todo)} episodes of {pipe.env.id} ({pipe.generate.policy})"
        f"{f' beside the {have} that are there' if have else ''}, {guess.text()}; "
        f"{min(job.environments, len(job.todo))} environments of {env.info['backend']} on {run.threads} threads"
    )
    for note in env.info.get("notes", ()):
        log.say(note)
    free = shutil.disk_usage(job.folder).free
    needs = f"{job.folder} needs up to {guess.bytes / 1e6:,.0f} MB, its disk has {free / 1e6:,.0f} MB free"
    if guess.bytes > 2 * free:
        raise UserError(f"{needs}: free some, name another folder with --data, or ask for fewer --rollouts")
    if guess.bytes > free:
        log.warn(needs)


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


def _row_bytes(env: Env) -> int:
    """Bytes of one observation: floats take four each, planes and pictures one."""
    if observes(canonical(env.id)[0], env.observe) == "pixels":
        return 3 * env.size**2
    with make(env, 1, threads=1) as one:  # what the state is, only the game knows
        return one.reset([0]).nbytes


def _environments(pipe: Pipeline, recipe: dict[str, Any], run: Run, row_bytes: int) -> int:
    """How many environments play side by side, whose observations take so many bytes."""
    if stored := recipe["policy"].get("environments"):
        if stored > run.max_workers:
            raise ConfigError(f"the episodes so far were made {stored} at a time; this call allows {run.max_workers}")
        return int(stored)
    bytes_each = row_bytes * ((pipe.env.max_steps or 1000) + 1)
    return int(max(1, min(PER_THREAD * run.threads, run.max_workers, WAVE_BYTES // bytes_each)))


def meta_of(recipe: dict[str, Any], env: Any) -> dict[str, Any]:
    """What every shard says of its making; nothing in it depends on time, host or threads."""
    table = {**recipe["env"], "backend": env.info["backend"]}
    about = {"fps": env.fps, "native": list(env.native), **env.info}
    actions = actions_meta(env.actions, *box(env))
    return {**recipe, "env": table, "environment": about, "actions": actions, "wmrl": wmrl.__version__}


def _actor(pipe: Pipeline, env: Any, run: Run) -> Actor:
    if pipe.generate.policy == "controller":
        return _agent(pipe, env, run)
    return policies.make(pipe.generate, env.actions, *box(env))


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


def _report(index: Index, folder: Path, log: Log) -> None:
    steps, size = int(index.lengths.sum()), sum((folder / name.file).stat().st_size for name in index.names)
    mean, deviation = index.returns.mean(), index.returns.std()
    log.out(
        f"{folder}: {len(index.seeds)} episodes, {steps:,} steps, "
        f"return {told(mean, deviation)} +- {told(deviation, mean)}, "
        f"{size / 1e6:,.1f} MB ({size / (steps + len(index.seeds)):,.0f} bytes a frame)"
    )
    log.result({"data": str(folder), "episodes": len(index.seeds), "steps": steps, "bytes": size, "return_mean": mean})
