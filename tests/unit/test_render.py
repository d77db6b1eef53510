import dataclasses
import json
import math
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from wmrl import artifact, panels
from wmrl.errors import ArtifactError, ConfigError
from wmrl.evaluation import protocol
from wmrl.log import Log
from wmrl.run import Run
from wmrl.stages.render import RenderOptions, render
from wmrl.stages.test_controller import test_controller


def show(store, **options):
    with Log("render", store.logdir, progress=False, verbosity=-1) as log:
        render(store.pipe, store, log, Run(), RenderOptions(**options))


def decoded(path):
    """The frames of a film, and what its file says of itself."""
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    width, height = about["size"]
    return [np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in reader], about


@pytest.fixture
def scored(parts, tmp_path):
    store = parts(tmp_path / "run")
    test_controller(store.pipe, store, Log.quiet("test-controller", store.logdir), Run(threads=2))
    return store


def test_the_film_of_a_tested_run_shows_real_reconstruction_and_dream(scored, capsys):
    show(scored)
    path = scored.logdir / "videos" / "toy-v0-5-episode-0.mp4"
    assert capsys.readouterr().out.splitlines() == [str(path)]
    frames, about = decoded(path)
    seed = protocol("Toy-v0").test_seeds()[0]
    assert len(frames) == 3 + seed % 5 + 1
    assert about["fps"] == 20
    assert frames[0].shape == (256 + 44, 3 * 256 + 2 * 4, 3)
    red, mean = seed % 200, frames[0][200, 400]
    np.testing.assert_allclose(frames[0][200, 100], (red, 0, 0), atol=6)
    np.testing.assert_allclose(mean, (red, 0, 0), atol=6)
    np.testing.assert_allclose(frames[0][200, 700], mean, atol=6)
    assert np.abs(frames[-1][:20].astype(int) - frames[0][:20]).max() > 100


def test_the_second_recorded_episode_and_one_that_is_not_there(scored):
    show(scored, episode=1, out=scored.logdir / "one.gif")
    assert (scored.logdir / "one.gif").stat().st_size > 0
    with pytest.raises(ConfigError, match=r"--episode 2.*0 to 1"):
        show(scored, episode=2)


def test_a_strip_for_papers(scored):
    show(scored, strip=True, moments=3, out=scored.logdir / "strip.png")
    back = cv2.imread(str(scored.logdir / "strip.png"))
    assert back.shape == (22 + 3 * 96, panels.LABEL + 3 * (4 + 96), 3)


def test_frames_as_the_old_scripts_wrote(scored):
    show(scored, frames=scored.logdir / "frames", steps=2)
    names = sorted(p.name for p in (scored.logdir / "frames").glob("*.png"))
    assert names == ["0000.png", "0001.png", "0002.png"]
    assert not (scored.logdir / "videos").exists()


def test_a_pure_dream_begins_at_a_real_frame(scored, capsys):
    show(scored, dream=True, steps=6, frames=scored.logdir / "frames")
    first = cv2.imread(str(scored.logdir / "frames" / "0000.png"))[..., ::-1]
    seed = protocol("Toy-v0").test_seeds()[0]
    np.testing.assert_allclose(first[200, 100], (seed % 200, 0, 0), atol=2)


def test_a_fresh_episode_in_the_environments_own_resolution(scored, toy):
    toy.played.clear()
    show(scored, native=True, seed=9, frames=scored.logdir / "frames", height=20)
    assert toy.played == [9]
    frames = sorted((scored.logdir / "frames").glob("*.png"))
    assert len(frames) == 3 + 9 % 5 + 1
    for i in (0, len(frames) - 1):
        frame = cv2.imread(str(frames[i]))[..., ::-1]
        assert frame.shape == (40 + 44, 60 + 4 + 40 + 4 + 40, 3)
        np.testing.assert_array_equal(frame[60, 30], (200, 10 * i, 30))


def test_a_fresh_episode_is_a_function_of_its_seed(scored):
    for name in ("a", "b"):
        show(scored, fresh=True, seed=4, frames=scored.logdir / name)
    for a, b in zip(sorted((scored.logdir / "a").iterdir()), sorted((scored.logdir / "b").iterdir()), strict=True):
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize(
    ("gone", "columns"), [(["test"], 3), (["test", "controller"], 3), (["controller", "dynamics"], 2), (["vae"], 1)]
)
def test_what_is_not_trained_yet_is_left_out(scored, gone, columns):
    for name in gone:
        scored.path(name).unlink()
    fresh = "controller" in gone
    show(scored, fresh=fresh, frames=scored.logdir / "frames", steps=2)
    frame = cv2.imread(str(scored.logdir / "frames" / "0000.png"))
    assert frame.shape[1] == columns * 256 + (columns - 1) * 4


def test_without_anything_the_missing_dataset_is_named(parts, tmp_path):
    store = parts(tmp_path / "run")
    store.path("controller").unlink()
    with pytest.raises(ArtifactError, match="nowhere"):
        show(store)


@pytest.mark.parametrize(
    "options",
    [
        {"out": "film.avi"},
        {"strip": True, "out": "film.mp4"},
        {"curves": True, "out": "film.mp4"},
        {"steps": 0},
        {"fps": math.inf},
        {"fps": math.nan},
        {"fps": 1e-9},
        {"fps": 2000},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"temperature": -1},
        {"seed": -1},
    ],
)
def test_flags_that_do_not_go_together(scored, options):
    options = {k: Path(v) if k in ("out", "frames") else v for k, v in options.items()}
    with pytest.raises(ConfigError):
        show(scored, **options)


def test_json_names_the_files(scored, capsys):
    with Log("render", scored.logdir, progress=False, verbosity=-1, as_json=True) as log:
        render(scored.pipe, scored, log, Run(), RenderOptions(steps=2))
    (path,) = json.loads(capsys.readouterr().out)["files"]
    assert path.endswith(".mp4")


def test_curves_through_the_stage(scored, capsys):
    damaged = scored.logdir / "metrics" / "train-vae.jsonl"
    damaged.write_text('{"loss": 1}\n')
    show(scored, curves=True)
    out, err = capsys.readouterr()
    assert out.strip() == str(scored.logdir / "videos" / "curves.png") and str(damaged) in err
    assert cv2.imread(str(scored.logdir / "videos" / "curves.png")).std() > 10


def test_curves_of_a_logdir_that_is_not_there(scored):
    with pytest.raises(ArtifactError, match="nowhere"):
        show(scored, curves=True, compare=(scored.logdir / "nowhere",))


def test_places_that_cannot_be_written_are_told_before_anything_is_drawn(scored, monkeypatch):
    monkeypatch.setattr("wmrl.stages.render.choose", pytest.fail)
    folder, mine = scored.logdir / "film.mp4", scored.logdir / "frames"
    for made in (folder, mine):
        made.mkdir()
    (mine / "2024-holiday.png").write_bytes(b"mine")
    with pytest.raises(ArtifactError, match="is a folder"):
        show(scored, out=folder)
    with pytest.raises(ConfigError, match="2024-holiday"):
        show(scored, frames=mine)


@pytest.mark.parametrize("word", ["representation", "dynamics", "controller"])
def test_a_film_of_another_agent_is_told(scored, capsys, word):
    show(scored, strip=True)
    assert "was made with" not in capsys.readouterr().err
    made = artifact.read(scored.path("test"), "test")
    scored.save("test", dataclasses.replace(made, parents={**made.parents, word: "other"}))
    show(scored, strip=True)
    assert f"was made with another {word} than is there now" in capsys.readouterr().err
