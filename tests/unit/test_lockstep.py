"""Slots in lockstep: episodes follow each other, each slot's own, and come back after a kill."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from wmrl.data.policies import Brown, White
from wmrl.spec import Actions, Space, Step, leaves, rebuilt
from wmrl.stages.lockstep import Lockstep, Player, Wanderers
from wmrl.world import WorldModel


class Out(NamedTuple):
    obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class Count:
    info = {"id": "Count-v0"}  # noqa: RUF012
    """Shows (seed, sum of first actions so far); an episode of seed s ends after 2 + s % 3 steps."""

    n = 3

    def __init__(self):
        self.at = np.zeros((3, 2), np.float32)
        self.left = np.zeros(3, int)

    def reset(self, seeds):
        return self.restart(seeds, np.arange(3))

    def restart(self, seeds, ids):
        for i, seed in zip(ids, seeds, strict=True):
            self.at[i], self.left[i] = (seed, 0), 2 + seed % 3
        return self.at[ids].copy()

    def step(self, action, ids):
        assert (self.left[ids] > 0).all()
        self.at[ids, 1] += action[:, 0]
        self.left[ids] -= 1
        over = self.left[ids] == 0
        return Out(self.at[ids].copy(), action[:, 0].copy(), over, np.zeros(len(ids), bool))


class Rows(NamedTuple):
    seed: int
    action: np.ndarray
    obs: np.ndarray
    reward: np.ndarray


class Notes:
    """Remembers the episodes in progress, and those that are over."""

    def __init__(self):
        self.open, self.over = {}, []

    def begin(self, ids, seeds, obs):
        for i, seed, first in zip(ids, seeds, obs, strict=True):
            self.open[int(i)] = (seed, [], [first])

    def add(self, ids, action, outcome):
        for row, i in enumerate(ids):
            self.open[int(i)][1].append(action[row])
            self.open[int(i)][2].append(outcome.obs[row])
            if outcome.terminated[row]:
                self.over.append(self.open[int(i)])

    @property
    def playing(self):
        found = {}
        for slot, (seed, actions, obs) in self.open.items():
            action = np.array([*actions, np.zeros(2)], np.float32)
            found[slot] = Rows(seed, action, np.array(obs), np.zeros(len(obs)))
        return found


class Sum(torch.nn.Module):
    """A state that adds up what it saw since the episode began."""

    feature_shape = (2,)

    def start(self, latent, *, rng=None):
        return latent

    def observe(self, state, action, latent, *, rng=None):
        return state + latent

    def imagine(self, state, action, *, rng=None, temperature=1.0):
        return Step(state, state[:, 0], state[:, 0])

    def features(self, state):
        return state


class Plain(torch.nn.Module):
    latent = Space((2,))

    def encode(self, obs):
        return obs

    def draw(self, code, *, sample, rng=None):
        return code


class Copy:
    """Acts as it sees; remembers how often it acted in the episode."""

    looks_at, actions = "features", Actions(2, False)

    def initial(self, batch):
        return torch.zeros(batch, 1)

    def act(self, view, memory, *, sample=False, rng=None):
        return view / 100, memory + 1


def played(steps, lockstep, player, obs=None):
    """Some steps; what was seen."""
    if obs is None:
        player.begin(lockstep.begin(), torch.Generator())
    seen = []
    for _ in range(steps):
        action = player.act(torch.Generator(), 0.0)
        obs, first = lockstep.step(action)
        player.look(action, obs, first, torch.Generator())
        seen.append((obs.copy(), action))
    return seen


def make():
    notes = Notes()
    return Lockstep(Count(), notes, lambda i: i), Player(WorldModel(Plain(), Sum()), Copy(), torch.device("cpu")), notes


def test_each_episode_has_its_own_seed_and_none_goes_on_in_another():
    lockstep, player, notes = make()
    played(20, lockstep, player)
    assert [len(actions) for _, actions, _ in notes.over] == [2 + seed % 3 for seed, _, _ in notes.over]
    seeds = [seed for seed, _, _ in notes.over] + [seed for seed, _, _ in notes.open.values()]
    assert sorted(seeds) == list(range(lockstep.begun))
    assert lockstep.finished.lengths == [len(actions) for _, actions, _ in notes.over]


def test_state_and_memory_begin_anew_with_an_episode():
    lockstep, player, _ = make()
    player.begin(lockstep.begin(), torch.Generator())
    for _ in range(2):
        action = player.act(torch.Generator(), 0.0)
        obs, first = lockstep.step(action)
        player.look(action, obs, first, torch.Generator())
    state, memory = player.state()
    assert first.tolist() == [True, False, False]
    np.testing.assert_array_equal(state[0], obs[0])
    assert memory[:, 0].tolist() == [0, 2, 2]


def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_happened():
    lockstep, player, _ = make()
    whole = played(12, lockstep, player)
    lockstep, player, notes = make()
    played(7, lockstep, player)
    kept, states = lockstep.state(), player.state()
    again, other, _ = make()
    again.replay = notes
    obs = again.restore(kept, notes.playing)
    other.restore(states, obs)
    for (obs_a, action_a), (obs_b, action_b) in zip(whole[7:], played(5, again, other, obs), strict=True):
        np.testing.assert_array_equal(obs_a, obs_b)
        np.testing.assert_array_equal(action_a, action_b)
    assert again.begun == 3 + sum(1 for _ in notes.over)


POLICIES = [White(Actions(2, False)), Brown(Actions(2, False), np.zeros(2), np.ones(2))]


def wandered(steps, lockstep, wanderers):
    return [lockstep.step(action)[0].copy() for action in (wanderers.act() for _ in range(steps))]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_random_actions_of_an_episode_follow_from_its_seed_alone(policy):
    lockstep, _, notes = make()
    lockstep.begin()
    wandered(20, lockstep, Wanderers(policy, lockstep))
    assert len(notes.over) > 5
    for seed, actions, _ in notes.over:
        walk = policy.walk(seed)
        np.testing.assert_array_equal(actions, [next(walk) for _ in actions])


def test_random_actions_go_on_where_a_run_was_stopped():
    lockstep, _, _ = make()
    lockstep.begin()
    whole = wandered(12, lockstep, Wanderers(POLICIES[1], lockstep))
    lockstep, _, notes = make()
    lockstep.begin()
    wandered(7, lockstep, Wanderers(POLICIES[1], lockstep))
    again, _, _ = make()
    again.replay = notes
    again.restore(lockstep.state(), notes.playing)
    np.testing.assert_array_equal(wandered(5, again, Wanderers(POLICIES[1], again)), whole[7:])


def test_the_tensors_of_a_state_make_it_again():
    state = (torch.zeros(2, 3), {"b": torch.ones(2), "c": ()})
    again = rebuilt(state, [x + 1 for x in leaves(state)])
    assert again[0].eq(1).all() and again[1]["b"].eq(2).all() and again[1]["c"] == ()
