"""The training loop: what it promises about bits, interruptions, schedules and bad numbers."""

import contextlib
import copy
import dataclasses
import itertools
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from wmrl import fit as fitting
from wmrl import interrupts, seeding
from wmrl.errors import ContractError, Stopped, UserError
from wmrl.fit import FitResult, fit
from wmrl.log import Log
from wmrl.pipeline import Fit, Pipeline
from wmrl.run import Run
from wmrl.spec import Batch, Loss
from wmrl.store import Store

SETTINGS = Fit(steps=24, batch=4, learning_rate=0.05, validate_every=5, log_every=4, warmup=3, clip=1.0, plateau=5)


RUN = Run(precision="fp32")


class Killed(BaseException):
    """What nothing may catch and tidy up after, as kill -9."""


class Toy:
    """A small network with dropout and noise, its data, and a way to die at a given call of loss or validate."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.module = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1))
        self.losses = self.validations = 0
        self.die_in_loss = self.die_in_validation = -1
        self.bad: dict[int, float] = {}

    def batches(self, start: int) -> Iterator[Batch]:
        k = start
        while True:
            rng = seeding.generator("toy", k)
            obs = torch.rand(4, 2, 3, generator=rng)
            none = torch.zeros(4, 1)
            yield Batch(obs, none[..., None], none, none, none + 1)
            k += 1

    def loss(self, batch: Batch, rng: torch.Generator) -> Loss:
        if self.losses == self.die_in_loss:
            raise Killed
        self.losses += 1
        assert batch.obs is not None
        x = batch.obs.flatten(0, 1)
        seen = self.module(x + 0.1 * torch.randn(x.shape, generator=rng))[:, 0]
        error = (seen - x.sum(1)).square().mean()
        term = error.detach() * self.bad.get(self.losses, 1.0)
        return error * self.bad.get(-self.losses, 1.0), {"error": term}

    def validate(self) -> dict[str, float]:
        assert not self.module.training
        if self.validations == self.die_in_validation:
            raise Killed
        self.validations += 1
        batch = next(self.batches(10_000))
        return {"loss": self.loss(batch, seeding.generator("valid"))[0].item()}

    def weights(self) -> dict[str, torch.Tensor]:
        return copy.deepcopy(self.module.state_dict())


Go = Callable[..., FitResult]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "run", Pipeline())


@pytest.fixture
def go(store: Store) -> Go:
    def call(toy: Toy, settings: Fit = SETTINGS, *, run: Run = RUN, validate: Any = None, **more: Any) -> FitResult:
        known = {"settings": settings, "name": "toy", "seed": 1, "store": store, "run": run}
        with contextlib.closing(Log.quiet("train-toy", store.logdir)) as log:
            return fit(toy.module, toy.loss, toy.batches, validate or toy.validate, log=log, **known, **more)  # type: ignore[arg-type]

    return call


def same(a: Any, b: Any) -> bool:
    """Whether two trees have the same bits."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "tobytes") or isinstance(a, torch.Tensor):
        return torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    return a == b


def state(store: Store) -> dict[str, Any]:
    """All that a training state holds but the time it took."""
    tree = store.load_part("toy")
    assert tree is not None
    del tree["progress"]["seconds"]
    return tree


@pytest.fixture
def finished(go: Go, store: Store) -> tuple[dict[str, Any], dict[str, torch.Tensor], FitResult]:
    """An uninterrupted training: its final state, weights and result."""
    toy = Toy()
    result = go(toy)
    done = state(store), toy.weights(), result
    store.drop_part("toy")
    return done


def test_it_learns_and_ends_with_its_best_weights(go: Go, store: Store) -> None:
    toy = Toy()
    toy.module.eval()
    before, seen = toy.validate(), []
    result = go(toy, dataclasses.replace(SETTINGS, steps=58), watch=seen.append)
    assert result.best < before["loss"] / 2
    assert (result.steps, seen) == (58, [*range(5, 58, 5), 58])
    assert toy.validate()["loss"] == result.best
    assert not toy.module.training
    names = {name for line in (store.logdir / "metrics/train-toy.jsonl").open() for name in json.loads(line)}
    assert {"losses/loss", "losses/error", "losses/gradient_norm", "eval/loss", "time/waiting_for_data"} <= names


DEATHS = {
    "start": [(0, -1)],
    "step": [(7, -1), (9, -1)],
    "first validation": [(-1, 0), (-1, 0), (-1, 1)],
    "last validation": [(-1, 4)],
    "again and again": [(n, -1) for n in (2, 1, 1, 3, 4, 2)],
}
"""Where a training dies, one after the other: (calls of loss before, calls of validate before), -1 for never."""


@pytest.mark.parametrize(
    ("where", "optimizer"), [*((where, "adam") for where in DEATHS), ("again and again", "rmsprop")]
)
def test_a_killed_training_ends_with_the_same_bits(
    go: Go, store: Store, where: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(SETTINGS, optimizer=optimizer)
    whole = Toy()
    go(whole, settings)
    expected = state(store)
    store.drop_part("toy")
    monkeypatch.setattr(fitting, "SAVE_EVERY", 0.0)
    for in_loss, in_validation in DEATHS[where]:
        toy = Toy(seed=9 if store.part("toy").exists() else 0)  # weights then come from the stored state
        toy.die_in_loss, toy.die_in_validation = in_loss, in_validation
        with pytest.raises(Killed):
            go(toy, settings)
    last = Toy(seed=9 if store.part("toy").exists() else 0)
    go(last, settings)
    assert same(state(store), expected)
    assert same(last.weights(), whole.weights())


def test_a_signal_saves_and_stops_and_the_same_call_continues(go: Go, store: Store, finished: Any) -> None:
    toy = Toy()
    plain = toy.loss

    def loss(batch: Batch, rng: torch.Generator) -> Loss:
        if toy.losses == 11:
            interrupts._ask(signal.SIGTERM, None)
        return plain(batch, rng)

    toy.loss = loss  # type: ignore[method-assign]
    old = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(Stopped) as stopped:
            go(toy)
        assert stopped.value.code == 143
    finally:
        interrupts.clear()
        signal.signal(signal.SIGTERM, old)
    made = state(store)["progress"]["step"]
    assert 9 <= made <= 12  # the step in which the signal came is the last one
    rest = Toy(seed=5)
    go(rest)
    assert same(state(store), finished[0])
    assert rest.losses - rest.validations == SETTINGS.steps - made  # no step was made twice


def test_a_signal_during_validation_is_obeyed_there(go: Go, store: Store, finished: Any) -> None:
    def validate() -> dict[str, float]:
        raise Stopped(signal.SIGINT)

    with pytest.raises(Stopped):
        go(Toy(), validate=validate)
    assert state(store)["progress"]["step"] == 5
    go(Toy(seed=5))
    assert same(state(store), finished[0])


def test_steps_are_not_made_again_after_the_end(go: Go, finished: Any, store: Store) -> None:
    go(Toy())
    toy = Toy(seed=3)
    result = go(toy)
    assert toy.losses == 0
    assert same(toy.weights(), finished[1])
    assert result.best == finished[2].best


def test_more_steps_continue_a_finished_training(go: Go, store: Store) -> None:
    go(Toy())
    toy = Toy(seed=3)
    result = go(toy, dataclasses.replace(SETTINGS, steps=30))
    assert result.steps == 30
    assert toy.losses - toy.validations == 6


def test_noreload_begins_anew(go: Go, finished: Any, store: Store) -> None:
    go(Toy())
    toy = Toy()
    go(toy, run=Run(precision="fp32", noreload=True))
    assert toy.losses - toy.validations == SETTINGS.steps
    assert same(state(store), finished[0])


@pytest.mark.parametrize(("bad", "term"), [({7: float("nan")}, "error is nan"), ({-7: float("inf")}, "loss is inf")])
def test_a_bad_number_stops_within_the_interval_and_names_itself(
    go: Go, store: Store, bad: dict[int, float], term: str
) -> None:
    toy = Toy()
    toy.bad = bad  # the seventh call of loss is step 6: a validation came after step 5
    with pytest.raises(UserError, match=rf"toy: {term} at step 6; .*state of step 5 is kept"):
        go(toy)
    assert toy.losses <= 6 + 1 + SETTINGS.log_every
    kept = state(store)
    assert kept["progress"]["step"] == 5
    assert all(torch.as_tensor(value).isfinite().all() for value in kept["module"].values())


def test_a_bad_validation_loss_stops(go: Go, store: Store) -> None:
    with pytest.raises(UserError, match="the validation loss is nan at step 5"):
        go(Toy(), validate=lambda: {"loss": float("nan")})


def test_a_worse_loss_never_replaces_the_best(go: Go, store: Store) -> None:
    values = iter([3.0, 1.0, 2.0, 1.5, 4.0])
    toy = Toy()
    result = go(toy, validate=lambda: {"loss": next(values)})
    assert (result.best, result.best_step) == (1.0, 10)
    tree = state(store)
    assert same({k: v.numpy() for k, v in toy.weights().items()}, tree["best"])
    assert not same(tree["module"], tree["best"])


def test_minutes_end_a_training_which_can_go_on(go: Go, store: Store) -> None:
    toy = Toy()
    result = go(toy, run=Run(precision="fp32", minutes=0.0, began=time.monotonic() - 1))
    assert result.steps == 0
    assert result.best == toy.validate()["loss"]
    assert go(Toy()).steps == SETTINGS.steps


def test_other_parents_are_refused_and_grown_ones_go_on(go: Go, store: Store) -> None:
    go(Toy(), parents={"data": ["a"]})
    with pytest.raises(ContractError, match="begun with another data"):
        go(Toy(), parents={"data": ["b"]})
    toy = Toy(seed=4)
    result = go(toy, parents={"data": ["a", "b"]})
    assert result.steps == SETTINGS.steps
    assert toy.losses - toy.validations == SETTINGS.steps
    assert state(store)["parents"] == {"data": "b"}


def test_another_network_is_refused_in_one_sentence(go: Go) -> None:
    go(Toy())
    other = Toy()
    other.module[0] = nn.Linear(3, 9)
    with pytest.raises(ContractError, match=r"^the training state of toy is of another network \(.*\); begin anew"):
        go(other)


def test_an_error_of_the_data_reaches_the_caller(go: Go) -> None:
    toy = Toy()
    first = next(toy.batches(0))

    def batches(start: int) -> Iterator[Batch]:
        yield first
        raise UserError("the disk is gone")

    toy.batches = batches  # type: ignore[method-assign]
    with pytest.raises(UserError, match="the disk is gone"):
        go(toy)


class Slope(Toy):
    """One weight on a slope whose steepness changes from step to step: Adam goes down by the learning rate."""

    def __init__(self, *steepness: float) -> None:
        super().__init__()
        self.module = nn.Linear(1, 1, bias=False)
        self.steepness = steepness
        self.seen: list[float] = []
        self.lowered: list[bool] = []

    def loss(self, batch: Batch, rng: torch.Generator) -> Loss:
        self.seen.append(self.module.weight.item())
        self.lowered.append(torch.is_autocast_enabled("cpu"))
        return self.steepness[len(self.seen) % len(self.steepness)] * self.module.weight.sum(), {}

    def validate(self) -> dict[str, float]:
        assert not torch.is_autocast_enabled("cpu")
        return {"loss": 1.0}

    def moves(self) -> list[float]:
        """How far each step but the last went down."""
        return [a - b for a, b in itertools.pairwise(self.seen)]


def test_each_step_is_made_at_the_learning_rate_of_the_schedule(go: Go) -> None:
    toy = Slope(1.0)
    go(toy, Fit(steps=13, learning_rate=0.1, warmup=4, validate_every=4, plateau=4))
    expected = [0.025, 0.05, 0.075] + 5 * [0.1] + 4 * [0.05]  # warm after four, halved at the second validation
    assert toy.moves() == pytest.approx(expected, rel=1e-3)


def test_gradients_are_clipped_as_the_settings_ask(go: Go, store: Store) -> None:
    settings = Fit(steps=7, learning_rate=0.1)
    clipped, free = Slope(1.0, 50.0, 3.0), Slope(1.0, 50.0, 3.0)
    go(clipped, dataclasses.replace(settings, clip=1.0))
    assert clipped.moves() == pytest.approx(6 * [0.1], rel=1e-3)  # every gradient is one as long as the first
    store.drop_part("toy")
    go(free, dataclasses.replace(settings, clip=0.0))
    assert min(free.moves()) < 0.08


@pytest.mark.parametrize(("asked", "lowered"), [("fp32", False), ("bf16", True), ("auto", True)])
def test_steps_are_computed_in_the_chosen_precision_and_validations_in_float32(
    go: Go, store: Store, asked: Any, lowered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting.precision, "for_training", lambda *given: ("bf16", "faster here"))
    toy = Slope(1.0)
    result = go(toy, Fit(steps=3), run=Run(precision=asked))
    assert toy.lowered == 3 * [lowered]
    assert result.precision == state(store)["precision"] == ("bf16" if lowered else "fp32")


def test_the_choice_of_a_precision_is_said_with_its_measurement(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(Log, "say", lambda log, text: said.append(text))
    result = go(Toy(), Fit(steps=1), run=Run(precision="auto"))
    measured = r"fp32 [\d.]+ ms, bf16 [\d.]+ ms|.*bfloat16.*"  # or why there is nothing to measure here
    assert any(re.search(rf"in {result.precision} \(({measured})\)$", line) for line in said)
