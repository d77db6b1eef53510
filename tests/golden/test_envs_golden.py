"""Each backend, step by step: what an action led to, how an episode ends, and that neighbours do not matter."""

import sys
from pathlib import Path

import numpy as np
import pytest

from wmrl.envs import make
from wmrl.pipeline import Env

sys.path.insert(0, str(Path(__file__).parent))  # for `envs_toys`, also in workers

TOY = Env(id="envs_toys:Three-v0", size=8)
CAR = Env(id="CarRacing-v3", max_steps=3)
THREADS = pytest.mark.parametrize("threads", [1, 2])


def colour(obs):
    """The one colour of each frame."""
    assert (obs == obs[:, :, :1, :1]).all()
    return obs[:, :, 0, 0].tolist()


def one_hot(choices, n=4):
    return np.eye(n, dtype=np.float32)[choices]


@THREADS
def test_three_steps_of_gymnasium(threads):
    with make(TOY, 4, threads=threads) as env:
        assert (env.n, env.observation.shape, env.actions.size, env.actions.discrete) == (4, (3, 8, 8), 4, True)
        assert (env.fps, env.max_steps, env.native) == (7.0, 3, (20, 30))
        assert colour(env.reset([40, 41, 42])) == [[0, 40, 0], [0, 41, 0], [0, 42, 0]]
        rows = []
        for choices in ([0, 1, 2], [3, 2, 1], [1, 1, 0]):
            rows.append(env.step(one_hot(choices), [0, 1, 2]))
        # what came of the first action, in the first row: the actions are 2 + choice, their colour ten times that
        assert colour(rows[0].obs) == [[10, 40, 20], [10, 41, 30], [10, 42, 40]]
        assert rows[0].reward.tolist() == pytest.approx([1.2, 1.3, 1.4])
        assert rows[0].reward.dtype == np.float32
        assert not rows[1].terminated.any() and not rows[1].truncated.any()
        # the last frame is the one the episode ended with, not the first of another
        assert colour(rows[2].obs) == [[30, 40, 30], [30, 41, 30], [30, 42, 20]]
        assert rows[2].terminated.tolist() == [True, False, True]
        assert rows[2].truncated.tolist() == [False, True, False]
        assert (env.frames([2, 0])[:, 3, 4] == [[30, 42, 20], [30, 40, 30]]).all()
        for slot in range(3):
            with pytest.raises(ValueError, match="ended"):
                env.step(one_hot([0]), [slot])
        assert colour(env.reset([7])) == [[0, 7, 0]]
        with pytest.raises(ValueError, match="never reset"):
            env.step(one_hot([0]), [1])


@THREADS
def test_own_limit_of_the_environment_and_ours(threads):
    with make(Env(id="envs_toys:Own-v0", size=8), 2, threads=threads) as env:
        env.reset([1, 2])
        assert env.step(one_hot([0, 0]), [0, 1]).truncated.tolist() == [False, False]
        assert env.step(one_hot([0, 0]), [0, 1]).truncated.tolist() == [True, True]
    with make(Env(id="envs_toys:Three-v0", size=8, max_steps=1), 2, threads=threads) as env:
        env.reset([1, 2])
        assert env.step(one_hot([0]), [1]).truncated.tolist() == [True]
        assert env.step(one_hot([0]), [0]).truncated.tolist() == [True]
    with make(Env(id="envs_toys:Free-v0", size=8), 2, threads=threads) as env:
        env.reset([1])
        assert env.max_steps is None
        assert not any(env.step(one_hot([0]), [0]).truncated[0] for _ in range(20))


@THREADS
def test_actions_reach_the_box(threads):
    with make(Env(id="envs_toys:Box-v0", size=8), 3, threads=threads) as env:
        env.reset([1, 2, 3])
        out = env.step(np.array([[-1, -1], [1, 1], [0, 0.5]]), [2, 0, 1])
        # the box is [-1, 1] x [0, 4]; blue is 10 * (first + 2) + second
        assert colour(out.obs) == [[10, 3, 10 + 0], [10, 1, 30 + 4], [10, 2, 20 + 3]]


def test_subsets_equal_full_steps_gymnasium():
    actions = np.random.default_rng(0).integers(0, 4, (2, 5))
    with make(TOY, 5, threads=2) as env:
        env.reset([20, 21, 22, 23, 24])
        whole = [env.step(one_hot(row), np.arange(5)) for row in actions]
        env.reset([20, 21, 22, 23, 24])
        for t, row in enumerate(actions):
            for ids in ([4, 1], [3], [0, 2]):
                part = env.step(one_hot(row[ids]), ids)
                assert (part.obs == whole[t].obs[ids]).all() and (part.reward == whole[t].reward[ids]).all()


# envpool ------------------------------------------------------------------------------------------------------------


def drive(env, seeds, actions, *, parts=None):
    """Frames, rewards and ends of len(actions) steps, all slots at once or in parts."""
    first = env.reset(seeds)
    rows = []
    for action in actions:
        outs = [(ids, env.step(action[ids], np.array(ids))) for ids in parts or [list(range(len(seeds)))]]
        merged = [np.zeros((len(seeds), *v.shape[1:]), v.dtype) for v in outs[0][1]]
        for ids, out in outs:
            for whole, piece in zip(merged, out, strict=True):
                whole[ids] = piece
        rows.append(merged)
    return first, [np.stack(column) for column in zip(*rows, strict=True)]


def same(a, b):
    return (a[0] == b[0]).all() and all((x == y).all() for x, y in zip(a[1], b[1], strict=True))


def test_three_steps_of_envpool():
    """Against envpool itself: frames, rewards, the mapping of actions, the end."""
    envpool = pytest.importorskip("envpool")
    seeds = [11, 12, 13]
    actions = np.random.default_rng(1).uniform(-1, 1, (3, 3, 3)).astype(np.float32)
    with make(CAR, 3, threads=2) as env:
        assert env.info["backend"] == "envpool"
        assert (env.fps, env.max_steps, env.native) == (50.0, 3, (96, 96))
        first, (_, reward, terminated, truncated) = drive(env, seeds, actions)
        last = env.frames([0, 1, 2])
        with pytest.raises(ValueError, match="ended"):
            env.step(actions[0][:1], [1])
    raw = envpool.make("CarRacing-v3", env_type="gymnasium", num_envs=3, seed=seeds, num_threads=1)
    obs, _ = raw.reset()
    mean = obs.astype(float).reshape(3, 32, 3, 32, 3, 3).mean((2, 4)).transpose(0, 3, 1, 2)  # 3 x 3 of 96: 32 x 32
    shrunk = first.astype(float).reshape(3, 3, 32, 2, 32, 2).mean((3, 5))
    assert np.abs(mean - shrunk).max() < 1
    rewards = []
    for action in actions:
        native = np.stack([action[:, 0], (action[:, 1] + 1) / 2, (action[:, 2] + 1) / 2], 1)
        obs, r, *_ = raw.step(native)
        rewards.append(r)
    assert np.array_equal(reward, np.array(rewards, np.float32))
    assert (last == obs).all()
    assert terminated.tolist() == [[False] * 3] * 3
    assert truncated.tolist() == [[False] * 3] * 2 + [[True] * 3]


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_a_seed_is_an_episode_wherever_it_runs(backend):
    env_table = Env(id="CarRacing-v3", max_steps=4, backend=backend, size=32)
    seeds = [3, 9, 3, 5]
    actions = np.random.default_rng(2).uniform(-1, 1, (4, 4, 3)).astype(np.float32)
    actions[:, 2] = actions[:, 0]
    with make(env_table, 4, threads=2) as env:
        whole = drive(env, seeds, actions)
        assert (whole[0][0] == whole[0][2]).all() and (whole[0][0] != whole[0][1]).any()
        assert all((column[:, 0] == column[:, 2]).all() for column in whole[1])
        assert same(whole, drive(env, seeds, actions)), "a second wave"
        assert same(whole, drive(env, seeds, actions, parts=[[2, 0], [3], [1]])), "in parts"
        other = drive(env, seeds[::-1], actions[:, ::-1])
        assert (other[0][::-1] == whole[0]).all() and (other[1][0][:, ::-1] == whole[1][0]).all(), "in other slots"
    with make(env_table, 20, threads=1) as env:
        assert same(whole, drive(env, seeds, actions)), "other threads, other n"
        many = drive(env, [8] * 16 + seeds, np.concatenate([np.zeros((4, 16, 3), np.float32), actions], 1))
        assert (many[0][16:] == whole[0]).all() and (many[1][0][:, 16:] == whole[1][0]).all(), "in a crowd"


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_leaving_the_field_terminates(backend):
    """Straight on: minus 100 and `terminated`, also if the limit falls on that very step."""

    def straight(limit):
        with make(Env(max_steps=limit, backend=backend, size=8), 1, threads=1) as env:
            env.reset([1])
            for t in range(1, limit + 1):
                out = env.step(np.array([[0.0, -0.4, -1.0]]), [0])
                if out.terminated[0] or out.truncated[0]:
                    return t, float(out.reward[0]), bool(out.terminated[0]), bool(out.truncated[0])
        raise AssertionError("it went on beyond its limit")

    steps, reward, terminated, truncated = straight(400)
    assert steps < 400 and reward < -90 and terminated and not truncated
    assert straight(steps)[1:] == (reward, True, False)
