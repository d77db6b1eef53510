"""Sealed files are whole or absent, and nothing damaged is ever read."""

import contextlib
import os
import random
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch

from wmrl import files
from wmrl.errors import ArtifactError

TREE = {"weights": torch.arange(12.0).reshape(3, 4), "step": 7, "notes": ["a", None, {"x/y": np.float32(0.5)}]}


def save(path: Path, value: float = 0.0) -> str:
    return files.write(path, lambda f: files.put_tree(f, {**TREE, "value": value}), role="vae")


def load(path: Path) -> dict:
    with files.open(path, role="vae") as file:
        return files.get_tree(file)


def test_a_tree_comes_back(tmp_path):
    save(tmp_path / "x.h5", 2.5)
    back = load(tmp_path / "x.h5")
    assert back["step"] == 7 and back["value"] == 2.5 and back["notes"] == ["a", None, {"x/y": 0.5}]
    np.testing.assert_array_equal(back["weights"], TREE["weights"].numpy())


def test_equal_content_gives_equal_bytes(tmp_path):
    assert save(tmp_path / "a.h5") == save(tmp_path / "b.h5") == files.digest(tmp_path / "a.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_any_hdf5_tool_opens_it(tmp_path):
    save(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["arrays/weights"].shape == (3, 4)


def test_every_flipped_bit_is_seen(tmp_path):
    path = tmp_path / "x.h5"
    save(path)
    good, rng = path.read_bytes(), random.Random(0)
    header = [(byte, bit) for byte in range(0, files.BLOCK) for bit in range(8)]
    content = [(rng.randrange(files.BLOCK, len(good)), rng.randrange(8)) for _ in range(500)]
    for byte, bit in [*rng.sample(header, 500), *content]:
        bad = bytearray(good)
        bad[byte] ^= 1 << bit
        path.write_bytes(bad)
        with pytest.raises(ArtifactError) as error:
            load(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 1, 100, 511, 512, 513, 2000, -1])
def test_a_truncated_file_is_seen(tmp_path, keep):
    path = tmp_path / "x.h5"
    save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"truncated|header is damaged|damaged header"):
        load(path)


def test_foreign_missing_later_and_misplaced_files(tmp_path):
    with pytest.raises(ArtifactError, match="is missing"):
        load(tmp_path / "none.h5")
    (tmp_path / "foreign.h5").write_text("hello")
    with pytest.raises(ArtifactError, match="is not a file of wmrl"):
        load(tmp_path / "foreign.h5")
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(ArtifactError, match="is not a file of wmrl"):
        load(tmp_path / "plain.h5")
    save(tmp_path / "x.h5")
    later = (tmp_path / "x.h5").read_bytes().replace(b"wmrl-sealed 1", b"wmrl-sealed 2", 1)
    (tmp_path / "later.h5").write_bytes(later)
    with pytest.raises(ArtifactError, match="format 2.*upgrade wmrl"):
        load(tmp_path / "later.h5")
    with (
        pytest.raises(ArtifactError, match="holds vae, where dynamics is wanted"),
        files.open(tmp_path / "x.h5", role="dynamics"),
    ):
        pass
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(ArtifactError, match="cannot be read"):
        load(tmp_path / "folder.h5")


class Crash(BaseException):
    """Stands for the machine going down."""


OPERATIONS = ("open", "write", "fsync", "close", "replace", "mkdir")


@pytest.mark.parametrize("kind", ["before", "after", "half"])
def test_a_crash_at_every_file_operation_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch, kind):
    path, step, seen = tmp_path / "x.h5", 0, set()
    while True:
        for leftover in tmp_path.iterdir():
            leftover.unlink()
        save(path, 1.0)
        with monkeypatch.context() as patch:
            count = _crash_at(patch, step, kind)
            try:
                save(path, 2.0)
            except Crash:
                pass
            else:
                assert step >= 6, "the crash was never reached"
                break
        assert count["n"] >= step
        seen.add(load(path)["value"])
        files.sweep(tmp_path)
        step += 1
    assert seen == {1.0, 2.0}


def _crash_at(patch: pytest.MonkeyPatch, step: int, kind: str) -> dict[str, int]:
    """Crash at the `step`-th call into the operating system: before it, after it, or (a write) halfway."""
    count = {"n": 0}

    def wrap(name):
        real = getattr(os, name)

        def call(*args, **kwargs):
            mine, count["n"] = count["n"], count["n"] + 1
            if mine != step:
                return real(*args, **kwargs)
            if kind == "half" and name == "write":
                real(args[0], bytes(args[1])[: len(args[1]) // 2])
            elif kind == "after":
                with contextlib.suppress(FileExistsError):
                    real(*args, **kwargs)
            raise Crash

        return call

    for name in OPERATIONS:
        patch.setattr(files.os, name, wrap(name))
    return count


def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    save(path, 1.0)
    with monkeypatch.context() as patch:

        def full(handle, data):
            raise OSError(28, "No space left on device")

        patch.setattr(files.os, "write", full)
        with pytest.raises(ArtifactError, match="cannot be written: No space left on device"):
            save(path, 2.0)
    assert load(path)["value"] == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["x.h5"]


def test_sweep_removes_the_leftovers_of_dead_processes_only(tmp_path):
    dead, alive = tmp_path / "x.h5.tmp-999999999", tmp_path / f"y.h5.tmp-{os.getppid()}"
    for path in (dead, alive):
        path.write_text("half")
    files.sweep(tmp_path)
    assert not dead.exists() and alive.exists()


@pytest.mark.parametrize(
    "bad", [{"a/b": np.ones(1), "a": {"b": np.ones(1)}}, {1: 2}, {"x": object()}, {"x": {"y": {1, 2}}}]
)
def test_what_cannot_be_stored_is_refused(tmp_path, bad):
    with pytest.raises(TypeError):
        files.write(tmp_path / "x.h5", lambda f: files.put_tree(f, bad), role="vae")
    assert not list(tmp_path.iterdir())


def synced(monkeypatch, act):
    """How often `act` syncs a file or a folder."""
    count = []
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", lambda handle: count.append(handle))
        act()
    return len(count)


def test_bytes_are_synced_if_they_must_last(tmp_path, monkeypatch):
    path = tmp_path / "a" / "x"
    assert synced(monkeypatch, lambda: files.atomic_bytes(path, b"one")) == 2
    assert synced(monkeypatch, lambda: files.atomic_bytes(path, b"two", durable=False)) == 0
    assert path.read_bytes() == b"two" and list(path.parent.iterdir()) == [path]


def test_a_picture_is_whole_and_in_its_colours_or_the_old_one(tmp_path, monkeypatch):
    path, red = tmp_path / "a" / "x.png", np.zeros((4, 6, 3), np.uint8)
    red[..., 0] = 200
    assert synced(monkeypatch, lambda: files.write_png(path, red)) == 0
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], red)

    def full(handle, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "write", full)
    with pytest.raises(ArtifactError, match="cannot be written: No space left on device"):
        files.write_png(path, red * 0)
    assert list(path.parent.iterdir()) == [path] and cv2.imread(str(path)).max() == 200


def test_what_stands_beside_is_swept_when_its_process_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "getpid", lambda: 999999999)
    mine = files.beside(tmp_path / "film.mp4")
    monkeypatch.undo()
    mine.write_bytes(b"half")
    files.sweep(tmp_path)
    assert mine.parent == tmp_path and not mine.exists()


def test_text_is_replaced_in_one_step(tmp_path):
    files.atomic_text(tmp_path / "a" / "x.json", "one")
    files.atomic_text(tmp_path / "a" / "x.json", "two")
    assert (tmp_path / "a" / "x.json").read_text() == "two"
    assert len(list((tmp_path / "a").iterdir())) == 1
