"""Doom TakeCover: its contract, and that its processes leave nothing behind however we end."""

import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from wmrl.envs import doom, make
from wmrl.envs.names import canonical
from wmrl.errors import ConfigError, UserError
from wmrl.pipeline import Env, parse

pytest.importorskip("envpool")

DOOM = Env(id="TakeCover-v1")
STAY, RIGHT, LEFT = np.eye(3, dtype=np.float32)


@pytest.fixture(autouse=True)
def den(tmp_path, monkeypatch):
    """Dens of these tests lie in a folder of their own; the working directory is another one."""
    for name in ("tmp", "cwd"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "tmp"


def games(pid):
    """The running games that a process started; zombies, which init has not buried yet, do not count."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        if "(vizdoom" in name and rest.split()[0] != "Z" and int(rest.split()[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def shared(den):
    """The shared memory of the games that were started in these dens; others may play beside us."""
    numbers = [note.name.removeprefix("game-") for note in den.glob("*/game-*")]
    return {path for path in doom.SHARED.glob("ViZDoom*") if any(path.name.endswith(number) for number in numbers)}


def live(env, seeds, action, limit=10**6):
    """Repeat one action until all episodes end: observations of the first slot, the outcomes' columns."""
    frames, rows, ids = [env.reset(seeds)[0]], [], np.arange(len(seeds))
    while len(ids) and len(rows) < limit:
        out = env.step(np.tile(action, (len(ids), 1)), ids)
        if ids[0] == 0:
            frames.append(out.obs[0])
        rows.append([(int(i), *map(float, row)) for i, row in zip(ids, zip(*out[1:], strict=True), strict=True)])
        ids = ids[~(out.terminated | out.truncated)]
    return np.stack(frames), rows


def test_a_step_is_worth_one_and_death_terminates():
    with make(DOOM, 2, threads=2) as env:
        assert (env.info["backend"], env.info["frame_skip"], env.max_steps, env.fps) == ("envpool", 4, 525, 8.75)
        assert (env.observation.shape, env.native) == ((3, 64, 64), (64, 64))
        assert (env.actions.size, env.actions.discrete) == (3, True)
        frames, rows = live(env, [1, 2], LEFT)
        assert {reward for row in rows for _, reward, *_ in row} == {1.0}
        assert rows[-1][-1][2:] == (1.0, 0.0), "it died, and was not cut off"
        again, same = live(env, [1, 2], LEFT)
        assert np.array_equal(frames, again) and rows == same, "a seed is an episode"
        other = live(env, [2, 1], LEFT)[1]
        assert [[(1 - i, *rest) for i, *rest in row[::-1]] for row in other] == [list(map(tuple, row)) for row in rows]


def test_a_limit_truncates_and_a_death_in_its_last_step_terminates():
    with make(DOOM, 1, threads=1) as env:
        steps = len(live(env, [1], STAY)[1])
    for limit, ends in ((steps, (1.0, 0.0)), (steps - 1, (0.0, 1.0))):
        with make(Env(id="TakeCover-v1", max_steps=limit), 1, threads=1) as env:
            rows = live(env, [1], STAY)[1]
            assert len(rows) == limit and rows[-1][0][2:] == ends


def test_the_actions_are_stay_right_left():
    def brown(frame, half):
        """How much more red than blue: the side walls are brown."""
        return float((frame[0].astype(int) - frame[2])[:, half].mean())

    left, right = slice(None, 16), slice(-16, None)
    with make(DOOM, 1, threads=1) as env:
        ends = {name: live(env, [5], action, 18)[0][18] for name, action in (("s", STAY), ("r", RIGHT), ("l", LEFT))}
    assert brown(ends["l"], left) > 2 * brown(ends["s"], left) and brown(ends["l"], left) > brown(ends["l"], right)
    assert brown(ends["r"], right) > 2 * brown(ends["s"], right) and brown(ends["r"], right) > brown(ends["r"], left)


def test_four_steps_of_one_tic_are_one_step_of_four():
    with make(DOOM, 1, threads=1) as four, make(Env(id="TakeCover-v1", frame_skip=1), 1, threads=1) as one:
        assert (one.max_steps, one.fps, one.info["frame_skip"]) == (2100, 35.0, 1)
        assert np.array_equal(live(four, [3], RIGHT, 5)[0], live(one, [3], RIGHT, 20)[0][::4])


@pytest.mark.parametrize("backend", ["auto", "envpool", "gymnasium"])
def test_games_without_a_frame_skip_refuse_one(backend):
    with pytest.raises(ConfigError, match=r"^env.frame_skip: CarRacing-v3 .*TakeCover-v1$"):
        make(Env(id="CarRacing-v3", frame_skip=2, backend=backend), 1, threads=1)
    with pytest.raises(ConfigError, match=r"env.frame_skip: must be greater than 0"):
        parse({"env": {"id": "TakeCover-v1", "frame_skip": 0}})


def test_a_temporary_directory_where_nothing_can_be_started_is_named(den, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=rf"in {den}; .*TMPDIR"):
        make(DOOM, 1, threads=1)
    assert not list(den.iterdir())


def test_the_papers_name_is_understood():
    name, note = canonical("DoomTakeCover-v0")
    assert name == "TakeCover-v1" and "skill 4" in note and "\n" not in note


def test_nothing_is_left_behind(den):
    with make(DOOM, 2, threads=1) as env:
        env.reset([1, 2])
        env.reset([3])
        memory = shared(den)
        assert len(games(os.getpid())) == 1 and len(list(den.iterdir())) == 1 and any(p.exists() for p in memory)
    assert not games(os.getpid()) and not list(den.iterdir()) and not any(p.exists() for p in memory)
    assert not list(Path.cwd().iterdir())


def test_a_signal_for_us_does_not_end_a_game():
    with make(DOOM, 1, threads=1) as env:
        env.reset([1])
        (game,) = games(os.getpid())
        for signum in (signal.SIGINT, signal.SIGTERM):
            os.kill(game, signum)
        outcomes = [env.step(STAY[None], np.zeros(1, int)) for _ in range(3)]
        assert games(os.getpid()) == [game] and not any(out.terminated[0] or out.truncated[0] for out in outcomes)


HOLD = """
import time
from wmrl.envs import make
from wmrl.pipeline import Env
env = make(Env(id="TakeCover-v1"), 2, threads=2)
env.reset([1, 2])
print("ready", flush=True)
time.sleep(60)
"""


def test_games_die_with_a_killed_parent_and_the_next_start_sweeps(den):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, env=env) as parent:
        assert parent.stdout.readline() == b"ready\n"
        started = games(parent.pid)
        memory = shared(den)
        assert len(started) == 2 and len(memory) == 6 and len(list(den.iterdir())) == 1
        doom.sweep()
        assert len(list(den.iterdir())) == 1 and shared(den) == memory, "the owner lives"
        parent.kill()
    patience = time.monotonic() + 5
    while any(map(running, started)) and time.monotonic() < patience:
        time.sleep(0.02)
    assert not any(map(running, started))
    assert len(list(den.iterdir())) == 1 and shared(den) == memory
    with make(DOOM, 1, threads=1):
        assert len(list(den.iterdir())) == 1 and not any(p.exists() for p in memory)
    assert not list(den.iterdir()) and not list(Path.cwd().iterdir())


def test_the_memory_of_games_that_never_noted_their_number_is_swept(monkeypatch, tmp_path):
    monkeypatch.setattr(doom, "SHARED", tmp_path)
    paths = [tmp_path / f"ViZDoomMQCtr{name}" for name in ("left", "used")]
    for path in paths:
        path.write_bytes(bytes(4096))
    doom.sweep()
    assert all(path.exists() for path in paths), "these games may be starting"
    monkeypatch.setattr(doom, "STARTS", -1.0)
    with paths[1].open("r+b") as file, mmap.mmap(file.fileno(), 0):
        doom.sweep()
    assert [path.exists() for path in paths] == [False, True]


MULTIPLY = """
import numpy as np
import scipy.linalg
from wmrl.envs import make
from wmrl.pipeline import Env
a = np.ones((600, 600))
with make(Env(id="TakeCover-v1"), 4, threads=2) as env:
    for _ in range(2):
        a @ a, scipy.linalg.blas.dgemm(1.0, a, a)
        print(len(env.reset([1, 2, 3, 4])), flush=True)
"""


def test_games_start_while_openblas_has_threads():
    """Without a fork before theirs they waited for ever, at the first start."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    words = [sys.executable, "-W", "error", "-c", MULTIPLY]
    ran = subprocess.run(words, env=env, stdout=subprocess.PIPE, check=True, timeout=30)
    assert ran.stdout.split() == [b"4", b"4"], "all games of both starts show a frame"
