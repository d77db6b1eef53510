"""Flags of `wmrl render`: each reaches the film, or is refused."""

import dataclasses
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from wmrl import artifact
from wmrl.data import shards
from wmrl.errors import ArtifactError, ConfigError, ContractError
from wmrl.log import Log
from wmrl.run import Run
from wmrl.stages import render as stage
from wmrl.stages.render import RenderOptions, render
from wmrl.stages.subject import choose
from wmrl.stages.test_controller import test_controller
from wmrl.video import picture, titled

META = {
    "env": {"id": "Toy-v0", "size": 32, "crop": False},
    "environment": {"fps": 12.0},
    "policy": {"policy": "white"},
    "observation": {"shape": [3, 32, 32], "dtype": "uint8"},
    "actions": {"size": 2, "discrete": False},
}
HEIGHT, GAP, LINE = 32, 4, 22


def show(store, **options):
    with Log("render", store.logdir, progress=False, verbosity=-1) as log:
        render(store.pipe, store, log, Run(), RenderOptions(**options))


def filmed(store, name, **options):
    """The frames of a film whose panels are 32 pixels high."""
    show(store, frames=store.logdir / name, height=HEIGHT, **options)
    return [cv2.imread(str(path))[..., ::-1] for path in sorted((store.logdir / name).glob("*.png"))]


def panel(frame, i):
    """The picture in column i, 32 pixels wide."""
    return frame[2 * LINE :, i * (HEIGHT + GAP) :][:, :HEIGHT]


def recorded(seed, steps):
    rng = np.random.default_rng(seed)
    rows = steps + 1
    return shards.Episode(
        np.repeat(rng.integers(0, 255, (rows, 3, 1, 1), np.uint8), 32, 2).repeat(32, 3),
        rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        rng.uniform(-1, 1, rows).astype(np.float32),
        np.arange(rows) == steps - 1,
        np.zeros(rows, bool),
        seed,
    )


DATA = [recorded(1, 3), recorded(2, 7)]


@pytest.fixture
def store(parts, tmp_path):
    """Untrained parts, and a dataset of two episodes."""
    store = parts(tmp_path / "run")
    store.data = tmp_path / "data"
    shards.write_shard(store.data, 0, DATA, META)
    shards.complete(store.data)
    return store


@pytest.fixture
def scored(store):
    test_controller(store.pipe, store, Log.quiet("test-controller", store.logdir), Run(threads=2))
    return artifact.read(store.path("test"), "test")


@pytest.mark.parametrize("number", [0, 1])
def test_a_film_of_the_dataset_shows_the_episode_asked_for(store, number):
    with Log.quiet("render", store.logdir) as log:
        found = choose(store.pipe, store, log, Run(), RenderOptions(data=True, episode=number))
    there = DATA[number]
    np.testing.assert_array_equal(found.episode.obs, there.obs)
    np.testing.assert_array_equal(found.episode.action, there.action[:-1])
    np.testing.assert_array_equal(found.episode.reward, there.reward[:-1])
    assert (found.name, found.fps) == (f"data-episode-{number}", 12)
    frames = filmed(store, "frames", data=True, episode=number)
    np.testing.assert_array_equal([panel(frame, 0) for frame in frames], [picture(obs) for obs in there.obs])


@pytest.mark.parametrize("number", [0, 1])
def test_a_film_of_the_test_shows_the_episode_asked_for(store, scored, number):
    obs = scored.tensors[f"{scored.facts['order'][0]}/episodes/{number}/obs"]
    frames = filmed(store, "frames", episode=number)
    np.testing.assert_array_equal([panel(frame, 0) for frame in frames], [picture(one) for one in obs])


def test_the_header_sums_up_the_rewards(store):
    reward, frames = DATA[0].reward.astype(float), filmed(store, "frames", data=True)
    for i, frame in enumerate(frames):
        text = f"return {sum(reward[:i]):.1f}  step {i}/3"
        np.testing.assert_array_equal(frame[:LINE], titled(np.zeros((1, frame.shape[1], 3), np.uint8), text)[:LINE])


def test_speed_and_length_are_those_asked_for(store):
    path = store.logdir / "film.mp4"
    show(store, data=True, episode=1, fps=7.0, steps=4, out=path)
    reader = imageio_ffmpeg.read_frames(str(path))
    assert next(reader)["fps"] == 7
    assert len(list(reader)) == 5


@pytest.mark.parametrize(("every", "awake"), [(0, [0]), (2, [0, 3, 6]), (3, [0, 4])])
def test_the_dream_begins_again_when_it_is_asked_to(store, every, awake):
    frames = filmed(store, "frames", data=True, episode=1, reset_every=every)
    assert [i for i, frame in enumerate(frames) if (panel(frame, 1) == panel(frame, 2)).all()] == awake


@pytest.mark.parametrize("dream", [False, True])
def test_seed_and_temperature_reach_the_dream(store, dream):
    def dreamt(name, **options):
        frames = filmed(store, name, data=True, episode=1, steps=4, dream=dream, **options)
        return np.stack([panel(frame, 0 if dream else 2) for frame in frames])

    one, same, other = (dreamt(f"seed-{name}", seed=seed) for name, seed in (("1", 1), ("1-again", 1), ("2", 2)))
    np.testing.assert_array_equal(one, same)
    assert len(one) <= 5 and (one != other).any()
    cold = [dreamt(f"cold-{seed}", seed=seed, temperature=0.0) for seed in (1, 2)]
    np.testing.assert_array_equal(*cold)


def test_a_fresh_episode_has_the_seed_asked_for(store, toy):
    toy.played.clear()
    show(store, fresh=True, seed=11, frames=store.logdir / "frames")
    assert toy.played == [11]


def test_frames_of_another_size_than_the_model_sees_are_refused(store, scored):
    name = f"{scored.facts['order'][0]}/episodes/0/obs"
    other = dataclasses.replace(scored, tensors={**scored.tensors, name: scored.tensors[name][..., :16, :16]})
    store.save("test", other)
    with pytest.raises(ContractError, match=r"vae\.h5 sees .*32, 32.*16, 16"):
        show(store, strip=True)


OTHER = {"compare": (Path("other"),), "frames": Path("frames"), "out": Path("film.mp4"), "steps": 3, "moments": 3}
OTHER |= {"fps": 7.0, "height": 99, "episode": 0, "seed": 1, "reset_every": 1, "temperature": 0.5}


@pytest.mark.parametrize(
    ("asked", "idle"),
    [
        *[(["curves"], name) for name in ("dream", "strip", "native", "episode", "fresh", "data", "frames", "steps")],
        *[(["curves"], name) for name in ("moments", "reset_every", "temperature", "seed", "height", "fps")],
        *[(["fresh"], name) for name in ("episode", "data")],
        *[(["native"], name) for name in ("episode", "data", "dream")],
        *[(["strip"], name) for name in ("fps", "height")],
        (["dream"], "reset_every"),
        (["frames"], "fps"),
        ([], "compare"),
        ([], "moments"),
    ],
)
def test_a_flag_that_means_nothing_is_refused_and_named(parts, tmp_path, asked, idle):
    options = {name: OTHER.get(name, True) for name in (*asked, idle)}
    flag = {"data": "from-data", "seed": "episode-seed"}.get(idle, idle.replace("_", "-"))
    with pytest.raises(ConfigError, match=f"--{flag} ") as error:
        show(parts(tmp_path / "run"), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("height", [15, 4321])
def test_a_panel_has_a_height_that_memory_holds(parts, tmp_path, height):
    with pytest.raises(ConfigError, match=f"16 and 4320 pixels, got {height}"):
        show(parts(tmp_path / "run"), height=height)


@pytest.mark.parametrize("out", ["frames/film.mp4", "frames/below/film.mp4", "elsewhere/../frames/film.gif"])
def test_a_film_among_the_frames_is_refused_the_first_time(store, monkeypatch, out):
    monkeypatch.setattr(stage, "choose", pytest.fail)
    with pytest.raises(ConfigError, match="frames only"):
        show(store, frames=store.logdir / "frames", out=store.logdir / out)
    assert not (store.logdir / "frames").exists()


@pytest.mark.parametrize("options", [{"out": "file/film.mp4"}, {"frames": "file/frames"}, {"strip": True}, {}])
def test_a_file_where_a_folder_is_needed_is_told_first(store, monkeypatch, options):
    monkeypatch.setattr(stage, "choose", pytest.fail)
    for name in ("file", "videos"):
        (store.logdir / name).touch()
    given = {name: value if value is True else store.logdir / value for name, value in options.items()}
    with pytest.raises(ArtifactError, match="is a file, not a folder"):
        show(store, **given)
