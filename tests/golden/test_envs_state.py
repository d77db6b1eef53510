"""Observations that are no pictures: vectors and planes of every backend; and actions that are repeated."""

import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from wmrl.envs import make
from wmrl.errors import ArtifactError, ConfigError, UserError
from wmrl.pipeline import Env

sys.path.insert(0, str(Path(__file__).parent))  # for `envs_toys`, also in workers

THREADS = pytest.mark.parametrize("threads", [1, 2])
FOUR = np.eye(4, dtype=np.float32)


def toy(name, **more):
    return Env(id=f"envs_toys:{name}-v0", size=8, observe="state", **more)


def split(vector):
    """The parts of `Numbers`: the action, the step, two flags, the seed twice."""
    return int(vector[:60].argmax()), vector[60:].tolist(), float(vector[:60].sum())


@THREADS
def test_numbers_of_all_kinds_are_one_vector_in_the_order_of_the_space(threads):
    with make(toy("Numbers"), 3, threads=threads) as env:
        assert (env.observation.shape, env.native) == ((65,), (20, 30))
        obs = env.reset([7, 8, 9])
        assert obs.dtype == np.float32
        assert [split(row) for row in obs] == [(0, [0, 0, 1, seed, -0.5], 1.0) for seed in (7, 8, 9)]
        out = env.step(FOUR[[3, 0]], [2, 0])
        assert [split(row) for row in out.obs] == [(50, [1, 1, 1, 9, -0.5], 1.0), (20, [1, 1, 1, 7, -0.5], 1.0)]
        assert (env.frames([0, 2])[:, 3, 4] == [[10, 7, 20], [10, 9, 50]]).all(), "pictures are drawn when asked for"


@THREADS
def test_planes_come_first_and_some_can_be_hidden(threads):
    with make(toy("Planes"), 2, threads=threads) as env, make(toy("Planes", hide=(1, 0)), 2, threads=threads) as part:
        obs = env.reset([8, 9])
        assert obs.shape == (2, *env.observation.shape) == (2, 4, 5, 6) and obs.dtype == bool
        assert obs[1].nonzero()[0].tolist() == [0] * 6 + [3] * 5 and (obs[1, 3].nonzero()[1] == 3).all()
        obs = env.step(FOUR[:2], [0, 1]).obs
        assert obs[0, 0].nonzero()[0].tolist() == [1] * 6
        part.reset([8, 9])
        assert part.observation.shape == (2, 5, 6)
        assert (part.step(FOUR[:2], [0, 1]).obs == obs[:, [2, 3]]).all()


def test_hidden_numbers_are_cut_out():
    with make(toy("Numbers", hide=tuple(range(60))), 1, threads=1) as env:
        assert env.reset([7]).tolist() == [[0, 0, 1, 7, -0.5]] and env.info["hide"] == list(range(60))


@THREADS
def test_a_vector_that_is_not_finite_is_refused(threads):
    with make(toy("Numbers"), 1, threads=threads) as env:
        env.reset([13])
        env.step(FOUR[:1], [0])
        with pytest.raises(UserError, match="envs_toys:Numbers-v0 observes something that is not a finite number"):
            env.step(FOUR[:1], [0])


def test_numbers_where_nothing_can_be_drawn():
    with make(toy("Blind"), 1, threads=1) as env:
        assert env.reset([1]).tolist() == [[0, 0, 0, 0]] and env.info["pixels"] == "drawn"


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (toy("Numbers", hide=(65,)), r"env.hide: \[65\] of .*Numbers-v0, which shows 65 numbers, 0 to 64"),
        (Env(id="envs_toys:Three-v0", hide=(1,)), "env.hide: nothing can be hidden of pictures"),
        (Env(id="CarRacing-v3", observe="state", backend="envpool"), "envpool's CarRacing-v3 observes an image"),
        (Env(id="WalkerWalk-v1", observe="pixels"), "envpool's WalkerWalk-v1 observes no image"),
        (Env(id="envs_toys:Blind-v0"), "env.observe = 'state' takes numbers"),
    ],
)
def test_what_cannot_be_seen(env, words):
    with pytest.raises(ConfigError, match=words):
        make(env, 1, threads=1)


def test_gymnasiums_own_vectors():
    game = gymnasium.make("Pendulum-v1")
    with make(Env(id="Pendulum-v1", observe="state"), 2, threads=1) as env:
        assert env.max_steps == 200
        assert (env.reset([4, 5])[1] == game.reset(seed=5)[0]).all()
        out = env.step(np.array([[0.25]]), [1])
        obs, reward, *_ = game.step(np.float32([0.5]))
        assert (out.obs[0] == obs).all() and out.reward[0] == pytest.approx(reward)


# envpool ------------------------------------------------------------------------------------------------------------


def test_the_vectors_of_the_control_suite():
    envpool = pytest.importorskip("envpool")
    with make(Env(id="WalkerWalk-v1", max_steps=3), 2, threads=1) as env:
        assert (env.info["backend"], env.observation.shape, env.actions.size) == ("envpool", (24,), 6)
        raw = envpool.make("WalkerWalk-v1", env_type="gymnasium", num_envs=2, seed=[3, 4])
        flat = lambda o: np.concatenate([o["orientations"], o["height"][:, None], o["velocity"]], 1)  # noqa: E731
        obs = env.reset([3, 4])
        assert obs.dtype == np.float32 and (obs == flat(raw.reset()[0]).astype(np.float32)).all()
        for t in range(1, 4):
            action = np.random.default_rng(t).uniform(-1, 1, (2, 6)).astype(np.float32)
            out = env.step(action[::-1], [1, 0])
            theirs, reward, *_ = raw.step(action.astype(np.float64))
            assert out.obs[::-1] == pytest.approx(flat(theirs), abs=1e-4)  # actions go through [-1, 1] in float32
            assert out.reward[::-1] == pytest.approx(reward, abs=1e-5)
        assert out.truncated.all() and not out.terminated.any(), "a task of control ends by its time only"


def test_a_pendulum_that_falls_terminates_even_at_the_limit():
    def fall(limit):
        with make(Env(id="InvertedPendulum-v4", max_steps=limit), 1, threads=1) as env:
            env.reset([1])
            for t in range(1, 100):
                out = env.step(np.ones((1, 1)), [0])
                if out.terminated[0] or out.truncated[0]:
                    return t, bool(out.terminated[0]), bool(out.truncated[0])
        raise AssertionError("it never fell")

    steps, *how = fall(100)
    assert steps < 50 and how == [True, False]
    assert fall(steps) == (steps, True, False)
    assert fall(steps - 1) == (steps - 1, False, True)


# action repeat ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "threads"),
    [
        (Env(id="envs_toys:Free-v0", size=8), 1),
        (Env(id="envs_toys:Free-v0", size=8), 2),
        (Env(id="CheetahRun-v1"), 1),
        (Env(id="CarRacing-v3", size=16), 1),
    ],
    ids=["in this process", "in workers", "in pools of vectors", "in pools of pictures"],
)
def test_an_action_repeated_is_several_steps_of_the_game(table, threads):
    twice = Env(**{**table.__dict__, "action_repeat": 2})
    with make(table, 3, threads=threads) as once, make(twice, 3, threads=threads) as env:
        assert env.fps == once.fps / 2 and env.info["action_repeat"] == 2
        assert (once.reset([1, 3, 5]) == env.reset([1, 3, 5])).all()
        for t in range(3):
            action = np.random.default_rng(t).uniform(-1, 1, (2, env.actions.size)).astype(np.float32)
            parts = [once.step(action, [2, 0]) for _ in range(2)]
            out = env.step(action, [2, 0])
            assert (out.obs == parts[1].obs).all()
            assert out.reward == pytest.approx(parts[0].reward + parts[1].reward, abs=1e-5)


@THREADS
def test_a_repetition_stops_at_an_end_and_at_the_games_own_limit(threads):
    """`Three` ends after 3 steps, even seeds by themselves."""
    with make(Env(id="envs_toys:Three-v0", size=8, action_repeat=2), 2, threads=threads) as env:
        assert env.max_steps == 2
        env.reset([4, 5])
        env.step(FOUR[:2], [0, 1])
        out = env.step(FOUR[:2], [0, 1])
        assert (out.obs[:, 0, 0, 0] == 30).all() and out.reward.tolist() == pytest.approx([3.2, 3.3])
        assert (out.terminated.tolist(), out.truncated.tolist()) == ([True, False], [False, True])
    with make(Env(id="envs_toys:Free-v0", size=8, action_repeat=2, max_steps=1), 1, threads=threads) as env:
        env.reset([5])
        out = env.step(FOUR[:1], [0])
        assert out.truncated[0] and out.obs[0, 0, 0, 0] == 20, "max_steps counts what the agent does"


def test_a_pendulum_repeated_in_a_pool_stops_when_it_falls():
    with make(Env(id="InvertedPendulum-v4", action_repeat=40), 1, threads=1) as env:
        env.reset([1])
        out = env.step(np.ones((1, 1)), [0])
        assert out.terminated[0] and 2 < out.reward[0] < 40
        assert env.max_steps == 25


# MiniGrid -----------------------------------------------------------------------------------------------------------


def test_minigrids_view_is_planes_of_objects_colours_and_states():
    pytest.importorskip("minigrid")
    game = gymnasium.make("MiniGrid-DoorKey-5x5-v0")
    with make(Env(id="MiniGrid-DoorKey-5x5-v0", observe="state"), 1, threads=1) as env:
        assert env.observation.shape == (20, 7, 7)
        seen = env.reset([3])
        codes = game.reset(seed=3)[0]["image"]
        for move in (1, 2, 1, 2, 3, 5, 2, 0, 2):
            assert seen.dtype == bool and (seen.sum((1, 2, 3)) == 3 * 49).all()
            for plane, (begin, end) in enumerate([(0, 11), (11, 17), (17, 20)]):
                assert (seen[0, begin:end].argmax(0) == codes[..., plane]).all()
            seen = env.step(np.eye(7, dtype=np.float32)[[move]], [0]).obs
            codes = game.step(move)[0]["image"]


@THREADS
def test_minigrids_picture_is_of_what_the_agent_sees(threads):
    pytest.importorskip("minigrid")
    with make(Env(id="MiniGrid-Empty-8x8-v0", size=56), 2, threads=threads) as env:
        assert env.native == (112, 112) and env.info["pixels"] == "render" and env.max_steps == 256
        first = env.reset([1, 2])
        out = env.step(np.eye(7, dtype=np.float32)[[0, 2]], [0, 1])
        assert (first[0] == first[1]).all() and (out.obs[0] != out.obs[1]).any()
        assert first[0, 0].reshape(7, 8, 7, 8)[6, :, 3].max() == 255, "the agent stands in the middle of the last row"


def test_without_minigrid_one_line_tells_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(ArtifactError, match=r"minigrid is not installed; to get it: pip install 'wmrl\[minigrid\]'"):
        make(Env(id="MiniGrid-Empty-5x5-v0"), 1, threads=1)
