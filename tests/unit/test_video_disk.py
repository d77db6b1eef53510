"""Disks that are full, and requests to stop, while a film is made: no half film ever counts as one."""

import os
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from wmrl import interrupts
from wmrl.errors import ArtifactError, Stopped
from wmrl.video import MARK, Stills, Video

NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """An ffmpeg that finds room for a few kB only."""
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!/bin/sh\ntrap '' XFSZ\nulimit -f 8\nexec '{imageio_ffmpeg.get_ffmpeg_exe()}' \"$@\"\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))


@pytest.mark.parametrize(("ending", "frames"), [(".mp4", 20), (".gif", 20), (".mp4", 400)])  # the last: on the way
def test_a_film_that_finds_no_room_is_an_error_and_leaves_what_was_there(tmp_path, small_disk, ending, frames):
    path = tmp_path / "films" / f"film{ending}"
    path.parent.mkdir()
    path.write_bytes(b"old")

    def film():
        with Video(path, 25) as video:
            for i in range(frames):
                video.add(np.roll(NOISE, 7 * i, 0))

    with pytest.raises(ArtifactError, match=rf"film\{ending} cannot be written: ffmpeg .*: File too large$"):
        film()
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_film_is_on_the_disk_before_and_after_it_takes_its_place(tmp_path, monkeypatch):
    path, done = tmp_path / "film.mp4", []
    fsync, replace = os.fsync, os.replace

    def synced(handle):
        done.append(Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)

    def replaced(source, target):
        done.append("renamed")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    with Video(path, 25) as video:
        video.add(NOISE)
    assert done == [path.with_name(f"film.mp4.tmp-{os.getpid()}"), "renamed", tmp_path]


def stopped_while_filming(film, monkeypatch):
    with film:
        film.add(NOISE)
        monkeypatch.setattr(interrupts, "_pending", 15)
        film.add(NOISE)


def test_asked_to_stop_a_film_is_given_up(tmp_path, monkeypatch):
    path = tmp_path / "film.mp4"
    with pytest.raises(Stopped):
        stopped_while_filming(Video(path, 25), monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_asked_to_stop_frames_are_left_unfinished(tmp_path, monkeypatch):
    with pytest.raises(Stopped):
        stopped_while_filming(Stills(tmp_path), monkeypatch)
    assert sorted(path.name for path in tmp_path.iterdir()) == [MARK, "0000.png"]
    assert (tmp_path / MARK).read_text() == "unfinished\n"
