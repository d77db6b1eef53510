"""Improve a controller: a frozen world model and an environment, or dreams alone -> a controller."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wmrl import artifact, config, continuing, envs
from wmrl import precision as precisions
from wmrl.controllers import CONTROLLERS
from wmrl.data.episodes import Episodes
from wmrl.data.windows import windows
from wmrl.dream import Dream, Dreamer, first_codes
from wmrl.errors import ContractError
from wmrl.log import Log
from wmrl.pipeline import Pipeline
from wmrl.population import Rollouts
from wmrl.rollout import Agent, Policy, play
from wmrl.run import Run, cores
from wmrl.seeding import number
from wmrl.spec import Actions, Space, tree_map
from wmrl.store import Store
from wmrl.trainers import TRAINERS
from wmrl.trainers.grounds import Grounds, Score
from wmrl.world import WorldModel

NAME = "controller"
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
    course = Progress.load(store, {"data": episodes.hash, **parents}, episodes.lineage(), pipe, log, run)
    if course.began and course.tree is None:
        controller, _ = store.component(NAME, run.device)
    if course.complete and store.exists(NAME):
        store.fits(NAME, store.load(NAME), parents)
        log.say(f"{store.path(NAME)} is complete; {_more(course.trainer)} continues it")
        return
    with course.threads(), ExitStack() as stack:
        facts = trainer.train(controller, _grounds(pipe, world, episodes, controller, course, log, run, stack))
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


@dataclass
class Progress:
    """What the stage keeps besides the trainer's own state, and where both are kept.

    Args:
        store: The logdir.
        parents: Content hashes of what the controller is made from.
        trainer: The trainer's table, all defaults filled in.
        choices: What was decided at the first start and holds ever after, so that results stay the same.
        tree: The trainer's state, or None before its first save.
        step: Global step of the last row of metrics.
        complete: Whether the trainer came to its end.
        began: Global step at which the trainer began: more than 0 if it goes on, in a world that has changed since,
            from the controller that it made before.
    """

    store: Store
    parents: dict[str, str]
    trainer: dict[str, Any]
    choices: dict[str, Any]
    tree: dict[str, Any] | None = None
    step: int = 0
    complete: bool = False
    began: int = 0

    @classmethod
    def load(
        cls, store: Store, parents: dict[str, str], lineage: Sequence[str], pipe: Pipeline, log: Log, run: Run
    ) -> "Progress":
        """The state in the logdir, or a fresh one.

        Args:
            store: The logdir.
            parents: See the class.
            lineage: Hashes of the datasets that the present one grew from, itself last.
            pipe: The pipeline.
            log: Metrics after the state are dropped from it.
            run: The settings of this call.

        Raises:
            ContractError: if it was begun with other parents.
        """
        trainer = config.resolved(TRAINERS, pipe.trainer, "trainer")
        lanes = _lanes(pipe, run)
        alive = min(run.max_workers, PER_THREAD * run.threads)
        choices = {"environments": alive, "lanes": lanes, "torch_threads": torch.get_num_threads()}
        part = None if run.noreload else store.load_part(NAME)
        if part is None:
            there = store.exists(NAME) and not store.part(NAME).exists()
            complete = not run.noreload and there and _settled(store, parents, trainer)
            if not complete:
                log.rewind(-1)
            return cls(store, parents, trainer, choices, complete=complete)
        may_be = continuing.lineage(parents, run) | {"data": lineage}
        grown = continuing.grown(NAME, part["parents"], may_be)
        if grown == "data":
            log.say("episodes were added since the search began; they change where dreams begin, nothing else")
        log.rewind(part["step"])
        choices = part["choices"]
        if choices["environments"] > run.max_workers:
            log.warn(f"the search was begun with {choices['environments']} environments at once and keeps them")
        if "dreams" in choices:
            choices.setdefault("dream_lanes", 1)  # a search that an earlier wmrl began
        if "precision" in choices:
            choices["precision"] = continuing.precision(NAME, choices["precision"], run.precision, log)
        if grown not in ("", "data"):
            log.say(f"{grown} has changed: a new search begins with the controller that the last one made")
            return cls(store, parents, trainer, choices, None, part["step"], began=part["step"])
        complete = part["complete"] and config.resolved(TRAINERS, part["trainer"], "trainer") == trainer
        return cls(store, parents, trainer, choices, part["tree"], part["step"], complete, part.get("began", 0))

    def seed(self, pipe: Pipeline) -> int:
        """From what the trainer draws: a search that goes on from another one plays other episodes."""
        return number(pipe.seed, "search", self.began) if self.began else pipe.seed

    def save(self, tree: dict[str, Any]) -> None:
        """Keep the trainer's state, durably."""
        self.tree = tree
        names = ("parents", "trainer", "choices", "tree", "step", "complete", "began")
        self.store.save_part(NAME, {name: getattr(self, name) for name in names})

    def finish(self, *, complete: bool) -> None:
        """Note that the artifact of this state is written."""
        self.complete = complete
        self.save(self.tree or {})

    @contextlib.contextmanager
    def threads(self) -> Iterator[None]:
        """Compute with the number of threads that the stage began with: rounding depends on it."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.choices["torch_threads"])
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _more(trainer: Mapping[str, Any]) -> str:
    ends = [key for key in ("generations", "steps", "target_return") if trainer.get(key) is not None]
    return f"a larger trainer.{' or '.join(ends)}"


def _settled(store: Store, parents: dict[str, str], trainer: dict[str, Any]) -> bool:
    """Whether nothing is left to do, though the training state is gone (the logdir was copied)."""
    made = store.load(NAME)
    before = config.resolved(TRAINERS, made.facts["trainer"], "trainer")  # an earlier wmrl had fewer keys
    if made.parents == parents and before == trainer:
        return True
    raise continuing.missing(store, NAME)


def _view(table: dict[str, Any], world: WorldModel, episodes: Episodes) -> tuple[int, ...]:
    """The shape of what this kind of controller looks at."""
    kind, _ = config.lookup(CONTROLLERS, table, NAME)
    looks_at: str = getattr(kind, "looks_at", "features")
    return episodes.observation.shape if looks_at == "frame" else tuple(world.feature_shape)


def _grounds(
    pipe: Pipeline,
    world: WorldModel,
    episodes: Episodes,
    controller: nn.Module,
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
        return Rollouts(games, lambda policy: Agent(world, policy, precision, eyes=eyes), controller, each, device)

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
        batches=lambda batch, length: windows(episodes, batch, length, key=(pipe.seed, "train-controller")),
        awake=lambda *args, **how: awake()(*args, **how),
        asleep=asleep,
        seed=course.seed(pipe),
        save=course.save,
        resume=lambda: course.tree,
        log=note,
        progress=lambda done, total, words: log.progress(done, total, "rollouts", words),
        say=log.say,
        over=run.over,
        trained=course.began > 0,
    )


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
    """In which arithmetic `rows` frames are encoded: as asked, or the faster one here; and why."""
    if run.precision != "auto":
        return run.precision, "as --precision asks"
    frames = torch.zeros(rows, *space.shape, dtype=torch.uint8, device=run.device)
    with torch.inference_mode():
        return precisions.choose(lambda: world.encode(frames), run.device)


def _fits(env: envs.VectorEnv, episodes: Episodes, pipe: Pipeline) -> None:
    for what in ("observation", "actions"):
        here, there = getattr(env, what), getattr(episodes, what)
        if here != there:
            raise ContractError(
                f"{pipe.env.id} has {what} {here}, but the models were trained on {there} ({episodes.path})"
            )
