import cv2
import imageio_ffmpeg
import numpy as np
import pytest
import torch

from wmrl import images
from wmrl.errors import ArtifactError, ConfigError
from wmrl.video import MARK, Stills, Strip, Video, beside, even, picture, scaled, titled


def decoded(path):
    """The frames of a film, and what its file says of itself."""
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    width, height = about["size"]
    return [np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in reader], about


def bars(i, height=101, width=255):
    """A red, a green and a blue bar, and a white square that moves."""
    frame = np.zeros((height, width, 3), np.uint8)
    for at, colour in enumerate([(200, 30, 30), (30, 200, 30), (30, 30, 200)]):
        frame[:, at * width // 3 : (at + 1) * width // 3] = colour
    frame[40:60, 4 * i : 4 * i + 16] = 255
    return frame


@pytest.mark.parametrize(("ending", "frames", "fps"), [(".mp4", 20, 50), (".gif", 10, 25)])
def test_a_film_keeps_frames_size_speed_and_colours(tmp_path, ending, frames, fps):
    path = tmp_path / f"film{ending}"
    with Video(path, 50) as film:
        for i in range(20):
            film.add(bars(i))
    assert list(tmp_path.iterdir()) == [path]
    back, about = decoded(path)
    assert len(back) == frames
    assert about["fps"] == fps
    assert back[0].shape == (102, 256, 3)
    for at, colour in ((40, (200, 30, 30)), (127, (30, 200, 30)), (215, (30, 30, 200))):
        np.testing.assert_allclose(back[0][90, at], colour, atol=6)
    every = 20 // frames
    for i, frame in enumerate(back):
        lit = np.flatnonzero(frame[50].min(1) > 200)
        assert abs(int(lit.min()) - 4 * i * every) <= 2


def test_an_mp4_plays_in_a_browser(tmp_path):
    with Video(tmp_path / "film.mp4", 50) as film:
        film.add(bars(0))
    _, about = decoded(tmp_path / "film.mp4")
    assert about["codec"] == "h264"
    assert about["pix_fmt"].startswith("yuv420p")
    data = (tmp_path / "film.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_a_failure_leaves_the_film_that_was_there(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"old")

    def fail():
        with Video(path, 50) as film:
            film.add(bars(0))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_film_of_no_frames_is_an_error(tmp_path):
    with pytest.raises(ArtifactError, match="no film"), Video(tmp_path / "film.mp4", 50):
        pass


def test_a_film_that_cannot_take_its_place_leaves_nothing(tmp_path):
    path = tmp_path / "film.mp4"
    path.mkdir()

    def film():
        with Video(path, 50) as film:
            film.add(bars(0))

    with pytest.raises(ArtifactError, match=r"film\.mp4 cannot be written"):
        film()
    assert list(tmp_path.iterdir()) == [path]


def stills(folder, count):
    with Stills(folder) as film:
        for i in range(count):
            film.add(bars(i))


def test_numbered_frames_have_the_right_colours_and_those_of_an_earlier_film_go(tmp_path):
    stills(tmp_path, 3)
    stills(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [MARK, "0000.png", "0001.png"]
    assert (tmp_path / MARK).read_text() == "2 frames\n"
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "0001.png"))[..., ::-1], bars(1))


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("name", ["2024-holiday.png", "20240101_beach.png", "0007.png", "notes.txt", "0001.png.bak"])
def test_what_was_not_written_here_is_never_removed(tmp_path, name, before):
    if before:
        stills(tmp_path, before)
    (tmp_path / name).write_bytes(b"mine")
    there = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=f"holds {name}"):
        stills(tmp_path, 1)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == there


def test_a_folder_of_frames_without_the_mark_is_somebody_elses(tmp_path):
    stills(tmp_path, 2)
    (tmp_path / MARK).unlink()
    with pytest.raises(ConfigError, match=r"holds 0000\.png"):
        stills(tmp_path, 2)
    assert len(list(tmp_path.iterdir())) == 2


def test_frames_that_were_not_finished_say_so_and_are_replaced(tmp_path):
    stills(tmp_path, 3)
    film = Stills(tmp_path)
    film.__enter__()
    film.add(bars(0))
    film.__exit__(RuntimeError, RuntimeError(), None)
    assert (tmp_path / MARK).read_text() == "unfinished\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == [MARK, "0000.png"]
    (tmp_path / "0001.png.tmp-1").write_bytes(b"half a frame")
    (tmp_path / f"{MARK}.tmp-1").write_bytes(b"half a mark")
    stills(tmp_path, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [MARK, "0000.png"]


def test_a_file_is_no_folder_of_frames(tmp_path):
    (tmp_path / "frames").touch()
    with pytest.raises(ArtifactError, match="no folder"):
        Stills(tmp_path / "frames")


def test_a_strip_shows_moments_from_the_first_to_the_last(tmp_path):
    with Strip(tmp_path / "s.png", 31, 4) as strip:
        assert strip.wanted == [0, 10, 20, 30]
        for i in strip.wanted:
            strip.add(bars(i))
    back = cv2.imread(str(tmp_path / "s.png"))[..., ::-1]
    np.testing.assert_array_equal(back[:, 2 * 259 : 2 * 259 + 255], bars(20))
    assert Strip(tmp_path / "s.png", 3, 8).wanted == [0, 1, 2]


@pytest.mark.parametrize(
    ("obs", "pixel"),
    [
        (np.full((3, 4, 4), 7, np.uint8), (7, 7, 7)),
        (np.full((1, 4, 4), 9, np.uint8), (9, 9, 9)),
        (np.full((3, 4, 4), 0.5, np.float32), (128, 128, 128)),
        (np.zeros((4, 4, 4), bool), (0, 0, 0)),
    ],
)
def test_observations_become_pictures(obs, pixel):
    frame = picture(obs)
    assert frame.shape == (4, 4, 3)
    assert frame.dtype == np.uint8
    assert tuple(frame[0, 0]) == pixel


def test_planes_of_a_board_have_colours_of_their_own():
    board = np.zeros((4, 2, 2), bool)
    board[0, 0, 0] = board[1, 0, 1] = board[2, 1, 0] = board[3, 1, 1] = True
    colours = {tuple(c) for c in picture(board).reshape(-1, 3).tolist()}
    assert len(colours) == 4


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_a_tensor_is_shown_as_the_array_is(dtype, channels):
    frame = torch.randint(0, 2, (channels, 4, 6)).to(dtype)
    array = frame.numpy() if dtype in (torch.uint8, torch.bool) else frame.float().numpy()
    np.testing.assert_array_equal(picture(frame), picture(array))


def test_frames_in_a_sheet_follow_the_same_rule_as_those_of_a_film():
    board = np.eye(4, dtype=bool).reshape(4, 2, 2)
    np.testing.assert_array_equal(images.grid([[board]]), picture(board))


@pytest.mark.parametrize("obs", [np.zeros(17, np.float32), torch.zeros(17)])
def test_vectors_are_no_pictures(obs):
    with pytest.raises(ConfigError, match="no pictures"):
        picture(obs)


def test_enlarged_pixels_stay_sharp_and_reduced_ones_are_means():
    checks = np.indices((4, 4)).sum(0) % 2 * np.uint8(200)
    frame = np.repeat(checks[..., None], 3, 2).astype(np.uint8)
    assert set(np.unique(scaled(frame, 16))) == {0, 200}
    assert set(np.unique(scaled(frame, 2))) == {100}


def test_layout_helpers():
    assert beside([bars(0), bars(1)]).shape == (101, 255 * 2 + 4, 3)
    assert even(bars(0)).shape == (102, 256, 3)
    header = titled(np.zeros((10, 60, 3), np.uint8), "a text that is much too wide for it")[:22]
    assert header[:, :56].max() > 150
    assert header[:, 58:].max() < 50
