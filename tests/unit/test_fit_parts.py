"""The parts of the training loop: schedule, gauge, optimiser states, precision, and what a training may go on with."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from wmrl import continuing, optimizers, precision
from wmrl import fit as fitting
from wmrl.errors import ContractError, UserError
from wmrl.gauge import Gauge
from wmrl.log import Log
from wmrl.pipeline import Fit, Pipeline
from wmrl.run import Run
from wmrl.schedule import SMALLEST, Progress
from wmrl.spec import Batch, Loss
from wmrl.store import Store


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log.quiet("train-toy", tmp_path)


def said(log: Log) -> str:
    return (log.logdir / "logs/train-toy.log").read_text()


def run(settings: Fit, losses: dict[int, float], until: int = 1000) -> Progress:
    """Look at the losses of some steps, in order."""
    progress = Progress()
    for step in range(settings.validate_every, until + 1, settings.validate_every):
        progress.step = step
        assert progress.due(settings)
        progress.see(losses.get(step, 1.0), settings)
        assert not progress.due(settings)
        if progress.ended:
            break
    return progress


def test_the_learning_rate_rises_over_the_warm_up() -> None:
    settings, progress = Fit(learning_rate=0.1, warmup=4), Progress()
    rates = []
    for progress.step in range(6):
        rates.append(progress.learning_rate(settings))
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    assert Progress().learning_rate(Fit(learning_rate=0.1)) == 0.1


def test_a_plateau_halves_the_learning_rate_and_patience_ends() -> None:
    settings = Fit(validate_every=5, plateau=10, patience=30)
    progress = run(settings, {5: 1.0})
    assert progress.step == 35  # thirty steps after the last improvement
    assert progress.ended == "no better validation loss for 30 steps"
    assert progress.scale == 1 / 8  # halved at 15, 25 and 35
    assert run(settings, {5: 1.0, 10: 0.5}).step == 40


def test_the_learning_rate_is_halved_no_further_than_needed() -> None:
    progress = run(Fit(validate_every=1, plateau=1), {})
    assert progress.scale == SMALLEST
    assert run(Fit(validate_every=1), {}).scale == 1.0  # plateau 0: never


def test_a_tiny_gain_is_the_best_but_no_improvement() -> None:
    settings = Fit(validate_every=5, patience=10)
    progress = run(settings, {5: -1.0, 10: -1.00005, 15: -1.00008})
    assert (progress.best, progress.best_step) == (-1.00008, 15)
    assert progress.ended and progress.step == 15


def test_progress_survives_its_table() -> None:
    progress = run(Fit(validate_every=5, plateau=10), {15: 0.5}, until=60)
    assert Progress.of(json.loads(json.dumps(progress.table()))) == progress


def gauge(log: Log, *rows: tuple[float, float, float]) -> Gauge:
    found = Gauge("toy", log)
    for loss, term, norm in rows:
        found.add(torch.tensor(loss), {"term": torch.tensor(term)}, torch.tensor(norm))
    return found


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ((float("nan"), 1.0, 1.0), "loss is nan"),
        ((1.0, float("-inf"), 1.0), "term is -inf"),
        ((1.0, 1.0, float("inf")), "gradient_norm is inf"),
    ],
)
def test_the_gauge_names_the_first_bad_number_and_its_step(log: Log, row: tuple, what: str) -> None:
    good, bad = (1.0, 2.0, 3.0), (float("nan"),) * 3
    found = gauge(log, good, good, row, bad)
    with pytest.raises(UserError, match=rf"^toy: {what} at step 13; .*fit\.toy\.learning_rate") as error:
        found.check(14)
    assert "\n" not in str(error.value)


def test_the_gauge_looks_at_each_number_once(log: Log) -> None:
    found = gauge(log, (1.0, 2.0, 3.0))
    found.check(1)
    found.add(torch.tensor(1.0), {"term": torch.tensor(float("nan"))}, torch.tensor(1.0))
    with pytest.raises(UserError, match="term is nan at step 2"):
        found.check(2)


def test_the_gauge_reports_means_and_rates(log: Log, tmp_path: Path) -> None:
    found = gauge(log, (1.0, 2.0, 3.0), (3.0, 4.0, 7.0))
    none = torch.zeros(2, 3)
    found.data(Batch(torch.zeros(2, 4, 1), none[..., None], none, none, none), waited=0.0)
    found.report(Progress(step=2), 10, 0.5)
    log.close()
    (line,) = [json.loads(text) for text in (tmp_path / "metrics/train-toy.jsonl").read_text().splitlines()]
    assert line["global_step"] == 2
    assert (line["losses/loss"], line["losses/term"], line["losses/gradient_norm"]) == (2.0, 3.0, 5.0)
    assert line["charts/learning_rate"] == 0.5
    assert line["time/frames_per_second"] == pytest.approx(4 * line["time/steps_per_second"], rel=1e-6)


def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    sum(p.square().sum() for p in module.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_optimiser_states_come_back_whatever_the_memory_layout(name: str, layout: torch.memory_format) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.Conv2d(3, 4, 3).to(memory_format=layout)
        return module, optimizers.make(list(module.parameters()), Fit(optimizer=name))  # type: ignore[arg-type]

    module, optimizer = make()
    for _ in range(3):
        step(module, optimizer)
    stored = [{k: v.numpy().copy() for k, v in entry.items()} for entry in _state(module, optimizer)]
    other, fresh = make()
    other.load_state_dict(module.state_dict())
    optimizers.restore(fresh, list(other.parameters()), stored)
    step(module, optimizer)
    step(other, fresh)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_weights_decay_beside_the_gradient() -> None:
    """Without a gradient, a step takes learning_rate * weight_decay of them; Adam's averages know nothing of it."""
    parameter = nn.Parameter(torch.tensor([2.0, -4.0]))
    optimizer = optimizers.make([parameter], Fit(learning_rate=0.1, weight_decay=0.5))
    parameter.grad = torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([1.9, -3.8]))
    assert not optimizer.state[parameter]["exp_avg"].any()


def _state(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Tensor]]:
    return optimizers.state(optimizer, list(module.parameters()))


def test_the_state_of_other_parameters_is_refused() -> None:
    module, other = nn.Linear(2, 3), nn.Linear(2, 4)
    optimizer = optimizers.make(list(module.parameters()), Fit())
    step(module, optimizer)
    fresh = optimizers.make(list(other.parameters()), Fit())
    with pytest.raises(ValueError, match="a state of shape"):
        optimizers.restore(fresh, list(other.parameters()), _state(module, optimizer))
    with pytest.raises(ValueError, match="2 parameters are stored"):
        optimizers.restore(fresh, [], _state(module, optimizer))


@pytest.mark.parametrize("most", [0.0, 0.5, 100.0])
def test_gradients_are_shortened(most: float) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert optimizers.clip([parameter], most).item() == 5.0
    assert parameter.grad.norm().item() == pytest.approx(0.5 if most == 0.5 else 5.0, rel=1e-4)


def test_the_faster_precision_is_chosen() -> None:
    def work(slow: str) -> None:
        now = "bf16" if torch.is_autocast_enabled("cpu") else "fp32"
        torch.rand(400_000 if now == slow else 10).sort()

    assert precision.choose(lambda: work("fp32"), "cpu")[0] == "bf16"
    choice, why = precision.choose(lambda: work("bf16"), "cpu")
    assert choice == "fp32"
    assert why.startswith("fp32 ") and ", bf16 " in why


def test_where_bfloat16_does_not_work_float32_is_chosen() -> None:
    def work() -> None:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("not implemented for BFloat16")

    assert precision.choose(work, "cpu")[0] == "fp32"

    def broken() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        precision.choose(broken, "cpu")


def test_choosing_leaves_the_module_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    precision.for_training(module, lambda: module(torch.rand(5, 3)).square().sum(), "cpu")
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


def test_threads_and_precision_of_the_beginning_hold(log: Log) -> None:
    before = torch.get_num_threads()
    try:
        continuing.threads("toy", before + 1, log)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert continuing.precision("toy", "bf16", "auto", log) == "bf16"
    assert continuing.precision("toy", "bf16", "fp32", log) == "fp32"
    assert "begun in bf16 and goes on in fp32" in said(log)


def test_grown_parents_are_known_from_others() -> None:
    parents = {"data": ["a", "b"], "representation": ["r"]}
    assert continuing.grown("toy", {"data": "b", "representation": "r"}, parents) == ""
    assert continuing.grown("toy", {"data": "a", "representation": "r"}, parents) == "data"
    for stored in ({"data": "x", "representation": "r"}, {"data": "a", "representation": "q"}, {}):
        with pytest.raises(ContractError, match="--noreload"):
            continuing.grown("toy", stored, parents)


def test_never_more_than_a_minute_of_training_is_unsaved(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 7 s here and a validation 45 s: both are work that a kill would cost."""
    now, saves, module, one = [0.0], [0.0], nn.Linear(1, 1), torch.ones(1, 1)
    monkeypatch.setattr(fitting, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(Store, "save_part", lambda store, name, tree: saves.append(now[0]))

    def batches(start: int) -> Iterator[Batch]:
        while True:
            yield Batch(torch.ones(1, 2, 1), one[..., None], one, one, one)

    def loss(batch: Batch, rng: torch.Generator) -> Loss:
        now[0] += 7.0
        return module(one).sum(), {}

    def validate() -> dict[str, float]:
        now[0] += 45.0
        return {"loss": 1.0}

    settings, store = Fit(steps=60, validate_every=11), Store(log.logdir, Pipeline())
    how = {"settings": settings, "name": "toy", "seed": 1, "store": store, "log": log, "run": Run(precision="fp32")}
    fitting.fit(module, loss, batches, validate, **how)  # type: ignore[arg-type]
    assert now[0] > 600.0
    assert max(after - before for before, after in itertools.pairwise([*saves, now[0]])) <= 60.0
