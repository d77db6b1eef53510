"""Collect with the controller, train V, M and C on what it saw, and again: the iterative procedure of World Models.

A controller that drives well comes where a random policy never was, and there V and M know nothing. So each iteration
adds rollouts of the controller so far, trains V and M on all that there is from the weights that they have, and
searches on from the controller in the world that has changed.

It is the stages in a loop, and nothing more: each is called as the command line calls it, with the pipeline of the
iteration, continues what a kill left, and has nothing to do where it is complete. `LOGDIR/iterate.part.h5` says which
iteration is under way and what those before it scored. The run's dataset lies in `LOGDIR/rollouts`; it begins as links
to the shards of the pipeline's dataset, which is never changed: other runs may share it.

Source: Ha & Schmidhuber 2018, "World Models", Iterative Training Procedure.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from wmrl import artifact, interrupts, sources
from wmrl.data import plan, shards
from wmrl.data.adopt import adopt
from wmrl.data.episodes import Episodes
from wmrl.errors import ArtifactError, ConfigError, ContractError
from wmrl.evaluation import scores_in
from wmrl.log import Log
from wmrl.memory import in_memory
from wmrl.pipeline import Pipeline
from wmrl.run import Run
from wmrl.stages import rounds as kept
from wmrl.stages.generate import generate
from wmrl.stages.rounds import Round
from wmrl.stages.test_controller import TestOptions, test_controller
from wmrl.stages.train_controller import train_controller
from wmrl.stages.train_dynamics import train_dynamics
from wmrl.stages.train_vae import train_vae
from wmrl.stats import told
from wmrl.stdout import table_text
from wmrl.store import Store

ROLLOUTS = "rollouts"
"""The folder of a logdir that holds the dataset of an iterated run."""
PARENTS = {"vae": "representation", "dynamics": "dynamics"}
"""Models that move from one iteration to the next, and what they are called as parents."""

STAGES = ("generate", "train-vae", "train-dynamics", "train-controller", "test-controller")
"""What an iteration does, in order."""

Call = Callable[[Pipeline, Store, Log, Run], None]


@in_memory()
def iterate(pipe: Pipeline, store: Store, log: Log, run: Run) -> None:
    """Bring a run to the number of iterations that its pipeline asks for, and show how each one scored.

    Raises:
        ArtifactError: if a part is missing or damaged, or what is kept of the iterations so far.
        ConfigError: if M is another run's, which cannot be trained on here; if other data are named than the
            iterations so far are of; or as the stages.
        ContractError: if data or models are not those that the last iteration ended with.
        Stopped: if a signal asked to stop; the same command continues.
    """
    if pipe.online.steps:
        from wmrl.stages.online import online

        online(pipe, store, log, run)
        return
    if run.minutes is not None:
        raise ConfigError("--minutes is for pipelines that learn online; iterations have numbers (--iterations, ...)")
    if "from" in pipe.dynamics:
        raise ConfigError("dynamics.from: iterate trains M on, and that of another run must not change; name a kind")
    rounds, own = kept.read(store.logdir), store.logdir / ROLLOUTS
    if not rounds and store.exists(kept.NAME):
        raise ArtifactError(
            f"{store.part(kept.NAME)} is missing: without it the iterations of {store.path(kept.NAME)} cannot go on; "
            "put it back, or begin in another --logdir"
        )
    if (rounds or (own / shards.COMPLETE).exists()) and not _is_data_of(own, Path(pipe.data)):
        raise ConfigError(
            f"data: the iterations so far are of {own}, this call says {pipe.data}; take another --logdir"
        )
    pipe = _with_own_data(pipe, store, log, run)
    log.rewind(max((each.global_step for each in rounds), default=-1))
    _check(store.logdir, pipe, rounds)
    if not kept.left(rounds, pipe):
        log.say(f"{len(rounds)} iterations are made: nothing to do; more --iterations go on")
    while kept.left(rounds, pipe):
        if not rounds or rounds[-1].over:
            rounds.append(_begin(pipe, len(rounds) + 1))
        _Iteration(pipe, store, log, run, rounds).go()
    store.save(kept.NAME, kept.result(rounds))
    log.out(_table(rounds))
    returns = {str(each.number): each.score.returns for each in rounds if each.score is not None}
    found = {"stage": "iterate", "data": pipe.data, "iterations": [each.record() for each in rounds]}
    log.result({**found, "returns": returns})


def _with_own_data(pipe: Pipeline, store: Store, log: Log, run: Run) -> Pipeline:
    """The pipeline with a dataset of the run's own, which begins with the episodes of the pipeline's.

    Later calls of any stage in this logdir use it too.
    """
    folder, source = store.logdir / ROLLOUTS, Path(pipe.data)
    if not (folder / shards.COMPLETE).exists():
        if plan.base(source) < pipe.generate.rollouts:
            with log.part("generate") as part:
                generate(pipe, store, part, run)
        if pipe.iterate.iterations > 1:
            _check_growing(pipe)
        if folder.resolve() != source.resolve():
            index = adopt(source, folder)
            log.say(f"{folder} begins with the {len(index.seeds)} episodes of {source}, which is left as it is")
    pipe = dataclasses.replace(pipe, data=str(folder))
    Store(store.logdir, pipe).remember(sources.sets_with_data(store.logdir, pipe.data))
    return pipe


def _is_data_of(own: Path, asked: Path) -> bool:
    """Whether the rollouts that a call names are the run's own, or those that they began with."""
    if asked.resolve() == own.resolve():
        return True
    named, ours = plan.listed(asked), plan.listed(own)
    return named is not None and ours is not None and named.hashes[0] == ours.hashes[0]


def _begin(pipe: Pipeline, number: int) -> Round:
    there = plan.base(Path(pipe.data))
    return Round(number, pipe.iterate, there + (pipe.iterate.rollouts if number > 1 else 0))


def _check(logdir: Path, pipe: Pipeline, rounds: Sequence[Round]) -> None:
    """Insist that nothing but `iterate` has touched what the last finished iteration ended with.

    Raises:
        ContractError: naming what is another one now.
        ArtifactError: if a shard of the rollouts is gone.
    """
    over = [each for each in rounds if each.over]
    if not over:
        return
    last, store = over[-1], Store(logdir, pipe)
    episodes = store.episodes()
    if gone := [name.file for name in episodes.names if not (episodes.path / name.file).exists()]:
        raise ArtifactError(
            f"{episodes.path / gone[0]} is missing, from which the models were learnt, and cannot be made again: put "
            "it back, or begin in another --logdir"
        )
    found = {"data": last.hashes["data"] if last.hashes["data"] in episodes.lineage() else episodes.hash}
    if rounds[-1].over or len(episodes) < rounds[-1].episodes:  # else they are being trained
        found |= {name: store.load(name).hash for name in last.hashes if name != "data"}
    for name, hash_ in found.items():
        if hash_ != last.hashes[name]:
            where = pipe.data if name == "data" else store.path(name)
            raise ContractError(
                f"{where} is not what iteration {last.number} ended with ({last.hashes[name][:8]}, but {hash_[:8]} is "
                "there now): another command has changed it; begin in another --logdir"
            )


def _check_growing(pipe: Pipeline) -> None:
    """Tell before an iteration is trained that rollouts of this pipeline cannot be added to those that there are.

    Raises:
        ConfigError: naming what differs.
    """
    folder = Path(pipe.data)
    first, _ = plan.stored(folder, pipe.iterate.rollouts)
    assert first is not None
    plan.check(folder, plan.recipe(dataclasses.replace(pipe, seed=_seed(pipe))), first, ("env", "seed"))


def _seed(pipe: Pipeline) -> int:
    """The seed of the run's dataset, which runs of other seeds share."""
    seed: int = Episodes(Path(pipe.data)).meta.get("seed", pipe.seed)
    return seed


class _Iteration:
    """One iteration: its stages, in order."""

    def __init__(self, pipe: Pipeline, store: Store, log: Log, run: Run, rounds: list[Round]) -> None:
        self.rounds, self.now, self.log, self.run = rounds, rounds[-1], log, run
        self.pipe = kept.planned(pipe, rounds)
        self.store = Store(store.logdir, self.pipe)
        self.before = rounds[-2].hashes if self.now.number > 1 else {}

    def go(self) -> None:
        """Do what is left of it."""
        self.log.say(f"iteration {self.now.number} of {max(self.pipe.iterate.iterations, self.now.number)}")
        lacking = self.now.episodes - plan.base(Path(self.pipe.data))
        if lacking > 0:  # another command may have added some by then
            self._stage(
                "generate", generate, pipe=self._collecting(), run=dataclasses.replace(self.run, append=lacking)
            )
        if not self.before or self.now.settings.train_vae:
            self._stage("train-vae", train_vae)
        self._stage("train-dynamics", train_dynamics, run=self._knowing("vae"))
        self._stage("train-controller", train_controller, run=self._knowing("vae", "dynamics"))
        self._stage("test-controller", self._test)
        self._finish()

    def _stage(self, name: str, call: Call, *, pipe: Pipeline | None = None, run: Run | None = None) -> None:
        """Call a stage that is not over; from the second iteration on, its logs and metrics bear its number."""
        if STAGES.index(name) < STAGES.index(self.now.stage):
            return  # called again after the dataset grew by hand, it would move a model that others are trained on
        self.now.stage = name
        kept.save(self.store, self.rounds)
        interrupts.check()
        pipe, number = pipe or self.pipe, self.now.number
        with self.log.part(name if number == 1 else f"{name}-{number}") as part:
            call(pipe, Store(self.store.logdir, pipe), part, run or self.run)

    def _collecting(self) -> Pipeline:
        """The pipeline with the run's own controller as the policy, and the seed of the dataset."""
        settings = dataclasses.replace(
            self.pipe.generate, policy="controller", controller=str(self.store.logdir), noise=self.now.settings.noise
        )
        return dataclasses.replace(self.pipe, generate=settings, seed=_seed(self.pipe))

    def _knowing(self, *models: str) -> Run:
        """The run, in which what was trained on these models of the last iteration goes on with the present ones."""
        earlier = {PARENTS[name]: [self.before[name]] for name in models if self.before}
        return dataclasses.replace(self.run, earlier=earlier)

    def _test(self, pipe: Pipeline, store: Store, log: Log, run: Run) -> None:
        test_controller(pipe, store, log, run, TestOptions(episodes=self.now.settings.episodes))

    def _finish(self) -> None:
        """Note what came out."""
        made, store, now = artifact.read(self.store.path("test"), "test"), self.store, self.now
        parts = {name: store.load(name) for name in ("vae", "dynamics", "controller")}
        now.score = next(iter(scores_in(made).values()))  # the protocol that was asked for last
        episodes = store.episodes()
        now.episodes = len(episodes)
        now.hashes = {"data": episodes.hash, **{name: part.hash for name, part in parts.items()}}
        now.losses = {name: loss for name in PARENTS if (loss := _loss(parts[name].facts)) is not None}
        now.global_step, now.stage = parts["controller"].facts["global_step"], ""
        losses = {f"eval/{name}_loss": loss for name, loss in now.losses.items()}
        charts = {"charts/iteration": now.number, "charts/episodes": now.episodes}
        self.log.metrics(now.global_step, {**charts, **losses, **now.score.metrics()})
        kept.save(store, self.rounds)
        found = now.score.summary()
        self.log.say(
            f"iteration {now.number}: {now.score.protocol.id} {told(found.mean)} "
            f"(95 % {told(found.low)} to {told(found.high)}), {now.episodes} episodes of data"
        )


def _loss(facts: Mapping[str, Any]) -> float | None:
    """The validation loss of a trained model; None of one that has nothing to train."""
    validation = facts.get("validation") or {}
    loss: float | None = validation.get("model", validation).get("loss")
    return loss


def _table(rounds: Sequence[Round]) -> str:
    """The iterations as text."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("iteration", "episodes", "steps of C", "V loss", "M loss", "protocol", "mean", "95 % of mean", "IQM"):
        table.add_column(head, justify="left" if head == "protocol" else "right", no_wrap=True)
    for each in rounds:
        assert each.score is not None
        found, losses = each.score.summary(), [each.losses.get(name) for name in PARENTS]
        shown = ["-" if loss is None else f"{loss:.4g}" for loss in losses]
        numbers = [told(found.mean), f"{told(found.low)} to {told(found.high)}", told(found.iqm)]
        counts = [str(each.number), str(each.episodes), f"{each.global_step:,}"]
        table.add_row(*counts, *shown, each.score.protocol.id, *numbers)
    return table_text(table)
