"""The Makefile's rules: what `make NAME` runs, in which order, and what it leaves alone.

Each test works on a copy of the checkout's Makefile and pipelines, with a stand-in for `wmrl` that notes its arguments
and makes the artifact that a stage would make.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["generate", "train-vae", "train-dynamics", "train-controller", "test-controller", "render"]
TOML = 'seed = 1\ndata = "datasets/cars"\nrepresentation = {{ {representation} }}\n'
WMRL = """#!/bin/sh
echo "$*" >> calls
[ "$1" = "$FAIL" ] && exit 3
stage=$1
while [ $# -gt 0 ]; do
  case $1 in --logdir) logdir=$2 ;; --data) data=$2 ;; --out) out=$2 ;; esac
  shift
done
case $stage in
  generate) file=$data/complete.h5 ;;
  train-vae) file=$logdir/vae.h5 ;;
  train-dynamics) file=$logdir/dynamics.h5 ;;
  train-controller) file=$logdir/controller.h5 ;;
  test-controller) file=$logdir/test.h5 ;;
  iterate) file=$logdir/iterate.h5 ;;
  render) file=$out ;;
esac
mkdir -p "$(dirname "$file")"
[ -e "$file" ] || echo made > "$file"
if [ "$stage" = "$HANG" ]; then touch "$file"; echo $$ > hanging; sleep 30; fi
exit 0
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A fresh clone: nothing is installed in it, and nothing made."""
    for name in ("Makefile", "pyproject.toml", "wmrl/pipelines_rules.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "pipelines", tmp_path / "pipelines")
    return tmp_path


@pytest.fixture
def cars(clone: Path) -> Path:
    """A checkout with an installed (stand-in) wmrl and two pipelines, `one` and `two`, that share a dataset."""
    shutil.rmtree(clone / "pipelines")
    pipeline(clone, "one", 'kind = "vae"')
    pipeline(clone, "two", 'kind = "vae"')
    program = clone / ".venv" / "bin" / "wmrl"
    program.parent.mkdir(parents=True)
    program.write_text(WMRL)
    program.chmod(0o755)
    (clone / ".venv" / ".stamp").touch()
    return clone


def pipeline(folder: Path, name: str, representation: str) -> None:
    path = folder / "pipelines" / f"{name}.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"# The experiment {name}.\n" + TOML.format(representation=representation))


def make(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "SEED", "SEEDS")}
    command = ["make", f"PYTHON={sys.executable}", *words]
    return subprocess.run(command, cwd=folder, env={**clean, **environment}, capture_output=True, text=True, timeout=60)


def calls(folder: Path) -> list[str]:
    """What the stand-in was called with since the last look."""
    log = folder / "calls"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def age(folder: Path, *patterns: str) -> None:
    """Make all these files equally old."""
    then = time.time() - 100
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        os.utime(path, (then, then))


def stages(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines]


def test_dry_run_in_a_fresh_clone_prints_the_whole_chain_and_makes_nothing(clone):
    before = sorted(clone.rglob("*"))
    done = make(clone, "-n", "carracing-quick")
    assert done.returncode == 0, done.stderr
    printed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(".venv/bin/wmrl ")]
    assert printed == STAGES
    assert "-m venv .venv" in done.stdout and "install -e '.[dev]'" in done.stdout
    assert sorted(p for p in clone.rglob("*") if "__pycache__" not in p.parts) == before


def test_every_pipeline_of_the_repository_has_a_target(clone):
    for path in sorted((ROOT / "pipelines").glob("*.toml")):
        done = make(clone, "-n", path.stem)
        assert done.returncode == 0, done.stderr
        assert f"runs/{path.stem}/seed-" in done.stdout


def test_make_alone_prints_targets_and_pipelines(cars):
    done = make(cars, PYTHON="no-such-python")
    assert done.returncode == 0 and done.stdout == make(cars, "help").stdout
    for line in ("make test ", "make lint ", "make one ", "The experiment two."):
        assert line in done.stdout
    assert not calls(cars)


def test_a_pipeline_is_made_in_order_and_then_never_again(cars):
    assert make(cars, "one").returncode == 0
    made = calls(cars)
    assert stages(made) == STAGES
    assert made[1] == "train-vae pipelines/one.toml --logdir runs/one/seed-1"
    again = make(cars, "one")
    assert again.returncode == 0 and not calls(cars) and "Nothing to be done" in again.stdout


def test_a_pipeline_with_a_table_for_it_is_iterated(cars):
    path = cars / "pipelines" / "one.toml"
    path.write_text(path.read_text() + "[iterate]\niterations = 2\n")
    assert make(cars, "one", "SEED=2").returncode == 0
    made = calls(cars)
    assert stages(made) == ["generate", "iterate", "render"]
    assert made[1] == "iterate pipelines/one.toml --logdir runs/one/seed-2 --seed 2"
    assert make(cars, "one", "SEED=2").returncode == 0 and not calls(cars)
    age(cars, "runs/*/*/*.h5", "runs/*/*/videos/*")
    path.write_text(path.read_text().replace("= 2", "= 3"))
    make(cars, "one", "SEED=2")
    assert "iterate" in stages(calls(cars)), "after an edit it is asked whether there is something to do"


def test_a_pipeline_that_learns_online_needs_no_dataset_and_is_made_once(cars):
    path = cars / "pipelines" / "one.toml"
    path.write_text(path.read_text() + "[online]\nsteps = 2\n")
    assert make(cars, "one", "SEEDS=2-3").returncode == 0
    made = calls(cars)
    assert stages(made) == ["iterate", "render"] * 2
    assert made[0] == "iterate pipelines/one.toml --logdir runs/one/seed-2 --seed 2"
    assert make(cars, "one", "SEEDS=2-3").returncode == 0 and not calls(cars)


def test_two_pipelines_share_a_dataset(cars):
    make(cars, "one")
    calls(cars)
    make(cars, "two")
    assert stages(calls(cars)) == STAGES[1:]


def test_parallel_make_generates_once(cars):
    assert make(cars, "-j4", "one", "two", "SEEDS=1-3").returncode == 0
    assert stages(calls(cars)).count("generate") == 1


def test_a_grown_dataset_leaves_results_alone(cars):
    make(cars, "one")
    calls(cars)
    age(cars, "runs/*/*/*.h5", "runs/*/*/videos/*", "pipelines/*")
    make(cars, "one")
    assert not calls(cars)


def test_a_model_made_again_asks_the_stages_after_it(cars):
    make(cars, "one")
    calls(cars)
    age(cars, "runs/*/*/*.h5", "runs/*/*/videos/*", "pipelines/*")
    (cars / "runs/one/seed-1/vae.h5").touch()
    make(cars, "one")
    assert stages(calls(cars)) == STAGES[2:]


def test_an_edited_pipeline_asks_the_stages_once(cars):
    """The stand-in leaves an existing artifact alone, as a stage does that finds nothing to do."""
    make(cars, "one")
    calls(cars)
    (cars / "pipelines/one.toml").touch()
    make(cars, "one")
    assert stages(calls(cars)) == STAGES
    make(cars, "one")
    assert not calls(cars)


def test_a_failed_stage_stops_make_and_is_tried_again(cars):
    done = make(cars, "one", FAIL="train-dynamics")
    assert done.returncode != 0
    assert stages(calls(cars)) == STAGES[:3]
    assert make(cars, "one").returncode == 0
    assert stages(calls(cars)) == STAGES[2:]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_make_deletes_no_artifact(cars, signum):
    process = subprocess.Popen(
        ["make", f"PYTHON={sys.executable}", "one"],
        cwd=cars,
        env={**os.environ, "HANG": "train-vae"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while not (cars / "hanging").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signum)
    assert process.wait(timeout=20) != 0
    assert (cars / "runs/one/seed-1/vae.h5").exists()
    assert (cars / "datasets/cars/complete.h5").exists()


def test_seeds_go_to_their_own_folders(cars):
    make(cars, "one", "SEED=3")
    made = calls(cars)
    assert made[0] == "generate pipelines/one.toml --data datasets/cars"
    assert made[1] == "train-vae pipelines/one.toml --logdir runs/one/seed-3 --seed 3"
    make(cars, "one", "SEEDS=1-3")
    folders = [line.split("--logdir ")[1].split()[0] for line in calls(cars) if line.startswith("train-vae")]
    assert folders == ["runs/one/seed-1", "runs/one/seed-2"]


def test_another_environment_has_its_own_data_and_runs(cars):
    make(cars, "one", "ENV=MinAtar/Breakout-v1", "SEED=2")
    made = calls(cars)
    assert made[0] == "generate pipelines/one.toml --env-id MinAtar/Breakout-v1 --data datasets/minatar-breakout"
    logdir = "--logdir runs/one/minatar-breakout/seed-2"
    assert all(logdir in line and "--env-id MinAtar/Breakout-v1" in line and "--seed 2" in line for line in made[1:])


def test_the_pipelines_own_environment_is_no_other_one(cars):
    make(cars, "-n", "one", "ENV=CarRacing-v3")
    make(cars, "one", "ENV=CarRacing-v3")
    assert calls(cars)[1] == "train-vae pipelines/one.toml --logdir runs/one/seed-1"


def test_an_environment_variable_of_the_shell_named_env_is_ignored(cars):
    make(cars, "one", ENV="/home/me/.shinit")
    assert calls(cars)[0] == "generate pipelines/one.toml --data datasets/cars"


@pytest.mark.parametrize("origin", ["runs/one/seed-7/vae.h5", "runs/one/seed-7"])
def test_a_shared_representation_is_made_by_its_own_pipeline(cars, origin):
    pipeline(cars, "two", f'from = "{origin}"')
    make(cars, "two")
    made = calls(cars)
    assert made[:3] == [
        "generate pipelines/two.toml --data datasets/cars",
        "train-vae pipelines/one.toml --logdir runs/one/seed-7 --seed 7",
        "train-vae pipelines/two.toml --logdir runs/two/seed-1",
    ]
    assert stages(made) == ["generate", "train-vae", *STAGES[1:]]


def test_shared_dynamics_are_made_by_their_own_pipeline(cars):
    text = (cars / "pipelines/two.toml").read_text()
    (cars / "pipelines/two.toml").write_text(f'{text}dynamics = {{ from = "runs/one/seed-1/dynamics.h5" }}\n')
    make(cars, "two")
    made = calls(cars)
    assert "train-dynamics pipelines/one.toml --logdir runs/one/seed-1" in made
    assert made.index("train-dynamics pipelines/one.toml --logdir runs/one/seed-1") < made.index(
        "train-dynamics pipelines/two.toml --logdir runs/two/seed-1"
    )


def test_a_single_artifact_can_be_asked_for(cars):
    make(cars, "runs/one/seed-5/vae.h5")
    assert stages(calls(cars)) == STAGES[:2]


@pytest.mark.parametrize(
    ("name", "text", "words", "message"),
    [
        ("one", "seed = ", ("one",), "pipelines/one.toml is not valid TOML"),
        ("test", "seed = 1", ("one",), "`make test` is something else"),
        ("one", "seed = 1", ("one", "SEED=x"), "SEED=x: a seed is a whole number"),
        ("one", 'data = "my data"', ("one",), "'my data': Make needs paths of letters"),
        ("one", "seed = 1", ("one", "PYTHON=no-such-python"), "the pipelines could not be read"),
        ("one", "seed = 1", ("one", "PYTHON="), "wmrl needs Python 3.11"),
        ("one", "seed = 1", ("onne",), "No rule to make target 'onne'"),
    ],
)
def test_mistakes_are_one_line_and_run_nothing(cars, name, text, words, message):
    (cars / "pipelines" / f"{name}.toml").write_text(text)
    done = make(cars, *words)
    assert done.returncode != 0 and message in done.stderr
    assert not calls(cars)


def test_clean_keeps_data_and_runs(cars):
    make(cars, "one")
    (cars / "wmrl/__pycache__").mkdir(exist_ok=True)
    (cars / "tests").mkdir()
    (cars / ".mypy_cache").mkdir()
    before = sorted(p for p in (cars / "datasets", cars / "runs") for p in p.rglob("*"))
    assert make(cars, "clean").returncode == 0
    assert sorted(p for p in (cars / "datasets", cars / "runs") for p in p.rglob("*")) == before
    assert (cars / ".venv/.stamp").exists()
    assert not (cars / "wmrl/__pycache__").exists() and not (cars / ".mypy_cache").exists()


def test_a_stale_venv_is_made_again_before_a_stage_but_nothing_else_is(cars):
    make(cars, "one")
    os.utime(cars / ".venv/.stamp", (1, 1))
    done = make(cars, "-n", "one")
    assert "install -e '.[dev]'" in done.stdout and "wmrl generate" not in done.stdout
