"""generate: exactly the episodes asked for, the same bytes whatever happened on the way."""

import dataclasses
import shutil
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import toy_rollouts
from toy_rollouts import LONGEST, Game, contents, finishes_like, frame, generate, length_of, pipe_for, said

from wmrl import artifact, interrupts, seeding
from wmrl.data import recorder, shards
from wmrl.data.episodes import Episodes
from wmrl.data.estimate import Estimate
from wmrl.data.info import info, lines
from wmrl.data.ingest import Foreign, ingest
from wmrl.errors import ArtifactError, ConfigError, ContractError, Stopped, UserError
from wmrl.locking import lock
from wmrl.log import Log
from wmrl.run import Run
from wmrl.stages import generate as stage
from wmrl.stages.collect import Job
from wmrl.store import Store

pytestmark = pytest.mark.usefixtures("toy_game")


def test_episodes_are_what_was_played(tmp_path):
    read = generate(tmp_path / "data")
    assert read.seeds.tolist() == [seeding.number(1, "episode", i) for i in range(10)]
    for i, seed in enumerate(read.seeds.tolist()):
        episode, length = read.episode(i), length_of(seed)
        assert len(episode.reward) == length + 1 == read.lengths[i] + 1
        assert np.array_equal(episode.obs[0], frame(seed, 0, np.zeros(2)))
        for t in range(length):
            assert np.array_equal(episode.obs[t + 1], frame(seed, t + 1, episode.action[t])), (
                "action[t] leads to obs[t + 1]"
            )
            assert episode.reward[t] == t + 1
            last = t == length - 1
            assert episode.terminated[t] == (last and length % 2 == 1)
            assert episode.truncated[t] == (last and length % 2 == 0)
        assert not episode.action[-1].any() and not episode.reward[-1]
        assert not episode.terminated[-1] and not episode.truncated[-1]
    assert read.returns.tolist() == [sum(range(1, n + 1)) for n in read.lengths]


def test_shards_say_how_they_were_made(tmp_path):
    meta = generate(tmp_path / "data").meta
    assert meta["env"] == {"id": "Toy-v0", "size": 8, "crop": False, "backend": "toy"}
    assert meta["policy"] == {"policy": "white"} and meta["seed"] == 1
    assert meta["actions"] == {"size": 2, "discrete": False, "low": [-1, 0], "high": [1, 4]}
    assert meta["environment"]["versions"] == {"toy": "1"} and meta["wmrl"]


@pytest.mark.parametrize(("threads", "max_workers"), [(1, 1), (1, 8), (2, 256), (4, 5)])
@pytest.mark.parametrize("policy", ["white", "brown", "held"])
def test_threads_and_waves_change_no_byte(tmp_path, threads, max_workers, policy):
    generate(tmp_path / "a" / "data", policy=policy)
    generate(tmp_path / "b" / "data", policy=policy, threads=threads, max_workers=max_workers)
    assert contents(tmp_path / "a" / "data") == contents(tmp_path / "b" / "data")


def test_a_finished_dataset_is_left_alone(tmp_path):
    generate(tmp_path / "data")
    before, Game.steps = contents(tmp_path / "data"), []
    generate(tmp_path / "data")
    generate(tmp_path / "data", rollouts=4)
    assert contents(tmp_path / "data") == before and not Game.steps
    assert "nothing to do" in said(tmp_path / "data")


def test_a_dataset_says_who_completed_it_which_shards_and_its_hash_do_not(tmp_path, monkeypatch):
    own = artifact.provenance()

    def called(*argv, commit):
        made = {**own, "argv": list(argv), "git": {"commit": commit, "dirty": True}}
        monkeypatch.setattr(artifact, "provenance", lambda: made)
        return made

    first = called("wmrl", "generate", commit="ab" * 20)
    old = generate(tmp_path / "a" / "data")
    assert info(old.path)["provenance"] == first
    assert f"by wmrl {first['wmrl']} (abababababab, changed since): wmrl generate" in "\n".join(lines(info(old.path)))
    second = called("wmrl", "generate", "-q", commit="cd" * 20)
    before = contents(old.path)
    generate(old.path)
    assert contents(old.path) == before, "nothing was made: the first call completed it"
    other = generate(tmp_path / "b" / "data")
    assert other.hash == old.hash == info(old.path)["hash"] and info(other.path)["provenance"] == second
    generate(old.path, rollouts=12)
    assert info(old.path)["provenance"] == second


def test_a_repeated_import_leaves_the_dataset_alone(tmp_path, monkeypatch):
    read = generate(tmp_path / "data")
    foreign = Foreign("here", len(read), read.episode, shards.provenance(read.meta))
    done = ingest(foreign, tmp_path / "out")
    before = contents(tmp_path / "out")
    monkeypatch.setattr(artifact, "provenance", lambda: pytest.fail("it is complete"))
    assert ingest(foreign, tmp_path / "out").hash == done.hash and contents(tmp_path / "out") == before


def test_more_rollouts_continue(tmp_path):
    first = generate(tmp_path / "data", rollouts=6)
    old, Game.steps = contents(tmp_path / "data"), []
    second = generate(tmp_path / "data", rollouts=11)
    assert len(second) == 11 and first.hash in second.lineage()
    played = {seed for seed, t in Game.steps if t == LONGEST or t == length_of(seed)}
    assert played == set(second.seeds[6:].tolist())
    new = contents(tmp_path / "data")
    assert all(new[name] == data for name, data in old.items() if name != "complete.h5")
    straight = generate(tmp_path / "straight" / "data", rollouts=11)
    assert all(np.array_equal(second.episode(i).obs, straight.episode(i).obs) for i in range(11))


def test_append_adds_fresh_episodes_and_an_interrupted_one_adds_as_many(tmp_path):
    before = generate(tmp_path / "data", rollouts=6)
    Game.at_step = {Game.calls + 40: lambda: (_ for _ in ()).throw(KeyboardInterrupt)}
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "data", rollouts=6, append=20)
    assert len(Episodes(tmp_path / "data")) == 6, "readers see the finished dataset meanwhile"
    Game.at_step = {}
    after = generate(tmp_path / "data", rollouts=6, append=20)
    assert len(after) == 26 and len(set(after.seeds.tolist())) == 26 and before.hash in after.lineage()
    assert len(generate(tmp_path / "data", rollouts=6, append=3)) == 29
    assert len(generate(tmp_path / "data", rollouts=6)) == 29, "the pipeline's own number is there"


def test_appended_episodes_may_be_of_another_policy(tmp_path):
    generate(tmp_path / "data", rollouts=4)
    generate(tmp_path / "data", rollouts=4, append=4, policy="held")
    metas = [shards.read_meta(tmp_path / "data" / name.file)["policy"] for name in shards.scan(tmp_path / "data")]
    assert metas == [{"policy": "white"}, {"policy": "held", "hold": 10}]
    with pytest.raises(ConfigError, match="seed"):
        generate(tmp_path / "data", rollouts=4, append=4, seed=2)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 2}, "seed"),
        ({"size": 16}, "env.size"),
        ({"policy": "brown"}, "generate.policy"),
        ({"policy": "held"}, "generate.hold|generate.policy"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_something_else_is_refused(tmp_path, change, key, finished):
    generate(tmp_path / "data")
    if not finished:
        (tmp_path / "data" / "complete.h5").unlink()
    before = contents(tmp_path / "data")
    with pytest.raises(ConfigError, match=key):
        generate(tmp_path / "data", rollouts=20, **change)
    assert contents(tmp_path / "data") == before


def test_a_lost_shard_is_made_again_and_nothing_else(tmp_path, uninterrupted):
    folder = tmp_path / "again" / "data"
    generate(folder)
    (folder / "shard-000004-4.h5").unlink()
    others = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*[0-9].h5")}
    finishes_like(uninterrupted, folder)
    assert others and {path: path.stat().st_mtime_ns for path in others} == others


def test_a_lost_list_is_made_again_without_playing(tmp_path, uninterrupted):
    folder = tmp_path / "again" / "data"
    generate(folder)
    (folder / "complete.h5").unlink()
    Game.steps = []
    generate(folder)
    assert contents(folder) == uninterrupted and not Game.steps


def test_two_at_once_are_refused(tmp_path):
    folder = tmp_path / "data"
    with lock(folder), pytest.raises(ConfigError, match="another wmrl process is working in"):
        generate(folder)


def test_a_dataset_in_the_logdir_itself_is_refused_with_the_reason(tmp_path):
    pipe, log = pipe_for(tmp_path / "link", 2), Log.quiet("generate", tmp_path / "log")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with log, lock(tmp_path / "run"), pytest.raises(ConfigError, match="the same folder"):
        before = sorted(tmp_path.rglob("*"))
        stage.generate(pipe, Store(tmp_path / "run", pipe), log, Run())
    assert sorted(tmp_path.rglob("*")) == before


def test_too_small_a_disk_is_said_before(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=100))
    with pytest.raises(UserError, match="MB free"):
        generate(tmp_path / "data")
    assert not shards.scan(tmp_path / "data")


def test_a_kill_costs_no_more_than_a_minute_of_playing(tmp_path, monkeypatch):
    """An episode is lost while it is played, and then until it is kept: both together last a minute at most."""
    now, step_seconds, read = [0.0], 0.01, generate(tmp_path / "data")
    job = Job(tmp_path, [shards.Name(0, 64)], 64, seed=1, environments=64, fixed=False, max_steps=1000)
    job.slow_down(Estimate(64_000, 1.0, 64_000 * step_seconds), threads=1)
    playing = job.environments * 1000 * step_seconds
    monkeypatch.setattr(recorder, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with recorder.Writer(tmp_path, [shards.Name(0, 4)], {}) as writer:
        writer.add(0, read.episode(0))
        writer.tick()
        assert 0 < playing < 60 and not list(tmp_path.glob("*.part.h5"))
        now[0] = 60.5 - playing
        writer.tick()
        end = time.monotonic() + 20
        while not writer.written and time.monotonic() < end:
            time.sleep(0.01)
        assert writer.written == 1


def test_size_and_time_are_said_before_the_start(tmp_path):
    generate(tmp_path / "data")
    first = said(tmp_path / "data").splitlines()[0]
    for word in ("10 episodes of Toy-v0", "up to 120 steps", "MB", "steps/s", "on 1 threads"):
        assert word in first


class Parrot:
    """An actor whose actions depend on how many rows are computed together, as a network's last bits do."""

    def begin(self, obs, seeds):
        self.rows = len(seeds)
        return self.step(obs)

    def step(self, obs):
        return np.full((len(obs), 2), 1 / (self.rows + len(obs)), np.float32)

    def keep(self, index):
        return None


def test_a_controllers_waves_are_fixed_and_replayed(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "_agent", lambda *given: Parrot())
    monkeypatch.setattr(stage, "_controller_hash", lambda pipe: "abc")
    how = {"policy": "controller", "controller": "runs/x"}
    generate(tmp_path / "a" / "data", rollouts=14, max_workers=6, **how)
    for number in range(8, 28, 6):
        folder = tmp_path / str(number) / "data"
        Game.calls, Game.at_step = 0, {number: lambda: setattr(interrupts, "_pending", signal.SIGINT)}
        with pytest.raises(Stopped):
            generate(folder, rollouts=14, max_workers=6, **how)
        interrupts.clear()
        Game.at_step = {}
        if shards.scan(folder):
            with pytest.raises(ConfigError, match="at a time; this call allows"):
                generate(folder, rollouts=14, max_workers=5, **how)
        workers = 50 if shards.scan(folder) else 6
        generate(folder, rollouts=14, max_workers=workers, threads=1 if workers == 6 else 4, **how)
        assert contents(folder) == contents(tmp_path / "a" / "data")
    monkeypatch.setattr(stage, "_controller_hash", lambda pipe: "changed")
    with pytest.raises(ConfigError, match="generate.controller_hash"):
        generate(tmp_path / "a" / "data", rollouts=20, **how)


def test_a_controllers_appended_episodes_are_played_without_those_before_them(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "_agent", lambda *given: Parrot())
    monkeypatch.setattr(stage, "_controller_hash", lambda pipe: "abc")
    how = {"policy": "controller", "controller": "runs/x", "max_workers": 6}
    generate(tmp_path / "data")
    Game.steps = []
    generate(tmp_path / "data", append=5, **how)
    assert {seed for seed, _ in Game.steps} == {seeding.number(1, "episode", i) for i in range(10, 15)}


def test_replayed_episodes_are_not_counted_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "_agent", lambda *given: Parrot())
    monkeypatch.setattr(stage, "_controller_hash", lambda pipe: "abc")
    monkeypatch.setattr("wmrl.stages.collect.PROGRESS_SECONDS", 0.0)
    said, how = [], {"policy": "controller", "controller": "runs/x", "rollouts": 14, "max_workers": 6}
    monkeypatch.setattr(Log, "progress", lambda self, done, total, unit, note: said.append((done, total, note)))
    generate(tmp_path / "data", **how)
    (tmp_path / "data" / "shard-000004-4.h5").unlink()
    said.clear()
    generate(tmp_path / "data", **how)
    counts = [int(note.split()[0]) for _, _, note in said]
    assert counts == sorted(counts) and counts[0] == 10 and counts[-1] == 14 and all(a <= b for a, b, _ in said)


@pytest.fixture
def lanes(monkeypatch):
    monkeypatch.setattr(stage, "LANES", ("toy",))


def test_two_lanes_change_no_byte(tmp_path, uninterrupted, lanes):
    for threads, workers in ((2, 2), (2, 7), (3, 256)):
        folder = tmp_path / f"{threads}-{workers}" / "data"
        generate(folder, threads=threads, max_workers=workers)
        assert contents(folder) == uninterrupted


def test_an_error_in_either_lane_ends_both(tmp_path, uninterrupted, lanes):
    def fail():
        raise OSError("the environment died")

    before = threading.active_count()
    for number in range(14, 40, 3):
        folder = tmp_path / str(number) / "data"
        Game.calls, Game.at_step = 0, {number: fail}
        with pytest.raises(OSError, match="the environment died"):
            generate(folder, threads=2, max_workers=4)
        assert threading.active_count() == before
        finishes_like(uninterrupted, folder)


def test_a_signal_ends_both_lanes(tmp_path, uninterrupted, lanes):
    for number in range(14, 40, 6):
        folder = tmp_path / str(number) / "data"
        Game.calls, Game.at_step = 0, {number: lambda: setattr(interrupts, "_pending", signal.SIGINT)}
        with pytest.raises(Stopped):
            generate(folder, threads=2, max_workers=4)
        interrupts.clear()
        finishes_like(uninterrupted, folder)


def test_a_trained_controller_acts_with_noise_if_asked(tmp_path, parts):
    store = parts(tmp_path / "run")
    store.remember()
    how = {"policy": "controller", "controller": str(tmp_path / "run"), "max_workers": 4}
    plain, again = (generate(tmp_path / name / "data", rollouts=6, **how) for name in ("a", "b"))
    noisy = generate(tmp_path / "c" / "data", rollouts=6, noise=0.3, **how)
    assert plain.hash == again.hash != noisy.hash and plain.seeds.tolist() == noisy.seeds.tolist()
    difference = np.concatenate([noisy.episode(i).action[0] - plain.episode(i).action[0] for i in range(6)])
    assert 0.1 < difference.std() < 0.6
    assert noisy.policy["environments"] == 4 and noisy.policy["noise"] == 0.3 and noisy.policy["controller_hash"]
    with pytest.raises(ConfigError, match="generate.noise"):
        generate(tmp_path / "c" / "data", rollouts=9, noise=0.1, **how)
    parts(tmp_path / "run", seed=5)
    with pytest.raises(ConfigError, match="controller_hash"):
        generate(tmp_path / "c" / "data", rollouts=9, noise=0.3, **how)
    assert len(generate(tmp_path / "c" / "data", rollouts=6, append=3, noise=0.3, **how)) == 9, (
        "appending may use another"
    )


def test_a_controller_that_was_made_from_other_parts_is_refused(tmp_path, parts):
    store, other = parts(tmp_path / "run"), parts(tmp_path / "other", seed=5)
    store.remember()
    shutil.copy(other.path("controller"), store.path("controller"))
    with pytest.raises(ContractError, match=r"controller\.h5 was made from dynamics .* wmrl train-controller"):
        generate(tmp_path / "data", rollouts=2, policy="controller", controller=str(tmp_path / "run"))
    assert not shards.scan(tmp_path / "data")


def test_a_controller_that_is_missing_is_said(tmp_path):
    with pytest.raises((ArtifactError, ConfigError), match="nowhere"):
        generate(tmp_path / "data", policy="controller", controller=str(tmp_path / "nowhere"))


def test_frames_that_the_representation_cannot_see_are_said_before(tmp_path, monkeypatch):
    pipe = dataclasses.replace(pipe_for(tmp_path / "data", 2), representation={"kind": "vae"})
    monkeypatch.setattr(toy_rollouts, "pipe_for", lambda *args, **more: pipe)
    generate(tmp_path / "data", 2)
    assert "train-vae will refuse" in said(tmp_path / "data")
