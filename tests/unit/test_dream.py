"""A dream as a stepping surface: where it begins, who goes on, how hot it is, when it ends."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from wmrl.controllers.linear import Linear
from wmrl.dream import Dream, Dreamer, first_codes
from wmrl.population import Rollouts
from wmrl.seeding import generator
from wmrl.spec import Actions, Step, take
from wmrl.trainers.grounds import Scores
from wmrl.world import WorldModel

BANK = 100 * torch.arange(5.0)[:, None]


class Itself(nn.Module):
    """Latents are the codes; in dreams they are drawn."""

    def draw(self, code, *, sample, rng):
        assert sample
        return code


class Walk(nn.Module):
    """A state is one number, which grows by the action and, in place of noise, by the temperature; it is the reward."""

    feature_shape = (1,)

    def start(self, latent, *, rng):
        return {"z": latent}

    def imagine(self, state, action, *, rng, temperature=1.0):
        z = state["z"] + action + temperature
        return Step({"z": z}, z[:, 0], (z[:, 0] % 100 < 3).float())

    def features(self, state):
        return state["z"]


def dream(**how) -> Dream:
    return Dream(WorldModel(Itself(), Walk()), Linear((1,), Actions(1, False)), BANK, **how)


def still(rows: int) -> np.ndarray:
    return np.zeros((rows, 1), np.float32)


def test_a_seed_begins_at_its_frame_of_the_bank_in_any_company() -> None:
    seeds = range(30)
    first = dream().reset(seeds)
    assert set(first.flatten().tolist()) == set(BANK.flatten().tolist())
    assert torch.cat([dream().reset([seed]) for seed in seeds]).equal(first)
    assert dream().reset(seeds[::-1]).equal(first.flip(0))


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.25])
def test_every_step_has_the_temperature_that_was_asked_for(temperature: float) -> None:
    asleep = dream(temperature=temperature)
    first = asleep.reset([3, 4]).flatten().numpy()
    for steps in (1, 2):
        out = asleep.step(still(2), np.arange(2))
        np.testing.assert_allclose(out.reward, first + steps * temperature)
        assert out.obs.flatten().tolist() == out.reward.tolist()


def test_the_rows_that_are_left_go_on_from_where_they_were() -> None:
    asleep, rows = dream(temperature=0.0), np.arange(6)
    at = asleep.reset(range(6)).flatten().numpy().copy()
    for ids in (rows, np.array([1, 2, 4, 5]), np.array([2, 5]), np.array([2, 5]), np.array([5])):
        out = asleep.step(rows[ids, None].astype(np.float32) / 100, ids)
        at[ids] += ids / 100
        np.testing.assert_allclose(out.reward, at[ids], rtol=1e-6)
        assert out.obs.flatten().tolist() == out.reward.tolist()


def test_it_terminates_where_the_model_says_and_is_truncated_at_its_limit() -> None:
    asleep, ids = dream(max_steps=4), np.arange(2)
    asleep.reset([3, 4])
    outs = [asleep.step(np.float32([[0.0], [-0.5]]), ids) for _ in range(4)]
    assert [out.terminated.tolist() for out in outs] == [[False, False]] * 2 + [[True, False]] * 2
    assert [out.truncated.tolist() for out in outs] == [[False, False]] * 3 + [[True, True]]


def test_rows_are_kept_on_the_device_of_the_policy() -> None:
    kept: list[torch.Tensor] = []
    Dreamer(SimpleNamespace(keep=kept.append), "meta").keep(np.array([0, 2]))
    assert kept[0].device.type == "meta" and len(kept[0]) == 2


def test_the_bank_holds_the_first_frames_of_the_episodes_in_order(monkeypatch) -> None:
    episodes: Any = SimpleNamespace(start=7 * np.arange(151), gather=lambda rows: {"obs": rows.astype(np.float32)})
    world: Any = SimpleNamespace(encode=lambda frames: 10 * frames)
    bank = first_codes(world, episodes, torch.device("cpu"))
    assert bank.tolist() == [70 * episode for episode in range(150)]
    monkeypatch.setattr("wmrl.dream.BANK", 3)
    assert first_codes(world, episodes, torch.device("cpu")).tolist() == [0, 70, 140]


class Noisy(Walk):
    """The reward is a number drawn for each row."""

    def imagine(self, state, action, *, rng, temperature=1.0):
        return Step(state, torch.empty(len(action)).normal_(generator=rng), torch.ones(len(action)))


def test_who_plays_a_seed_meets_the_same_noise_in_any_company_and_after_others_have_ended() -> None:
    world = WorldModel(Itself(), Noisy())
    together, alone = (Dream(world, Linear((1,), Actions(1, False)), BANK) for _ in range(2))
    together.reset([7, 3, 7, 5])
    alone.reset([7])
    seen = []
    for ids in (np.arange(4), np.arange(4), np.array([1, 2]), np.array([2])):
        (own,) = alone.step(still(1), np.arange(1)).reward
        reward = together.step(still(len(ids)), ids).reward
        assert reward[ids == 2] == own and len(set(reward.tolist())) == len(set(ids.tolist()) - {0})
        seen.append(own)
    assert len(set(seen)) == 4


@pytest.mark.parametrize(("lanes", "alive"), [(1, 100), (2, 100), (2, 4)])
def test_all_candidates_play_the_same_dreams_in_whatever_waves_and_lanes(lanes: int, alive: int) -> None:
    controller = Linear((1,), Actions(1, False)).requires_grad_(False)
    dreams = [Dream(WorldModel(Itself(), Noisy()), controller, BANK, max_steps=5) for _ in range(lanes)]
    scores, cells = Scores.empty(3, 4), np.array([(p, s) for s in range(4) for p in range(3)])
    Rollouts(dreams, Dreamer, controller, alive, torch.device("cpu"))(np.zeros((3, 2)), np.arange(4), cells, scores)
    draws = [generator("dream", seed) for seed in range(4)]
    expected = [sum(torch.empty(()).normal_(generator=rng).item() for _ in range(5)) for rng in draws]
    np.testing.assert_allclose(scores.returns, np.tile(expected, (3, 1)), rtol=1e-5)


@pytest.mark.parametrize(("slack", "copies"), [(0.0, list(range(9, 0, -1))), (0.5, [4, 1])])
def test_rows_that_ended_are_dropped_when_they_are_many(monkeypatch, slack: float, copies: list[int]) -> None:
    taken = []
    monkeypatch.setattr("wmrl.dream.SLACK", slack)
    monkeypatch.setattr("wmrl.dream.take", lambda tree, index: taken.append(len(index)) or take(tree, index))
    asleep = dream(temperature=0.0)
    at = asleep.reset(range(10)).flatten().numpy().copy()
    for gone in range(10):
        ids = np.arange(gone, 10)
        at[ids] += ids
        out = asleep.step(ids[:, None].astype(np.float32), ids)
        assert out.reward.tolist() == out.obs.flatten().tolist() == at[ids].tolist()
        assert out.terminated.tolist() == (at[ids] % 100 >= 3).tolist() and len(out.truncated) == len(ids)
    assert taken == copies
