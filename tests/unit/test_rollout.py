"""Rollouts: partial stepping equals full, a population equals its members, dreams take the same path."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from wmrl import interrupts
from wmrl.controllers.linear import Linear
from wmrl.dream import Dream, Dreamer
from wmrl.errors import Stopped, UserError
from wmrl.population import Rollouts
from wmrl.precision import autocast, lowered
from wmrl.representations.vae import VAE
from wmrl.rollout import Agent, Policy, play, waves
from wmrl.seeding import rng
from wmrl.spec import Actions, Space, Step
from wmrl.trainers.grounds import Scores
from wmrl.world import WorldModel


class Outcome(NamedTuple):
    obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class Counter:
    """Episode with seed s ends after 3 + s % 5 steps; frames say seed and time; rewards grow with the action."""

    def __init__(self) -> None:
        self.moved: list[list[int]] = []

    def reset(self, seeds):
        self.seeds, self.t = np.array(seeds), np.zeros(len(seeds), int)
        return self._obs(np.arange(len(seeds)))

    def step(self, action, ids):
        assert len(action) == len(ids)
        self.moved.append(ids.tolist())
        self.t[ids] += 1
        over = self.t[ids] >= 3 + self.seeds[ids] % 5
        return Outcome(self._obs(ids), action[:, 0] + 1, over & (self.seeds[ids] % 2 == 0), over)

    def _obs(self, ids):
        frame = np.stack([self.seeds[ids] % 250, self.t[ids]], -1).astype(np.uint8)
        return frame[:, :, None, None] * np.ones((1, 1, 2, 2), np.uint8)


class Pixels(nn.Module):
    def encode(self, obs):
        return obs[..., 0, 0].float() / 10

    def draw(self, code, *, sample, rng=None):
        return code

    def decode(self, latent):
        return latent[..., None, None].expand(*latent.shape, 2, 2)


class Memory(nn.Module):
    """h counts actions; dreams end when h is large."""

    feature_shape = (4,)

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(5, 2)
        nn.init.normal_(self.mix.weight, generator=torch.Generator().manual_seed(1))

    def start(self, latent, *, rng):
        return {"z": latent, "h": latent.new_zeros(len(latent), 2)}

    def observe(self, state, action, latent, *, rng):
        return {"z": latent, "h": torch.tanh(self.mix(torch.cat([state["z"], state["h"], action], -1)))}

    def imagine(self, state, action, *, rng, temperature=1.0):
        z = state["z"] + temperature * torch.randn(state["z"].shape, generator=rng)
        h = state["h"] + 1
        return Step({"z": z, "h": h}, action[:, 0] + 1, (h[:, 0] < 3 + state["z"][:, 0].abs()).float())

    def features(self, state):
        return torch.cat([state["z"], state["h"]], -1)

    def latent(self, state):
        return state["z"]


@pytest.fixture
def world() -> WorldModel:
    return WorldModel(Pixels(), Memory()).requires_grad_(False).eval()


@pytest.fixture
def controller() -> Linear:
    return Linear((4,), Actions(1, False)).requires_grad_(False)


def _parameters(n: int) -> np.ndarray:
    return rng("parameters").normal(size=(n, 5))


SEEDS = np.array([3, 4, 5, 6, 11, 17])


def test_finished_rows_are_dropped_everywhere(world, controller) -> None:
    env, seen = Counter(), []
    played = play(
        env, Agent(world, Policy(controller)), SEEDS, on_step=lambda ids, obs, a, out: seen.append((ids, obs, a, out))
    )
    assert played.lengths.tolist() == (3 + SEEDS % 5).tolist()
    assert [len(ids) for ids in env.moved] == [(played.lengths > t).sum() for t in range(7)]
    assert played.terminated.tolist() == (SEEDS % 2 == 0).tolist() and not played.aborted.any()
    for t, (ids, obs, action, outcome) in enumerate(seen):
        assert (obs[:, 1] == t).all() and (outcome.obs[:, 1] == t + 1).all()
        assert (obs[:, 0, 0, 0] == SEEDS[ids] % 250).all() and len(action) == len(ids)


def test_a_population_scores_as_its_members_one_by_one(world, controller) -> None:
    parameters, scores = _parameters(5), Scores.empty(5, len(SEEDS))
    cells = np.array([(p, s) for p in range(5) for s in range(len(SEEDS))])
    together = Rollouts([Counter()], lambda policy: Agent(world, policy), controller, 8, torch.device("cpu"))
    together(parameters, SEEDS, cells, scores)
    for p, row in enumerate(parameters):
        nn.utils.vector_to_parameters(torch.tensor(row, dtype=torch.float32), controller.parameters())
        for s, seed in enumerate(SEEDS):
            alone = play(Counter(), Agent(world, Policy(controller)), [seed])
            assert scores.returns[p, s] == pytest.approx(alone.returns[0], abs=1e-5)
            assert scores.steps[p, s] == alone.lengths[0]
    assert scores.returns.std() > 0.1


def test_waves_are_equal_cover_all_and_those_played_are_skipped(world, controller) -> None:
    for rows, n in ((1024, 64), (10, 4), (3, 8), (65, 64)):
        cut = waves(rows, n)
        assert [i for part in cut for i in range(rows)[part]] == list(range(rows))
        assert max(part.stop - part.start for part in cut) - min(part.stop - part.start for part in cut) <= 1
        assert max(part.stop - part.start for part in cut) <= n
    cells, done = np.array([(0, s) for s in range(6)]), []
    scores = Scores.empty(1, 6)
    scores.returns[0, :3] = 7.0
    rollouts = Rollouts([Counter()], lambda policy: Agent(world, policy), controller, 3, torch.device("cpu"))
    rollouts(_parameters(1), SEEDS, cells, scores, after_wave=lambda: done.append(scores.played.sum()))
    assert done == [6] and (scores.returns[0, :3] == 7).all()


def test_hopeless_rollouts_are_given_up_and_keep_their_return() -> None:
    class Slope(Counter):
        def step(self, action, ids):
            out = super().step(action, ids)
            reward = np.where(self.t[ids] <= 2, 1.0, -0.5) + np.where(ids == 1, 2.0, 0.0)
            return Outcome(out.obs, reward, np.zeros(len(ids), bool), self.t[ids] >= 10)

    class Still:
        def begin(self, obs, seeds):
            return self.step(obs)

        def step(self, obs):
            return np.zeros((len(obs), 1), np.float32)

        def keep(self, index):
            pass

    played = play(Slope(), Still(), [1, 2], abort=3)
    assert played.aborted.tolist() == [True, False] and played.lengths.tolist() == [5, 10]
    assert played.returns.tolist() == [2 - 1.5, 2 * 3 + 8 * 1.5]
    assert play(Slope(), Still(), [1, 2]).lengths.tolist() == [10, 10]
    assert play(Slope(), Still(), [1, 2], max_steps=4).lengths.tolist() == [4, 4]


def test_the_same_policy_without_parameters_or_with_its_own_acts_the_same(controller) -> None:
    nn.utils.vector_to_parameters(torch.tensor(_parameters(1)[0], dtype=torch.float32), controller.parameters())
    view = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    own = nn.utils.parameters_to_vector(controller.parameters()).repeat(6, 1)
    one, many = Policy(controller), Policy(controller, own)
    for policy in (one, many):
        policy.begin(6, range(6))
    torch.testing.assert_close(one.act(view), many.act(view))
    many.keep(torch.tensor([0, 5]))
    torch.testing.assert_close(one.act(view)[[0, 5]], many.act(view[[0, 5]]))
    with pytest.raises(ValueError, match="6 controllers for 4 rows"):
        many.begin(4, range(4))


class Counting(nn.Module):
    """A controller with a memory: the action is how often it acted, times its parameter."""

    looks_at, actions = "frame", Actions(1, False)

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1), requires_grad=False)

    def initial(self, batch):
        return {"n": torch.zeros(batch, 1)}

    def act(self, view, memory, *, sample=False, rng=None):
        n = memory["n"] + 1
        return self.gain * n + 0 * view.flatten(1).mean(1, keepdim=True), {"n": n}


def test_memories_march_with_their_rows_and_frames_can_be_looked_at(world) -> None:
    rollouts = Rollouts([Counter()], lambda policy: Agent(world, policy), Counting(), 8, torch.device("cpu"))
    scores = Scores.empty(2, 3)
    cells = np.array([(p, s) for p in range(2) for s in range(3)])
    rollouts(np.array([[1.0], [-2.0]]), np.array([3, 4, 5]), cells, scores)
    for p, gain in enumerate((1.0, -2.0)):
        expected = [sum(gain * k + 1 for k in range(1, 4 + s % 5)) for s in (3, 4, 5)]
        np.testing.assert_allclose(scores.returns[p], expected)


def test_eyes_of_bfloat16_see_what_autocast_sees_and_pictures_stay_float32() -> None:
    torch.manual_seed(0)
    vae = VAE(Space((3, 32, 32)), latent=2).requires_grad_(False).eval()
    world = WorldModel(vae, Memory().requires_grad_(False))
    frames = rng("frames").integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    eyes = lowered(vae, "bf16")
    assert lowered(vae, "fp32") is vae and vae.mean.weight.dtype == torch.float32
    with torch.inference_mode(), autocast("bf16", "cpu"):
        torch.testing.assert_close(eyes.encode(torch.from_numpy(frames)), vae.encode(torch.from_numpy(frames)))
    agent = Agent(world, Policy(Counting()), "bf16", eyes=eyes)
    assert agent.begin(frames, range(5)).shape == agent.step(frames).shape == (5, 1)


@pytest.mark.parametrize("latents", ["mean", "sample"])
def test_latents_are_the_most_likely_ones_or_draws_as_the_controller_says(latents) -> None:
    torch.manual_seed(0)
    vae = VAE(Space((3, 32, 32)), latent=2).requires_grad_(False).eval()
    frames = rng("frames").integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    mean = vae.draw(vae.encode(torch.from_numpy(frames)), sample=False)

    def seen(*seeds: int) -> torch.Tensor:
        policy = Policy(Linear((4,), Actions(1, False), latents=latents).requires_grad_(False))
        agent = Agent(WorldModel(vae, Memory().requires_grad_(False)), policy)
        agent.begin(frames, seeds)
        return agent.state["z"]

    torch.testing.assert_close(seen(*range(5)), seen(*range(5)), rtol=0, atol=0)
    fixed = torch.equal(seen(*range(5)), seen(*range(5, 10)))
    assert torch.equal(seen(*range(5)), mean) == fixed == (latents == "mean")


def test_noise_is_repeatable_and_bounded(world, controller) -> None:
    def actions() -> np.ndarray:
        seen: list[Any] = []
        agent = Agent(world, Policy(controller, noise=2.0))
        play(Counter(), agent, SEEDS, on_step=lambda ids, obs, a, out: seen.append(a))
        return np.concatenate(seen)

    first = actions()
    np.testing.assert_array_equal(first, actions())
    assert np.abs(first).max() == 1 and first.std() > 0.1


@pytest.mark.parametrize("noise", [0.0, 0.5, 2.0])
def test_of_discrete_actions_noise_is_the_chance_of_a_uniform_one(noise) -> None:
    policy, rows = Policy(Linear((4,), Actions(4, True)).requires_grad_(False), noise=noise), 2000
    policy.begin(rows, [1])
    action = policy.act(torch.zeros(rows, 4))
    assert set(action.unique().tolist()) <= {0.0, 1.0} and bool((action.sum(1) == 1).all())
    chosen = 1 - 0.75 * min(noise, 1)  # the first action, which all rows choose, may be drawn too
    assert action.mean(0).tolist() == pytest.approx([chosen, *[(1 - chosen) / 3] * 3], abs=0.04)
    policy.begin(rows, [1])
    assert torch.equal(policy.act(torch.zeros(rows, 4)), action)


def test_dreams_run_on_the_same_path_and_end_as_the_model_says(world, controller) -> None:
    bank = torch.tensor([[0.0, 0.0], [30.0, 0.0]])
    dream = Dream(world, controller, bank, max_steps=6)
    rollouts = Rollouts([dream], Dreamer, controller, 64, torch.device("cpu"))
    cells = np.array([(p, s) for p in range(3) for s in range(20)])
    results = []
    for _ in range(2):
        scores = Scores.empty(3, 20)
        rollouts(_parameters(3), np.arange(20), cells, scores)
        results.append(scores)
    np.testing.assert_array_equal(results[0].returns, results[1].returns)
    assert results[0].steps.max() == 6 and 3 <= results[0].steps.min() < 6
    cold = Dream(world, controller, bank, temperature=0.0, max_steps=6)
    lengths = play(cold, Dreamer(Policy(controller)), range(20)).lengths
    assert set(lengths.tolist()) == {3, 6}  # some seeds begin at the one frame of the bank, some at the other


def test_dreams_end_by_a_draw_if_asked(world, controller) -> None:
    class Coin(Memory):
        def imagine(self, state, action, *, rng, temperature=1.0):
            return Step(state, action[:, 0] + 1, torch.full((len(action),), 0.8))

    dreams = WorldModel(Pixels(), Coin()).requires_grad_(False)
    bank = torch.zeros(1, 2)
    lengths = [
        play(Dream(dreams, controller, bank, ends=ends, max_steps=50), Dreamer(Policy(controller)), range(400)).lengths  # type: ignore
        for ends in ("threshold", "sample")
    ]
    assert (lengths[0] == 50).all() and lengths[1].mean() == pytest.approx(5, abs=1)


def test_features_that_are_not_finite_stop_the_rollout(controller) -> None:
    class Broken(Memory):
        def features(self, state):
            return super().features(state) / 0 * 0

    broken = WorldModel(Pixels(), Broken()).requires_grad_(False)
    with pytest.raises(UserError, match="not finite"):
        play(Counter(), Agent(broken, Policy(controller)), [1])


def test_a_signal_stops_between_two_steps(world, controller, monkeypatch) -> None:
    monkeypatch.setattr(interrupts, "_pending", 15)
    with pytest.raises(Stopped):
        play(Counter(), Agent(world, Policy(controller)), [1])
