"""What `wmrl compare` measures, on models and data whose numbers are known."""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from wmrl.comparison import comparison, endings, measures, pixels, results
from wmrl.comparison.baselines import LastLatent
from wmrl.comparison.heldout import HeldOut, held_out
from wmrl.comparison.subjects import Split
from wmrl.data.codes import Codes
from wmrl.data.episodes import split
from wmrl.spec import Space, Step
from wmrl.stages.train_dynamics import spread
from wmrl.world import WorldModel

SIGMA = 0.5
HOW = measures.How(seed=3, device="cpu", tick=lambda: None)


class Plain(nn.Module):
    """A representation whose code is the latent."""

    latent = Space((2,))

    def draw(self, code, *, sample, rng=None):
        return code


class Truth(nn.Module):
    """Knows that the action is added to the latent, and that reward and end follow from it; sure of it up to SIGMA."""

    def start(self, latent, *, rng=None):
        return (latent,)

    def observe(self, state, action, latent, *, rng=None):
        assert torch.allclose(latent, state[0] + action, atol=1e-4), "rows or steps were mixed up"
        return (latent,)

    def imagine(self, state, action, *, rng=None, temperature=1.0):
        end = (action[:, 0] > 0.9).float()
        return Step((state[0] + action,), action.sum(-1), 1 - end)

    def latent(self, state):
        return state[0]

    def log_prob(self, state, action, latent):
        return torch.distributions.Normal(state[0] + action, SIGMA).log_prob(latent).sum(-1)

    def loss(self, latent, batch, *, rng=None):
        nll = -torch.distributions.Normal(latent[:, :-1] + batch.action, SIGMA).log_prob(latent[:, 1:]).mean()
        return nll, {"nll": nll}


class Forgetful(Truth):
    """The same in windows; step by step it loses the latent that it saw."""

    def observe(self, state, action, latent, *, rng=None):
        return (latent + 1,)


class Lost(Truth):
    """The same in windows; step by step it has no density of some latents."""

    def log_prob(self, state, action, latent):
        return super().log_prob(state, action, latent) / (latent[:, 0] < 4)


def walk(lengths, rng, *, follows=True):
    """Episodes in which the latent moves as the action says, or at random; the last action may end an episode."""
    rows = int((np.asarray(lengths) + 1).sum())
    start = np.concatenate([[0], np.cumsum(np.asarray(lengths) + 1)])
    action = rng.uniform(-0.9, 0.9, (rows, 2)).astype(np.float32)
    action[start[1:] - 1] = 0  # the last frame's
    action[start[1::2] - 2, 0] = 1  # every other episode is ended by its last action
    code = np.zeros((rows, 2), np.float32)
    for a, b in itertools.pairwise(start):
        moves = action[a : b - 1] if follows else SIGMA * rng.standard_normal((b - a - 1, 2))
        code[a + 1 : b] = np.cumsum(moves, 0)
    columns = {"code": code, "action": action, "reward": action.sum(1), "terminated": action[:, 0] > 0.9}
    return Codes(start, np.asarray(lengths), columns)


def windows(codes, count, steps, warmup, rng):
    window = np.sort(np.arange(count) % len(codes))
    first = rng.integers(0, codes.lengths[window] - min(steps, codes.lengths.min()) + 1)
    return HeldOut(None, np.arange(len(codes)), codes.lengths, window, first, steps, warmup)


@pytest.fixture
def known():
    rng = np.random.default_rng(0)
    codes = walk([60, 41, 72, 55], rng)
    return codes, windows(codes, 12, 40, 8, rng)


def test_who_knows_the_truth_has_no_error_and_the_right_nats(known):
    codes, held = known
    world = WorldModel(Plain(), Truth())
    found = measures.likelihood(world, held, codes, HOW, 16)
    assert found.awake.shape == (12, 40)
    assert found.awake[found.mask > 0] == pytest.approx(math.log(SIGMA) + 0.5 * math.log(2 * math.pi), abs=1e-5)
    assert found.gap == pytest.approx(0, abs=1e-5)
    dreams = measures.dreams(world, held, codes, HOW, 3)
    assert dreams.latent.shape == (12, 3, 32) and dreams.latent[dreams.mask[:, None].repeat(3, 1) > 0].max() < 1e-9
    assert dreams.reward[dreams.mask[:, None].repeat(3, 1) > 0].max() < 1e-9
    assert sorted(dreams.dreamt) == [0, 1, 2, 5, 10, 20, 30]


def test_the_first_steps_and_those_beyond_a_training_window_are_told_apart(known, monkeypatch):
    codes, held = known
    awake, mask = np.ones((12, 40)), np.ones((12, 40))
    awake[:, held.warmup :] = 3
    awake[:, -5:], mask[:, -5:] = 100, 0
    found = measures.Likelihood(awake, mask, np.full(len(codes), 0.25))
    monkeypatch.setattr(measures, "likelihood", lambda *_: found)
    subject = SimpleNamespace(world=WorldModel(Plain(), Truth()), length=16, shares=True, store=None)
    model = results.Findings(subject, numbers={})
    comparison._likelihood(model, codes, SimpleNamespace(held=held, how=HOW))
    numbers = {name: model.numbers[name].value for name in ("nats", "nats_late", "gap")}
    assert numbers == {"nats": 1, "nats_late": 3, "gap": 0.25}


class Painted(Plain):
    """A latent is a pattern of waves."""

    def decode(self, latent):
        i = torch.arange(9.0)
        waves = latent[..., :1, None] * i[:, None] + latent[..., 1:, None] * i  # (*n, 9, 9)
        return (0.5 + 0.5 * torch.sin(waves)).unsqueeze(-3).expand(*latent.shape[:-1], 3, 9, 9)


def test_a_dream_that_is_true_is_held_against_the_frame_of_its_moment(known):
    codes, held = known

    def gather(rows):
        frames = Painted().decode(torch.from_numpy(codes.columns["code"][rows]))
        return {"obs": (255 * frames).round().to(torch.uint8).numpy()}

    episodes = SimpleNamespace(start=codes.start, lengths=codes.lengths, gather=gather, observation=Space((3, 9, 9)))
    held = dataclasses.replace(held, episodes=episodes)
    world = WorldModel(Painted(), Truth())
    found = measures.dreams(world, held, codes, HOW, 2)
    steps = sorted(found.dreamt)
    true = [pixels.apart(world, held, found, step) for step in steps]
    assert [each.alike.shape for each in true] == [(12, 1), *[(12, 2)] * (len(steps) - 1)]
    assert all(each.alike.min() > 0.999 and each.error.max() < 1e-5 for each in true)
    late = {h: found.dreamt[then] for h, then in zip(steps[1:], [*steps[2:], 1], strict=True)}
    for step in late:
        wrong = pixels.apart(world, held, dataclasses.replace(found, dreamt=late), step)
        assert wrong.alike.max() < 0.999 and wrong.error.min() > 1e-5


@pytest.mark.parametrize("asked", [1, 50, 1000])
def test_every_step_of_every_episode_is_asked_once_for_its_outcome(known, asked, monkeypatch):
    monkeypatch.setattr(measures, "ASKED", asked)
    codes, held = known
    found = measures.outcomes(WorldModel(Plain(), Truth()), held, codes, HOW)
    assert np.bincount(found.episode).tolist() == codes.lengths.tolist()
    assert found.reward.max() < 1e-9 and found.ended.sum() == 2
    assert np.array_equal(found.end, found.ended) and set(found.episode[found.ended]) == {0, 2}


def test_a_model_that_holds_in_windows_but_not_step_by_step_is_found_out(known):
    codes, held = known
    found = measures.likelihood(WorldModel(Plain(), Forgetful()), held, codes, HOW, 16)
    assert found.gap == pytest.approx(0.5 / SIGMA**2, rel=1e-3)


def test_the_gap_of_a_model_that_diverges_step_by_step_is_not_that_of_the_windows_in_which_it_does_not(known):
    codes, held = known
    found = measures.likelihood(WorldModel(Plain(), Lost()), held, codes, HOW, 16)
    clean = held.by_episode(np.isfinite(found.awake) | (found.mask == 0), np.ones((12, 40))) == 1
    assert clean.any() and not clean.all()
    assert np.isinf(found.gap[~clean]).any() and results.estimate(found.gap) is None


def test_the_guess_that_nothing_changes_equals_its_closed_form_on_a_random_walk():
    rng = np.random.default_rng(1)
    codes = walk([120] * 40, rng, follows=False)
    held = windows(codes, 400, 60, 4, rng)
    batch = held.windows(codes)
    variance = spread(WorldModel(Plain(), nn.Identity()), [(batch, torch.Generator())])
    assert variance.tolist() == pytest.approx([SIGMA**2] * 2, rel=0.05)
    guess = LastLatent(variance, reward=0.0, end=0.0)
    world = WorldModel(Plain(), guess)
    found = measures.likelihood(world, held, codes, HOW, 32)
    assert found.awake.mean() == pytest.approx(0.5 * math.log(2 * math.pi * math.e * SIGMA**2), abs=0.02)
    error = measures.dreams(world, held, codes, HOW, 8).latent.mean((0, 1))
    steps = np.arange(1, len(error) + 1)
    assert error == pytest.approx(2 * steps * SIGMA**2, rel=0.15)


def test_the_ranking_of_ends_is_the_share_of_pairs_in_order():
    chance, ended = np.array([0.9, 0.2, 0.5, 0.5, 0.1]), np.array([1, 0, 1, 0, 0], bool)
    assert endings.auc(chance, ended) == pytest.approx((3 + 2.5) / 6)
    assert endings.auc(chance, ended & False) is None and endings.auc(chance, ended | True) is None


def test_the_interval_of_the_ranking_is_that_of_episodes_resampled_by_hand():
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(12), 30)
    ended = (np.arange(360) % 30 == 29) & (episode % 3 > 0)
    chance = np.round(rng.uniform(0, 1, 360) + 0.4 * ended, 1)  # with ties
    drawn = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(episode == e) for e in rng.integers(0, 12, 12)])
        drawn.append(endings.auc(chance[rows], ended[rows]))
    between = endings.auc_interval(chance, ended, episode)
    assert between == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.015)
    assert between[0] < endings.auc(chance, ended) < between[1]
    assert endings.auc_interval(chance, ended & False, episode) is None


def test_a_model_that_diverged_is_not_judged_by_the_episodes_in_which_it_did_not(known):
    _, held = known
    values, mask = np.ones((12, 40)), np.ones((12, 40))
    values[0, 3], values[11] = np.nan, np.nan
    mask[11] = 0  # behind the end of an episode nothing counts
    each = held.by_episode(values, mask)
    assert each.tolist() == [np.inf, 1, 1, 1]
    assert results.estimate(each) is None and results.estimate(np.array([np.nan, 1, 3])).value == 2


def test_predictions_that_mean_what_they_say_have_no_calibration_error():
    chance = np.repeat([0.1, 0.5], 1000)
    ended = np.concatenate([np.arange(1000) < 100, np.arange(1000) < 500])
    assert endings.reliability(chance, ended) == [
        pytest.approx((0.1, 0.1, 1000)),
        pytest.approx((0.5, 0.5, 1000)),
    ]
    assert endings.calibration_error(endings.reliability(chance, ended)) == pytest.approx(0, abs=1e-9)
    assert endings.calibration_error(endings.reliability(chance + 0.2, ended)) == pytest.approx(0.2)


def test_a_constant_prediction_is_one_bin():
    ended = np.arange(1000) % 100 == 0
    assert endings.reliability(np.full(1000, 0.01), ended) == [pytest.approx((0.01, 0.01, 1000))]


def test_a_number_is_best_only_where_the_episodes_agree():
    rng = np.random.default_rng(0)
    episodes = rng.normal(0, 5, 20)  # some are hard for all
    good, bad = results.estimate(episodes), results.estimate(episodes + 0.5 + 0.1 * rng.normal(size=20))
    noisy = results.estimate(episodes + 0.5 + 8 * rng.normal(size=20))
    assert good.high > bad.low  # their own intervals overlap; paired, they are told apart
    assert results.best([bad, good, None, 0.0], "lower") == {1}
    assert results.best([bad, good], "higher") == {0}
    assert results.best([bad, good], "") == set()
    assert results.best([noisy, good, bad], "lower") == set()
    assert results.best([good, good, bad], "lower") == {0, 1} and results.best([good, good], "lower") == set()


def test_an_episode_that_any_model_has_learnt_from_is_not_held_out():
    seeds = np.arange(1000, 1400)
    splits = [Split(0.3, 1), Split(0.5, 2)]
    held = held_out(seeds, splits)
    for each in splits:
        assert not set(held) & set(split(seeds, each.fraction, each.seed)[0])
    assert 30 < len(held) < 90
