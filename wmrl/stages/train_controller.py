"""Improve a controller: a frozen world model and an environment, or dreams alone -> a controller."""

import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wmrl import artifact, config, envs
from wmrl import precision as precisions
from wmrl.controllers import CONTROLLERS
from wmrl.data import codes
from wmrl.data.episodes import Episodes
from wmrl.data.windows import prefetch, windows
from wmrl.dream import Dream, Dreamer, first_codes
from wmrl.errors import ContractError
from wmrl.log import Log
from wmrl.pipeline import Pipeline
from wmrl.population import Rollouts
from wmrl.rollout import Agent, Policy, play
from wmrl.run import Run, cores
from wmrl.seeding import number
from wmrl.spec import Actions, Batch, Space, tree_map
from wmrl.stages.controller_progress import NAME, Progress, more
from wmrl.store import Store, follow
from wmrl.trainers import TRAINERS
from wmrl.trainers.grounds import Grounds, Score
from wmrl.world import WorldModel

PER_THREAD = 32
"""Environments alive for each thread: a wave of CarRacing takes about half a minute, which is what a kill may cost."""
DREAMERS = 1024
"""Dreamt rows at a time, at most. Measured with MDN-RNN 256 on 2 cores: two waves of 512 rows, one thread each, are as
fast as one of 1,024 on both cores, half as fast again where rows end, and six times as fast where other processes
compute too; two of 256 are a fifth slower, two of 1,024 hardly faster."""
STATE_BYTES = 1 << 30
"""Memory of the states of all dreamt rows, at most: a window of keys and values may take a megabyte a row."""


def train_controller(pipe: Pipeline, store: Store, log: Log, run: Run) -> None:
    """Improve the controller on a frozen world model, awake or asleep, and save it.

    Raises:
        ArtifactError: if the world model or the dataset is missing or damaged.
        ContractError: if they do not fit together, or have changed since the stage began.
        UserError: if a rollout gives numbers that are not finite, or an environment fails.
    """
    world, parents = store.world(run.device)
    episodes = store.episodes()
    table = config.resolved(CONTROLLERS, pipe.controller, NAME)
    given = (_view(table, world, episodes), episodes.actions)
    controller = fresh(pipe, given).to(run.device)
    trainer = config.build(TRAINERS, pipe.trainer, "trainer")
    alive, lanes = min(run.max_workers, PER_THREAD * run.threads), _lanes(pipe, run)
    choices: dict[str, Any] = {"environments": alive, "lanes": lanes, **({"sample": True} if pipe.test.sample else {})}
    made_from = {"data": episodes.hash, **parents}
    course = Progress.load(store, made_from, episodes.lineage(), choices, pipe, log, run)
    if course.began and course.tree is None:
        controller, _ = store.component(NAME, run.device)
    if course.complete and store.exists(NAME):
        store.fits(NAME, store.load(NAME), parents)
        log.say(f"{store.path(NAME)} is complete; {more(course.trainer)} continues it")
        return
    with course.threads(), ExitStack() as stack:
        grounds = _grounds(pipe, store, world, episodes, controller, given[0], course, log, run, stack)
        facts = trainer.train(controller, grounds)
    facts = {**facts, "global_step": course.step, "trainer": course.trainer, "choices": course.choices}
    made = artifact.of(controller, NAME, table, given, parents=course.parents, facts=facts)
    store.save(NAME, made)
    course.finish(complete=not run.over())
    log.say(f"saved {store.path(NAME)}")
    found = {"stage": "train-controller", "artifact": str(store.path(NAME)), "hash": made.hash}
    log.result({**found, "global_step": course.step, "best": facts.get("best")})


def fresh(pipe: Pipeline, given: tuple[tuple[int, ...], Actions]) -> Any:
    """The controller of the pipeline as it is before training; its weights depend on the pipeline's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number(pipe.seed, NAME, "init"))
        return config.build(CONTROLLERS, pipe.controller, NAME, *given).requires_grad_(False).eval()


def _view(table: dict[str, Any], world: WorldModel, episodes: Episodes) -> tuple[int, ...]:
    """The shape of what this kind of controller looks at."""
    kind, _ = config.lookup(CONTROLLERS, table, NAME)
    looks_at: str = getattr(kind, "looks_at", "features")
    return episodes.observation.shape if looks_at == "frame" else tuple(world.feature_shape)


def _grounds(
    pipe: Pipeline,
    store: Store,
    world: WorldModel,
    episodes: Episodes,
    controller: nn.Module,
    shape: tuple[int, ...],
    course: Progress,
    log: Log,
    run: Run,
    stack: ExitStack,
) -> Grounds:
    device = torch.device(run.device)

    @functools.cache
    def awake() -> Rollouts:
        n, lanes = course.choices["environments"], course.choices["lanes"]
        each, threads = max(1, n // lanes), max(1, run.threads // lanes)
        games = [stack.enter_context(envs.make(pipe.env, each, threads=threads)) for _ in range(lanes)]
        env = games[0]
        _fits(env, episodes, pipe)
        why = "as before"
        if "precision" not in course.choices:
            course.choices["precision"], why = _precision(world, env.observation, each, run)
        precision = course.choices["precision"]
        lines = f"{lanes} waves of {each} at a time" if lanes > 1 else f"waves of {each}"
        log.say(f"{n} environments at once, {lines}, {run.device}, frames encoded in {precision} ({why})")
        preflight = [number(pipe.seed, "preflight", i) for i in range(min(each, 2))]
        eyes = precisions.lowered(world.representation, precision)
        play(env, Agent(world, Policy(controller), precision, eyes=eyes), preflight, max_steps=3)
        actor, sample = functools.partial(Agent, world, precision=precision, eyes=eyes), "sample" in course.choices
        return Rollouts(games, actor, controller, each, device, sample)

    def asleep(temperature: float, ends: Literal["threshold", "sample"], max_steps: int) -> Score:
        bank = first_codes(world, episodes, device)
        course.choices = {**_dreams(world, bank, run), **course.choices}
        rows, lanes = course.choices["dreams"], course.choices["dream_lanes"]
        how: dict[str, Any] = {"temperature": temperature, "ends": ends, "max_steps": max_steps}
        dreams = [Dream(world, controller, bank, **how) for _ in range(lanes)]
        waves = f"{lanes} waves of {rows} at a time" if lanes > 1 else f"waves of {rows}"
        log.say(f"dreaming from {len(bank)} first frames, {waves}, {run.device}, at temperature {temperature:g}")
        if not episodes.ended().any():
            log.warn(
                f"no episode of {episodes.path} terminates: the dynamics model has never seen an end, and a dream may "
                f"last for trainer.dream_steps = {max_steps} steps"
            )
        return Rollouts(dreams, functools.partial(Dreamer, device=device), controller, rows, device)

    def note(step: int, metrics: Mapping[str, float]) -> None:
        course.step = course.began + step
        log.metrics(course.step, metrics)

    return Grounds(
        world=world,
        view=shape,
        device=device,
        batches=functools.partial(_batches, store, world, episodes, course.seed(pipe), log, run),
        arithmetic=functools.partial(_arithmetic, course, log, run),
        awake=lambda *args, **how: awake()(*args, **how),
        asleep=asleep,
        seed=course.seed(pipe),
        save=course.save,
        resume=lambda: course.tree,
        log=note,
        progress=lambda done, total, words, unit="rollouts": log.progress(done, total, unit, words),
        say=log.say,
        over=run.over,
        trained=course.began > 0,
    )


def _batches(
    store: Store,
    world: WorldModel,
    episodes: Episodes,
    seed: int,
    log: Log,
    run: Run,
    batch: int,
    length: int,
    start: int,
) -> prefetch[Batch]:
    """Windows of all episodes; of codes, made once, where the representation is a frozen one whose codes are small."""
    near, hash_ = follow(store.logdir, "vae")[0].parent / "codes", store.load("vae").hash
    source = codes.source(episodes, world.representation, hash_, store.logdir / "codes", log=log, run=run, near=near)
    crossing: dict[str, Any] = {"crossing": True} if getattr(world.dynamics, "crosses", False) else {}
    return prefetch(windows(source, batch, length, key=(seed, "train-controller"), start=start, **crossing))


def _arithmetic(course: Progress, log: Log, run: Run, work: Callable[[], object]) -> precisions.Choice:
    """In which arithmetic the updates of a learner are made, in this call and all later ones."""
    if "arithmetic" not in course.choices:
        course.choices["arithmetic"], why = _faster(work, run)
        log.say(f"learning in dreams on {run.device} in {course.choices['arithmetic']} ({why})")
    choice: precisions.Choice = course.choices["arithmetic"]
    return choice


def _lanes(pipe: Pipeline, run: Run) -> int:
    """How many waves to play at a time: one for each core, if games step outside Python and the network is here too."""
    apart = getattr(envs.backend(pipe.env), "free_of_python", False) and torch.device(run.device).type == "cpu"
    return max(1, min(run.threads, cores(), run.max_workers)) if apart else 1


def _dreams(world: WorldModel, bank: Tensor, run: Run) -> dict[str, int]:
    """How many rows dream in a wave, and how many waves at a time: one for each core, if the network is there too."""
    sizes: list[int] = []

    def weigh(x: Tensor) -> Tensor:
        sizes.append(x.nbytes)
        return x

    tree_map(weigh, world.start_code(bank[:1]))
    rows = max(1, min(DREAMERS, run.max_workers * 16, STATE_BYTES // max(1, sum(sizes))))
    lanes = max(1, min(run.threads, cores(), rows)) if torch.device(run.device).type == "cpu" else 1
    return {"dreams": rows // lanes, "dream_lanes": lanes}


def _precision(world: WorldModel, space: Space, rows: int, run: Run) -> tuple[precisions.Choice, str]:
    """In which arithmetic `rows` frames are encoded, and why."""
    frames = torch.zeros(rows, *space.shape, dtype=torch.uint8, device=run.device)
    with torch.inference_mode():
        return _faster(lambda: world.encode(frames), run)


def _faster(work: Callable[[], object], run: Run) -> tuple[precisions.Choice, str]:
    """In which arithmetic `work` is done: as asked, or the faster one here; and why."""
    if run.precision != "auto":
        return run.precision, "as --precision asks"
    return precisions.choose(work, run.device)


def _fits(env: envs.VectorEnv, episodes: Episodes, pipe: Pipeline) -> None:
    for what in ("observation", "actions"):
        here, there = getattr(env, what), getattr(episodes, what)
        if here != there:
            raise ContractError(
                f"{pipe.env.id} has {what} {here}, but the models were trained on {there} ({episodes.path})"
            )
