"""Observations that are no pictures: bool grids and float vectors through representation, codes, checks and films."""

import numpy as np
import pytest
import torch

from wmrl import panels, pipeline
from wmrl.data import codes, shards
from wmrl.data.alignment import Alignment
from wmrl.data.check import check
from wmrl.data.episodes import Episodes
from wmrl.data.info import info
from wmrl.data.shards import Episode
from wmrl.log import Log
from wmrl.panels import Dreaming
from wmrl.recording import Episode as Seen
from wmrl.representations.pixels import Pixels
from wmrl.run import Run
from wmrl.spec import Space
from wmrl.stages import generate as stage
from wmrl.traces import SIDE, Traces, scale_of

META = {
    "env": {"id": "Toy-v0"},
    "policy": {"policy": "white"},
    "actions": {"size": 2, "discrete": True, "low": [0, 0], "high": [1, 1]},
    "seed": 1,
}
KINDS = {"grid": ((4, 10, 10), np.bool_), "vector": ((17,), np.float32)}


def observations(kind, rows, rng):
    shape, dtype = KINDS[kind]
    return rng.random((rows, *shape)) < 0.3 if dtype == np.bool_ else rng.normal(size=(rows, *shape)).astype(dtype)


def episode(kind, steps, seed, obs=None):
    rng = np.random.default_rng(seed)
    action = np.zeros((steps + 1, 2), np.float32)
    action[np.arange(steps), rng.integers(2, size=steps)] = 1
    ends = np.arange(steps + 1) == steps - 1
    obs = observations(kind, steps + 1, rng) if obs is None else obs
    return Episode(
        obs, action, np.where(np.arange(steps + 1) < steps, 0.5, 0).astype(np.float32), ends, ~ends & ends, seed
    )


def dataset(folder, made):
    shards.write_shard(folder, 0, made, META)
    shards.complete(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_good_data_are_found_good_and_described(tmp_path, kind):
    folder = dataset(tmp_path, [episode(kind, 30 + seed, seed) for seed in range(4)])
    assert list(check(folder)) == []
    shape, dtype = KINDS[kind]
    assert info(folder)["observation"] == {"shape": list(shape), "dtype": np.dtype(dtype).name}


def test_short_episodes_of_a_grid_may_be_equal_and_long_ones_may_not(tmp_path):
    rng = np.random.default_rng(0)
    for steps, wanted in ((9, []), (150, ["duplicate"])):
        obs = observations("grid", steps + 1, rng)
        folder = dataset(tmp_path / str(steps), [episode("grid", steps, seed, obs) for seed in (1, 2)])
        assert [finding.kind for finding in check(folder)] == wanted


def test_an_observation_that_is_no_number_is_found(tmp_path):
    made = episode("vector", 30, 1)
    made.obs[7, 3] = np.nan
    folder = dataset(tmp_path, [made, episode("vector", 30, 2)])
    assert [(finding.kind, finding.where) for finding in check(folder)] == [("values", "episode 0")]


@pytest.mark.parametrize("lag", [0, 1, -1])
def test_a_small_grid_tells_when_it_answers_actions(lag):
    """A piece moves with the action, and stops at the walls."""
    rng, steps = np.random.default_rng(3), 600
    action = np.zeros((steps + 1, 2), np.float32)
    choice = rng.integers(2, size=steps)
    action[np.arange(steps), choice] = 1
    obs, at = np.zeros((steps + 1, 4, 10, 10), bool), 5
    for t, move in enumerate(np.roll(choice, lag)):
        at = int(np.clip(at + 2 * move - 1, 0, 9))
        obs[t + 1, 1, 9, at] = True
    alignment = Alignment()
    alignment.add(obs, action)
    assert alignment.best() == lag


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_pass_everything_through_and_nothing_is_kept_twice(tmp_path, kind):
    folder = dataset(tmp_path / "data", [episode(kind, 20, 1)])
    episodes, log = Episodes(folder), Log.quiet("test", tmp_path / "log")
    obs = torch.from_numpy(episodes.episode(0).obs)
    pixels = Pixels(episodes.observation)
    seen = pixels.draw(pixels.encode(obs), sample=True)
    assert seen is obs and pixels.decode(seen).dtype == torch.float32 and pixels.decode(seen).equal(obs.float())
    source = codes.source(episodes, pixels, "hash", tmp_path / "codes", log=log, run=Run(device="cpu"))
    assert source is episodes


class Half:
    """A world whose state is the observation, which each dreamt step halves."""

    def start(self, obs, rng=None):
        return obs.float()

    observe = staticmethod(lambda state, action, obs, rng=None: obs.float())

    def imagine(self, state, action, rng=None, temperature=1.0):
        return state / 2, state.flatten(1)[:, 0] * 0, state.flatten(1)[:, 0] * 0 + 1

    def frame(self, state):
        return state


def seen(obs):
    steps = len(obs) - 1
    return Seen(obs, np.zeros((steps, 2), np.float32), np.ones(steps, np.float32))


def test_the_film_of_a_grid_shows_its_planes_in_colours_and_dreams_of_them_dimmer():
    obs = np.zeros((3, 4, 10, 10), bool)
    obs[:, 0, 2, 3] = obs[:, 2, 5, 6] = True
    real, dream = panels.real(seen(obs)), panels.dream(Half(), seen(obs), Dreaming(seed=0), every=0)
    first = real.frames[0]
    assert first.shape == (10, 10, 3) and (first[2, 3] != first[5, 6]).any() and not first[0, 0].any()
    assert abs(int(dream.frames[1][2, 3].max()) - int(first[2, 3].max()) / 2) <= 1
    assert panels.side_by_side([real, dream], 1, "header", 96).ndim == 3


def test_the_film_of_a_vector_shows_curves_up_to_now_and_its_dream_to_the_same_scale():
    obs = np.stack([np.linspace(0, 1, 40), np.linspace(1, -1, 40)], 1).astype(np.float32)
    real, dream = panels.real(seen(obs)), panels.dream(Half(), seen(obs), Dreaming(seed=0), every=0)
    assert len(real.frames) == len(dream.frames) == 40
    early, late = real.frames[3].astype(int), real.frames[39].astype(int)
    assert (early[:, : SIDE // 50] == late[:, : SIDE // 50]).all(), "what was, stays"
    assert late[:, SIDE // 2 :].max() > 1.5 * early[:, SIDE // 2 :].max(), "what comes is faint"
    dreamt = (obs[0] / 2 ** np.arange(40.0)[:, None]).astype(np.float32)
    assert (dream.frames[39] == Traces(dreamt, scale_of(obs))[39]).all()
    assert (Traces(obs / 2, scale_of(obs / 2))[39] == late).all(), "to its own scale, anything looks right"
    strip = panels.stacked([real, dream], 5, "step 5", 96)
    assert strip.shape[1] == 96


def test_numbers_that_are_constant_or_not_finite_can_be_drawn():
    values = np.array([[1.0, np.nan], [1.0, 2.0], [1.0, np.inf]])
    assert scale_of(values).tolist() == [[1, 2], [1, 2]]
    assert len(list(Traces(values, scale_of(values)))) == 3
    assert Traces(np.ones((1, 3)), scale_of(np.ones((1, 3))))[0].shape == (SIDE, SIDE, 3)


def test_a_vae_says_that_vectors_are_no_frames():
    from wmrl.representations.vae import VAE

    with pytest.raises(ValueError, match=r"frames must be \(channels, size, size\)"):
        VAE(Space((17,)))


@pytest.mark.parametrize(
    ("env", "each"),
    [
        ({"id": "Pendulum-v1", "size": 32}, 3 * 32 * 32),
        ({"id": "Pendulum-v1", "observe": "state"}, 3 * 4),
        ({"id": "MinAtar/Breakout-v1", "hide": [2]}, 300),
    ],
)
def test_waves_are_as_large_as_the_memory_of_their_observations_allows(env, each, monkeypatch):
    pytest.importorskip("minatar")
    pipe = pipeline.parse({"env": {**env, "max_steps": 99}})
    assert stage._row_bytes(pipe.env) == each
    monkeypatch.setattr(stage, "WAVE_BYTES", 5 * 100 * each)
    assert stage._environments(pipe, {"policy": {}}, Run(threads=4), each) == 5
