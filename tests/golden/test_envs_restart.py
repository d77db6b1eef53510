"""Slots that restart while the others go on, in every backend."""

import sys
from pathlib import Path

import numpy as np
import pytest

from wmrl.envs import make
from wmrl.pipeline import Env

sys.path.insert(0, str(Path(__file__).parent))  # for `envs_toys`, also in workers

CASES = [
    pytest.param(Env(id="envs_toys:Three-v0", size=8), 1, 2, id="in this process"),
    pytest.param(Env(id="envs_toys:Three-v0", size=8), 2, 2, id="in workers"),
    pytest.param(Env(id="CarRacing-v3", size=16, max_steps=6), 2, 3, id="in pools of pictures"),
    pytest.param(Env(id="CheetahRun-v1", max_steps=6), 1, 3, id="in pools of vectors"),
    pytest.param(Env(id="MinAtar/Asterix-v1", max_steps=6), 1, 3, id="in MinAtar"),
]


def actions(env, seeds, t):
    """What is done in the step `t` of the episode of each seed."""
    if env.actions.discrete:
        return np.eye(env.actions.size, dtype=np.float32)[[(seed + t) % env.actions.size for seed in seeds]]
    return np.stack([np.random.default_rng([seed, t]).uniform(-1, 1, env.actions.size) for seed in seeds])


def alone(env, seed, steps):
    """What an episode shows and gives when nothing restarts beside it."""
    first = env.reset([seed])
    outs = [env.step(actions(env, [seed], t), [0]) for t in range(steps)]
    return [first[0], *(out.obs[0] for out in outs)], [float(out.reward[0]) for out in outs]


@pytest.mark.parametrize(("table", "threads", "steps"), CASES)
def test_a_restarted_slot_begins_afresh_and_its_neighbours_do_not_notice(table, threads, steps):
    if table.id.startswith("MinAtar"):
        pytest.importorskip("minatar")
    with make(table, 4, threads=threads) as env:
        want = {seed: alone(env, seed, steps) for seed in (51, 53, 55, 57, 59)}
        seeds, ages = [51, 53, 55], np.zeros(3, int)
        obs = env.reset(seeds)
        seen = {seed: ([first], []) for seed, first in zip(seeds, obs, strict=True)}

        def step(ids):
            mine = [seeds[i] for i in ids]
            action = np.concatenate([actions(env, [seed], ages[i]) for i, seed in zip(ids, mine, strict=True)])
            out = env.step(action, ids)
            for row, seed in enumerate(mine):
                seen[seed][0].append(out.obs[row])
                seen[seed][1].append(float(out.reward[row]))
            ages[ids] += 1

        step([0, 1, 2])
        for slot, seed in ((2, 57), (0, 59)):  # in the middle of their episodes, one after the other
            seeds[slot], ages[slot] = seed, 0
            seen[seed] = ([env.restart([seed], [slot])[0]], [])
        step([2, 1, 0])
        while ages[0] < steps:
            step([0, 2])
        for seed in (53, 57, 59):
            shown, rewards = seen[seed]
            assert all((a == b).all() for a, b in zip(shown, want[seed][0], strict=False)), seed
            assert rewards == pytest.approx(want[seed][1][: len(rewards)]) and len(rewards) >= min(2, steps)


@pytest.mark.parametrize(("table", "threads", "steps"), [case for case in CASES if "Cheetah" not in case.values[0].id])
def test_ended_slots_restart_and_their_time_begins_anew(table, threads, steps):
    if table.id.startswith("MinAtar"):
        pytest.importorskip("minatar")
    with make(table, 3, threads=threads) as env:
        env.reset([51, 53])
        for _ in range(env.max_steps):
            out = env.step(actions(env, [51, 51], 0), [0, 1])
            over = out.terminated | out.truncated
            if over.any():
                break
        ended = np.flatnonzero(over)
        first = env.restart([61] * len(ended), ended)
        assert first.shape == (len(ended), *env.observation.shape) and first.dtype == out.obs.dtype
        assert env.restart([63], [2]).shape == (1, *env.observation.shape), "a slot that was never reset"
        again = env.step(actions(env, [61] * len(ended), 0), ended)
        assert not again.truncated.any()
        assert env.frames([2]).shape == (1, *env.native, 3)
        env.reset([51])
        with pytest.raises(ValueError, match="ended or were never reset"):
            env.step(actions(env, [51], 0), [1])
        with pytest.raises(ValueError, match="not all among"):
            env.frames([2])


def test_wrong_restarts():
    with make(Env(id="envs_toys:Three-v0", size=8), 2, threads=1) as env:
        for seeds, ids in (([1], []), ([], []), ([1, 2], [0]), ([1, 2], [0, 0]), ([1], [2]), ([1], [-1])):
            with pytest.raises(ValueError, match="restart"):
                env.restart(seeds, ids)
    with pytest.raises(ValueError, match="closed"):
        env.restart([1], [0])


def test_pools_that_all_slots_have_left_are_closed():
    with make(Env(id="CarRacing-v3", size=16), 4, threads=1) as env:
        env.reset(range(4))
        for slot in range(4):
            env.restart([slot], [slot])
        assert len(env._pools) == 4
        env.restart([1, 2, 3], [3, 1, 0])
        assert len(env._pools) == 2
        env.reset([1])
        assert len(env._pools) == 1
