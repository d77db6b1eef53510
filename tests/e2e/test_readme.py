"""Every command of the README runs as printed, but for what is listed here."""

import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import dream_runs
import numpy as np
import pytest
import torch

from wmrl import cli, interrupts
from wmrl.spec import Actions, Batch, Space

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text()
SHORT = {
    "wmrl generate carracing-mdnrnn": "--rollouts 28 --max-steps 60",
    "wmrl train-vae carracing-mdnrnn": "--steps 2 --batch-size 2 --set fit.vae.validation_batches=1",
    "wmrl train-dynamics carracing-mdnrnn": "--steps 2 --batch-size 2 --set fit.dynamics.validation_batches=1",
    "wmrl train-controller carracing-mdnrnn": "--pop-size 4 --n-samples 1 --generations 1 "
    "--set trainer.validation_episodes=1 --set trainer.validate_every=1",
    "wmrl test-controller": "--episodes 1 --max-steps 25",
    "wmrl render carracing-mdnrnn": "--steps 6",
    "wmrl generate carracing-trade": "--rollouts 28 --max-steps 60",
    "wmrl train-vae carracing-trade": "--set env.max_steps=60",
    "wmrl train-vae carracing-transformer-de": "--set env.max_steps=60",
    "wmrl train-vae carracing-mdnrnn --logdir": "--set env.max_steps=60",
    "wmrl train-dynamics --logdir runs/compare": "--steps 2 --batch-size 2 --set fit.dynamics.validation_batches=1",
    "wmrl train-dynamics carracing-tr": "--steps 2 --batch-size 2 --set fit.dynamics.validation_batches=1",
    "wmrl train-controller carracing-trade": "--pop-size 4 --n-samples 1 --generations 1 "
    "--set trainer.validation_episodes=1 --set trainer.validate_every=1",
    "wmrl render carracing-trade": "--steps 6",
    "wmrl render --dream": "--steps 6",
    "wmrl train-controller --logdir runs/untrained": "--pop-size 4 --n-samples 1 --generations 1 "
    "--set trainer.validation_episodes=1",
    "wmrl train-controller --logdir runs/z": "--pop-size 4 --n-samples 1 --generations 1 "
    "--set trainer.validation_episodes=1",
    "wmrl train-controller --logdir runs/dream": "--pop-size 4 --n-samples 1 --generations 1 "
    "--set trainer.dream_steps=5 --set trainer.validation_episodes=1",
    "wmrl compare": "--starts 4 --samples 1 --no-speed",
    "wmrl generate --policy controller": "--rollouts 1",
    "wmrl iterate carracing-quick": "--set generate.rollouts=2 --set env.max_steps=40 --set fit.vae.steps=2 "
    "--set fit.vae.validation_batches=1 --set fit.dynamics.steps=2 --set fit.dynamics.batch=2 --set fit.vae.batch=2 "
    "--set fit.dynamics.validation_batches=1 --set trainer.population=4 --set trainer.samples=1 "
    "--set trainer.generations=1 --set trainer.validation_episodes=1 --set test.episodes=1 --set test.max_steps=25 "
    "--rollouts-per-iteration 1 --steps-per-iteration 2 --generations-per-iteration 1",
    "wmrl iterate minatar": "--steps 300 --set online.seed_steps=200 --set online.evaluate_every=0 "
    "--set fit.dynamics.batch=2 --set fit.dynamics.length=4 --set test.episodes=2",
    "wmrl iterate dreamer": "--steps 120 --set env.size=32 --set env.max_steps=20 --set online.seed_steps=60 "
    "--set online.environments=2 --set online.evaluate_every=0 --set online.updates_per_step=0.02 "
    "--set fit.dynamics.batch=2 --set fit.dynamics.length=4 --set test.episodes=2",
    "wmrl iterate pendulum": "--steps 120 --set env.max_steps=20 --set online.seed_steps=60 "
    "--set online.environments=2 --set online.evaluate_every=0 --set online.updates_per_step=0.02 "
    "--set fit.dynamics.batch=2 --set test.episodes=2",
    "wmrl iterate pendulum-rssm": "--steps 1680 --set env.max_steps=60 --set online.seed_steps=1640 "
    "--set online.environments=4 --set online.evaluate_every=0 --set online.updates_per_step=0.02 "
    "--set fit.dynamics.batch=2 --set test.episodes=2",
    "wmrl iterate pendulum-rssm --logdir": "--steps 120 --set env.max_steps=20 --set online.seed_steps=60 "
    "--set online.environments=2 --set online.evaluate_every=0 --set fit.dynamics.batch=2 --set test.episodes=2",
    "wmrl iterate carracing-rssm": "--steps 120 --set env.max_steps=20 --set online.seed_steps=60 "
    "--set online.environments=2 --set online.evaluate_every=0 --set online.updates_per_step=0.02 "
    "--set fit.dynamics.batch=2 --set fit.dynamics.length=4 --set test.episodes=2",
    "wmrl test-controller --logdir runs/breakout": "--episodes 2",
    "wmrl generate pendulum-rssm": "--rollouts 4",
    "wmrl train-vae pendulum-rssm": "--set env.max_steps=60",
    "wmrl train-vae pendulum-rssm --logdir runs/lander-vectors": "",
    "wmrl train-dynamics --logdir runs/lander-vectors": "--steps 2 --batch-size 2 "
    "--set fit.dynamics.validation_batches=1",
    "wmrl train-vae pendulum-rssm --logdir runs/pendulum/v": "--set env.max_steps=60 --steps 2 --batch-size 2 "
    "--set fit.vae.validation_batches=1",
    "wmrl train-dynamics --logdir runs/pendulum": "--steps 2 --batch-size 2 --set fit.dynamics.validation_batches=1",
    "wmrl train-controller --logdir runs/pendulum": "--steps 2 --set trainer.validation_episodes=1",
    "wmrl generate --env-id": "--rollouts 1 --max-steps 6",
}
"""What is appended to a command that begins so (the longest that fits): sizes only."""


def commands(word: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    return [line for block in blocks for line in block.splitlines() if line.startswith(word)]


def examples(word: str) -> list[str]:
    """The programs of the README in which a word stands."""
    return [code for code in re.findall(r"```python\n(.*?)```", TEXT, re.S) if word in code]


def shortened(line: str) -> list[str]:
    fits = [prefix for prefix in SHORT if line.startswith(prefix)]
    return shlex.split(f"{line} {SHORT[max(fits, key=len)] if fits else ''}")[1:]


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    """A folder like a fresh clone, with someone's old rollouts in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "pipelines", tmp_path / "pipelines")
    old = tmp_path / "old/rollouts/thread_0"
    old.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(2):
        columns = {
            "observations": rng.integers(0, 256, (20, 64, 64, 3), dtype=np.uint8),
            "rewards": rng.normal(size=20),
            "actions": np.c_[rng.uniform(-1, 1, 21), rng.uniform(0, 1, (21, 2))],
            "terminals": np.arange(20) == 19,
        }
        np.savez(old / f"rollout_{i}.npz", **columns)
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    interrupts.clear()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.timeout(600)
def test_every_wmrl_command_runs(sandbox, capfd):
    lines = commands("wmrl")
    assert len(lines) >= 20
    for line in lines:
        with pytest.raises(SystemExit) as end:
            cli.main(shortened(line))
        assert not end.value.code, f"{line}: {capfd.readouterr().err[-2000:]}"
    run = sandbox / "runs/carracing-mdnrnn/seed-1"
    for name in ("vae.h5", "dynamics.h5", "controller.h5", "test.h5"):
        assert (run / name).exists()
    assert (sandbox / "dream.mp4").exists() and list((run / "videos").glob("*.mp4"))


def test_every_short_form_belongs_to_a_command():
    lines = commands("wmrl")
    assert all(any(line.startswith(prefix) for line in lines) for prefix in SHORT)


def test_every_make_command_has_its_rules():
    for line in commands("make"):
        done = subprocess.run([*shlex.split(line), "-n"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_every_kind_stands_in_the_table():
    from wmrl.controllers import CONTROLLERS
    from wmrl.dynamics import DYNAMICS
    from wmrl.representations import REPRESENTATIONS
    from wmrl.trainers import TRAINERS

    for kind in [*REPRESENTATIONS, *DYNAMICS, *CONTROLLERS, *TRAINERS]:
        assert re.search(rf"^\| .*`{kind}`", TEXT, re.M), f"{kind} is missing in the README's table"


def test_every_file_named_exists():
    for path in re.findall(r"`((?:wmrl|pipelines|tests)/[\w/.-]+)`", TEXT):
        assert (ROOT / path).exists() or re.search(r"-v\d+$", path), path  # an environment's id looks like one


def test_the_example_model_learns_and_dreams():
    (code,) = examples("PlainGRU")
    space: dict = {}
    exec(compile(code, "README.md", "exec"), space)
    torch.manual_seed(0)
    model = space["PlainGRU"](Space((3,)), Actions(2, True), hidden=16)
    latent, action = torch.randn(4, 6, 3), torch.eye(2)[torch.randint(2, (4, 5))]
    batch = Batch(None, action, torch.randn(4, 5), torch.zeros(4, 5), torch.ones(4, 5))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss, _ = model.loss(latent, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    step = model.imagine(model.start(latent[:, 0]), action[:, 0])
    assert model.features(step.state).shape == (4, *model.feature_shape) and step.reward.shape == step.cont.shape == (
        4,
    )


def test_the_dream_example_trains(tmp_path, monkeypatch):
    pytest.importorskip("stable_baselines3")
    dream_runs.register(monkeypatch)
    (code,) = examples("Dream-v0")
    code = code.replace("runs/carracing-quick/seed-1", dream_runs.make_run(tmp_path, {"kind": "aim"}))
    code = code.replace("20_000", "64").replace('device="cpu")', 'device="cpu", n_steps=64)')
    space: dict = {}
    exec(compile(code, "README.md", "exec"), space)
    assert space["agent"].num_timesteps == 64
    assert space["terminated"] or space["truncated"], "it plays an episode to its end"
    assert space["env"].observation_space.contains(space["obs"])
