"""Learn online: act a little, train the world model and the behaviour a little, again (Dreamer's loop).

A cycle is `online.collect` environment steps of the agent as it is, then as many updates as `online.updates_per_step`
asks for by now. An update draws windows from all that was lived so far, the newest steps included, takes a step of the
world model, and one of the behaviour on dreams that begin at the states which the world model met in these windows.

All that follows from numbers is a function of the seed and the step; what does not lies in `LOGDIR/online.part.h5`,
written every few seconds between two cycles: weights, optimisers, the agent's state in each slot, the newest episodes.
The games are brought back by their seeds and the actions since. So a killed run goes on with the same curves.

Source: Hafner et al. 2020 (Dreamer), algorithm 1.
"""

import dataclasses
import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from wmrl import continuing, envs, interrupts, seeding, sources
from wmrl.data import policies
from wmrl.data.ingest import box
from wmrl.data.replay import Replay, playing_in
from wmrl.data.windows import windows
from wmrl.errors import Stopped
from wmrl.log import Log
from wmrl.pipeline import Pipeline
from wmrl.run import Run
from wmrl.stages import online_rules as rules
from wmrl.stages import snapshots
from wmrl.stages.generate import meta_of
from wmrl.stages.learning import Pupils
from wmrl.stages.lockstep import Lockstep, Player, Wanderers
from wmrl.stages.online_checks import Checks
from wmrl.stages.online_models import fresh, view_shape, write
from wmrl.stages.test_controller import TestOptions, test_controller
from wmrl.stats import told
from wmrl.store import Store

NAME = "online"
SAVE_EVERY = 25.0
"""At most so much work is lost by a kill, seconds (and the cycle that is under way)."""
PARTS = ("world", "behaviour", "acting", "evaluation")
"""What the time is spent on."""


def online(pipe: Pipeline, store: Store, log: Log, run: Run) -> None:
    """Learn until `online.steps` environment steps are made, and save what was learnt.

    Raises:
        ArtifactError: if the state of a run that was begun is gone or damaged.
        ConfigError: if a part of the pipeline cannot be learnt online, or --max-workers allows too few environments.
        ContractError: if the state kept in the logdir is of other settings, or another command has made its models.
        UserError: if a loss is not finite, or the environment fails.
        Stopped: if a signal asked to stop; the same command continues.
    """
    trainer = rules.trainer_of(pipe)
    rules.check_room(pipe, run)
    rules.check_own(store)
    pipe = dataclasses.replace(pipe, data=str(store.logdir / "rollouts"))
    with ExitStack() as stack:
        loop = _Loop(pipe, Store(store.logdir, pipe), log, run, trainer, stack)
        loop.go()
        loop.finish()


class _Loop:
    """One call of `online`."""

    def __init__(self, pipe: Pipeline, store: Store, log: Log, run: Run, trainer: Any, stack: ExitStack) -> None:
        self.pipe, self.how, self.store, self.log, self.run = pipe, pipe.online, store, log, run
        self.device, self.stack = torch.device(run.device), stack
        self.env = stack.enter_context(envs.make(pipe.env, self.how.environments, threads=run.threads))
        rules.check_restarts(self.env, pipe.env.backend)
        self.world, self.controller = fresh(pipe, store, self.env, self.device)
        shape = view_shape(self.world, self.controller, self.env)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.number(pipe.seed, "learner"))
            learner = trainer.learner(self.controller, shape, self.device)
        self.pupils = Pupils(self.world, learner, pipe.fit.dynamics, pipe.seed, self.device)
        seeding_policy = dataclasses.replace(pipe.generate, policy=self.how.seed_policy)
        walks = policies.make(seeding_policy, self.env.actions, *box(self.env))
        meta = meta_of(rules.recipe(pipe), self.env)
        self.replay = stack.enter_context(Replay(store.data, meta, capacity=self.how.capacity))
        self.lockstep = Lockstep(self.env, self.replay, lambda i: seeding.number(pipe.seed, "online", "episode", i))
        self.wanderers = Wanderers(walks, self.lockstep)
        self.player = Player(self.world, self.controller, self.device)
        self.checks = Checks(pipe, self.world, self.controller, run, stack)
        self.step, self.kept, self._returned = 0, list[int](), ""
        self.spent = dict.fromkeys(PARTS, 0.0)
        self.saved = self._since = time.monotonic()
        self._reported, self._logged = 0, -1

    # --- the loop

    def go(self) -> None:
        """From what is kept in the logdir, or from nothing, to the end or until the time is spent."""
        if not self._resume():
            rules.check_unused(self.store, self.replay)
            self.log.rewind(-1)
            self.player.begin(self.lockstep.begin(), self._rng("begin"))
            self._announce("learning online:")
            self.save()
        self.store.remember(sources.sets_with_data(self.store.logdir, self.pipe.data))
        while True:
            self._learn()
            if not self._due():  # what is looked at has had all its updates, whenever the minutes are over
                self._look()
            if self.step >= self.how.steps or self.run.over():
                break
            self._collect()
            self._pause()
        self.save()

    def _pause(self) -> None:
        """Between two steps: say how far it is, save if it is time to, stop if a signal asks for it."""
        self.log.progress(self.step, self.how.steps, "steps", f"update {self.pupils.updates:,}{self._returned}")
        if interrupts.pending():
            self.save()
            interrupts.check()
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.save()

    def _announce(self, what: str) -> None:
        how, threads = self.how, torch.get_num_threads()
        size = sum(p.numel() for p in self.world.dynamics.parameters())
        self.log.say(
            f"{what} on {self.device}, {threads} threads: {how.steps:,} steps of {self.pipe.env.id}, "
            f"{how.environments} at a time, {how.updates_per_step:g} updates a step; {size:,} parameters of M"
        )

    def _collect(self) -> None:
        """Act for one cycle."""
        began, n = time.monotonic(), self.env.n
        for _ in range(self.how.turn // n):
            rng = self._rng("act", self.step)
            if self.step < self.how.seed_steps:
                action = self.wanderers.act()
            else:
                action = self.player.act(rng, self.how.exploration(self.step))
            obs, first = self.lockstep.step(action)
            self.player.look(action, obs, first, rng)
            self.step += n
        self.spent["acting"] += time.monotonic() - began

    def _learn(self) -> None:
        """Make the updates that are due."""
        fit, key = self.pipe.fit.dynamics, (self.pipe.seed, NAME, "windows")
        crossing = bool(getattr(self.world.dynamics, "crosses", False))
        while self._due():
            k = self.pupils.updates
            batch = next(windows(self.replay, fit.batch, fit.length, key=key, start=k, crossing=crossing))
            if not self.pupils.precision:
                why = self.pupils.measure(batch, self.run.precision)
                self.log.say(f"learning in {self.pupils.precision} ({why})")
            self.pupils.update(batch)
            self._pause()
            if self.run.over() and self._due():
                return
        if self._tells():
            self._report()

    def _due(self) -> bool:
        return self.pupils.updates < self.how.updates(self.step)

    def _tells(self) -> bool:
        """Whether a row of metrics is due."""
        if self.how.updates_per_step:
            return self.pupils.updates - self._reported >= self.how.log_every
        return self.step > max(0, self._logged) and self.step // self.how.turn % self.how.log_every == 0

    def _report(self) -> None:
        """A row of metrics. Nothing is saved between the rows of one step: a saved state knows all of them, or none."""
        now = time.monotonic()
        rows, losses = self.pupils.updates - self._reported, self.pupils.report()
        self._reported = self.pupils.updates
        self.spent |= self.pupils.seconds
        total = max(sum(self.spent.values()), 1e-9)
        row = {name if "/" in name else f"losses/{name}": value for name, value in losses.items()}
        done = self.lockstep.finished
        if done.returns:
            row |= {
                "charts/episodic_return": float(np.mean(done.returns)),
                "charts/episodic_length": float(np.mean(done.lengths)),
            }
            done.returns.clear()
            done.lengths.clear()
            self._returned = f", return {told(row['charts/episodic_return'])}"
        row |= {"charts/updates": self.pupils.updates, "charts/exploration": self.how.exploration(self.step)}
        row |= {f"time/{name}": self.spent[name] / total for name in PARTS}
        row["time/updates_per_second"] = rows / max(now - self._since, 1e-9)
        self._since = now
        self._log(row)

    def _log(self, row: dict[str, float]) -> None:
        self.log.metrics(self.step, row)
        self._logged = self.step

    # --- looking

    def _look(self) -> None:
        """Evaluate and keep snapshots where the steps have come to it."""
        how = self.how
        if self.checks.due(self.step):
            self._evaluate()
        if how.keep_every and self.step // how.keep_every > (self.kept[-1] if self.kept else 0) // how.keep_every:
            self._keep()

    def _evaluate(self) -> None:
        """Play the fixed validation episodes."""
        began = time.monotonic()
        try:
            row, words = self.checks.play(self.step, self.pupils.updates)
        except Stopped:
            self.save()
            raise
        self.spent["evaluation"] += time.monotonic() - began
        self._log(row)
        self.log.say(f"step {self.step:,}, update {self.pupils.updates:,}: {words}")
        self.save()

    def _keep(self) -> None:
        """A snapshot: a logdir of its own, in LOGDIR/snapshots."""
        folder = self.store.logdir / snapshots.FOLDER / f"{self.step:09d}"
        own = Store(folder, self.pipe)
        self._write(own)
        own.remember()
        self.kept.append(self.step)
        self.log.detail(f"kept {folder}")

    # --- keeping

    def save(self) -> None:
        """Keep all that the run goes on from, durably."""
        now = time.monotonic()
        self.store.save_part(
            NAME,
            {
                "step": self.step,
                "threads": torch.get_num_threads(),
                "terms": rules.terms(self.pipe),
                "pupils": self.pupils.state(),
                "player": self.player.state(),
                "lockstep": self.lockstep.state(),
                "replay": self.replay.state(),
                "checks": self.checks.rows,
                "kept": self.kept,
                "spent": self.spent,
                "logged": self._logged,
            },
        )
        self.saved = time.monotonic()
        self._since += self.saved - now

    def _resume(self) -> bool:
        """Go on from what is kept, if anything is; whether it was."""
        tree = self.store.load_part(NAME)
        if tree is None:
            return False
        continuing.threads(NAME, tree["threads"], self.log)
        rules.check_same(self.store, tree)
        self.step, self.checks.rows, self.kept = int(tree["step"]), list(tree["checks"]), list(tree["kept"])
        self.spent = dict(tree["spent"])
        self.pupils.restore(tree["pupils"])
        self._reported = self.pupils.updates - len(tree["pupils"]["rows"])
        self.pupils.seconds = {name: self.spent[name] for name in self.pupils.seconds}
        if self.pupils.precision:
            self.pupils.precision = continuing.precision(NAME, self.pupils.precision, self.run.precision, self.log)
        self.player.restore(tree["player"], self.lockstep.restore(tree["lockstep"], playing_in(tree["replay"])))
        self.replay.restore(tree["replay"])  # the last, because it removes shards
        self._logged = int(tree["logged"])
        self.log.rewind(self._logged)
        self._announce(f"continuing at step {self.step:,}, update {self.pupils.updates:,}:")
        return True

    # --- the end

    def finish(self) -> None:
        """Write the models, score the controller, and show how the run went."""
        self.replay.flush()
        self._write(self.store)
        self.stack.close()  # the environments of the test are others
        complete = self.step >= self.how.steps and not self._due()
        facts = {"global_step": self.step, "updates": self.pupils.updates, "kept": self.kept}
        if complete:
            with self.log.part("test-controller") as part:
                test_controller(self.pipe, self.store, part, self.run, TestOptions())
            self.store.save("iterate", self.checks.artifact(facts))
        words = "" if complete else "; the minutes are over, the same command goes on"
        self.log.say(f"{self.step:,} steps, {self.pupils.updates:,} updates{words}")
        self.log.result({"stage": "iterate", "data": self.pipe.data, "evaluations": self.checks.curve(), **facts})

    def _write(self, store: Store) -> None:
        facts = {"steps": self.pupils.updates, "global_step": self.step}
        write(store, self.world, self.controller, self.env, facts)

    def _rng(self, *words: seeding.Word) -> torch.Generator:
        return seeding.generator(self.pipe.seed, NAME, *words, device=self.device)
