"""A finished run of a small game, and a launcher that runs commands in copies of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PIPELINE = """# Everything small.
seed = 1
data = "datasets/tiny"
env = { id = "tiny_env:Tiny-v0", size = 32 }
generate = { rollouts = 100 }
representation = { kind = "vae", latent = 4 }
dynamics = { kind = "mdn-rnn", hidden = 8, mixtures = 2 }
controller = { kind = "linear" }
trainer = { kind = "cma-es", population = 4, samples = 2, generations = 3, validate_every = 1, validation_episodes = 2 }
test = { episodes = 12 }
[fit.vae]
steps = 12
batch = 4
length = 2
validate_every = 4
validation_batches = 1
log_every = 2
[fit.dynamics]
steps = 18
batch = 4
length = 6
validate_every = 6
validation_batches = 1
log_every = 3
"""
STAGES = ("generate", "train-vae", "train-dynamics", "train-controller", "test-controller", "render")
ALWAYS = ("tiny.toml", "--threads", "1", "--precision", "fp32", "--no-progress")
DATA, LOGDIR = Path("datasets/tiny"), Path("runs/tiny/seed-1")


@dataclass
class Ran:
    """A command that is over.

    Args:
        code: Its exit code, negative if a signal ended it.
        out: What it wrote on stdout.
        err: What it wrote on stderr.
        events: Its journal: (kind, text) of each event, in order.
    """

    code: int
    out: str
    err: str
    events: list[tuple[str, str]]

    def of(self, kind: str) -> list[str]:
        """The texts of all events of a kind."""
        return [text for name, text in self.events if name == kind]


class Launcher:
    """The parent's side of launcher.py."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("launcher.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environ,
        )
        assert self._line() == "ready"

    def start(self, folder: Path, *words: str, fault: dict | None = None, environ: dict | None = None) -> int:
        """Begin a command; its pid."""
        self.count += 1
        self.files = {name: str(self.folder / f"{self.count}.{name}") for name in ("out", "err", "journal")}
        order = {"words": words, "folder": str(folder), "fault": fault or {}, "environ": environ or {}, **self.files}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        self.pid = int(self._line())
        return self.pid

    def finish(self) -> Ran:
        """Wait for the command."""
        code = int(self._line())
        out, err, journal = (Path(self.files[name]).read_text() for name in ("out", "err", "journal"))
        events = [(line.partition(" ")[0], line.partition(" ")[2]) for line in journal.splitlines()]
        return Ran(code, out, err, events)

    def wait_for(self, kind: str, seconds: float = 60) -> None:
        """Wait until the command begun last has had an event of a kind."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            path = Path(self.files["journal"])
            if path.exists() and any(line.startswith(kind) for line in path.read_text().splitlines()):
                return
            time.sleep(0.02)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"no event {kind} in {seconds} s: {Path(self.files['err']).read_text()}")

    def __call__(self, folder: Path, *words: str, fault: dict | None = None, environ: dict | None = None) -> Ran:
        """Run `wmrl WORDS` in `folder`, to its end or to that of the `fault`."""
        self.start(folder, *words, fault=fault, environ=environ)
        return self.finish()

    def stage(self, folder: Path, stage: str, *more: str, **how: dict | None) -> Ran:
        """Run a stage of the small pipeline."""
        few = ("--max-workers", "4") if stage in ("train-controller", "iterate") else ()  # two waves a generation
        return self(folder, stage, *ALWAYS, *few, *more, **how)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="session")
def pipeline_text() -> str:
    """The small pipeline as TOML."""
    return PIPELINE


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Runs commands."""
    launcher = Launcher(tmp_path_factory.mktemp("launcher"))
    yield launcher
    launcher.close()


@dataclass
class Reference:
    """A run in which nothing went wrong.

    Args:
        folder: Where it ran.
        ran: What each stage did.
    """

    folder: Path
    ran: dict[str, Ran]

    def before(self, stage: str, folder: Path) -> Path:
        """Make of `folder` a copy of the run as it was before `stage`."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.folder / "tiny.toml", folder)
        if stage == "generate":
            return folder
        shutil.copytree(self.folder / DATA, folder / DATA, dirs_exist_ok=True)
        (folder / LOGDIR).mkdir(parents=True, exist_ok=True)
        for name in ("pipeline.json", *self.made_before(stage)):
            shutil.copy(self.folder / LOGDIR / name, folder / LOGDIR / name)
        return folder

    def made_before(self, stage: str) -> list[str]:
        """The artifacts that earlier stages made."""
        names = ["vae", "dynamics", "controller", "test"][: max(0, STAGES.index(stage) - 1)]
        return [f"{name}.h5" for name in names]


@pytest.fixture(scope="session")
def reference(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The small pipeline, run from beginning to end."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "tiny.toml").write_text(PIPELINE)
    done = {}
    for stage in STAGES:
        done[stage] = launch.stage(folder, stage)
        assert done[stage].code == 0, f"{stage}: {done[stage].err}"
    return Reference(folder, done)
