import json

import numpy as np
import pytest

from wmrl import artifact, interrupts, scoring
from wmrl.envs.names import CLOCKS, Clock
from wmrl.errors import ArtifactError, ConfigError, ContractError, Stopped, TargetMissed
from wmrl.evaluation import baseline_text, protocol, scores_in
from wmrl.log import Log
from wmrl.recording import Episode, episodes_in, unpack
from wmrl.run import Run
from wmrl.stages.test_controller import TestOptions, test_controller


@pytest.fixture(autouse=True)
def _small_waves(monkeypatch):
    monkeypatch.setattr(scoring, "PER_PROCESS", 1)


def run_test(store, *, threads=2, as_json=False, **options):
    run = {"noreload": options.pop("noreload", False)}
    with Log("test-controller", store.logdir, progress=False, verbosity=-1, as_json=as_json) as log:
        test_controller(store.pipe, store, log, Run(threads=threads, **run), TestOptions(**options))
    return artifact.read(store.path("test"), "test")


def same(a, b):
    assert a.hash == b.hash
    assert a.tensors.keys() == b.tensors.keys()


def test_every_return_length_and_seed_is_kept(tmp_path, toy, parts):
    made = run_test(parts(tmp_path / "run"))
    score = scores_in(made)["toy-v0-5"]
    seeds = protocol("Toy-v0", episodes=5).test_seeds()
    assert toy.played == seeds
    assert made.tensors["toy-v0-5/seeds"].tolist() == seeds
    assert score.lengths.tolist() == [3 + s % 5 for s in seeds]
    assert score.terminated.tolist() == [s % 5 % 2 == 0 for s in seeds]
    floor = np.array([(s % 11) * (3 + s % 5) for s in seeds])
    assert (np.abs(score.returns - floor) <= score.lengths).all()
    assert made.facts["scores"]["toy-v0-5"]["hash"] == protocol("Toy-v0", episodes=5).hash
    assert made.facts["scores"]["toy-v0-5"]["environments"] == 2
    assert set(made.parents) == {"representation", "dynamics", "controller"}


def test_some_episodes_are_kept_whole(tmp_path, parts):
    made = run_test(parts(tmp_path / "run"))
    score = scores_in(made)["toy-v0-5"]
    episodes = episodes_in(made.tensors, "toy-v0-5/episodes")
    assert len(episodes) == 2
    for episode, length, total in zip(episodes, score.lengths, score.returns, strict=False):
        assert episode.obs.shape == (length + 1, 3, 32, 32)
        assert episode.action.shape == (length, 2)
        assert episode.reward.sum() == pytest.approx(total)
        assert [int((frame[1] == 250).any(1).sum()) for frame in episode.obs] == list(range(length + 1))


def test_the_episodes_kept_can_be_filmed_at_once(tmp_path, capsys, parts):
    store = parts(tmp_path / "run")
    run_test(store, as_json=True)
    assert json.loads(capsys.readouterr().out)["files"] == []
    run_test(store, as_json=True, capture_video=True)
    films = [store.logdir / "videos" / f"toy-v0-5-episode-{i}.mp4" for i in (0, 1)]
    assert json.loads(capsys.readouterr().out)["files"] == [str(film) for film in films]
    assert all(film.stat().st_size > 1000 for film in films)


def test_what_is_filmed_is_what_was_asked_for(tmp_path, capsys, parts):
    """The protocol asked for stands first in the file, also where all was played before."""
    store = parts(tmp_path / "run")
    for options in ({"episodes": 3, "max_steps": 2}, {"episodes": 1}):
        run_test(store, **options)
    made = run_test(store, episodes=3, max_steps=2, capture_video=True)
    assert made.facts["order"] == ["toy-v0-3-max2", "toy-v0-1"]
    assert capsys.readouterr().out.rstrip().endswith("toy-v0-3-max2-episode-1.mp4")


def test_a_second_call_plays_nothing(tmp_path, toy, parts):
    store = parts(tmp_path / "run")
    first = run_test(store)
    toy.played.clear()
    same(run_test(store), first)
    assert toy.played == []


def test_a_changed_controller_is_tested_anew(tmp_path, toy, parts):
    store = parts(tmp_path / "run")
    first = run_test(store)
    parts(tmp_path / "run", scale=0.9)
    toy.played.clear()
    again = run_test(store)
    assert len(toy.played) == 5
    assert again.parents["controller"] != first.parents["controller"]
    assert again.hash != first.hash


def test_noreload_plays_again_to_the_same_result(tmp_path, toy, parts):
    store = parts(tmp_path / "run")
    first = run_test(store)
    toy.played.clear()
    same(run_test(store, noreload=True), first)
    assert len(toy.played) == 5


@pytest.mark.parametrize("at", [1, 5, 8, 13])
def test_a_killed_test_continues_to_the_same_bits_whatever_the_threads(tmp_path, toy, at, parts):
    whole = run_test(parts(tmp_path / "whole"), threads=2)
    store = parts(tmp_path / "killed")
    toy.calls, toy.die_at = 0, at
    with pytest.raises(KeyboardInterrupt):
        run_test(store, threads=2)
    assert not store.exists("test")
    before = len(toy.played)
    toy.die_at = None
    same(run_test(store, threads=4), whole) if at > 5 else same(run_test(store, threads=2), whole)
    again = len(toy.played) - before
    assert again <= (5 if at <= 5 else 3)
    assert not store.part("test").exists()


def test_a_signal_keeps_the_waves_that_are_over(tmp_path, toy, monkeypatch, parts):
    store = parts(tmp_path / "run")
    monkeypatch.setattr(interrupts, "_pending", None)
    steps = toy.step

    def step(self, action, ids):
        if len(toy.played) == 3:
            interrupts._pending = 15
        return steps(self, action, ids)

    monkeypatch.setattr(toy, "step", step)
    with pytest.raises(Stopped):
        run_test(store)
    monkeypatch.setattr(toy, "step", steps)
    interrupts.clear()
    toy.played.clear()
    run_test(store)
    assert toy.played == protocol("Toy-v0", episodes=5).test_seeds()[2:]


def test_both_games_stand_in_one_file_and_the_table_says_they_differ(tmp_path, capsys, parts):
    made = run_test(parts(tmp_path / "run"), backend="envpool")
    assert list(scores_in(made)) == ["toy-v0-5", "toy-v0-5-envpool"]
    out = capsys.readouterr().out
    assert "toy-v0-5-envpool *" in out
    assert "not comparable" in out


def test_a_game_of_envpools_own_is_scored_there_alone_and_in_tics(tmp_path, capsys, monkeypatch, parts):
    monkeypatch.setitem(CLOCKS, "Toy-v0", Clock(rate=35.0, limit=2100, skip=4))
    made = run_test(parts(tmp_path / "run"), as_json=True)
    (score,) = scores_in(made).values()
    assert (score.protocol.id, score.protocol.backend, score.protocol.frame_skip) == ("toy-v0-5", "envpool", 4)
    row = json.loads(capsys.readouterr().out)["scores"][0]
    assert row["tics"]["mean"] == pytest.approx(4 * score.lengths.mean())
    run_test(parts(tmp_path / "run"))
    assert f"survives {4 * score.lengths.mean():,.0f} tics" in capsys.readouterr().out


def test_scores_under_other_protocols_stay_in_the_file(tmp_path, parts):
    store = parts(tmp_path / "run")
    run_test(store)
    made = run_test(store, episodes=2)
    assert list(scores_in(made)) == ["toy-v0-2", "toy-v0-5"]
    few, many = scores_in(made).values()
    np.testing.assert_array_equal(few.lengths, many.lengths[:2])


def test_playing_one_protocol_again_keeps_the_others(tmp_path, toy, parts):
    store = parts(tmp_path / "run")
    run_test(store)
    toy.played.clear()
    made = run_test(store, episodes=2, noreload=True)
    assert len(toy.played) == 2
    assert list(scores_in(made)) == ["toy-v0-2", "toy-v0-5"]


def test_a_test_in_progress_survives_one_under_another_protocol(tmp_path, toy, monkeypatch, parts):
    """Episodes that were played stay, whatever goes wrong while others are saved."""
    store = parts(tmp_path / "run")
    toy.calls, toy.die_at = 0, 8
    with pytest.raises(KeyboardInterrupt):
        run_test(store)
    toy.die_at = None
    before = store.load_part("test")
    monkeypatch.setattr(store, "save", lambda *args: pytest.fail("the disk is full"))
    with pytest.raises(pytest.fail.Exception):
        run_test(store, episodes=1)
    kept = {tree["protocol"]["episodes"]: tree["returns"] for tree in store.load_part("test")["tallies"]}
    assert len(kept[5]) == len(before["tallies"][0]["returns"]) > 0


@pytest.mark.parametrize("target", ["nan", "inf"])
def test_a_target_is_a_number(tmp_path, toy, target, parts):
    with pytest.raises(ConfigError, match="--target-return must be a finite number"):
        run_test(parts(tmp_path / "run"), target_return=float(target))
    assert toy.played == []


def test_max_steps_cuts_and_is_named(tmp_path, parts):
    made = run_test(parts(tmp_path / "run"), max_steps=2)
    score = scores_in(made)["toy-v0-5-max2"]
    assert score.lengths.tolist() == [2] * 5
    assert not score.terminated.any()


def test_a_missed_target_is_told_after_everything_is_saved(tmp_path, capsys, parts):
    store = parts(tmp_path / "run")
    with pytest.raises(TargetMissed, match="below the target 1000") as caught:
        run_test(store, target_return=1000)
    assert caught.value.code == 4
    assert store.exists("test")
    assert "toy-v0-5" in capsys.readouterr().out
    run_test(store, target_return=-1000)


def test_json_has_every_return_and_whether_the_target_was_met(tmp_path, capsys, parts):
    store = parts(tmp_path / "run")
    made = run_test(store, as_json=True, target_return=-100)
    told = json.loads(capsys.readouterr().out)
    score = scores_in(made)["toy-v0-5"]
    assert told["returns"] == score.returns.tolist()
    assert told["protocol_hash"] == score.protocol.hash
    assert told["target_met"] is True
    assert told["scores"][0]["mean"] == pytest.approx(score.returns.mean())
    assert told["scores"][0]["episodes"] == 5


def test_a_baseline_stands_beside(tmp_path, capsys, parts):
    other, store = parts(tmp_path / "other", seed=1), parts(tmp_path / "own")
    theirs = scores_in(run_test(other))["toy-v0-5"]
    capsys.readouterr()
    run_test(store, baselines=(other.logdir,))
    out = capsys.readouterr().out
    assert any(line.strip().startswith("other") and f"{theirs.returns.mean():.1f}" in line for line in out.splitlines())
    assert "not comparable" not in out


def test_a_baseline_under_another_protocol_is_marked(tmp_path, capsys, parts):
    other, store = parts(tmp_path / "other", seed=1), parts(tmp_path / "own")
    run_test(other, episodes=3)
    capsys.readouterr()
    run_test(store, baselines=(other.logdir,))
    out = capsys.readouterr().out
    assert "toy-v0-3 *" in out
    assert "not comparable" in out


def test_a_baseline_that_was_not_tested_says_what_to_run_before_anything_is_played(tmp_path, toy, parts):
    other, store = parts(tmp_path / "other"), parts(tmp_path / "own")
    with pytest.raises(ArtifactError, match=r"other.*test\.h5.*wmrl test-controller"):
        run_test(store, baselines=(other.logdir,))
    assert toy.played == []


def test_a_baseline_of_other_parts_than_lie_there_is_refused(tmp_path, toy, parts):
    other, store = parts(tmp_path / "other"), parts(tmp_path / "own")
    run_test(other)
    parts(tmp_path / "other", scale=0.9)
    toy.played.clear()
    with pytest.raises(ContractError, match=r"another controller.*run wmrl test-controller --logdir .*other"):
        run_test(store, baselines=(other.logdir,))
    assert toy.played == []


def test_the_random_policy_stands_beside_once_it_is_measured(tmp_path, capsys, toy, parts):
    of = protocol("Toy-v0", episodes=6)
    score = scoring.measure_random(of, threads=2, log=Log.quiet("m", tmp_path / "m"))
    assert toy.played == of.test_seeds()
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "toy.json").write_text(baseline_text(score, "measured here"))
    run_test(parts(tmp_path / "run"))
    line = next(line for line in capsys.readouterr().out.splitlines() if "random policy" in line)
    assert f"{score.returns[:5].mean():.1f}" in line


def test_parts_that_do_not_fit_are_refused(tmp_path, toy, parts):
    store, other = parts(tmp_path / "run"), parts(tmp_path / "other", seed=3)
    store.path("dynamics").write_bytes(other.path("dynamics").read_bytes())
    with pytest.raises(ContractError):
        run_test(store)
    assert toy.played == []


def test_a_missing_controller_names_the_command(tmp_path, parts):
    store = parts(tmp_path / "run")
    store.path("controller").unlink()
    with pytest.raises(ArtifactError, match="train-controller"):
        run_test(store)


def test_a_packed_episode_is_the_same_episode():
    rng = np.random.default_rng(0)
    obs = rng.integers(0, 255, (4, 3, 8, 8), dtype=np.uint8)
    episode = Episode(obs, rng.normal(size=(3, 2)).astype(np.float32), rng.normal(size=3).astype(np.float32), True)
    back = unpack(episode.pack())
    np.testing.assert_array_equal(back.obs, episode.obs)
    np.testing.assert_array_equal(back.action, episode.action)
    assert back.terminated is True
