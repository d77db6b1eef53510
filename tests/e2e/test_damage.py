"""Files that are damaged or strange, disks that are full, workers that die, losses that explode: one clear line."""

import os
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from wmrl import files
from wmrl.data import shards

DATA, LOGDIR = Path("datasets/tiny"), Path("runs/tiny/seed-1")
READER = {
    "vae.h5": "train-dynamics",
    "dynamics.h5": "train-controller",
    "controller.h5": "test-controller",
    "test.h5": "render",
    "vae.part.h5": "train-vae",
    "dynamics.part.h5": "train-dynamics",
    "controller.part.h5": "train-controller",
    "complete.h5": "train-vae",
    "shard": "train-vae",
    "pipeline.json": "train-vae",
}
"""File -> a stage that reads it."""


def truncated(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def flipped(data: bytes) -> bytes:
    """One bit in the middle."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def flipped_header(data: bytes) -> bytes:
    return data[:14] + bytes([data[14] ^ 1]) + data[15:]


def flipped_end(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 128]) + data[-2:]


def empty(data: bytes) -> bytes:
    return b""


def foreign(data: bytes) -> bytes:
    return b"PK\x03\x04 something else" * 100


def future(data: bytes) -> bytes:
    magic, version = files.MAGIC.encode(), str(files.VERSION + 1).encode()
    words = data[: files.BLOCK].rstrip(b"\0").split()
    return b" ".join([magic, version, *words[2:]]).ljust(files.BLOCK, b"\0") + data[files.BLOCK :]


DAMAGES = (truncated, flipped, flipped_header, flipped_end, empty, foreign, future)
SOME = {"vae.h5": DAMAGES, "shard": (truncated, flipped), "vae.part.h5": (flipped, future)}
"""What `make test` does to a file; to the others it flips one bit."""


@pytest.fixture(scope="module")
def whole(reference, tmp_path_factory) -> Path:
    """A copy of the finished run, training states and all."""
    import shutil

    folder = tmp_path_factory.mktemp("damage") / "run"
    shutil.copytree(reference.folder, folder)
    return folder


def file_of(folder: Path, name: str) -> Path:
    if name == "shard":
        return sorted((folder / DATA).glob("shard-*[0-9].h5"))[1]
    return folder / (DATA if name == "complete.h5" else LOGDIR) / name


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*.h5"))}


def assert_refused(launch, folder: Path, name: str, damage) -> None:
    """Damage a file, call a stage that reads it, and put the file back."""
    path = file_of(folder, name)
    good = path.read_bytes()
    path.write_bytes(damage(good))
    before = everything(folder)
    more = ("--steps", "30") if name in ("vae.part.h5", "dynamics.part.h5", "shard") else ()
    more = ("--generations", "5") if name == "controller.part.h5" else more
    more = ("--noreload",) if name == "shard" else more
    try:
        ran = launch.stage(folder, READER[name], *more)
        what = f"{name} {damage.__name__}: exit {ran.code}, {ran.err}"
        lines = [line for line in ran.err.splitlines() if line.startswith("error:")]
        assert ran.code in (3, 5), what
        assert len(lines) == 1, what
        assert ran.err.splitlines()[-1] == lines[0], what
        assert path.name in lines[0], what
        assert "Traceback" not in ran.err, what
        after = everything(folder)
        assert {key for key in before if before[key] != after.get(key)} <= {str(folder / LOGDIR / "vae.part.h5")}, what
    finally:
        path.write_bytes(good)


CASES = [(name, damage) for name in READER for damage in SOME.get(name, (flipped,)) if name != "pipeline.json"]
REST = [(name, damage) for name in READER for damage in DAMAGES if (name, damage) not in CASES]
REST = [(name, damage) for name, damage in REST if name != "pipeline.json" or damage in (truncated, empty, foreign)]


def _names(cases: list) -> list[str]:
    return [f"{name}-{damage.__name__}" for name, damage in cases]


@pytest.mark.parametrize(("name", "damage"), [*CASES, ("pipeline.json", truncated)])
def test_a_damaged_file_is_one_line_and_exit_3(name, damage, launch, whole) -> None:
    assert_refused(launch, whole, name, damage)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "damage"), REST, ids=_names(REST))
def test_every_kind_of_damage_to_every_file(name, damage, launch, whole) -> None:
    assert_refused(launch, whole, name, damage)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in READER if name != "pipeline.json"])
def test_no_single_flipped_bit_goes_unseen(name, whole) -> None:
    """1,000 bits anywhere in the file, checked as every reader does before it looks inside."""
    from wmrl.errors import ArtifactError

    path, draws = file_of(whole, name), np.random.default_rng(0)
    good = path.read_bytes()
    try:
        for at in draws.integers(0, 8 * len(good), 1000):
            bad = bytearray(good)
            bad[at // 8] ^= 1 << (at % 8)
            path.write_bytes(bad)
            with pytest.raises(ArtifactError), files.open(path, role=None):
                pass
    finally:
        path.write_bytes(good)


def test_a_plain_hdf5_file_is_foreign(launch, whole, tmp_path) -> None:
    path = tmp_path / "plain.h5"
    with h5py.File(path, "w") as file:
        file["weights"] = np.zeros(3)
    assert_refused(launch, whole, "vae.h5", lambda good: path.read_bytes())


def test_damaged_codes_are_made_again(launch, reference, tmp_path) -> None:
    folder = reference.before("train-dynamics", tmp_path)
    assert launch.stage(folder, "train-dynamics").code == 0
    path = next((folder / LOGDIR / "codes").glob("*.h5"))
    good = path.read_bytes()
    path.write_bytes(flipped(good))
    ran = launch.stage(folder, "train-dynamics", "--noreload")
    assert ran.code == 0, ran.err
    assert "again" in ran.err
    assert path.read_bytes() == good


def test_parts_that_do_not_fit_are_exit_5(launch, reference, tmp_path) -> None:
    """A dynamics model beside another representation than it was trained on."""
    folder = reference.before("train-controller", tmp_path)
    assert launch.stage(folder, "train-vae", "--noreload", "--steps", "5").code == 0
    ran = launch.stage(folder, "train-controller")
    assert (ran.code, len(ran.err.splitlines())) == (5, 1), ran.err
    assert "train-dynamics" in ran.err


FULL = {
    "generate": {"on": "write", "match": "shard-", "nth": 2},
    "train-vae": {"on": "write", "match": "vae.part.h5", "nth": 2},
    "train-dynamics": {"on": "write", "match": "/codes/"},
    "train-controller": {"on": "write", "match": "controller.h5"},
    "test-controller": {"on": "fsync", "match": "test.part.h5", "nth": 2},
    "render": {"on": "fsync", "match": ".mp4.tmp-"},
}


@pytest.mark.parametrize("stage", FULL)
def test_a_full_disk_stops_a_stage_and_nothing_is_lost(stage, launch, reference, tmp_path) -> None:
    reference.before(stage, tmp_path)
    ran = launch.stage(tmp_path, stage, fault={**FULL[stage], "do": "full"})
    assert ran.code == 3, ran.err
    assert "No space left on device" in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err
    assert not list(tmp_path.rglob("*.tmp-*"))
    again = launch.stage(tmp_path, stage)
    assert again.code == 0, again.err
    if stage == "generate":
        assert shards.read_complete(tmp_path / DATA).hash == shards.read_complete(reference.folder / DATA).hash


@pytest.mark.parametrize("stage", ["train-vae", "train-dynamics"])
def test_an_exploding_loss_stops_the_training(stage, launch, reference, tmp_path) -> None:
    folder = reference.before(stage, tmp_path)
    ran = launch.stage(folder, stage, "--learning-rate", "1e30")
    assert ran.code == 1, ran.err
    assert len(ran.of("gradient")) < 12
    last = ran.err.splitlines()[-1]
    assert last.startswith("error:") and ("nan" in last or "inf" in last), last
    assert not (folder / LOGDIR / f"{stage.partition('-')[2]}.h5").exists()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether a process runs: in containers the dead may stay listed as zombies."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_workers_do_not_outlive_a_killed_stage(launch, reference, tmp_path) -> None:
    folder = reference.before("generate", tmp_path)
    words = ("generate", "tiny.toml", "--threads", "2", "--no-progress")
    pid = launch.start(folder, *words, environ={"TINY_SECONDS": "0.005"})
    launch.wait_for("env")
    workers = children(pid)
    os.kill(pid, signal.SIGKILL)
    assert launch.finish().code == -signal.SIGKILL
    end = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < end, "workers are left behind"
        time.sleep(0.05)


def test_a_dead_worker_stops_generate_within_seconds(launch, reference, tmp_path) -> None:
    folder = reference.before("generate", tmp_path)
    words = ("generate", "tiny.toml", "--threads", "2", "--no-progress")
    pid = launch.start(folder, *words, environ={"TINY_SECONDS": "0.005"})
    launch.wait_for("env")
    workers = children(pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    began = time.monotonic()
    ran = launch.finish()
    assert time.monotonic() - began < 30
    assert ran.code == 1, ran.err
    assert "worker 1 of 2" in ran.err.splitlines()[-1]
    assert "signal 9" in ran.err.splitlines()[-1]
    assert not any(map(alive, workers))
    again = launch(folder, *words)
    assert again.code == 0, again.err
    one, other = (shards.read_complete(where / DATA) for where in (folder, reference.folder))
    assert one.hash == other.hash  # whatever the number of threads


def test_missing_inputs_say_which_command_makes_them(launch, reference, tmp_path) -> None:
    folder = reference.before("generate", tmp_path)
    for stage, missing in (("train-vae", "wmrl generate"), ("train-controller", "wmrl train-vae")):
        ran = launch.stage(folder, stage)
        assert (ran.code, len(ran.err.splitlines())) == (3, 1), ran.err
        assert missing in ran.err


def test_a_logdir_that_is_a_file_is_one_line(launch, reference, tmp_path) -> None:
    folder = reference.before("generate", tmp_path)
    (folder / "runs").write_text("in the way")
    ran = launch.stage(folder, "train-vae")
    assert ran.code in (2, 3), ran.err
    assert len(ran.err.splitlines()) == 1
