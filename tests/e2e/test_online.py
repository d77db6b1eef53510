"""`wmrl iterate` that learns online, killed with SIGKILL and called again: the same curves, models and episodes."""

import signal
from pathlib import Path

import pytest

from wmrl import artifact
from wmrl.data.episodes import Episodes
from wmrl.sinks import read_metrics

pytest.importorskip("minatar")
PIPELINE = """seed = 1
env = { id = "MinAtar/Breakout-v1" }
controller = { kind = "mlp", layers = 1, units = 8 }
trainer = { kind = "actor-critic", horizon = 2, critic_layers = 1, critic_units = 8 }
test = { episodes = 2, sample = true }
fit = { dynamics = { batch = 2, length = 6 } }
[dynamics]
kind = "rssm"
variables = 2
classes = 3
deterministic = 8
hidden = 8
depth = 2
embedding = 8
units = 8
layers = 1
observation = "bernoulli"
[online]
steps = 200
environments = 4
seed_steps = 80
collect = 20
updates_per_step = 0.1
noise = 0.2
evaluate_every = 60
evaluate_episodes = 2
keep_every = 100
log_every = 2
"""
WORDS = ("iterate", "online.toml", "--logdir", "run", "--threads", "1", "--precision", "fp32", "--no-progress")
MOMENTS = [
    {"on": "replace", "match": "online.part.h5", "nth": 1},  # before anything is saved
    {"on": "env", "nth": 25},  # while a random policy plays
    {"on": "gradient", "nth": 5},
    {"on": "env", "nth": 70},
    {"on": "replace", "match": "snapshots/000000100", "nth": 1, "when": "after"},
    {"on": "gradient", "nth": 30, "when": "after"},
    {"on": "replace", "match": "rollouts/shard-"},
    {"on": "replace", "match": "/controller.h5", "when": "after"},
    {"on": "replace", "match": "/iterate.h5"},
]


def contents(folder: Path) -> dict[str, object]:
    """All that was made and logged, but for times."""
    names = [path for path in sorted((folder / "run").rglob("*.h5")) if "part" not in path.name]
    models = [path for path in names if path.stem in ("dynamics", "controller")]
    found: dict[str, object] = {str(path.relative_to(folder)): artifact.read(path, path.stem).hash for path in models}
    episodes, rows = Episodes(folder / "run/rollouts"), read_metrics(folder / "run/metrics/iterate.jsonl")
    lived = {int(seed): episodes.episode(i).reward.tolist() for i, seed in enumerate(episodes.seeds)}
    kept = [{k: v for k, v in row.items() if not k.startswith("time")} for row in rows]
    return {**found, "episodes": lived, "rows": kept}


@pytest.fixture(scope="module")
def whole(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("online")
    (folder / "online.toml").write_text(PIPELINE)
    ran = launch(folder, *WORDS)
    assert ran.code == 0, ran.err
    found = contents(folder)
    assert len(found["rows"]) > 5 and len(found) == 8, "two models, and as many in each of two snapshots"
    return found


QUICK = (2,)


@pytest.mark.parametrize(
    "fault", [pytest.param(x, marks=() if i in QUICK else pytest.mark.slow, id=str(x)) for i, x in enumerate(MOMENTS)]
)
def test_after_a_kill_9_the_same_command_ends_as_if_nothing_had_happened(launch, whole, tmp_path, fault):
    (tmp_path / "online.toml").write_text(PIPELINE)
    first = launch(tmp_path, *WORDS, fault=fault)
    assert first.code == -signal.SIGKILL, f"{first.code}: {first.err}"
    second = launch(tmp_path, *WORDS)
    assert second.code == 0, second.err
    assert contents(tmp_path) == whole and not list(tmp_path.rglob("*.tmp-*"))
