"""generate, interrupted: what was finished is kept, and the rest comes out the same."""

import os
import signal
import time

import pytest
from toy_rollouts import Game, contents, die, finishes_like, generate, killed, length_of, said

from wmrl import files, interrupts, seeding
from wmrl.data import shards
from wmrl.data.check import check
from wmrl.data.episodes import Episodes
from wmrl.errors import ArtifactError, ConfigError, Stopped

pytestmark = pytest.mark.usefixtures("toy_game")


def test_a_signal_at_any_step_loses_little(tmp_path, uninterrupted):
    for number in range(1, 60, 9):
        folder = tmp_path / str(number) / "data"
        Game.calls, Game.at_step = 0, {number: lambda: setattr(interrupts, "_pending", signal.SIGTERM)}
        try:
            generate(folder)
        except Stopped as stopped:
            assert stopped.code == 143 and "same command continues" in said(folder)
        interrupts.clear()
        assert not list(folder.glob("*.tmp*"))
        finishes_like(uninterrupted, folder)


def test_kill_9_at_any_step_loses_little(tmp_path, uninterrupted):
    kills = 0
    for number in range(2, 60, 8):
        folder = tmp_path / str(number) / "data"
        Game.calls, Game.at_step = 0, {number: die}
        kills += killed(lambda folder=folder: generate(folder))
        finishes_like(uninterrupted, folder)
    assert kills >= 5


def kept(folder):
    """Seeds of the episodes that lie in parts of shards."""
    seeds = set()
    for path in folder.glob("*.part.h5"):
        with files.open(path, role="rollouts-part") as file:
            seeds |= set(file["seed"][()].tolist())
    return seeds


def test_episodes_of_a_shard_in_the_making_are_kept_at_a_signal(tmp_path, uninterrupted):
    kept_once = 0
    for number in range(8, 38, 6):
        folder = tmp_path / str(number) / "data"
        Game.steps, Game.calls = [], 0
        Game.at_step = {number: lambda: setattr(interrupts, "_pending", signal.SIGINT)}
        with pytest.raises(Stopped):
            generate(folder)
        interrupts.clear()
        ended = {seed for seed, t in Game.steps if t == length_of(seed)}
        parts = kept(folder)
        numbers = [i for name in shards.scan(folder) for i in range(name.first, name.first + name.count)]
        on_disk = parts | {seeding.number(1, "episode", i) for i in numbers}
        assert ended <= on_disk, "what has ended is on the disk"
        assert f"{len(on_disk)} of 10 episodes are on disk" in said(folder)
        finishes_like(uninterrupted, folder)
        again = {seed for seed, t in Game.steps if t == length_of(seed)}
        assert not again & on_disk, "what was on the disk was played again"
        kept_once += bool(parts)
    assert kept_once >= 2


def test_episodes_of_a_shard_in_the_making_outlive_kill_9(tmp_path, uninterrupted, monkeypatch):
    monkeypatch.setattr("wmrl.data.recorder.KEEP_AFTER", 0.0)
    monkeypatch.setattr("wmrl.data.shards.episodes_per_shard", lambda row, steps: 16)
    folder = tmp_path / "killed" / "data"

    def slowly():
        time.sleep(0.3)  # the thread that writes needs a moment
        die()

    Game.at_step = {30: slowly}
    assert killed(lambda: generate(folder))
    there = kept(folder)
    assert there and not shards.scan(folder)
    Game.steps, Game.at_step = [], {}
    generate(folder)
    assert not there & {seed for seed, t in Game.steps if t == length_of(seed)}
    generate(tmp_path / "straight" / "data")
    assert contents(folder) == contents(tmp_path / "straight" / "data")


def stopped_early(folder, at=14, **how):
    """Interrupt a collection before its first shard; its part."""
    Game.calls, Game.at_step = 0, {at: lambda: setattr(interrupts, "_pending", signal.SIGINT)}
    with pytest.raises(Stopped):
        generate(folder, **how)
    interrupts.clear()
    Game.at_step = {}
    (part,) = folder.glob("*.part.h5")
    return part


def test_a_damaged_part_is_said_and_played_again(tmp_path, uninterrupted):
    folder = tmp_path / "damaged" / "data"
    part = stopped_early(folder)
    part.write_bytes(part.read_bytes()[:-1])
    generate(folder)
    assert contents(folder) == uninterrupted and "truncated" in said(folder)
    part = stopped_early(tmp_path / "strange" / "data")
    files.write(part, lambda file: None, role="rollouts-part")
    generate(part.parent)
    assert contents(part.parent) == uninterrupted and "cannot be read" in said(part.parent)


def test_readers_say_that_a_begun_dataset_is_unfinished(tmp_path):
    stopped_early(tmp_path / "data")
    for read in (Episodes, lambda folder: list(check(folder))):
        with pytest.raises(ArtifactError, match="is unfinished"):
            read(tmp_path / "data")
        with pytest.raises(ArtifactError, match="holds no episodes"):
            read(tmp_path / "nothing")


def test_a_part_of_another_policy_is_not_overwritten(tmp_path):
    part = stopped_early(tmp_path / "data")
    before = part.read_bytes()
    for change in ({"policy": "held"}, {"seed": 2}):
        with pytest.raises(ConfigError, match="was made with"):
            generate(tmp_path / "data", **change)
    assert part.read_bytes() == before


def test_a_part_serves_another_number_of_rollouts(tmp_path, monkeypatch):
    monkeypatch.setattr("wmrl.data.shards.episodes_per_shard", lambda row, steps: 16)
    folder = tmp_path / "more" / "data"
    stopped_early(folder, at=24)
    there = kept(folder)
    assert len(there) >= 3
    Game.steps = []
    generate(folder, 14)
    assert not there & {seed for seed, t in Game.steps if t == length_of(seed)}
    generate(tmp_path / "straight" / "data", 14)
    assert contents(folder) == contents(tmp_path / "straight" / "data")


def test_what_could_not_be_written_is_not_said_to_be_on_disk(tmp_path, monkeypatch):
    real = files.write

    def full(path, fill, **more):
        raise ArtifactError(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr(files, "write", full)
    Game.at_step = {14: lambda: setattr(interrupts, "_pending", signal.SIGINT)}
    with pytest.raises(Stopped):
        generate(tmp_path / "data")
    assert "0 of 10 episodes are on disk" in said(tmp_path / "data") and "No space left" in said(tmp_path / "data")
    monkeypatch.setattr(files, "write", real)


def test_slow_games_are_played_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("wmrl.stages.collect.WAVE_SECONDS", 1e-9)
    generate(tmp_path / "data", threads=2, max_workers=8)
    assert "2 environments of toy on 2 threads" in said(tmp_path / "data")


@pytest.mark.parametrize("operation", ["write", "fsync", "replace", "open"])
def test_kill_9_while_a_shard_is_written_leaves_no_third_thing(tmp_path, uninterrupted, operation, monkeypatch):
    kills = 0
    for number in range(1, 5):
        folder = tmp_path / f"{operation}{number}" / "data"
        count = 0
        real = getattr(os, operation)

        def counted(*args, real=real, number=number, **more):
            nonlocal count
            about_data = operation != "open" or ".h5" in str(args[0])
            count += about_data
            if count == number and about_data:
                die()
            return real(*args, **more)

        def work(folder=folder, counted=counted):
            monkeypatch.setattr(files.os, operation, counted)
            generate(folder)

        Game.calls = 0
        kills += killed(work)
        finishes_like(uninterrupted, folder)
        assert not list(folder.glob("*.tmp*")), "what was half written is cleared away"
    assert kills >= 3


def test_a_full_disk_stops_with_the_reason_and_the_rest_goes_on_later(tmp_path, uninterrupted, monkeypatch):
    real, folder = files.write, tmp_path / "full" / "data"

    def full(path, fill, **more):
        if "000004" in path.name:
            raise ArtifactError(f"{path} cannot be written: No space left on device")
        return real(path, fill, **more)

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(ArtifactError, match="No space left"):
        generate(folder)
    assert [name.first for name in shards.scan(folder)][:1] == [0]
    monkeypatch.setattr(files, "write", real)
    finishes_like(uninterrupted, folder)
