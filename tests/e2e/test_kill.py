"""Stages that are killed or stopped, and called again with the same words: nothing is lost, nothing is made twice.

`make test` does the worst moments, one or two per stage; `make test-slow` strikes at twenty moments of each.
"""

import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wmrl import artifact
from wmrl.data import shards

DATA, LOGDIR = Path("datasets/tiny"), Path("runs/tiny/seed-1")
TRAINED = {
    "train-vae": "vae",
    "train-dynamics": "dynamics",
    "train-controller": "controller",
    "test-controller": "test",
}
STAGES = ("generate", *TRAINED, "render")
REPEATED = {"train-vae": 4, "train-dynamics": 6}
"""Gradient steps between two validations, and so between two saves, at these sizes."""
WAVES = {"train-controller": 2, "generate": 9}
"""Waves that one interruption may cost: the one being played, a look at the environments at the start, and of rollouts
those of the shard in the making (4) and of the one that is being written meanwhile (4)."""

MOMENTS = {
    "generate": {"on": "replace", "match": "shard-", "nth": 2},  # in the middle of a rename
    "train-vae": {"on": "replace", "match": "vae.part.h5", "when": "after"},  # the first save
    "train-dynamics": {"on": "log", "match": "validating dynamics", "nth": 3},  # in validation
    "train-controller": {"on": "fsync", "match": "controller.part.h5", "nth": 3},  # in the middle of a save
    "test-controller": {"on": "replace", "match": "test.part.h5", "nth": 2, "when": "after"},
    "render": {"on": "replace", "match": ".mp4"},
}
SIGNALS = {
    "generate": {"on": "env", "nth": 60, "do": "term"},
    "train-vae": {"on": "gradient", "nth": 6, "do": "int"},
    "train-dynamics": {"on": "gradient", "nth": 9, "do": "term"},
    "train-controller": {"on": "env", "nth": 30, "do": "int"},
    "test-controller": {"on": "env", "nth": 25, "do": "term"},
    "render": {"on": "log", "match": "$ ", "do": "int"},  # before its first frame: filming has no events
}


def contents(folder: Path, stage: str) -> dict[str, bytes]:
    """What a stage made, as bytes that no interruption may change: all but facts, and who made it."""
    if stage == "generate":
        listed = replace(shards.read_complete(folder / DATA), provenance={})
        made = {path.name: path.read_bytes() for path in sorted((folder / DATA).glob("shard-*.h5"))}
        return {**made, shards.COMPLETE: repr(listed).encode()}
    if stage == "render":
        return {path.name: b"" for path in sorted((folder / LOGDIR / "videos").iterdir())}
    made = artifact.read(folder / LOGDIR / f"{TRAINED[stage]}.h5", TRAINED[stage])
    parts = {name: np.ascontiguousarray(array).tobytes() for name, array in made.tensors.items()}
    return {"hash": made.hash.encode(), "parents": repr(sorted(made.parents.items())).encode(), **parts}


def assert_little_is_repeated(stage: str, whole, runs) -> None:
    """Check that the interrupted runs together did little more than the uninterrupted one."""
    again = len(runs) - 1
    steps = sum(len(ran.of("gradient")) for ran in runs) - len(whole.of("gradient"))
    assert steps <= again * REPEATED.get(stage, 0), f"{stage} made {steps} gradient steps again"
    waves = sum(len(ran.of("reset")) for ran in runs) - len(whole.of("reset"))
    assert waves <= again * WAVES.get(stage, 1), f"{stage} played {waves} waves again"


def finished_shards(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / DATA).glob("shard-*[0-9].h5")}


def assert_continues_as_if_uninterrupted(launch, reference, folder: Path, stage: str, fault: dict) -> None:
    """Strike, check what is left, continue, compare with the uninterrupted run."""
    reference.before(stage, folder)
    first = launch.stage(folder, stage, fault=fault)
    what = fault.get("do", "kill")
    if first.code == 0:  # struck at the very end, or at an event that this run did not have
        assert "at" in fault, f"{fault} did not strike: {first.err}"
    else:
        wanted = {"kill": -signal.SIGKILL, "term": 143, "int": 130}[what]
        assert first.code == wanted, f"{fault}: {first.code}\n{first.err}"
    assert "Traceback" not in first.err
    shards = finished_shards(folder)
    second = launch.stage(folder, stage)
    assert second.code == 0, f"after {fault}: {second.err}"
    assert contents(folder, stage) == contents(reference.folder, stage), f"{stage} ended otherwise after {fault}"
    assert shards.items() <= finished_shards(folder).items(), "a finished shard was made again"
    assert not list(folder.rglob("*.tmp-*")), "something half-written was left behind"
    assert_little_is_repeated(stage, reference.ran[stage], [first, second])


@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_called_again_a_stage_ends_as_if_nothing_had_happened(stage, launch, reference, tmp_path) -> None:
    assert_continues_as_if_uninterrupted(launch, reference, tmp_path, stage, MOMENTS[stage])


@pytest.mark.parametrize("stage", SIGNALS)
def test_asked_to_stop_a_stage_saves_and_continues(stage, launch, reference, tmp_path) -> None:
    assert_continues_as_if_uninterrupted(launch, reference, tmp_path, stage, SIGNALS[stage])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_of_twenty_moments(stage, launch, reference, tmp_path) -> None:
    events = len(reference.ran[stage].events)
    draws = np.random.default_rng(STAGES.index(stage))
    moments = sorted({1, events, *draws.permutation(np.arange(2, events))[:18].tolist()})
    for k, at in enumerate([*moments, *[events // 2] * (20 - len(moments))]):
        folder = tmp_path / str(k)
        assert_continues_as_if_uninterrupted(
            launch, reference, folder, stage, {"at": at, "when": ("before", "after")[k % 2]}
        )
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "render"])
def test_killed_again_and_again_a_stage_gets_to_its_end(stage, launch, reference, tmp_path) -> None:
    reference.before(stage, tmp_path)
    events, kills = len(reference.ran[stage].events), 0
    while (ran := launch.stage(tmp_path, stage, fault={"at": events // 3 + kills})).code != 0:
        assert ran.code == -signal.SIGKILL
        kills += 1
        assert kills < 40, ran.err
    assert kills > 0
    assert contents(tmp_path, stage) == contents(reference.folder, stage)


def test_a_longer_run_continues_a_finished_one(launch, reference, tmp_path) -> None:
    """More steps asked for later end where asking for them at once would have ended."""
    for k, words in enumerate((("--steps", "18"), ("--steps", "12"))):
        folder = reference.before("train-vae", tmp_path / str(k))
        assert launch.stage(folder, "train-vae", *words).code == 0
    assert launch.stage(folder, "train-vae", "--steps", "18").code == 0
    assert contents(folder, "train-vae") == contents(tmp_path / "0", "train-vae")
