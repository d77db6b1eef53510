"""The command line: what it offers, what it loads, and how it fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from wmrl import cli, pipeline
from wmrl.store import Store

STAGES = ["generate", "train-vae", "train-dynamics", "train-controller", "test-controller", "render"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def call(capsys, *argv):
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(argv))
    out = capsys.readouterr()
    return end.value.code or 0, out.out, out.err


def test_help_names_all_stages_and_exit_codes(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0 and all(stage in out for stage in [*STAGES, "describe", "status", "doctor", "data"])
    assert "5" in out and "Exit codes" in out


def test_help_loads_neither_torch_nor_h5py():
    script = (
        "import sys; from wmrl import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'h5py', 'numpy', 'gymnasium', 'cv2'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_version(capsys):
    assert call(capsys, "--version")[1].startswith("wmrl ")


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_prints_its_configuration_and_runs_nothing(capsys, stage, tmp_path):
    code, out, err = call(capsys, stage, "carracing-mdnrnn", "--seed", "3", "--print-config")
    shown = json.loads(out)
    assert code == 0 and err == "" and shown["logdir"] == "runs/carracing-mdnrnn/seed-3"
    assert shown["pipeline"]["seed"] == 3 and not list(tmp_path.iterdir())


def test_no_two_options_of_a_command_have_one_name():
    for name, command in typer.main.get_command(cli.app).commands.items():
        names = [opt for option in command.params for opt in option.opts if opt.startswith("-")]
        assert sorted(names) == sorted(set(names)), name


def test_the_number_of_environments_of_an_online_run_is_set(capsys):
    code, out, _ = call(capsys, "iterate", "minatar-breakout-dreamerv2", "--num-envs", "4", "--print-config")
    assert code == 0 and json.loads(out)["pipeline"]["online"]["environments"] == 4


def test_a_configuration_that_no_stage_would_take_is_not_printed(capsys):
    code, out, err = call(capsys, "generate", "carracing-trade", "--set", "dynamics.context=9", "--print-config")
    assert code == 2 and not out and "dynamics.context is 9 and fit.dynamics.length is 32" in err


FLAGS = [
    ("generate", "--rollouts 7 --policy held --noise 0.5 --size 96 --max-steps 9",
     {"generate.rollouts": 7, "generate.policy": "held", "generate.noise": 0.5, "env.size": 96, "env.max_steps": 9}),
    ("generate", "--controller some/run", {"generate.controller": "some/run", "generate.policy": "controller"}),
    ("train-vae", "--steps 7 --batch-size 8 --learning-rate 0.5",
     {"fit.vae.steps": 7, "fit.vae.batch": 8, "fit.vae.learning_rate": 0.5}),
    ("train-dynamics", "--dynamics mdn-rnn --steps 7 --batch-size 8 --learning-rate 0.5",
     {"dynamics.kind": "mdn-rnn", "fit.dynamics.steps": 7, "fit.dynamics.batch": 8, "fit.dynamics.learning_rate": 0.5}),
    ("train-controller", "--pop-size 9 --n-samples 2 --generations 5 --target-return 900",
     {"trainer.population": 9, "trainer.samples": 2, "trainer.generations": 5, "trainer.target_return": 900.0}),
    ("train-controller", "--where dream --temperature 1.25 --dream-steps 70 --real-every 0",
     {"trainer.where": "dream", "trainer.temperature": 1.25, "trainer.dream_steps": 70, "trainer.real_every": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "flags", "keys"), FLAGS, ids=[f"{f[0]} {f[1].split()[0]}" for f in FLAGS])
def test_flags_set_keys(capsys, stage, flags, keys):
    code, out, err = call(capsys, stage, *flags.split(), "--print-config")
    assert code == 0, err
    table = json.loads(out)["pipeline"]
    for key, value in keys.items():
        found = table
        for part in key.split("."):
            found = found[part]
        assert found == value, key


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ("train-vae nope", 2, "error: there is no pipeline 'nope'"),
        ("train-vae --set a=1", 2, "error: a: unknown key"),
        ("train-vae --set fit.vae.stepz=1", 2, "did you mean 'steps'?"),
        (
            "train-vae carracing-quick --pipeline x",
            2,
            "error: the pipeline is 'carracing-quick' by the argument and 'x'",
        ),
        (
            "train-dynamics --set dynamics.termination_weight=nan",
            2,
            "error: dynamics.termination_weight: must be a finite",
        ),
        ("train-vae --frobnicate", 2, "No such option"),
        ("train-vae --steps many", 2, "Invalid value for '--steps'"),
        ("train-vae --steps 0", 2, "error: fit.vae.steps: must be greater than 0, got 0"),
        ("train-vae --device gpu", 2, "error: --device is auto, cpu, cuda or cuda:N, not 'gpu'"),
        ("train-vae --precision half", 2, "error: --precision is auto, fp32 or bf16, not 'half'"),
        ("train-vae --set dynamics.hiden=3", 2, "error: dynamics.hiden: unknown key; did you mean 'hidden'?"),
        ("train-vae --set trainer.populatio=3", 2, "did you mean 'population'?"),
        ("train-vae --minutes -1", 2, "error: --minutes must be greater than 0, got -1"),
        ("train-vae --set env=5", 2, "error: env: expected Env, got 5"),
        ("generate --append -1", 2, "error: --append must not be negative, got -1"),
        ("test-controller --episodes 0", 2, "error: --episodes must be at least 1, got 0"),
        ("render --fps 0", 2, "error: --fps lies between 0.1 and 1000, got 0"),
        ("generate --threads 0", 2, "error: --threads must be at least 1, got 0"),
        ("train-vae", 3, "datasets/carracing"),
        ("train-dynamics", 3, "datasets/carracing"),
        ("train-controller", 3, "vae.h5 is missing; make it: wmrl train-vae"),
        ("test-controller", 3, "vae.h5 is missing; make it: wmrl train-vae"),
        ("status", 2, "error: no logdir was used here yet"),
        ("status nowhere", 3, "nowhere"),
        ("describe nonsense", 2, "nonsense"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(capsys, argv, code, message):
    got, _, err = call(capsys, *argv.split())
    assert message in err and got == code
    assert "Traceback" not in err
    assert err.startswith("Usage") or len(err.strip().splitlines()) == 1


def test_debug_shows_the_traceback():
    with pytest.raises(Exception, match="no pipeline 'nope'"):
        cli.main(["train-vae", "nope", "--debug"])


def test_what_the_trainer_refuses_is_not_kept(capsys, tmp_path):
    for stage in ("generate", "train-controller"):
        code, _, err = call(capsys, stage, "--logdir", "here", "--set", "trainer.population=3")
        assert code == 2 and "population must be at least 4, got 3" in err
    assert not (tmp_path / "here/pipeline.json").exists()


def test_a_failure_stands_in_the_stage_log(capsys, tmp_path):
    call(capsys, "train-vae", "--logdir", "here")
    text = (tmp_path / "here/logs/train-vae.log").read_text()
    assert "ArtifactError" in text and "Traceback" in text


def test_a_call_that_failed_binds_no_logdir(capsys):
    for seed in ("4", "5"):
        assert call(capsys, "train-vae", "--logdir", "here", "--seed", seed)[0] == 3  # there are no data


def test_a_second_seed_in_a_logdir_is_refused(capsys):
    store = Store(Path("here"), pipeline.load(None, ["seed=4"]))
    store.remember(["seed=4"])
    store.begin_anew("vae")
    code, _, err = call(capsys, "train-vae", "--logdir", "here", "--seed", "5")
    assert code == 2 and "seed" in err and "4" in err and "5" in err
