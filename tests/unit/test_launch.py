"""How a stage is run: what is kept before it begins, and what an interruption leaves."""

import sys
import types
from pathlib import Path

import pytest

from wmrl import pipeline, sources
from wmrl.errors import ArtifactError, ConfigError, Stopped, UserError
from wmrl.launch import launch
from wmrl.log import Log
from wmrl.session import Session
from wmrl.store import Store

COMMON = {
    "precision": "fp32",
    "threads": 1,
    "device": "cpu",
    "json": False,
    "verbose": False,
    "quiet": True,
    "no_progress": True,
    "track": None,
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(logdir: Path, *sets: str, stage=lambda *args: None, **settings) -> Store:
    """Run a stage that makes V."""
    module = types.ModuleType("a_stage")
    module.stage = stage
    sys.modules["a_stage"] = module
    pipe = pipeline.load(None, sets)
    common = {**COMMON, **{k: settings.pop(k) for k in list(settings) if k in COMMON}}
    launch("train-vae", "a_stage:stage", Session(pipe, logdir, sets), common, settings, None, writes="vae")
    return Store(logdir, pipe)


def stop(*args) -> None:
    raise Stopped(15)


def test_begun_anew_and_stopped_at_once_no_old_state_is_left_beside_the_new_settings(tmp_path):
    store = run(tmp_path, "fit.vae.steps=5")
    store.save_part("vae", {"progress": {"step": 5}})
    with pytest.raises(Stopped):
        run(tmp_path, "fit.vae.steps=7", stage=stop, noreload=True)
    assert sources.stored_sets(tmp_path) == ["fit.vae.steps=7"]
    assert store.anew("vae") and store.begun("vae") and store.load_part("vae") is None


def test_killed_before_the_new_settings_are_kept_the_old_ones_begin_from_nothing(tmp_path, monkeypatch):
    store = run(tmp_path, "fit.vae.steps=5")
    store.save_part("vae", {"progress": {"step": 5}})
    monkeypatch.setattr(Store, "remember", stop)
    with pytest.raises(Stopped):
        run(tmp_path, "fit.vae.steps=7", noreload=True)
    assert sources.stored_sets(tmp_path) == ["fit.vae.steps=5"] and store.anew("vae")


def test_a_stage_without_a_training_state_leaves_none(tmp_path):
    assert not run(tmp_path, noreload=True).part("vae").exists()


def test_a_training_state_stays(tmp_path):
    def stage(pipe, store, log, run):
        assert store.anew("vae")
        store.save_part("vae", {"progress": {"step": 1}})

    store = run(tmp_path, stage=stage, noreload=True)
    assert store.load_part("vae") == {"progress": {"step": 1}}


@pytest.mark.parametrize("device", ["meta", "mps", "gpu"])
def test_devices_that_are_not_meant_are_refused(tmp_path, device):
    with pytest.raises(ConfigError, match="--device is auto, cpu, cuda or cuda:N"):
        run(tmp_path, device=device)


def refuse(*args) -> None:
    raise ConfigError("latent must be positive")


@pytest.mark.parametrize("noreload", [False, True])
def test_a_call_that_the_stage_refuses_leaves_all_as_it_was(tmp_path, noreload):
    store = run(tmp_path / "x", "fit.vae.steps=5")
    store.save_part("vae", {"progress": {"step": 5}})
    (tmp_path / "runs/.last").write_text("another\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.suffix in (".h5", ".json", ".last")}
    with pytest.raises(ConfigError, match="positive"):
        run(tmp_path / "x", "fit.vae.steps=7", stage=refuse, noreload=noreload)
    assert {path: path.read_bytes() for path in before} == before
    assert (tmp_path / "runs/.last").read_text() == "another\n"


def test_a_first_call_that_is_refused_binds_nothing(tmp_path):
    with pytest.raises(ConfigError, match="positive"):
        run(tmp_path / "x", "seed=7", stage=refuse)
    assert not (tmp_path / "x" / sources.STORED).exists() and not (tmp_path / "runs/.last").exists()


def test_what_was_kept_before_a_failure_keeps_its_settings(tmp_path):
    def stage(pipe, store, log, run):
        store.save_part("vae", {"progress": {"step": 1}})
        raise UserError("a loss is not finite")

    with pytest.raises(UserError, match="finite"):
        run(tmp_path, "seed=7", stage=stage)
    assert sources.stored_sets(tmp_path) == ["seed=7"]


def test_a_damaged_artifact_is_told_before_the_stage_begins(tmp_path):
    (tmp_path / "vae.h5").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"vae\.h5"):
        run(tmp_path, stage=refuse)
    assert run(tmp_path, noreload=True).path("vae").read_bytes() == b"nothing"


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ({}, None),
        ({"display": True}, True),
        ({"no_progress": True}, False),
        ({"display": True, "no_progress": True}, False),
    ],
)
def test_display_asks_for_the_bar_and_no_progress_forbids_it(tmp_path, monkeypatch, flags, asked):
    made = []

    class Seen(Log):
        def __init__(self, *names, progress, **how):
            made.append(progress)
            super().__init__(*names, progress=progress, **how)

    monkeypatch.setattr("wmrl.launch.Log", Seen)
    run(tmp_path, **{"no_progress": False, **flags})
    assert made == [asked]
