"""What workers of environments say: it is shown on stderr, kept in the log file, and keeps nobody waiting."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from wmrl.envs import make
from wmrl.errors import UserError
from wmrl.log import Log
from wmrl.pipeline import Env

TOYS = Path(__file__).parent.parent / "golden"
sys.path.insert(0, str(TOYS))

MODULE = """
import os
import sys
import gymnasium
from envs_toys import Three

class Speaks(Three):
    def step(self, action):
        print("printed")
        print("complained", file=sys.stderr)
        os.write(2, b"written\\n")
        if self.seed == 1:
            print("a long story\\n" * 300 + "its end")
            os.write(2, b"last words, without an end")
            os._exit(7)
        while self.seed == 2:
            print("and on and on")
        if self.seed == 3:
            print("a long story\\n" * 20000)
        return super().step(action)

gymnasium.register("Speaks-v0", entry_point=Speaks)
"""
ENV = Env(id="envs_that_speak:Speaks-v0", size=8)
FOUR = np.eye(4, dtype=np.float32)


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "envs_that_speak.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # as most people have it


def play(*seeds, steps=1):
    with make(ENV, len(seeds), threads=2) as env:
        env.reset(list(seeds))
        return [env.step(FOUR[: len(seeds)], np.arange(len(seeds))) for _ in range(steps)]


def kept(logdir):
    return [line[20:] for line in (logdir / "logs" / "s.log").read_text().splitlines()]


def test_what_workers_say_is_shown_and_kept_line_by_line(tmp_path, capfd):
    with Log("s", tmp_path):
        play(5, 7, steps=3)
    out, err = capfd.readouterr()
    assert out == ""
    for words in ("printed", "complained", "written"):
        assert err.splitlines().count(words) == 6
        assert kept(tmp_path).count(words) == 6


class Slow(io.StringIO):
    def write(self, text):
        time.sleep(0.001)
        return super().write(text)


def test_the_last_words_of_a_worker_come_before_the_report_of_its_death(tmp_path, monkeypatch):
    terminal = Slow()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Log("s", tmp_path) as log:
        with pytest.raises(UserError, match="died: it exited with code 7; see its words above"):
            play(5, 1)
        log.say("the report")
    story = kept(tmp_path)
    assert story[-4:-1] == ["a long story", "its end", "last words, without an end"]
    assert terminal.getvalue().splitlines()[-3:] == ["its end", "last words, without an end", "the report"]


@pytest.mark.parametrize("stderr", ["none", "gone"])
def test_nobody_waits_where_stderr_takes_nothing(tmp_path, monkeypatch, stderr):
    gone = (tmp_path / "gone").open("w")
    gone.close()
    monkeypatch.setattr(sys, "stderr", None if stderr == "none" else gone)
    assert [len(outcome.reward) for outcome in play(3, 3, steps=2)] == [2, 2]


def open_here():
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


def test_nothing_is_left_open(tmp_path):
    play(5, 7)  # modules that are loaded once may keep something
    before = open_here()
    play(5, 7)
    with pytest.raises(UserError):
        play(5, 1)
    assert open_here() == before


SCRIPT = f"""
import sys
sys.path[:0] = sys.argv[1:]
import numpy as np
from wmrl.envs import make
from wmrl.pipeline import Env
env = make({ENV!r}, 2, threads=2)
env.reset([2, 2])
print(*(worker.process.pid for worker in env._workers), flush=True)
env.step(np.eye(2, 4, dtype=np.float32), [0, 1])
"""


def test_a_worker_that_talks_does_not_outlive_a_killed_parent(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(TOYS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        pids = parent.stdout.readline().split()
        while "and on" not in parent.stderr.readline():
            pass
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(running(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.02)


def running(pid):
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
