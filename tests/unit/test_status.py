"""`wmrl status`: what exists, what is stale and why, and what to run next."""

import dataclasses
import json
import os
import shlex
import subprocess

import numpy as np
import pytest

from wmrl import files, pipeline, status
from wmrl.artifact import Artifact
from wmrl.data import shards
from wmrl.errors import ArtifactError
from wmrl.iteration import Iterate
from wmrl.locking import lock
from wmrl.stages import rounds
from wmrl.stages.rounds import Round
from wmrl.stages.states import best
from wmrl.store import Store

META = {
    "env": {"id": "CarRacing-v3", "size": 4, "crop": False},
    "policy": {"policy": "brown"},
    "observation": {"shape": [3, 4, 4], "dtype": "uint8"},
    "actions": {"size": 3, "discrete": False},
}
SCORE = {"episodes": 2, "mean": 842.25, "std": 1, "iqm": 850, "low": 800.0, "high": 860, "least": 1, "most": 2}


@pytest.fixture
def store(tmp_path):
    """A logdir that knows its pipeline and nothing else."""
    pipe = pipeline.load(None, [f'data="{tmp_path}/data"', "generate.rollouts=4"])
    store = Store(tmp_path / "run", pipe)
    store.remember()
    return store


def episodes(store, first, count):
    steps = 3
    zeros = np.zeros(steps + 1)
    made = [
        shards.Episode(
            np.full((steps + 1, 3, 4, 4), first, np.uint8),
            np.zeros((steps + 1, 3), np.float32),
            zeros.astype(np.float32),
            zeros.astype(bool),
            zeros.astype(bool),
            first + i,
        )
        for i in range(count)
    ]
    shards.write_shard(store.data, first, made, META)


def save(store, name, number, parents, **facts):
    made = Artifact(name, {"kind": name}, tensors={"w": np.full(3, number)}, parents=parents, facts=facts)
    store.save(name, made)
    return made.hash


@pytest.fixture
def whole(store):
    """A logdir in which every stage is complete."""
    episodes(store, 0, 4)
    data = shards.complete(store.data).hash
    vae = save(store, "vae", 1, {"data": data}, steps=800, validation={"loss": 12.5})
    dynamics = save(store, "dynamics", 1, {"data": data, "representation": vae}, untrained=True)
    parents = {"representation": vae, "dynamics": dynamics}
    best = {"return": 700.0, "generation": 5}
    controller = save(store, "controller", 1, {"data": data, **parents}, steps=5000, best=best)
    scores = {"carracing-2": {"hash": "abc", "summary": SCORE}}
    save(store, "test", 1, {**parents, "controller": controller}, scores=scores, order=["carracing-2"])
    (store.logdir / "videos").mkdir()
    (store.logdir / "videos" / "episode.mp4").write_bytes(b"film")
    return store


def states(store):
    return {entry.name: entry.state for entry in status.report(store.logdir).entries}


def entry(store, name):
    return next(e for e in status.report(store.logdir).entries if e.name == name)


def test_an_empty_logdir_begins_with_generate(store):
    assert set(states(store).values()) == {"missing"}
    assert status.report(store.logdir).next == f"wmrl generate --logdir {store.logdir} --data {store.data}"


def test_a_complete_run_leaves_nothing_to_do(whole, capsys):
    report = status.report(whole.logdir)
    assert {e.state for e in report.entries} == {"complete"} and report.next == ""
    assert report.scores == [{"protocol": "carracing-2", "protocol_hash": "abc", **SCORE}]
    status.run(whole.logdir)
    out, err = capsys.readouterr()
    line = "carracing-2: mean 842.2 (95 % 800.0 to 860.0), IQM 850.0, 2 episodes"
    assert line in out and "nothing is left to do" in out and not err
    for words in ("4 episodes, 12 steps", "800 steps, validation loss 12.5", "untrained", "700.0 in generation 5"):
        assert words in out
    assert f"controller {status.report(whole.logdir).entries[3].hash[:8]}" in out


def test_it_is_one_json_object(whole, capsys):
    status.run(whole.logdir, as_json=True)
    table = json.loads(capsys.readouterr().out)
    assert table["schema_version"] == 1 and [e["name"] for e in table["entries"]][:2] == ["data", "vae"]


def test_unfinished_data_and_stages_say_how_far_they_are(store):
    episodes(store, 0, 3)
    store.save_part("vae", {"progress": {"step": 1234}})
    store.save_part("controller", {"step": 99, "tree": {"history": np.zeros((7, 4))}})
    store.save_part("test", {"tallies": [{"returns": np.zeros(5)}]})
    assert states(store)["data"] == "in progress" and entry(store, "data").detail == "3 of 4 episodes"
    assert entry(store, "vae").detail == "step 1,234"
    assert entry(store, "controller").detail == "step 99, 7 generations"
    assert entry(store, "test").detail == "5 episodes played"


def test_a_search_in_dreams_says_what_it_is_worth_in_both_worlds(store):
    search = {"history": np.zeros((7, 4)), "checks": np.full((2, 4), 9.0), "awakes": np.zeros((0, 0))}
    store.save_part("controller", {"step": 99, "tree": search})
    assert entry(store, "controller").detail == "step 99, 7 generations, validation return 9.00"
    store.save_part("controller", {"step": 99, "tree": {**search, "awakes": np.full((1, 4), 2.0)}})
    assert entry(store, "controller").detail == "step 99, 7 generations, asleep 9.00, awake 2.00"
    found = {"return": 9.0, "generation": 4}
    assert best(found) == "validation return 9.00 in generation 4"
    both = best({**found, "dreamt": 9.0, "awake": 2.0})
    assert both == "validation return 9.00 in generation 4 (asleep 9.00, awake 2.00)"


def test_a_retrained_parent_makes_its_children_stale(whole):
    save(whole, "vae", 2, {"data": entry(whole, "data").hash})
    found = states(whole)
    assert found["vae"] == "complete"
    assert [found[n] for n in ("dynamics", "controller", "test", "videos")] == ["stale"] * 4
    assert "representation" in entry(whole, "dynamics").why
    assert status.report(whole.logdir).next == f"wmrl train-dynamics --logdir {whole.logdir} --noreload"


def test_appended_episodes_make_nothing_stale(whole):
    episodes(whole, 4, 2)
    shards.complete(whole.data)
    assert set(states(whole).values()) == {"complete"}
    assert f"appended since; wmrl train-vae --logdir {whole.logdir} continues" in entry(whole, "vae").why
    rounds.save(whole, [Round(1, Iterate(), 4, stage="")])
    assert entry(whole, "vae").why.endswith("the next iteration trains on them"), "a single stage would refuse to"


def test_other_data_make_everything_stale(whole):
    for path in whole.data.iterdir():
        path.unlink()
    episodes(whole, 0, 2)
    shards.complete(whole.data)
    assert entry(whole, "vae").state == "stale" and "data" in entry(whole, "vae").why


def test_damage_is_told_with_its_remedy(whole):
    path = whole.path("dynamics")
    path.write_bytes(path.read_bytes()[:-7])
    found = entry(whole, "dynamics")
    assert found.state == "damaged" and "truncated" in found.why
    assert status.report(whole.logdir).next == f"rm {path} && wmrl train-dynamics --logdir {whole.logdir}"


@pytest.mark.parametrize("name", ["vae.h5", "vae.part.h5"])
def test_a_folder_in_place_of_an_artifact_is_moved_away_by_the_remedy(store, name):
    logdir, bad = store.logdir, store.logdir / name
    (bad / "mine").mkdir(parents=True)
    remedy, _, next_ = entry(store, "vae").command.partition(" && ")
    assert next_ == f"wmrl train-vae --logdir {logdir}"
    subprocess.run(remedy, shell=True, check=True)
    assert not bad.exists() and (logdir / f"{name}.away" / "mine").is_dir()
    assert entry(store, "vae").state == "missing"


def test_commands_are_quoted_for_the_shell(tmp_path):
    pipe = pipeline.load(None, [f'data="{tmp_path}/my data"'])
    store = Store(tmp_path / "my run", pipe)
    store.remember()
    store.path("vae").write_bytes(b"damaged")
    commands = {e.name: e.command for e in status.report(store.logdir).entries}
    logdir = ["--logdir", str(store.logdir)]
    assert shlex.split(commands["data"]) == ["wmrl", "generate", *logdir, "--data", str(store.data)]
    assert shlex.split(commands["vae"]) == ["rm", str(store.path("vae")), "&&", "wmrl", "train-vae", *logdir]
    assert shlex.split(commands["dynamics"]) == ["wmrl", "train-dynamics", *logdir]
    assert shlex.split(commands["videos"]) == ["wmrl", "render", *logdir]


def test_the_newest_film_is_compared_with_the_test(whole):
    films, tested = whole.logdir / "videos", whole.path("test").stat().st_mtime
    (films / "zebra.mp4").write_bytes(b"an old film")
    os.utime(films / "zebra.mp4", (tested - 100, tested - 100))
    os.utime(films / "episode.mp4", (tested + 100, tested + 100))
    assert entry(whole, "videos").state == "complete"
    os.utime(films / "episode.mp4", (tested - 50, tested - 50))
    assert entry(whole, "videos").state == "stale" and entry(whole, "videos").why == "test is newer"


def test_a_missing_shard_is_damage(whole):
    next(whole.data.glob("shard-*")).unlink()
    assert entry(whole, "data").state == "damaged" and "missing" in entry(whole, "data").why


def test_a_reference_follows_its_file(whole, tmp_path):
    other = Store(tmp_path / "other", whole.pipe)
    target = other.path("vae")
    hash_ = save(other, "vae", 1, {"data": entry(whole, "data").hash})
    whole.refer("vae", str(target))
    assert entry(whole, "vae").hash == hash_ and entry(whole, "vae").state == "complete"
    save(other, "vae", 3, {})
    assert entry(whole, "vae").state == "stale" and "has changed" in entry(whole, "vae").why
    target.unlink()
    assert entry(whole, "vae").state == "stale" and "missing" in entry(whole, "vae").why


def test_a_model_of_another_run_may_have_seen_other_data(whole, tmp_path):
    other = Store(tmp_path / "other", whole.pipe)
    save(other, "vae", 0, {"data": "of another game"})
    whole.refer("vae", str(other.path("vae")))
    found = entry(whole, "vae")
    assert (found.state, found.why) == ("complete", "") and "other" in found.detail


def test_a_damaged_record_of_iterations_is_told_and_no_stage_is_suggested(whole):
    (whole.logdir / "iterate.part.h5").write_bytes(b"no more")
    found = status.report(whole.logdir)
    assert "iterate.part.h5" in found.iterations and found.next.startswith("wmrl iterate")


def test_a_process_at_work_is_seen(whole):
    assert not status.report(whole.logdir).busy
    with lock(whole.logdir):
        assert status.report(whole.logdir).busy


def test_nothing_is_changed_by_looking(whole):
    def snapshot():
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in whole.logdir.rglob("*")}

    before = snapshot()
    status.report(whole.logdir)
    assert snapshot() == before


def test_what_is_no_logdir_is_one_sentence(tmp_path):
    with pytest.raises(ArtifactError, match="no folder"):
        status.report(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="no logdir of wmrl"):
        status.report(tmp_path)


def test_a_foreign_file_in_place_of_an_artifact_is_damage(whole):
    files.write(whole.path("vae"), lambda file: None, role="dynamics")
    assert entry(whole, "vae").state == "damaged" and "holds dynamics" in entry(whole, "vae").why


def begun_again(whole):
    """Artifacts as the stages leave them, each with its training state beside it."""
    data = entry(whole, "data").hash
    fit = {"steps": 800, "seconds": 2.5, "complete": True, "ended": "all steps made"}
    vae = save(whole, "vae", 1, {"data": data}, fit=fit)
    parents = {"data": data, "representation": vae, "dynamics": entry(whole, "dynamics").hash}
    trainer, history = {"kind": "evolve", "generations": 5}, {"generation": np.arange(5)}
    whole.pipe = dataclasses.replace(whole.pipe, trainer=trainer)
    whole.remember()
    save(whole, "controller", 1, parents, trainer=trainer, history=history)
    search = {"parents": parents, "trainer": trainer, "step": 99, "complete": True}
    progress = {"step": 800, "seconds": 2.5, "ended": ""}
    return {"progress": progress, "parents": {"data": data}}, search | {"tree": {"history": np.zeros((5, 4))}}


def asks_for(store, *sets):
    """What a later call with other settings leaves in the logdir."""
    store.pipe = pipeline.load(store.logdir, list(sets))
    store.remember()


def test_a_finished_training_state_beside_its_artifact_is_complete(whole):
    asks_for(whole, "fit.vae.steps=800")
    training, search = begun_again(whole)
    whole.save_part("vae", training)
    whole.save_part("controller", search)
    assert states(whole)["vae"] == states(whole)["controller"] == "complete"


@pytest.mark.parametrize(
    ("change", "generations"),
    [
        ({"complete": False, "trainer": {"kind": "evolve", "generations": 60}}, 60),
        ({}, 60),  # killed before anything was saved
        ({"complete": False, "tree": {"history": np.zeros((7, 4))}}, 5),
    ],
)
def test_a_longer_search_that_was_killed_is_in_progress(whole, change, generations):
    search = begun_again(whole)[1] | change
    asks_for(whole, f"trainer.generations={generations}")
    whole.save_part("controller", search)
    found = entry(whole, "controller")
    assert found.state == "in progress" and found.hash and "begun again" in found.why
    assert found.command == f"wmrl train-controller --logdir {whole.logdir}"


def test_a_search_that_its_minutes_ended_is_complete(whole):
    search = begun_again(whole)[1]
    whole.save_part("controller", search | {"complete": False})
    assert states(whole)["controller"] == "complete"


@pytest.mark.parametrize(
    ("change", "steps"),
    [({"step": 900}, 2000), ({"step": 100, "seconds": 0.5}, 800), ({}, 2000), ({"seconds": 3.5}, 800)],
)
def test_a_longer_training_that_was_killed_is_in_progress(whole, change, steps):
    asks_for(whole, f"fit.vae.steps={steps}")
    training = begun_again(whole)[0]
    whole.save_part("vae", training | {"progress": training["progress"] | change})
    found = entry(whole, "vae")
    assert found.state == "in progress" and found.detail.startswith("step ")
    assert found.command == f"wmrl train-vae --logdir {whole.logdir}"


def test_what_ended_early_wants_no_more_steps(whole):
    asks_for(whole, "fit.vae.steps=2000")
    training = begun_again(whole)[0]
    whole.save_part("vae", training | {"progress": training["progress"] | {"ended": "no better"}})
    assert states(whole)["vae"] == "complete"


def test_a_stage_begun_anew_is_in_progress(whole):
    whole.begin_anew("dynamics")
    found = entry(whole, "dynamics")
    assert found.state == "in progress" and found.detail == "begun"
    assert status.report(whole.logdir).next == f"wmrl train-dynamics --logdir {whole.logdir}"


def test_a_training_begun_with_other_parts_cannot_be_continued(whole):
    whole.save_part("vae", {"progress": {"step": 5, "seconds": 1.0, "ended": ""}, "parents": {"data": "other"}})
    found = entry(whole, "vae")
    assert found.state == "stale" and found.command.endswith("--noreload")


def test_a_damaged_training_state_beside_its_artifact_is_told(whole):
    whole.part("vae").write_bytes(b"damaged")
    found = entry(whole, "vae")
    assert found.state == "damaged" and str(whole.part("vae")) in found.why
    assert found.command == f"rm {whole.part('vae')} && wmrl train-vae --logdir {whole.logdir}"


@pytest.mark.parametrize("left", [700, -1])
def test_a_shard_that_was_cut_is_damage(whole, left):
    shard = next(whole.data.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:left])
    found = entry(whole, "data")
    assert found.state == "damaged" and shard.name in found.why and "truncated" in found.why


def test_a_search_that_kept_the_mean_it_began_with_says_what_that_returned(store):
    facts = {"steps": 8, "best": {"return": 10.5, "generation": 0}}
    store.save("controller", Artifact("controller", facts=facts))
    (entry,) = [entry for entry in status.report(store.logdir).entries if entry.name == "controller"]
    assert entry.detail == "8 steps, validation return 10.5 in generation 0"
