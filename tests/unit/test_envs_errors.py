"""What cannot work says so in one sentence; what dies is noticed; nothing is left behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from wmrl.envs import BACKENDS, canonical, make
from wmrl.envs import processes as processes_module
from wmrl.envs.actions import ActionMap
from wmrl.envs.names import STATUS_BAR
from wmrl.envs.pixels import resize
from wmrl.errors import ConfigError, UserError
from wmrl.pipeline import Env

TOYS = Path(__file__).parent.parent / "golden"
sys.path.insert(0, str(TOYS))

FOUR = np.eye(4, dtype=np.float32)


def toy(name, **more):
    return Env(id=f"envs_toys:{name}-v0", size=8, **more)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (Env(id="CarRacng-v3"), r"'CarRacng-v3' is not known: .*Did you mean: `CarRacing`"),
        (Env(id="CarRacing-v9"), r"'CarRacing-v9' is not known: .*\[ `v3` \]"),
        (Env(id="CarRacng-v3", backend="envpool"), r"envpool has no 'CarRacng-v3' \(did you mean 'CarRacing-v3'"),
        (Env(id="CartPole-v1", backend="envpool"), r"envpool's CartPole-v1 observes no image; .*gymnasium"),
        (Env(id="no_such_module:X-v0"), r"no_such_module:X-v0' cannot be imported: No module named"),
        (Env(id="envs_toys:Thre-v0"), r"'envs_toys:Thre-v0' is not known: .*Did you mean: `Three`"),
        (Env(id="Nothing/X-v0"), r"'Nothing/X-v0' is not known"),
        (toy("Blind"), r"Blind-v0 shows no pixels: its observations are Box\(4,\) of float32"),
        (toy("Unspoken"), r"Unspoken-v0 shows no pixels: .* has no render_mode 'rgb_array'"),
        (
            toy("Tables"),
            r"observations are a Dict and not an array and .*; it needs that, or one .* image of uint8, 16 ",
        ),
        (toy("Many"), r"has MultiDiscrete actions; supported are"),
        (toy("Endless"), r"has unbounded Box actions, which cannot be scaled"),
        (toy("Whole"), r"has a Box of int64 actions"),
        (toy("Unsteered"), r"has a Box of no actions \(0,\); supported are Boxes of one float or more"),
        (toy("Three", crop=True), r"env.crop: .*Three-v0 has no known status bar"),
        (Env(backend="tape"), r"env.backend: 'tape' is not known; known: auto, envpool, gymnasium"),
    ],
    ids=lambda value: value.id + str(value.backend) if isinstance(value, Env) else "",
)
def test_what_cannot_work_says_so_in_one_sentence(env, words):
    with pytest.raises(ConfigError) as caught:
        make(env, 2, threads=1)
    assert re.search(words, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Unmade", "cannot be made: no such simulator"),
        ("Leaves", r"cannot be made: it called sys.exit\(3\)"),
        ("Curtain", r"cannot be rendered: it called sys.exit\(None\)"),
    ],
)
def test_an_environment_that_cannot_be_made_or_rendered(name, words):
    with pytest.raises(UserError, match=f"{name}-v0 {words}") as caught:
        make(toy(name), 1, threads=1)
    assert caught.value.code == 1


def test_a_module_that_exits_when_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "envs_that_exit.py").write_text("import sys\nsys.exit('bye')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"module of 'envs_that_exit:X-v0' cannot be imported: .*sys.exit\('bye'\)"):
        make(Env(id="envs_that_exit:X-v0"), 1, threads=1)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("seed", "doing"), [(101, "step"), (106, r"reset\(seed=106\)")])
def test_an_error_inside_carries_its_traceback(threads, seed, doing):
    env = make(toy("Crash"), 4, threads=threads)
    with pytest.raises(UserError) as caught:
        env.reset([1, 3, 5, seed])
        for _ in range(2):
            env.step(FOUR, np.arange(4))
    text = str(caught.value)
    assert re.search(rf"envs_toys:Crash-v0 failed in {doing} of slot 3", text)
    assert ("ZeroDivisionError: the car fell" if seed == 101 else "KeyError: 'no track'") in text and "\n" not in text
    assert "worker 2 of 2" in text or threads == 1
    trace = "".join(caught.value.__notes__)
    assert "Traceback" in trace and "envs_toys.py" in trace
    with pytest.raises(ValueError, match="closed"):
        env.reset([1])


@pytest.mark.parametrize(
    ("threads", "seed", "words"),
    [
        (1, 107, "step of slot 1: SystemExit: 3"),
        (1, 108, r"reset\(seed=108\) of slot 1: SystemExit"),
        (2, 107, "step of slot 1 in environment worker 2 of 2: SystemExit: 3"),
    ],
)
def test_an_environment_that_exits_ends_itself_only(threads, seed, words):
    env = make(toy("Crash"), 2, threads=threads)
    with pytest.raises(UserError) as caught:
        env.reset([1, seed])
        for _ in range(2):
            env.step(FOUR[:2], [0, 1])
    assert re.fullmatch(f"environment envs_toys:Crash-v0 failed in {words}", str(caught.value)), str(caught.value)
    assert caught.value.code == 1 and "envs_toys.py" in "".join(caught.value.__notes__)


@pytest.mark.parametrize(("seed", "words"), [(102, "exited with code 7"), (103, r"killed \(signal 9\)")])
def test_a_dead_worker_is_noticed_at_once(seed, words):
    env = make(toy("Crash"), 2, threads=2)
    env.reset([1, seed])
    env.step(FOUR[:2], [0, 1])
    start = time.monotonic()
    with pytest.raises(UserError, match=f"environment worker 2 of 2 of envs_toys:Crash-v0 died: .*{words}"):
        env.step(FOUR[:2], [0, 1])
    assert time.monotonic() - start < 5
    assert all(worker.process.poll() is not None for worker in env._workers)


def test_a_worker_that_died_between_steps():
    with make(toy("Three"), 2, threads=2) as env:
        env.reset([1, 2])
        env._workers[0].process.kill()
        env._workers[0].process.wait()
        with pytest.raises(UserError, match="worker 1 of 2 .* was killed"):
            env.step(FOUR[:2], [0, 1])


def test_a_hanging_worker_is_given_up(monkeypatch):
    env = make(toy("Crash"), 2, threads=2)
    env.reset([1, 104])
    env.step(FOUR[:2], [0, 1])
    monkeypatch.setattr(processes_module, "PATIENCE", 0.3)
    with pytest.raises(UserError, match=r"worker 2 of 2 .*no answer to step in time"):
        env.step(FOUR[:2], [0, 1])
    assert all(worker.process.poll() is not None for worker in env._workers)


def test_workers_say_nothing_on_stdout(capfd):
    with make(toy("Crash"), 2, threads=2) as env:
        env.reset([105, 105])
        for _ in range(2):
            env.step(FOUR[:2], [0, 1])
    out, err = capfd.readouterr()
    assert out == "" and err.count("must not reach stdout") == 2


def test_nor_do_environments_in_our_own_process(tmp_path, monkeypatch, capsys):
    (tmp_path / "envs_that_print.py").write_text("from envs_toys import *\nprint('in the module')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with make(Env(id="envs_that_print:Chatty-v0", size=8), 1, threads=1) as env:
        env.reset([1])
        env.step(FOUR[:1], [0])
        print("ours")
    out, err = capsys.readouterr()
    assert out == "ours\n"
    said = ["the module", "__init__", "reset", "step", "render", "close"]
    assert [what for what in said if f"in {what}" not in err] == []


def test_environments_of_python_are_never_stepped_from_several_threads():
    from wmrl.stages.generate import LANES  # who holds stdout back, as above, does so for all threads

    assert not getattr(processes_module.ProcessEnv, "free_of_python", False) and "gymnasium" not in LANES


SCRIPT = """
import sys, time
sys.path.insert(0, {toys!r})
from wmrl.envs import make
from wmrl.pipeline import Env
env = make(Env(id="envs_toys:Three-v0", size=8), 4, threads=2)   # no `if __name__ == "__main__"` is needed
env.reset([1, 2, 3, 4])
print(*(worker.process.pid for worker in env._workers), flush=True)
time.sleep(60)
"""


def test_workers_end_with_a_killed_parent():
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT.format(toys=str(TOYS))], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGTERM)  # what a terminal sends to the whole group is the parent's to decide
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() and not _zombie(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.02)


def _zombie(pid):
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


def test_slots_are_checked():
    with make(toy("Three"), 3, threads=1) as env:
        with pytest.raises(ValueError, match="1 to 3 seeds, got 4"):
            env.reset([1, 2, 3, 4])
        with pytest.raises(ValueError, match="1 to 3 seeds, got 0"):
            env.reset([])
        env.reset([1, 2])
        for ids in ([0, 0], [3], [-1]):
            with pytest.raises(ValueError, match="different numbers below 3"):
                env.step(FOUR[: len(ids)], ids)
        with pytest.raises(ValueError, match="never reset"):
            env.step(FOUR[:1], [2])
        for action, ids in ((FOUR[:2], [0]), (FOUR[:1, :3], [0]), (FOUR[:0], [])):
            with pytest.raises(ValueError, match="actions"):
                env.step(action, ids)
        with pytest.raises(UserError, match="not a finite number"):
            env.step(np.full((1, 4), np.nan), [0])
        with pytest.raises(ValueError, match="frames"):
            env.frames([2])
    env.close()
    with pytest.raises(ValueError, match="closed"):
        env.step(FOUR[:1], [0])


@pytest.mark.parametrize("name", ["Grey", "First", "Rendered"])
@pytest.mark.parametrize("threads", [1, 2])
def test_pixels_of_every_kind(name, threads):
    with make(toy(name), 2, threads=threads) as env:
        env.reset([50, 51])
        out = env.step(FOUR[[1, 2]], [0, 1])
        blue = 10 if name == "Grey" else 30
        assert out.obs[0, :, 4, 4].tolist() == ([10, 10, 10] if name == "Grey" else [10, 50, blue])
        assert env.frames([1]).shape == (1, 20, 30, 3)
        assert env.info["pixels"] == ("render" if name == "Rendered" else "observation")


@pytest.mark.parametrize(("env_id", "actions"), [("CartPole-v1", (2, True)), ("Pendulum-v1", (1, False))])
def test_environments_without_images_are_rendered(env_id, actions):
    with make(Env(id=env_id, size=48, max_steps=2), 2, threads=1) as env:
        first = env.reset([1, 2])
        out = env.step(np.eye(2, dtype=np.float32)[:, : env.actions.size], [0, 1])
        assert (env.actions.size, env.actions.discrete) == actions
        assert out.obs.shape == (2, 3, 48, 48) and (out.obs != first).any()
        assert env.step(np.zeros((2, env.actions.size)), [0, 1]).truncated.all()


def test_carracing_without_its_status_bar():
    with make(Env(max_steps=1), 1, threads=1) as whole, make(Env(max_steps=1, crop=True), 1, threads=1) as cut:
        a, b = whole.reset([1]), cut.reset([1])
        assert a.shape == b.shape == (1, 3, 64, 64)
        assert (whole.frames([0]) == cut.frames([0])).all() and cut.frames([0]).shape == (1, 96, 96, 3)
        assert (b == resize(np.ascontiguousarray(cut.frames([0])[:, :84]), 64)).all(), "what is above the bar"
        assert (a[:, :, 60] == 0).mean() > 0.5, "the bar is black"
        assert (b[:, :, 60] == 0).mean() < 0.5, "and cut off"


def test_gymnasium_without_a_status_bar(monkeypatch):
    import gymnasium
    from envs_toys import Three

    class Barred(Three):
        def frame(self, code):
            frame = super().frame(code)
            frame[15:] = 250
            return frame

    spec = gymnasium.envs.registration.EnvSpec("Barred-v0", entry_point=Barred)
    monkeypatch.setitem(gymnasium.registry, "Barred-v0", spec)
    monkeypatch.setitem(STATUS_BAR, "Barred-v0", 5 / 20)
    for crop, above in ((False, 6), (True, 8)):  # rows of 8 that show what is above the bar
        with make(Env(id="Barred-v0", size=8, crop=crop), 2, threads=1) as env:
            first, then = env.reset([40, 41]), env.step(FOUR[[1, 1]], [0, 1]).obs
            for obs, step, code in ((first, 0, 0), (then, 10, 30)):
                assert obs.shape == (2, 3, 8, 8) and (obs[:, :, above:] == 250).all()
                assert (obs[:, 0, :above] == step).all() and (obs[:, 2, :above] == code).all()
            assert env.frames([1])[0, :, 0, 1].tolist() == [41] * 15 + [250] * 5, "native frames keep it"
            assert (env.info["crop"], env.info["backend"]) == (crop, "gymnasium")


def test_old_names():
    assert canonical("CarRacing-v3") == ("CarRacing-v3", None)
    for old in ("CarRacing-v0", "CarRacing-v2"):
        new, note = canonical(old)
        assert new == "CarRacing-v3" and old in note and "lap" in note and "\n" not in note
    with make(Env(id="CarRacing-v2", crop=True), 1, threads=1) as env:
        assert env.info["id"] == "CarRacing-v3" and env.info["backend"] == "envpool" and len(env.info["notes"]) == 1
    name, note = canonical("BreakoutNoFrameskip-v4")
    assert name == "BreakoutNoFrameskip-v4" and "ALE/Breakout-v5" in note


def test_actions_there_and_back():
    from gymnasium import spaces

    box = ActionMap(spaces.Box(np.float32([[-1, 0], [2, -3]]), np.float32([[1, 1], [6, -1]])), "X")
    unit = np.random.default_rng(0).uniform(-1, 1, (7, 4)).astype(np.float32)
    native = box.native_action(unit)
    assert native.shape == (7, 2, 2) and native.dtype == np.float32
    assert np.allclose(box.from_native(native), unit, atol=1e-6)
    assert box.native_action(np.float32([[-1, -1, -1, -1], [1, 1, 1, 1], [9, -9, 0, 0]])).tolist() == [
        [[-1, 0], [2, -3]],
        [[1, 1], [6, -1]],
        [[1, 0], [4, -2]],
    ]
    three = ActionMap(spaces.Discrete(3, start=-1), "X")
    assert three.native_action(np.float32([[0.1, 0.9, 0.2], [1, 0, 0]])).tolist() == [0, -1]
    assert three.from_native(np.array([0, -1, 1])).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_the_registry_names_what_exists():
    import importlib

    for address in BACKENDS.values():
        module, name = address.split(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_workers_start_without_torch():
    code = "import sys; from wmrl.envs.worker import main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
