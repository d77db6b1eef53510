"""Rows about whole processes: peak memory of every stage on a large dataset, and how quickly `wmrl --help` answers."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from workbench import Bench, Row, middle

from wmrl.data import shards

WMRL = str(Path(sys.executable).with_name("wmrl"))
FRESH = 16
"""Episodes that are really played, twice: 1,000 x 1,000 steps would take many minutes."""


def memory(bench: Bench, wanted: str) -> Iterator[Row]:
    """Row h: peak memory of each stage's process on a dataset of 1,000 episodes of 1,000 steps."""
    data, logdir = bench.folder / "thousand", bench.folder / "memory"
    episodes = bench.amount(1000, 96)
    bench.note(f"peak memory of each stage on {episodes} episodes")
    _link(bench, data, episodes)
    for stage, words in STAGES.items():
        words = [word.format(episodes=episodes) for word in words]
        peak, seconds = _peak(bench, ["train-controller" if stage == "dreams" else stage, *words], data, logdir)
        detail = f"{seconds:.0f} s" + ("; " + _size(data) if stage == "generate" else "")
        yield Row(f"h  peak memory of {stage}", peak, 3.0, at_most=True, unit=" GB", detail=detail)


ONE_CHECK = ["--generations", "1", "--set", "trainer.validation_episodes=1"]
STAGES = {
    "generate": ["--rollouts", "{episodes}"],
    "train-vae": ["--steps", "20", "--set", "fit.vae.validate_every=10"],
    "train-dynamics": ["--steps", "60", "--set", "fit.dynamics.validate_every=30"],
    "train-controller": ["--pop-size", "8", "--n-samples", "8", *ONE_CHECK, "--set", "trainer.abort=60"],
    "test-controller": ["--episodes", "2", "--max-steps", "200"],
    "render": [],
    "dreams": ["--where", "dream", "--noreload", *ONE_CHECK, "--dream-steps", "100", "--real-every", "0"],
}


def _link(bench: Bench, data: Path, episodes: int) -> None:
    """All shards but the last ones, as links to two that were really played; `wmrl generate` then makes the rest."""
    source = bench.folder / "sixteen"
    _wmrl(bench, ["generate", "--rollouts", str(FRESH)], source, bench.folder / "linking")
    played = shards.scan(source)
    each = played[0].count
    data.mkdir()
    for k, first in enumerate(range(0, episodes - FRESH, each)):
        name = shards.Name(first, min(each, episodes - FRESH - first))
        os.link(source / played[k % len(played)].file, data / name.file)


WATCHED = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""Runs a command and prints its peak memory. Linux counts a process's parent in it, as it was when it forked: so the
parent is this small program, and not the benchmark."""


def _peak(bench: Bench, words: Sequence[str], data: Path, logdir: Path) -> tuple[float, float]:
    """Peak resident memory of the command's own process in GB, and seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-c", WATCHED, *_command(bench, words, data, logdir)]
    done = subprocess.run(command, cwd=bench.folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"wmrl {' '.join(words)} exited {done.returncode}: {done.stderr[-600:]}")
    return int(done.stdout) * 1024 / 1e9, time.perf_counter() - began


def _wmrl(bench: Bench, words: Sequence[str], data: Path, logdir: Path) -> None:
    subprocess.run(_command(bench, words, data, logdir), cwd=bench.folder, check=True, capture_output=True)


def _command(bench: Bench, words: Sequence[str], data: Path, logdir: Path) -> list[str]:
    where = ["--data", str(data), "--logdir", str(logdir)]
    short = ["--set", "env.max_steps=100"] if bench.quick else []
    return [WMRL, words[0], "carracing-mdnrnn", *where, *short, *words[1:]]


def _size(data: Path) -> str:
    index = shards.read_complete(data)
    return f"{len(index.lengths):,} episodes, {int(index.lengths.sum()):,} steps"


def help_(bench: Bench, wanted: str) -> Iterator[Row]:
    """Row i: seconds until `wmrl --help` has answered, and whether torch was imported for it."""
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([WMRL, "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    yield Row("i  wmrl --help", middle(seconds), 0.4, at_most=True, unit=" s", detail="median of 5")
    code = "import sys; from wmrl.cli import main\ntry: main(['--help'])\nfinally: sys.exit('torch' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True).returncode
    yield Row("i  torch imported by wmrl --help", float(loaded), 0, at_most=True, detail="1: yes")
