"""Shards, the index, and reading: exact, whole or refused, in bounded memory."""

import os
import shlex
import shutil
import threading

import numpy as np
import pytest

from wmrl import files
from wmrl.data import reader, shards
from wmrl.data.episodes import Episodes, split
from wmrl.data.shards import Episode, Name
from wmrl.errors import ArtifactError, ContractError

META = {
    "env": {"id": "Toy-v0", "size": 8, "crop": False, "backend": "toy"},
    "policy": {"policy": "white"},
    "actions": {"size": 2, "discrete": False, "low": [-1, -1], "high": [1, 1]},
    "seed": 1,
}


def episode(steps, seed=0, shape=(3, 8, 8), dtype=np.uint8):
    rng = np.random.default_rng(seed)
    zero = lambda column: np.concatenate([column, np.zeros_like(column[:1])])  # noqa: E731
    ends = np.arange(steps) == steps - 1
    return Episode(
        obs=rng.integers(0, 200, (steps + 1, *shape)).astype(dtype),
        action=zero(rng.uniform(-1, 1, (steps, 2)).astype(np.float32)),
        reward=zero(rng.normal(size=steps).astype(np.float32)),
        terminated=zero(ends if seed % 2 else ends & False),
        truncated=zero(ends & False if seed % 2 else ends),
        seed=seed,
    )


def dataset(folder, lengths, per_shard=2, **more):
    made = [episode(steps, seed=100 + i, **more) for i, steps in enumerate(lengths)]
    for first in range(0, len(made), per_shard):
        shards.write_shard(folder, first, made[first : first + per_shard], META)
    shards.complete(folder)
    return made


def same(a, b):
    columns = ("obs", "action", "reward", "terminated", "truncated")
    return a.seed == b.seed and all(np.array_equal(getattr(a, c), getattr(b, c)) for c in columns)


@pytest.mark.parametrize(("shape", "dtype"), [((3, 8, 8), np.uint8), ((17,), np.float32), ((4, 10, 10), np.bool_)])
def test_what_is_written_is_read(tmp_path, shape, dtype):
    made = dataset(tmp_path, [5, 1, 40, 7, 3], shape=shape, dtype=dtype)
    read = Episodes(tmp_path)
    assert all(same(read.episode(i), made[i]) for i in range(5))
    assert read.lengths.tolist() == [5, 1, 40, 7, 3]
    assert read.start.tolist() == [0, 6, 8, 49, 57, 61]
    assert read.seeds.tolist() == [100, 101, 102, 103, 104]
    assert read.returns == pytest.approx([e.reward.sum() for e in made])
    assert read.observation.shape == shape and read.dtype == dtype
    assert (read.actions.size, read.actions.discrete) == (2, False)
    assert (read.env, read.policy, len(read), read.steps) == (META["env"], META["policy"], 5, 56)


def test_equal_episodes_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        dataset(tmp_path / name, [5, 9, 3])
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_an_unfinished_dataset_is_refused_with_the_command_that_finishes_it(tmp_path):
    dataset(tmp_path, [5, 4, 3])
    (tmp_path / "complete.h5").unlink()
    with pytest.raises(ArtifactError, match=r"unfinished \(3 episodes in whole shards so far\).*wmrl generate"):
        Episodes(tmp_path)
    assert len(Episodes(tmp_path, partial=True)) == 3


def test_the_command_that_is_printed_can_be_pasted(tmp_path):
    folder = tmp_path / "it's a folder"
    with pytest.raises(ArtifactError) as caught:
        Episodes(folder)
    command = str(caught.value).partition(": wmrl ")[2]
    assert shlex.split(command) == ["generate", "--data", str(folder)]


def test_no_dataset_is_refused(tmp_path):
    for partial in (False, True):
        with pytest.raises(ArtifactError, match="holds no episodes.*wmrl generate"):
            Episodes(tmp_path / "none", partial=partial)


def test_a_gap_is_refused(tmp_path):
    dataset(tmp_path, [5, 4, 3, 2, 2])
    (tmp_path / "shard-000002-2.h5").unlink()
    with pytest.raises(ArtifactError, match="lacks the episodes 2 to 3"):
        Episodes(tmp_path, partial=True)
    with pytest.raises(ArtifactError, match="missing"):
        Episodes(tmp_path).episode(2)


def test_every_flipped_byte_of_a_shard_is_found(tmp_path):
    dataset(tmp_path, [3, 2])
    path = tmp_path / "shard-000000-2.h5"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in [0, 40, 511, 512, len(whole) - 1, *rng.integers(0, len(whole), 40)]:
        changed = bytearray(whole)
        changed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        with pytest.raises((ArtifactError, ContractError)) as caught:
            Episodes(tmp_path).episode(0)
        assert str(path) in str(caught.value)
    for size in (0, 100, 512, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ArtifactError):
            Episodes(tmp_path).episode(0)
    path.write_bytes(whole)
    Episodes(tmp_path).episode(0)


def test_a_shard_of_another_dataset_is_refused(tmp_path):
    dataset(tmp_path, [5, 4])
    shards.write_shard(tmp_path, 0, [episode(5, 7), episode(4, 8)], META)
    with pytest.raises(ContractError, match="is not the shard that"):
        Episodes(tmp_path).episode(0)


def test_mixed_observations_are_refused(tmp_path):
    shards.write_shard(tmp_path, 0, [episode(5, 7)], META)
    shards.write_shard(tmp_path, 1, [episode(5, 7, shape=(3, 9, 9))], META)
    with pytest.raises(ContractError, match="other observations"):
        shards.complete(tmp_path)


def test_a_later_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "FORMAT", 99)
    dataset(tmp_path, [5])
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="format 99.*upgrade"):
        Episodes(tmp_path)
    with pytest.raises(ArtifactError, match="format 99.*upgrade"):
        Episodes(tmp_path, partial=True)


def test_appending_keeps_the_lineage(tmp_path):
    dataset(tmp_path, [5, 4, 3, 2])
    before = Episodes(tmp_path)
    shards.write_shard(tmp_path, 4, [episode(6, 9)], META)
    shards.complete(tmp_path)
    after = Episodes(tmp_path)
    assert after.shards[: len(before.shards)] == before.shards
    assert after.hash != before.hash and before.hash in after.lineage() and after.hash not in before.lineage()


def test_each_shard_is_verified_once_and_links_are_the_same_file(tmp_path, monkeypatch):
    made = [episode(6, seed=i) for i in (1, 2)]
    shards.write_shard(tmp_path, 0, made, META)
    for first in (2, 4):
        os.link(tmp_path / Name(0, 2).file, tmp_path / Name(first, 2).file)
    (tmp_path / Name(6, 2).file).symlink_to(Name(0, 2).file)
    hashed = []
    real = files._verify
    monkeypatch.setattr(files, "_verify", lambda path, header: hashed.append(path.name) or real(path, header))
    shards.complete(tmp_path)
    for partial in (False, True):
        read = Episodes(tmp_path, partial=partial)
        assert all(same(read.episode(i), made[i % 2]) for i in range(8))
    assert sum("shard" in name for name in hashed) == 1


def test_few_files_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "MOST_OPEN", 3)
    made = dataset(tmp_path, [3] * 20)
    read = Episodes(tmp_path)
    for i in np.random.default_rng(0).integers(20, size=60):
        assert same(read.episode(i), made[i])
        assert len(read._rows._open) <= 3
    read.close()
    assert same(read.episode(0), made[0])


def test_threads_may_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "MOST_OPEN", 2)
    made = dataset(tmp_path, [30] * 8)
    read, wrong = Episodes(tmp_path), []

    def work(seed):
        for i in np.random.default_rng(seed).integers(8, size=40):
            if not same(read.episode(i), made[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong


def test_split_is_by_episode_fixed_and_stable_under_appending():
    seeds = np.arange(1000) * 7919
    train, held = split(seeds, 0.1, 1)
    assert sorted([*train, *held]) == list(range(1000)) and 70 < len(held) < 130
    assert all(np.array_equal(a, b) for a, b in zip(split(seeds, 0.1, 1), (train, held), strict=True))
    fewer = split(seeds[:600], 0.1, 1)
    assert np.array_equal(fewer[1], held[held < 600])
    assert not np.array_equal(split(seeds, 0.1, 2)[1], held)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_split_of_few_leaves_no_side_empty(count):
    for seed in range(20):
        for fraction in (0.05, 0.5, 0.95):
            train, held = split(np.arange(count), fraction, seed)
            assert len(train) and len(held)
            assert count == 1 or not set(train) & set(held)


def test_a_folder_can_be_moved(tmp_path):
    made = dataset(tmp_path / "a", [3, 4])
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert same(Episodes(tmp_path / "b").episode(1), made[1])
