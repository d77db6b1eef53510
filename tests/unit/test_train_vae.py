"""The stage train-vae on toy episodes: what it draws, keeps, continues and refuses."""

import dataclasses
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from wmrl import fit as fitting
from wmrl import interrupts
from wmrl.data.episodes import Episodes
from wmrl.data.shards import Episode, complete, write_shard
from wmrl.errors import ArtifactError, ConfigError, ContractError, Stopped
from wmrl.fit import FitResult
from wmrl.images import GAP, grid, picture
from wmrl.log import Log
from wmrl.pipeline import Pipeline, parse
from wmrl.run import Run
from wmrl.spec import Batch
from wmrl.stages import train_vae as stage
from wmrl.stages.train_vae import evaluate, frames, fresh, train_vae
from wmrl.store import Store

RUN = Run(precision="fp32")
LENGTHS = (3, 1, 20, 7)


def episode(number: int, steps: int, side: int = 32) -> Episode:
    """Frames that say where they come from: the first pixel is the episode's number, the second one the row."""
    rows = steps + 1
    obs = np.full((rows, 3, side, side), 60 * number, np.uint8)
    obs[:, 0, 0, 0], obs[:, 0, 0, 1] = number, np.arange(rows)
    flags = np.arange(rows) == steps - 1
    return Episode(obs, np.zeros((rows, 1), np.float32), np.zeros(rows, np.float32), flags, flags & False, seed=number)


def dataset(folder: Path, lengths: tuple[int, ...] = LENGTHS, side: int = 32) -> Episodes:
    meta = {
        "env": {"id": "toy", "size": side, "crop": False},
        "policy": {"policy": "white"},
        "observation": {"shape": (3, side, side), "vocab": None, "dtype": "uint8"},
        "actions": {"size": 1, "discrete": False},
    }
    for number, steps in enumerate(lengths):
        if not list(folder.glob(f"shard-{number:06d}-*")):
            write_shard(folder, number, [episode(number, steps, side)], meta)
    complete(folder)
    return Episodes(folder)


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    return pipeline(tmp_path)


def pipeline(folder: Path) -> Pipeline:
    dataset(folder / "data")
    return parse(
        {
            "name": "toy",
            "data": str(folder / "data"),
            "validation": 0.3,
            "env": {"id": "toy", "size": 32},
            "representation": {"kind": "vae", "latent": 3},
            "fit": {"vae": {"steps": 6, "batch": 2, "length": 4, "validate_every": 3, "validation_batches": 2}},
        }
    )


@pytest.fixture
def store(tmp_path: Path, pipe: Pipeline) -> Store:
    return Store(tmp_path / "run", pipe)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A finished stage, for tests that only look at it."""
    folder = tmp_path_factory.mktemp("finished")
    done = Store(folder / "run", pipeline(folder))
    go(done)
    return done


def go(store: Store, pipe: Pipeline | None = None, run: Run = RUN) -> None:
    log = Log.quiet("train-vae", store.logdir)
    try:
        train_vae(pipe or store.pipe, store, log, run)
    finally:
        log.close()


def test_every_frame_is_equally_likely(tmp_path: Path) -> None:
    episodes = dataset(tmp_path / "d")
    stream = frames(episodes, np.array([0, 1, 3]), 48, 4, key=(1, "x"))
    counts: dict[tuple[int, int], int] = {}
    for batch in itertools.islice(stream, 120):
        assert batch.obs is not None
        assert batch.obs.shape == (48, 1, 3, 32, 32)
        for number, row in batch.obs[:, 0, 0, 0, :2].tolist():
            counts[number, row] = counts.get((number, row), 0) + 1
    expected = {(e, row) for e in (0, 1, 3) for row in range(LENGTHS[e] + 1)}
    assert counts.keys() == expected
    mean = 120 * 48 / len(expected)
    chi2 = sum((count - mean) ** 2 / mean for count in counts.values())
    assert chi2 < 3 * len(expected) * 2  # runs of up to 4 frames are not independent


def test_a_batch_depends_on_its_number_alone(tmp_path: Path) -> None:
    episodes = dataset(tmp_path / "d")
    whole = list(itertools.islice(frames(episodes, np.arange(4), 8, 4, key=(1, "x")), 5))
    late = next(frames(episodes, np.arange(4), 8, 4, key=(1, "x"), start=4))
    assert torch.equal(whole[4].obs, late.obs)
    other = next(frames(episodes, np.arange(4), 8, 4, key=(2, "x"), start=4))
    assert not torch.equal(other.obs, late.obs)


def test_it_makes_an_artifact_that_can_be_rebuilt(finished: Store) -> None:
    made = finished.load("vae")
    plain = {"beta": 1.0, "free_nats": 0.0, "flip": False, "norm": "none"}
    assert made.component == {"kind": "vae", "latent": 3, **plain}
    assert made.parents == {"data": Episodes(finished.data).hash}
    assert made.facts["steps"] == 6
    module, hash_ = finished.component("vae")
    assert hash_ == made.hash
    assert module.encode(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 2, 3)
    assert not module.training


def test_pictures_of_reconstructions_and_samples(finished: Store) -> None:
    folder = finished.logdir / "images/train-vae"
    assert sorted(p.name for p in folder.iterdir()) == [
        f"{what}-{step:06d}.png" for what in ("reconstructions", "samples") for step in (3, 6)
    ]
    sheet = cv2.imread(str(folder / "samples-000006.png"))
    assert sheet.shape == (4 * (32 + GAP) - GAP, 8 * (32 + GAP) - GAP, 3)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    tmp_path: Path, pipe: Pipeline, finished: Store
) -> None:
    hashes = [finished.load("vae").hash]
    for name, seed in (("b", 1), ("c", 2)):
        other = Store(tmp_path / name, dataclasses.replace(pipe, seed=seed))
        go(other)
        hashes.append(other.load("vae").hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_stopped_stage_continues_to_the_same_bytes(
    tmp_path: Path, pipe: Pipeline, finished: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Store(tmp_path / "other", pipe)
    step = fitting._Training.step

    def stop(training: fitting._Training, stream: object) -> None:
        step(training, stream)  # type: ignore[arg-type]
        if training.progress.step == 4:
            monkeypatch.setattr(interrupts, "_pending", 2)

    monkeypatch.setattr(fitting._Training, "step", stop)
    with pytest.raises(Stopped):
        go(other)
    assert not other.exists("vae")
    monkeypatch.setattr(interrupts, "_pending", None)
    monkeypatch.setattr(fitting._Training, "step", step)
    go(other)
    assert other.load("vae").hash == finished.load("vae").hash


def test_a_second_call_makes_no_step(store: Store) -> None:
    go(store)
    before = store.load("vae").hash
    go(store)
    assert store.load("vae").hash == before
    assert "vae is trained: 6 steps" in (store.logdir / "logs/train-vae.log").read_text()


def test_a_copied_logdir_without_training_state(store: Store, pipe: Pipeline) -> None:
    go(store)
    store.drop_part("vae")
    go(store)
    assert not store.part("vae").exists()  # nothing was trained
    longer = dataclasses.replace(pipe.fit.vae, steps=9)
    more = dataclasses.replace(pipe, fit=dataclasses.replace(pipe.fit, vae=longer))
    with pytest.raises(ArtifactError, match=r"vae\.part\.h5 is missing: without it .* --noreload"):
        go(store, more)
    go(store, more, dataclasses.replace(RUN, noreload=True))
    assert store.load("vae").facts["steps"] == 9


def test_more_steps_continue(store: Store, pipe: Pipeline) -> None:
    go(store)
    longer = dataclasses.replace(pipe.fit.vae, steps=9)
    go(store, dataclasses.replace(pipe, fit=dataclasses.replace(pipe.fit, vae=longer)))
    assert store.load("vae").facts["steps"] == 9
    assert "continuing vae at step 6" in (store.logdir / "logs/train-vae.log").read_text()


def test_appended_data_continue_the_weights_and_other_data_are_refused(
    store: Store, pipe: Pipeline, tmp_path: Path
) -> None:
    go(store)
    dataset(tmp_path / "data", (*LENGTHS, 9))
    go(store)
    assert "data has grown" in (store.logdir / "logs/train-vae.log").read_text()
    assert store.load("vae").parents == {"data": Episodes(pipe.data).hash}
    dataset(tmp_path / "another", (5, 5))
    with pytest.raises(ContractError, match="begun with another data"):
        go(Store(store.logdir, dataclasses.replace(pipe, data=str(tmp_path / "another"))))


def test_pixels_have_nothing_to_train(store: Store, pipe: Pipeline) -> None:
    go(store, dataclasses.replace(pipe, representation={"kind": "pixels"}))
    assert "nothing to train" in (store.logdir / "logs/train-vae.log").read_text()
    module, _ = store.component("vae")
    assert module.latent.shape == (3, 32, 32)


def test_a_shared_representation_is_referred_to(finished: Store, pipe: Pipeline, tmp_path: Path) -> None:
    store = finished
    other = Store(tmp_path / "other", dataclasses.replace(pipe, representation={"from": str(store.path("vae"))}))
    go(other, other.pipe)
    assert other.path("vae").stat().st_size < 20_000
    assert other.load("vae").hash == store.load("vae").hash
    assert other.component("vae")[1] == store.load("vae").hash


def test_a_shared_representation_of_other_frames_is_refused(finished: Store, pipe: Pipeline, tmp_path: Path) -> None:
    store = finished
    dataset(tmp_path / "large", (4, 4), side=64)
    large = {"representation": {"from": str(store.path("vae"))}, "data": str(tmp_path / "large")}
    env = dataclasses.replace(pipe.env, size=64)
    other = Store(tmp_path / "other", dataclasses.replace(pipe, env=env, **large))  # type: ignore[arg-type]
    with pytest.raises(ContractError, match=r"\(3, 32, 32\).*\(3, 64, 64\)"):
        go(other, other.pipe)
    assert not other.exists("vae")


def test_frames_that_no_layers_fit_are_refused(tmp_path: Path, pipe: Pipeline) -> None:
    dataset(tmp_path / "odd", (4, 4), side=40)
    env = dataclasses.replace(pipe.env, size=40)
    other = Store(tmp_path / "run", dataclasses.replace(pipe, env=env, data=str(tmp_path / "odd")))
    with pytest.raises(ConfigError, match="representation: frames of 40 x 40 .* 32 and 48"):
        go(other, other.pipe)


def test_without_data_it_says_so(store: Store, pipe: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        go(Store(store.logdir, dataclasses.replace(pipe, data=str(tmp_path / "none"))))


def test_metrics_are_written(finished: Store) -> None:
    lines = [json.loads(line) for line in (finished.logdir / "metrics/train-vae.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line}
    assert {"eval/loss", "eval/reconstruction", "eval/kl"} <= names


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_picture_of_a_frame(channels: int) -> None:
    frame = torch.rand(channels, 5, 6)
    shown = picture(frame)
    assert shown.shape == (5, 6, 3) and shown.dtype == np.uint8
    if channels == 3:
        assert np.array_equal(picture((frame * 255).round().byte()), shown)
    assert picture(np.ones((channels, 5, 6), bool)).min() == 255


def test_a_grid_places_frames_in_rows() -> None:
    red = torch.zeros(3, 4, 4, dtype=torch.uint8)
    red[0] = 255
    sheet = grid([[red, red * 0], [red]])
    assert sheet.shape == (4 + GAP + 4, 4 + GAP + 4, 3)
    assert sheet[0, 0].tolist() == [255, 0, 0]
    assert sheet[0, -1].tolist() == [0, 0, 0]
    assert sheet[-1, -1].tolist() == [255, 255, 255]


def test_validation_frames_are_of_episodes_that_are_never_trained_on(
    store: Store, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, set[int]] = {"train": set(), "valid": set()}

    def look(what: str, batches: Iterable[Batch]) -> None:
        drawn[what] |= {int(number) for batch in batches for number in batch.obs[:, 0, 0, 0, 0]}  # type: ignore[index]

    def evaluate(module: object, fixed: list[Batch], *rest: object) -> dict[str, float]:
        look("valid", fixed)
        return {"loss": 1.0}

    def fit(module: object, loss: object, batches: Any, validate: Any, **how: object) -> FitResult:
        look("train", itertools.islice(batches(0), 40))
        return FitResult(validate()["loss"], 0, 0, "", True, "fp32", 0.0)

    monkeypatch.setattr(stage, "evaluate", evaluate)
    monkeypatch.setattr(stage, "fit", fit)
    go(store)
    train, valid = (set(part.tolist()) for part in Episodes(pipe.data).split(pipe.validation, pipe.seed))
    assert drawn == {"train": train, "valid": valid} and not train & valid


def test_a_validation_is_the_same_each_time(pipe: Pipeline) -> None:
    episodes = Episodes(pipe.data)
    module = fresh(pipe, episodes).eval()
    fixed = list(itertools.islice(frames(episodes, np.arange(4), 8, 1, key=(1, "x")), 2))
    first, again, other = (evaluate(module, fixed, seed, "cpu") for seed in (1, 1, 2))
    assert first == again != other  # noise is drawn, and for one seed the same
