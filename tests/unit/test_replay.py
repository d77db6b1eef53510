"""The replay: what was recorded is what is drawn, wherever it lies by then; a kill at any write costs nothing."""

import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from wmrl import files
from wmrl.data import growing, reader, shards
from wmrl.data.episodes import Episodes
from wmrl.data.replay import Replay
from wmrl.data.windows import windows
from wmrl.errors import ArtifactError, ConfigError, ContractError

META = {"env": {"id": "Toy-v0"}, "policy": {"policy": "white"}, "actions": {"size": 2, "discrete": False}, "seed": 1}
SMALL = {"memory": 3000, "shard": 900}
Outcome = namedtuple("Outcome", "obs reward terminated truncated")


class Loop:
    """Three slots that restart singly: the step of an episode and its seed decide all that is seen."""

    def __init__(self, replay, slots=3):
        self.replay, self.slots = replay, slots
        self.told = {}  # seed -> rows (obs, action, reward, terminated)
        if not replay.playing:
            self.begin(np.arange(slots))

    def frame(self, seed, t):
        return np.full((2, 3, 3), (7 * seed + t) % 256, np.uint8)

    def begin(self, ids):
        seeds = [self.replay.begun + i for i in range(len(ids))]
        self.replay.begin(ids, seeds, np.stack([self.frame(seed, 0) for seed in seeds]))

    def step(self):
        playing = self.replay.playing
        ids = np.array(sorted(playing))
        seeds, at = [playing[i].seed for i in ids], np.array([len(playing[i].reward) - 1 for i in ids])
        action = np.stack([np.array([s % 5, t], np.float32) / 100 for s, t in zip(seeds, at, strict=True)])
        last = np.array([t + 1 >= 4 + 3 * (s % 4) for s, t in zip(seeds, at, strict=True)])
        odd = np.array(seeds) % 2 == 1
        obs = np.stack([self.frame(s, t + 1) for s, t in zip(seeds, at, strict=True)])
        self.replay.add(ids, action, Outcome(obs, at.astype(np.float32) + 1, last & odd, last & ~odd))
        if last.any():
            self.begin(ids[last])


def rows_of(replay):
    """Everything that can be drawn, as one table."""
    total = int(replay.start[-1])
    return {name: column[0] for name, column in replay.gather(np.arange(total)[None]).items()}


def check_truth(replay):
    """Each row is what its episode's seed says."""
    table, start = rows_of(replay), replay.start
    for e, steps in enumerate(replay.lengths):
        obs = table["obs"][start[e] : start[e + 1], 0, 0, 0].astype(int)
        assert ((obs - obs[0]) % 256 == np.arange(steps + 1)).all()
        reward, action = (table[name][start[e] : start[e + 1]] for name in ("reward", "action"))
        assert reward.tolist() == [*range(1, steps + 1), 0]
        assert np.allclose(action[:, 1] * 100, [*range(steps), 0])


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture
def replay(tmp_path):
    with Replay(tmp_path / "data", META, **SMALL) as made:
        yield made


def test_what_is_drawn_is_what_was_recorded_at_every_step(replay):
    loop = Loop(replay)
    for n in range(1, 120):
        loop.step()
        assert replay.steps == 3 * n == replay.lengths.sum()
        check_truth(replay)
    assert len(shards.scan(replay.folder)) > 3


def test_the_capacity_lies_in_fewer_shards_than_stay_open(tmp_path, monkeypatch):
    assert growing.SHARDS < reader.MOST_OPEN
    monkeypatch.setattr(growing, "SHARDS", 4)
    with Replay(tmp_path / "data", META, capacity=200, **SMALL) as replay:
        loop = Loop(replay)
        for _ in range(120):
            loop.step()
        replay.flush()
        lengths, names = replay._finished.lengths, shards.scan(replay.folder)
    rows = [sum(lengths[n.first : n.first + n.count]) + n.count for n in names]
    assert len(rows) > 4 and min(rows[:-1]) >= 50, "the last one is what was left"


def test_the_newest_step_can_be_drawn_at_once(replay):
    loop = Loop(replay)
    for _ in range(3):
        loop.step()
    batch = next(windows(replay, 400, 1, key=("n",)))
    newest = (batch.obs[:, 1, 0, 0, 0] == 3) & (batch.action[:, 0, 1] == np.float32(0.02))
    assert newest.any() and (batch.mask[newest] == 1).all()


def test_the_last_row_of_an_episode_in_progress_begins_no_step(replay):
    Loop(replay).step()
    batch = next(windows(replay, 50, 3, key=("n",), crossing=True))
    assert batch.mask[:, 1].max() == 0 or (batch.first[:, 2] == 1 - batch.mask[:, 1]).all()
    assert batch.terminated.sum() == 0 and (batch.mask + batch.first[:, 1:] <= 1).all()


def test_an_episode_that_ends_is_not_confused_with_the_next_in_its_slot(replay):
    loop = Loop(replay, slots=1)
    for _ in range(4):
        loop.step()
    assert replay.lengths.tolist() == [4, 0] and replay.begun == 2
    with pytest.raises(ValueError, match="slot 0 goes on"):
        replay.begin(np.array([0]), [9], np.zeros((1, 2, 3, 3), np.uint8))


def test_windows_do_not_depend_on_where_rows_lie(tmp_path):
    drawn = []
    for name, sizes in {"disk": {"memory": 0, "shard": 1}, "memory": {}, "both": SMALL}.items():
        with Replay(tmp_path / name, META, **sizes) as replay:
            loop = Loop(replay)
            for _ in range(60):
                loop.step()
            drawn.append(next(windows(replay, 16, 9, key=("k",), start=5, crossing=True)))
    for other in drawn[1:]:
        for name in ("obs", "action", "reward", "terminated", "mask", "first"):
            assert getattr(drawn[0], name).equal(getattr(other, name)), name


def test_memory_stays_within_the_budget(replay):
    loop = Loop(replay)
    for _ in range(300):
        loop.step()
    replay.flush()
    held = replay._finished
    assert held._recent_bytes <= SMALL["memory"] and held.kept > 50
    assert sum(e.obs.nbytes for e in held._recent.values()) <= held._recent_bytes


def test_beyond_the_capacity_the_oldest_episodes_are_left_out(tmp_path):
    with Replay(tmp_path, META, capacity=60, **SMALL) as replay:
        loop = Loop(replay)
        for _ in range(100):
            loop.step()
            assert replay.steps == replay.lengths.sum() <= 60
        assert replay.steps > 40
        check_truth(replay)
        assert replay.flush().lengths.sum() > 200, "they stay on the disk"


def test_flushed_it_is_a_dataset_like_any_other(replay):
    loop = Loop(replay)
    assert replay.flush() is None
    for _ in range(40):
        loop.step()
    replay.flush()
    made, done = Episodes(replay.folder), len(replay.lengths) - 3
    assert made.lengths.tolist() == replay.lengths[:done].tolist()
    whole = made.read(0, int(made.start[-1]))
    assert same(whole, {name: column[: len(whole["reward"])] for name, column in rows_of(replay).items()})
    made.close()


def test_it_goes_on_with_the_episodes_that_the_folder_holds(tmp_path):
    with Replay(tmp_path, META, **SMALL) as replay:
        loop = Loop(replay)
        for _ in range(40):
            loop.step()
        done = len(replay.flush().lengths)
    with Replay(tmp_path, META, **SMALL) as replay:
        assert len(replay.lengths) == replay.begun == done
        check_truth(replay)
        with pytest.raises(ContractError, match="holds observations of"):
            replay.begin(np.array([0]), [1], np.zeros((1, 4), np.float32))
        with pytest.raises(ConfigError, match="another wmrl process"):
            Replay(tmp_path, META)


@pytest.mark.parametrize(("shape", "dtype"), [((4, 10, 10), np.bool_), ((17,), np.float32)])
def test_grids_and_vectors_keep_their_type(tmp_path, shape, dtype):
    rng = np.random.default_rng(0)
    obs = rng.random((6, *shape)).astype(dtype) if dtype == np.float32 else rng.random((6, *shape)) < 0.5
    with Replay(tmp_path, META, memory=0, shard=1) as replay:
        replay.begin(np.array([0]), [1], obs[:1])
        for t in range(5):
            end = np.array([t == 4])
            replay.add(np.array([0]), np.zeros((1, 2), np.float32), Outcome(obs[t + 1 : t + 2], [0.0], end, ~end & end))
        replay.flush()
        found = rows_of(replay)["obs"]
        assert found.dtype == dtype and np.array_equal(found, obs)


def test_restored_it_is_at_once_what_it_was_and_no_list_names_shards_that_are_gone(tmp_path):
    with Replay(tmp_path, META, capacity=60, **SMALL) as replay:
        loop = Loop(replay)
        for n in range(70):
            loop.step()
            if n == 50:
                tree, before, begun = replay.state(), rows_of(replay), replay.begun
        replay.flush()
    with Replay(tmp_path, META, capacity=60, **SMALL) as replay:
        replay.restore(tree)
        assert same(rows_of(replay), before) and replay.begun == begun and replay.steps <= 60
        assert not (tmp_path / shards.COMPLETE).exists()
        assert min(replay._finished._recent, default=0) >= replay._oldest or replay._finished.durable <= replay._oldest


class Killed(BaseException):
    """The process is gone."""


class Death:
    """Lets so many files be written; then the process dies, before or just after one is renamed."""

    def __init__(self, monkeypatch, writes, after):
        self.left, self.after, self.dead, self.lock = writes, after, False, threading.Lock()
        self.real = files.atomic_bytes
        monkeypatch.setattr(files, "atomic_bytes", self.write)

    def write(self, path, data, *, durable=True):
        with self.lock:
            if not self.dead and self.left == 0:
                self.dead = True
                if self.after:
                    self.real(path, data, durable=durable)
            if self.dead:
                raise Killed
            self.left -= 1
            self.real(path, data, durable=durable)


def live(folder, until, every=7):
    """Continue a run from its last saved state, saving now and then; return what it ends with."""
    saved = folder / "state.h5"
    with Replay(folder / "data", META, capacity=150, **SMALL) as replay:
        n = 0
        if saved.exists():
            with files.open(saved, role="state") as file:
                tree = files.get_tree(file)
            n = tree["n"]
            replay.restore(tree["replay"])
        loop = Loop(replay)
        while n < until:
            loop.step()
            n += 1
            if n == until // 2:
                replay.flush()
            if n % every == 0:
                tree = {"n": n, "replay": replay.state()}
                files.write(saved, lambda file, tree=tree: files.put_tree(file, tree), role="state")
        replay.flush()
        check_truth(replay)
        return rows_of(replay), next(windows(replay, 8, 6, key=("e",), crossing=True)).obs


def shard_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.h5")) if path.name != shards.COMPLETE}


@pytest.mark.parametrize("after", [False, True], ids=["before the rename", "after the rename"])
def test_killed_at_any_write_it_ends_with_the_same_episodes_and_the_same_shards(tmp_path, monkeypatch, after):
    rows, drawn = live(tmp_path / "whole", 42)
    whole, died = shard_bytes(tmp_path / "whole" / "data"), 0
    for writes in range(100):
        folder = tmp_path / f"killed-{writes}"
        with monkeypatch.context() as patch:
            death = Death(patch, writes, after)
            try:
                live(folder, 42)
            except Killed:
                died += 1
            if not death.dead:
                break
        again, drawn_again = live(folder, 42)
        assert same(rows, again) and drawn.equal(drawn_again)
        assert shard_bytes(folder / "data") == whole
    assert died == writes > 10


@pytest.mark.parametrize("removed", range(3))
def test_killed_while_it_removes_later_shards_it_goes_back_all_the_same(tmp_path, monkeypatch, removed):
    live(tmp_path, 28)
    state = (tmp_path / "state.h5").read_bytes()
    rows, _ = live(tmp_path, 60)
    (tmp_path / "state.h5").write_bytes(state)
    unlink, left = Path.unlink, [removed]

    def die(path, missing_ok=False):
        if not left[0]:
            raise Killed
        left[0] -= 1
        unlink(path, missing_ok)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "unlink", die)
        live(tmp_path, 60)
    assert same(rows, live(tmp_path, 60)[0])


def test_a_state_is_not_restored_beside_shards_of_another_run(tmp_path):
    live(tmp_path, 30)
    with files.open(tmp_path / "state.h5") as file:
        tree = files.get_tree(file)["replay"]
    victim = tmp_path / "data" / shards.scan(tmp_path / "data")[0].file
    episode = Episodes(tmp_path / "data").episode(0)
    count = shards.scan(tmp_path / "data")[0].count
    victim.unlink()
    shards.write_shard(tmp_path / "data", 0, [episode] * count, META)
    with Replay(tmp_path / "data", META) as replay, pytest.raises(ArtifactError, match="does not hold the"):
        replay.restore(tree)
