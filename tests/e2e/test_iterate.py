"""`wmrl iterate` on the small game: what grows, what a kill costs, and what is refused."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from wmrl import artifact, files
from wmrl.data import shards
from wmrl.data.episodes import Episodes
from wmrl.sinks import read_metrics

DATA, LOGDIR = Path("datasets/tiny"), Path("runs/tiny/seed-1")
OWN = LOGDIR / "rollouts"
MODELS = ("vae", "dynamics", "controller")
TABLE = """[iterate]
iterations = 3
rollouts = 6
vae_steps = 6
dynamics_steps = 8
generations = 2
episodes = 6
"""
GROWN = [20, 26, 32]
AS_BEFORE = ("--threads", "1", "--precision", "fp32", "--max-workers", "4")
MOMENTS = [
    {"on": "replace", "match": "rollouts/shard-", "nth": 1},  # while the first episodes are linked
    {"on": "replace", "match": "rollouts/shard-", "nth": 2},  # while the controller's first ones are written
    {"on": "replace", "match": "rollouts/complete.h5", "nth": 2, "when": "after"},
    {"on": "gradient", "nth": 34},  # V, in the second iteration: 12 + 18 steps are the first one's
    {"on": "replace", "match": "/vae.h5", "nth": 2, "when": "after"},  # a V that M was not trained on yet
    {"on": "replace", "match": "dynamics.part.h5", "nth": 7, "when": "after"},
    {"on": "replace", "match": "/dynamics.h5", "nth": 2, "when": "after"},  # a world that C was not trained in yet
    {"on": "replace", "match": "/controller.h5", "nth": 2, "when": "after"},
    {"on": "replace", "match": "iterate.part.h5", "nth": 11},  # the end of the second iteration
    {"on": "replace", "match": "/iterate.h5"},
]


def contents(folder: Path) -> dict[str, object]:
    """All that was made, but for times and who made it."""
    found: dict[str, object] = {path.name: path.read_bytes() for path in sorted((folder / OWN).glob("shard-*.h5"))}
    found["data"] = Episodes(folder / OWN).hash
    for name in (*MODELS, "test", "iterate"):
        made = artifact.read(folder / LOGDIR / f"{name}.h5", name)
        found[name] = (made.hash, sorted(made.parents.items()))
    return {**found, "rows": rows(folder)}


def rows(folder: Path) -> list[dict[str, float]]:
    """The metrics of the iterations."""
    return [{k: v for k, v in row.items() if k != "time"} for row in metrics(folder, "iterate")]


def metrics(folder: Path, stage: str) -> list[dict[str, float]]:
    return read_metrics(folder / LOGDIR / "metrics" / f"{stage}.jsonl")


def hashes(folder: Path) -> dict[str, str]:
    return {name: artifact.read(folder / LOGDIR / f"{name}.h5", name).hash for name in MODELS}


def said(folder: Path, stage: str) -> str:
    return (folder / LOGDIR / "logs" / f"{stage}.log").read_text()


def begin(folder: Path, pipeline_text: str) -> Path:
    """A folder with the small pipeline in it, and a dataset of fewer rollouts."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.toml").write_text(pipeline_text.replace("rollouts = 100", "rollouts = 20") + TABLE)
    return folder


def copied(source: Path, folder: Path) -> Path:
    """A run that another test may change; its files are its own."""
    shutil.copytree(source, folder)
    return folder


@pytest.fixture(scope="module")
def whole(launch, pipeline_text, tmp_path_factory):
    """Three iterations in which nothing went wrong, and what they said."""
    folder = begin(tmp_path_factory.mktemp("whole"), pipeline_text)
    ran = launch.stage(folder, "iterate", "--json")
    assert ran.code == 0, ran.err
    return folder, ran


@pytest.fixture(scope="module")
def once(launch, pipeline_text, tmp_path_factory):
    """One iteration."""
    folder = begin(tmp_path_factory.mktemp("once"), pipeline_text)
    ran = launch.stage(folder, "iterate", "--iterations", "1")
    assert ran.code == 0, ran.err
    return folder


def test_the_dataset_grows_by_the_controllers_rollouts_and_others_keep_theirs(whole) -> None:
    folder, _ = whole
    names = shards.scan(folder / OWN)
    policies = [shards.read_meta(folder / OWN / name.file)["policy"] for name in names]
    assert [(name.first, name.count) for name in names] == [(0, 20), (20, 6), (26, 6)]
    assert [policy["policy"] for policy in policies] == ["brown", "controller", "controller"]
    assert policies[1]["noise"] == 0.1 and policies[1]["controller_hash"] != policies[2]["controller_hash"]
    assert len(Episodes(folder / DATA)) == 20, "other runs share this one"
    assert (folder / DATA / names[0].file).samefile(folder / OWN / names[0].file), "nothing is copied"


def test_each_iteration_goes_on_from_the_models_of_the_one_before(whole) -> None:
    folder, _ = whole
    made = {name: artifact.read(folder / LOGDIR / f"{name}.h5", name) for name in MODELS}
    assert made["vae"].parents["data"] == made["dynamics"].parents["data"] == Episodes(folder / OWN).hash
    assert (made["vae"].facts["fit"]["steps"], made["dynamics"].facts["fit"]["steps"]) == (6, 8)
    assert len(made["controller"].facts["history"]["generation"]) == 2
    for model, stage in (("vae", "train-vae"), ("dynamics", "train-dynamics")):
        assert "from the weights trained so far" in said(folder, f"{stage}-3")
        ends = [metrics(folder, stage + end)[-1]["eval/loss"] for end in ("", "-2", "-3")]
        assert ends[0] > ends[1] > ends[2], f"{model} begins each time where it was"
    assert "a new search begins with the controller that the last one made" in said(folder, "train-controller-2")


def test_every_iteration_is_scored_and_all_returns_are_kept(whole) -> None:
    folder, ran = whole
    (table,) = [json.loads(line) for line in ran.out.splitlines()]
    kept = artifact.read(folder / LOGDIR / "iterate.h5", "iterate")
    assert [row["episodes_of_data"] for row in table["iterations"]] == GROWN
    for number, row in enumerate(table["iterations"], 1):
        returns = kept.tensors[f"{number}/returns"]
        assert returns.shape == (6,) and returns.tolist() == table["returns"][str(number)]
        assert row["mean"] == pytest.approx(returns.mean()) and row["low"] <= row["mean"] <= row["high"]
    assert [row["charts/episodes"] for row in rows(folder)] == GROWN
    steps = [row["global_step"] for row in rows(folder)]
    assert steps == sorted(set(steps)) and steps[-1] == metrics(folder, "train-controller-3")[-1]["global_step"]
    assert min(row["global_step"] for row in metrics(folder, "train-controller-3")) >= steps[1], "the axis goes on"


def test_called_again_it_has_nothing_to_do_and_shows_the_table(whole, launch, tmp_path) -> None:
    folder = copied(whole[0], tmp_path / "again")
    ran = launch.stage(folder, "iterate")
    assert ran.code == 0 and not ran.of("gradient") and not ran.of("env")
    assert [line.split()[:2] for line in ran.out.splitlines()[2:]] == [["1", "20"], ["2", "26"], ["3", "32"]]
    assert contents(folder) == contents(whole[0])


def test_more_iterations_go_on_and_begin_the_search_with_the_controller_before(once, launch, whole, tmp_path) -> None:
    folder = copied(once, tmp_path / "more")
    before = artifact.read(folder / LOGDIR / "controller.h5", "controller")
    assert launch.stage(folder, "iterate", "--iterations", "2").code == 0
    with files.open(folder / LOGDIR / "controller.part.h5", role="controller.part") as file:
        search = files.get_tree(file)
    weights = np.concatenate([before.tensors[name].ravel() for name in ("out.weight", "out.bias")])
    assert np.array_equal(search["tree"]["x0"], weights.astype(np.float64))
    assert search["began"] == before.facts["global_step"] > 0
    assert launch.stage(folder, "iterate", "--iterations", "3").code == 0
    assert contents(folder) == contents(whole[0])


def assert_continues(launch, pipeline_text, whole, folder: Path, fault: dict) -> None:
    """Strike, continue, compare with the uninterrupted iterations."""
    begin(folder, pipeline_text)
    first = launch.stage(folder, "iterate", fault=fault)
    wanted = {"kill": -signal.SIGKILL, "term": 143, "int": 130}[fault.get("do", "kill")]
    assert first.code == wanted, f"{fault}: {first.code}\n{first.err}"
    assert "Traceback" not in first.err
    second = launch.stage(folder, "iterate")
    assert second.code == 0, f"after {fault}: {second.err}"
    assert contents(folder) == contents(whole[0]), f"it ended otherwise after {fault}"
    assert not list(folder.rglob("*.tmp-*")), "something half-written was left behind"
    again = len(first.of("gradient")) + len(second.of("gradient")) - len(whole[1].of("gradient"))
    assert again <= 8, f"{again} gradient steps were made again"


@pytest.mark.parametrize("fault", [MOMENTS[4]], ids=lambda fault: fault["match"])
def test_killed_and_called_again_it_ends_as_if_nothing_had_happened(
    launch, pipeline_text, whole, tmp_path, fault
) -> None:
    assert_continues(launch, pipeline_text, whole, tmp_path, fault)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fault", MOMENTS, ids=str)
def test_killed_at_any_of_its_moments(launch, pipeline_text, whole, tmp_path, fault) -> None:
    assert_continues(launch, pipeline_text, whole, tmp_path, fault)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(12))
def test_killed_anywhere(launch, pipeline_text, whole, tmp_path, part) -> None:
    at = (2 * part + 1) * len(whole[1].events) // 24
    assert_continues(launch, pipeline_text, whole, tmp_path, {"at": at, "when": ("before", "after")[part % 2]})


def test_asked_to_stop_it_saves_says_where_it_is_and_continues(launch, pipeline_text, whole, tmp_path) -> None:
    folder = begin(tmp_path, pipeline_text)
    stopped = launch.stage(folder, "iterate", fault={"on": "gradient", "nth": 38, "do": "term"})
    assert stopped.code == 143
    status = launch(folder, "status", str(LOGDIR))
    assert "iteration 2 of 3, train-dynamics" in status.out
    assert status.out.splitlines()[-1] == f"next: wmrl iterate --logdir {LOGDIR}"
    ran = launch(folder, "iterate", "--logdir", str(LOGDIR), *AS_BEFORE)
    assert ran.code == 0 and contents(folder) == contents(whole[0])
    status = launch(folder, "status", str(LOGDIR))
    assert "3 of 3 iterations" in status.out and "stale" not in status.out and "in progress" not in status.out


def test_a_run_whose_stages_were_called_one_by_one_is_the_first_iteration(launch, pipeline_text, tmp_path) -> None:
    folder = begin(tmp_path, pipeline_text)
    for stage in ("generate", "train-vae", "train-dynamics", "train-controller"):
        assert launch.stage(folder, stage).code == 0
    before = hashes(folder)
    ran = launch.stage(folder, "iterate", "--iterations", "1")
    assert ran.code == 0 and not ran.of("gradient"), ran.err
    assert hashes(folder) == before


def test_the_same_command_goes_on_where_it_names_the_data(launch, pipeline_text, tmp_path) -> None:
    folder = begin(tmp_path, pipeline_text)
    words = ("--iterations", "1", "--data", "datasets/named")
    assert launch.stage(folder, "iterate", *words, fault={"on": "gradient", "nth": 4, "do": "term"}).code == 143
    ran = launch.stage(folder, "iterate", *words)
    assert ran.code == 0, ran.err
    (folder / LOGDIR / "iterate.part.h5").unlink()
    (folder / LOGDIR / "iterate.h5").unlink()
    assert launch.stage(folder, "generate", "--logdir", "runs/other", "--seed", "2").code == 0  # into the file's own
    shutil.move(folder / DATA, folder / "datasets/third")
    ran = launch.stage(folder, "iterate", "--data", "datasets/third")
    assert ran.code == 2 and "data: " in ran.err, "other rollouts are not silently left out"


def test_rollouts_that_none_can_be_added_to_are_told_before_an_iteration_is_trained(
    launch, pipeline_text, tmp_path
) -> None:
    folder = begin(tmp_path, pipeline_text)
    assert launch.stage(folder, "generate", "--max-steps", "9", "--logdir", "runs/other").code == 0
    ran = launch.stage(folder, "iterate")
    assert ran.code == 2 and "env.max_steps" in ran.err and not ran.of("gradient")
    assert not (folder / OWN).exists()


def test_v_may_be_kept_and_flags_stand_over_the_table(once, launch, tmp_path) -> None:
    folder = copied(once, tmp_path / "kept")
    before = hashes(folder)
    words = ("--iterations", "2", "--rollouts-per-iteration", "3", "--generations-per-iteration", "1", "--noise", "0.5")
    ran = launch.stage(folder, "iterate", *words, "--steps-per-iteration", "4", "--set", "iterate.train_vae=false")
    assert ran.code == 0, ran.err
    after = hashes(folder)
    assert after["vae"] == before["vae"] and after["dynamics"] != before["dynamics"]
    made = {name: artifact.read(folder / LOGDIR / f"{name}.h5", name).facts for name in ("dynamics", "controller")}
    assert made["dynamics"]["fit"]["steps"] == 4 and len(made["controller"]["history"]["generation"]) == 1
    last = shards.scan(folder / OWN)[-1]
    assert last.count == 3 and shards.read_meta(folder / OWN / last.file)["policy"]["noise"] == 0.5


def test_runs_of_two_seeds_share_the_first_rollouts_and_nothing_else(once, launch, tmp_path) -> None:
    folder = copied(once, tmp_path / "seeds")
    ran = launch.stage(folder, "iterate", "--seed", "2", "--iterations", "2")
    assert ran.code == 0, ran.err
    other = Episodes(folder / "runs/tiny/seed-2/rollouts")
    assert (len(Episodes(folder / DATA)), len(Episodes(folder / OWN)), len(other)) == (20, 20, 26)
    assert Episodes(folder / DATA).hash in other.lineage()


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("--iterations", "0"), 2, "iterate.iterations: must be greater than 0, got 0"),
        (("--noise", "-1"), 2, "iterate.noise: must not be negative"),
        (("--set", "iterate.steps=3"), 2, "iterate.steps: unknown key"),
        (("--data", "datasets/other"), 2, "data: the iterations so far are of runs/tiny/seed-1/rollouts"),
    ],
)
def test_what_makes_no_sense_is_refused(once, launch, tmp_path, words, code, why) -> None:
    folder = copied(once, tmp_path / "refused")
    ran = launch.stage(folder, "iterate", *words)
    assert (ran.code, ran.out) == (code, "") and why in ran.err


@pytest.mark.parametrize(("step", "counts"), [(4, [23, 29]), (40, [20, 29])])
def test_episodes_that_were_added_meanwhile_are_counted(launch, pipeline_text, tmp_path, step, counts) -> None:
    folder = begin(tmp_path, pipeline_text)
    assert launch.stage(folder, "iterate", fault={"on": "gradient", "nth": step, "do": "term"}).code == 143
    assert launch(folder, "generate", "--logdir", str(LOGDIR), "--append", "3", "--threads", "1").code == 0
    ran = launch.stage(folder, "iterate", "--iterations", "2", "--json")
    assert ran.code == 0, ran.err
    assert [row["episodes_of_data"] for row in json.loads(ran.out)["iterations"]] == counts
    assert len(Episodes(folder / OWN)) == 29


def test_models_that_another_command_has_changed_are_refused(once, launch, tmp_path) -> None:
    folder = copied(once, tmp_path / "changed")
    assert launch.stage(folder, "train-controller", "--noreload", "--set", "trainer.sigma=0.7").code == 0
    ran = launch.stage(folder, "iterate")
    assert ran.code == 5 and "controller.h5 is not what iteration 1 ended with" in ran.err


def test_the_papers_own_procedure_searches_in_the_dream(launch, pipeline_text, tmp_path) -> None:
    folder = begin(tmp_path / "asleep", pipeline_text)
    dreams = ["--set", "trainer.where=dream", "--set", "trainer.dream_steps=6", "--set", "trainer.real_every=1"]
    ran = launch.stage(folder, "iterate", "--iterations", "2", *dreams)
    assert ran.code == 0, ran.err
    found = artifact.read(folder / LOGDIR / "controller.h5", "controller").facts
    assert found["validation"]["generation"][0] == found["awake"]["generation"][0] == 0, (
        "the one before is measured too"
    )
    told = metrics(folder, "train-controller-2")
    assert any("dream/return" in row for row in told) and any("eval/return_mean" in row for row in told)


def test_a_single_stage_leaves_iterated_models_alone(once, launch, tmp_path) -> None:
    folder = copied(once, tmp_path / "alone")
    for stage in ("train-vae", "train-dynamics", "train-controller"):
        ran = launch.stage(folder, stage)
        assert ran.code == 2 and "is iterated" in ran.err
    assert launch.stage(folder, "iterate").code == 0, "nothing was changed"


def test_rollouts_that_are_gone_are_not_made_again_with_another_controller(once, launch, tmp_path) -> None:
    folder = copied(once, tmp_path / "gone")
    next((folder / OWN).glob("shard-*.h5")).unlink()
    ran = launch.stage(folder, "iterate", "--iterations", "2")
    assert ran.code == 3 and "is missing, from which the models were learnt" in ran.err


def test_iterations_are_not_begun_anew_where_the_record_of_them_is_lost(once, launch, tmp_path) -> None:
    folder = copied(once, tmp_path / "lost")
    (folder / LOGDIR / "iterate.part.h5").unlink()
    ran = launch.stage(folder, "iterate", "--iterations", "2")
    assert ran.code == 3 and "iterate.part.h5 is missing" in ran.err and not ran.of("gradient")


def test_for_other_commands_a_model_that_moved_is_another_one(once, launch, tmp_path) -> None:
    folder = copied(once, tmp_path / "moved")
    (folder / LOGDIR / "iterate.part.h5").unlink()  # a run like any other
    assert launch.stage(folder, "train-vae", "--steps", "16").code == 0
    ran = launch.stage(folder, "train-dynamics")
    assert ran.code == 5 and "--noreload" in ran.err


def test_m_of_another_run_is_not_trained_on(once, launch, tmp_path) -> None:
    folder = copied(once, tmp_path / "borrowed")
    words = ("--logdir", "runs/other", "--set", f"dynamics.from={LOGDIR}", "--set", f"representation.from={LOGDIR}")
    ran = launch.stage(folder, "iterate", *words)
    assert ran.code == 2 and "dynamics.from" in ran.err


@pytest.mark.slow
def test_a_real_kill_9_between_two_steps_of_the_game(launch, pipeline_text, whole, tmp_path) -> None:
    folder = begin(tmp_path, pipeline_text)
    pid = launch.start(folder, "iterate", "tiny.toml", *AS_BEFORE)
    launch.wait_for("replace " + str(OWN / "complete.h5"))
    time.sleep(1)
    os.kill(pid, signal.SIGKILL)
    assert launch.finish().code == -signal.SIGKILL
    assert launch.stage(folder, "iterate").code == 0 and contents(folder) == contents(whole[0])
