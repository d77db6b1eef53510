"""The whole chain on the real CarRacing, through the installed command, at tiny sizes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio_ffmpeg
import pytest
import torch

import wmrl
from wmrl import artifact
from wmrl.data.episodes import Episodes

WMRL = Path(sys.executable).with_name("wmrl")
PIPELINE = """# The chain at toy sizes.
seed = 3
data = "datasets/toy"
env = { id = "CarRacing-v3", size = 64, max_steps = 40 }
generate = { rollouts = 6 }
representation = { kind = "vae", latent = 8 }
dynamics = { kind = "mdn-rnn", hidden = 16, mixtures = 2 }
trainer = { kind = "cma-es", population = 4, samples = 1, generations = 2, validate_every = 1, validation_episodes = 2 }
test = { episodes = 2, max_steps = 20 }
[fit.vae]
steps = 12
batch = 4
length = 3
validate_every = 6
validation_batches = 1
log_every = 3
[fit.dynamics]
steps = 20
batch = 4
length = 8
validate_every = 10
validation_batches = 1
log_every = 5
"""
pytestmark = pytest.mark.timeout(900)  # on a busy machine
STAGES = ("generate", "train-vae", "train-dynamics", "train-controller", "test-controller", "render")


def wmrl_(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess:
    """Run `wmrl WORDS` in `folder` and check its exit code."""
    done = subprocess.run([WMRL, *words], cwd=folder, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == code, f"wmrl {' '.join(words)} exited {done.returncode}:\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict]]:
    """The folder of a finished run, and what each stage printed with --json."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "toy.toml").write_text(PIPELINE)
    printed = {}
    for stage in STAGES:
        first = ["toy.toml"] if stage == "generate" else []  # the others work on the logdir used last
        done = wmrl_(folder, stage, *first, "--threads", "2", "--json", "--no-progress")
        assert len(done.stdout.splitlines()) == 1, done.stdout
        printed[stage] = json.loads(done.stdout)
        assert ("used last" in done.stderr) == (stage != "generate")
    return folder, printed


def test_every_stage_prints_one_object_with_its_schema_version(chain) -> None:
    _, printed = chain
    assert {stage: found["schema_version"] for stage, found in printed.items()} == dict.fromkeys(STAGES, 1)


def test_the_dataset_holds_what_was_asked_for(chain) -> None:
    folder, printed = chain
    episodes = Episodes(folder / "datasets/toy")
    assert len(episodes) == 6 == printed["generate"]["episodes"]
    assert episodes.steps == 240 == printed["generate"]["steps"]
    assert episodes.observation.shape == (3, 64, 64)
    assert (episodes.actions.size, episodes.actions.discrete) == (3, False)


def test_artifacts_know_their_parents_and_their_makers(chain) -> None:
    folder, _ = chain
    logdir = folder / "runs/toy/seed-3"
    made = {name: artifact.read(logdir / f"{name}.h5", name) for name in ("vae", "dynamics", "controller", "test")}
    data = Episodes(folder / "datasets/toy").hash
    assert made["vae"].parents == {"data": data}
    assert made["dynamics"].parents == {"data": data, "representation": made["vae"].hash}
    assert made["controller"].parents["dynamics"] == made["dynamics"].hash
    assert made["test"].parents["controller"] == made["controller"].hash
    for name, found in made.items():
        provenance = found.facts["provenance"]
        assert provenance["wmrl"] == wmrl.__version__, name
        assert provenance["packages"]["torch"], name
        assert any("train" in word or "test" in word for word in provenance["argv"]), name
        assert found.facts["pipeline"]["seed"] == 3


def test_metrics_and_logs_are_kept(chain) -> None:
    folder, _ = chain
    logdir = folder / "runs/toy/seed-3"
    for stage, wanted in (("train-vae", "losses/"), ("train-dynamics", "eval/"), ("train-controller", "charts/")):
        rows = [json.loads(line) for line in (logdir / f"metrics/{stage}.jsonl").read_text().splitlines()]
        assert any(key.startswith(wanted) for row in rows for key in row), (stage, rows)
        assert (logdir / f"logs/{stage}.log").stat().st_size
    assert list((logdir / "images/train-vae").glob("*.png"))


def test_the_score_has_every_return(chain) -> None:
    folder, printed = chain
    found = printed["test-controller"]
    assert found["protocol"] == "carracing-2-max20"
    assert len(found["returns"]) == 2
    assert {"mean", "std", "iqm", "low", "high"} <= found["scores"][0].keys()
    missed = wmrl_(folder, "test-controller", "--target-return", "100000", code=4)
    assert missed.stderr.strip().splitlines()[-1].startswith("error: the mean return")


def test_render_writes_a_film_that_plays(chain) -> None:
    _, printed = chain
    path = chain[0] / printed["render"]["files"][0]
    meta = next(imageio_ffmpeg.read_frames(str(path)))
    assert path.parent.name == "videos"
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    assert meta["duration"] > 0


def test_status_says_that_all_is_done(chain) -> None:
    folder, _ = chain
    found = json.loads(wmrl_(folder, "status", "--json").stdout)
    assert {entry["name"]: entry["state"] for entry in found["entries"]} == dict.fromkeys(
        ("data", "vae", "dynamics", "controller", "test", "videos"), "complete"
    )
    assert found["next"] == ""


def test_a_changed_key_is_named(chain) -> None:
    folder, _ = chain
    done = wmrl_(folder, "train-dynamics", "toy.toml", "--set", "dynamics.hidden=17", code=2)
    assert len(done.stderr.splitlines()) == 1
    assert "dynamics.hidden" in done.stderr


def test_finished_stages_leave_their_artifacts_alone(chain) -> None:
    folder, _ = chain
    kept = [folder / "datasets/toy/complete.h5", folder / "runs/toy/seed-3/vae.h5"]
    before = [path.read_bytes()[:512] for path in kept]
    wmrl_(folder, "generate", "toy.toml")
    wmrl_(folder, "train-vae", "toy.toml")
    assert [path.read_bytes()[:512] for path in kept] == before


def test_the_shortest_calls_work_in_an_empty_folder(tmp_path) -> None:
    """No pipeline, no logdir: the default experiment, then the logdir used last; Ctrl-C loses nothing."""
    data = tmp_path / "datasets/carracing"
    words = ["--rollouts", "5000", "--threads", "8", "--max-steps", "25"]
    with subprocess.Popen([WMRL, "generate", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 90
        while not list(data.glob("shard-*[0-9].h5")) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert time.monotonic() - began < 30
    assert "the same command continues" in said
    assert "Traceback" not in said
    shards = {path.name: path.stat().st_mtime_ns for path in data.glob("shard-*[0-9].h5")}
    assert shards
    wmrl_(tmp_path, "generate", "--rollouts", "64", "--threads", "8", "--max-steps", "25")
    assert shards.items() <= {path.name: path.stat().st_mtime_ns for path in data.glob("shard-*[0-9].h5")}.items()
    assert Episodes(data).lengths.tolist() == [25] * len(Episodes(data))
    done = wmrl_(tmp_path, "render", "--steps", "10")
    path = tmp_path / done.stdout.strip()
    assert path.suffix == ".mp4"
    assert path.parent == tmp_path / "runs/carracing-mdnrnn/seed-1/videos"
    assert "Traceback" not in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_chain_runs_on_cuda(tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_text(PIPELINE)
    for stage in STAGES:
        wmrl_(tmp_path, stage, "toy.toml", "--device", "cuda")
    logdir = tmp_path / "runs/toy/seed-3"
    for stage in ("train-vae", "train-dynamics"):
        assert "on cuda" in (logdir / "logs" / f"{stage}.log").read_text()
    assert {path.stem for path in logdir.glob("*.h5")} >= {"vae", "dynamics", "controller", "test"}
    wmrl_(tmp_path, "train-controller", "toy.toml", "--device", "cuda", "--noreload", "--where", "dream")
    wmrl_(tmp_path, "render", "toy.toml", "--device", "cuda", "--fresh", "--steps", "5")
