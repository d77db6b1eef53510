"""The training loop. There is one."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wmrl import continuing, interrupts, optimizers, precision, seeding
from wmrl.data.windows import prefetch
from wmrl.errors import ContractError, Stopped
from wmrl.gauge import Gauge
from wmrl.log import Log
from wmrl.pipeline import Fit
from wmrl.run import Run
from wmrl.schedule import Progress
from wmrl.spec import Batch, Loss
from wmrl.store import Store

SAVE_EVERY = 25.0
"""At most so much work is lost by a kill, seconds (and the step that is under way)."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class FitResult:
    """How a training went.

    Args:
        best: Lowest validation loss.
        best_step: The step it was reached at; the module's weights are now those of this step.
        steps: Gradient steps made, in all calls together.
        ended: Why it ended, in words.
        complete: Whether the same call has nothing more to do; False after `--minutes`.
        precision: "fp32" or "bf16".
        seconds: Time spent, in all calls together.
    """

    best: float
    best_step: int
    steps: int
    ended: str
    complete: bool
    precision: str
    seconds: float

    def facts(self) -> dict[str, Any]:
        """The result as a table, for an artifact."""
        return dataclasses.asdict(self)


def fit(
    module: nn.Module,
    loss: Callable[[Batch, torch.Generator], Loss],
    batches: Callable[[int], Iterator[Batch]],
    validate: Callable[[], dict[str, float]],
    *,
    settings: Fit,
    name: str,
    seed: int,
    store: Store,
    log: Log,
    run: Run,
    parents: Mapping[str, Sequence[str]] | None = None,
    watch: Callable[[int], None] | None = None,
) -> FitResult:
    """Train the parameters of `module` that require gradients; on return it has its best weights and is in eval mode.

    The same call continues what an interrupted one began, and ends with the same bits as if nothing had happened;
    with more steps in `settings` a finished training goes on.

    Args:
        module: What is trained, on the run's device. Its random initial weights are the caller's affair.
        loss: A batch on the device, and the generator of this step's noise -> a scalar with gradient, and detached
            scalars to log as `losses/<term>`. Called under autocast in train mode.
        batches: The first step -> an endless iterator of batches on the CPU from that step on. It runs in a thread.
        validate: Numbers on a fixed validation set, the same for the same weights; `loss` decides what is best.
            Called in eval mode, in float32, without gradients; it may call `interrupts.check()`.
        settings: Steps, optimiser, schedule.
        name: What is trained, "vae" say: names the training state and the random numbers.
        seed: Step k draws from `seeding.generator(seed, name, k)`.
        store: Keeps the training state as `<name>.part.h5`, at least every 30 s of work.
        log: Metrics `losses/...`, `eval/...`, `time/...`, `charts/learning_rate`; progress and words.
        run: Device, precision, minutes.
        parents: What it is trained on: name -> content hashes from which a training may be continued, the present one
            last. Continued from an earlier one (the dataset has grown), weights are kept and the steps begin anew.
        watch: Called with the step after each validation: to draw pictures, say.

    Raises:
        UserError: if a loss or a gradient is not finite; it names the step and the term.
        ContractError: if the training state has other parents, another seed, other settings or another network.
        Stopped: if a signal asked to stop; the training state is saved.
    """
    training = _Training(module, loss, validate, settings, name, seed, store, log, run, watch)
    training.parents = {key: list(hashes) for key, hashes in (parents or {}).items()}
    training.restore()
    with torch.random.fork_rng([training.device] if training.device.type == "cuda" else []):
        training.go(batches)
    return training.result()


class _Training:
    """The state of one call of `fit`."""

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Batch, torch.Generator], Loss],
        validate: Callable[[], dict[str, float]],
        settings: Fit,
        name: str,
        seed: int,
        store: Store,
        log: Log,
        run: Run,
        watch: Callable[[int], None] | None,
    ):
        self.module, self.loss, self.validate, self.watch = module, loss, validate, watch
        self.settings, self.name, self.seed = settings, name, seed
        self.store, self.log, self.run = store, log, run
        self.parents: dict[str, list[str]] = {}
        self.terms = continuing.terms(name, seed, settings, store.pipe)
        self.device = torch.device(run.device)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = optimizers.make(self.parameters, settings)
        self.progress = Progress()
        self.best: Tensors = {}
        self.precision = ""
        self.gauge = Gauge(name, log)
        self.saved = self.resumed = time.monotonic()

    # --- beginning and end

    def restore(self) -> None:
        """Continue from the stored training state, if there is one."""
        tree = None if self.run.noreload else self.store.load_part(self.name)
        if tree is None:
            self.log.rewind(-1)
            return
        continuing.agree(self.store.part(self.name), tree.get("terms", self.terms), self.terms)
        grown = continuing.grown(self.name, tree["parents"], self.parents)
        try:
            self.module.load_state_dict(_tensors(tree["module"]))
            optimizers.restore(self.optimizer, self.parameters, tree["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ContractError(
                f"the training state of {self.name} is of another network ({str(error).splitlines()[-1].strip()}); "
                "begin anew with --noreload"
            ) from error
        continuing.threads(self.name, tree["threads"], self.log)
        self.precision = continuing.precision(self.name, tree["precision"], self.run.precision, self.log)
        if grown:
            self.log.rewind(-1)  # the steps begin anew, and so do their metrics
            what = "grown" if grown == "data" else "changed"
            self.log.say(f"{grown} has {what}: {self.settings.steps} more steps from the weights trained so far")
            return
        self.progress, self.best = Progress.of(tree["progress"]), _tensors(tree["best"])
        self.gauge.saved_step = self.progress.step
        self.log.rewind(self.progress.step)
        self.log.say(f"continuing {self.name} at step {self.progress.step}")

    def begin(self, batches: Callable[[int], Iterator[Batch]]) -> None:
        """Choose the precision and keep the choice."""
        why = "as --precision asks"
        self.precision = self.run.precision
        if self.precision == "auto":
            with closing(prefetch(batches(0), depth=1)) as stream:
                batch = next(stream).to(self.device)
            rng = seeding.generator(self.seed, self.name, "measure", device=self.device)
            self.precision, why = precision.for_training(self.module, lambda: self.loss(batch, rng)[0], self.device)
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        self.log.say(f"training {self.name} on {self.device}{threads} in {self.precision} ({why})")
        self.save()

    def result(self) -> FitResult:
        """Load the best weights and report."""
        p = self.progress
        self.module.load_state_dict(self.best)
        self.module.eval()
        best = math.nan if p.best is None else p.best
        ended = p.ended or (continuing.ALL if self.over() else "the minutes were over")
        return FitResult(best, p.best_step, p.step, ended, self.over(), self.precision, p.seconds)

    # --- the loop

    def over(self) -> bool:
        """Whether no further step is to be made."""
        return self.progress.step >= self.settings.steps or bool(self.progress.ended)

    def go(self, batches: Callable[[int], Iterator[Batch]]) -> None:
        """Make the steps that are left."""
        p = self.progress
        if self.over() and p.validated == p.step:
            why = f"{p.ended}; it ended early" if p.ended else f"{continuing.ALL}; more --steps continue it"
            self.log.say(f"{self.name} is trained: {p.step} steps ({why})")
            return
        if not self.precision:
            self.begin(batches)
        with closing(prefetch(batches(p.step))) as stream:
            self.gauge.restart()
            while not self.over() and not self.run.over():
                if p.due(self.settings):
                    self.look()
                    continue
                self.step(stream)
                self.after_step()
        if p.validated != p.step:
            self.look()
        self.save()

    def step(self, stream: Iterator[Batch]) -> None:
        """One gradient step."""
        began = time.monotonic()
        batch = next(stream)
        self.gauge.data(batch, time.monotonic() - began)
        torch.manual_seed(seeding.number(self.seed, self.name, "torch", self.progress.step))  # dropout draws from here
        rng = seeding.generator(self.seed, self.name, self.progress.step, device=self.device)
        self.module.train()
        with precision.autocast(self.precision, self.device):
            total, metrics = self.loss(batch.to(self.device), rng)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = optimizers.clip(self.parameters, self.settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.progress.learning_rate(self.settings)
        self.optimizer.step()
        self.gauge.add(total, metrics, norm)
        self.progress.step += 1

    def after_step(self) -> None:
        """Report, save and stop where it is time to."""
        p = self.progress
        if p.step % self.settings.log_every == 0:
            self.gauge.report(p, self.settings.steps, self.optimizer.param_groups[0]["lr"])
        self.gauge.show(p.step, self.settings.steps)
        if interrupts.pending():
            self.save()
            interrupts.check()
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.save()

    def look(self) -> None:
        """Validate: keep the best weights, adapt the schedule."""
        p = self.progress
        self.gauge.check(p.step)
        if time.monotonic() - self.saved > SAVE_EVERY / 3:
            self.save()
        began = time.monotonic()
        self.log.detail(f"validating {self.name} at step {p.step}")
        self.module.eval()
        try:
            with torch.no_grad():
                metrics = self.validate()
        except Stopped:
            self.save()
            raise
        if not math.isfinite(metrics["loss"]):
            self.gauge.fail(f"the validation loss is {metrics['loss']} at step {p.step}")
        scale = p.scale
        if p.see(metrics["loss"], self.settings):
            self.best = {key: value.detach().clone() for key, value in self.module.state_dict().items()}
        if p.scale < scale:
            self.log.say(f"no better validation loss: learning rate {p.learning_rate(self.settings):.2g}")
        self.log.metrics(p.step, {f"eval/{key}": value for key, value in metrics.items()})
        if self.watch is not None:
            with torch.no_grad():
                self.watch(p.step)
        self.gauge.pause(time.monotonic() - began)
        self.save()
        interrupts.check()

    def save(self) -> None:
        """Keep the training state; never one that was not looked at for NaN."""
        now = time.monotonic()
        self.gauge.check(self.progress.step)
        self.progress.seconds += now - self.resumed
        tree = {
            "progress": self.progress.table(),
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "terms": self.terms,
            "parents": {key: hashes[-1] for key, hashes in self.parents.items()},
            "module": dict(self.module.state_dict()),
            "best": self.best,
            "optimizer": optimizers.state(self.optimizer, self.parameters),
        }
        self.store.save_part(self.name, tree)
        self.gauge.saved_step = self.progress.step
        self.saved = self.resumed = time.monotonic()
        self.gauge.pause(self.saved - now)


def _tensors(tree: Mapping[str, Any]) -> Tensors:
    return {key: torch.as_tensor(value) for key, value in tree.items()}
