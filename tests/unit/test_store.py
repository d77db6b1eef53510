"""A logdir: artifacts come back as they were, know their parents, and refuse what does not fit."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wmrl import artifact, pipeline, session
from wmrl.agreement import check_components, reconcile
from wmrl.dynamics import DYNAMICS
from wmrl.errors import ArtifactError, ConfigError, ContractError
from wmrl.locking import lock
from wmrl.memory import in_memory
from wmrl.spec import Actions, Space
from wmrl.store import Store, rebuild

SMALL = {"kind": "mdn-rnn", "hidden": 8, "mixtures": 2}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "run", pipeline.load(None))


def small_dynamics(**more):
    from wmrl import config
    from wmrl.dynamics import DYNAMICS

    torch.manual_seed(0)
    given = (Space((4,)), Actions(2, False))
    table = config.resolved(DYNAMICS, SMALL, "dynamics")
    module = config.build(DYNAMICS, table, "dynamics", *given)
    return module, artifact.of(module, "dynamics", table, given, **more)


def test_a_component_is_rebuilt_from_its_artifact_alone(store):
    module, made = small_dynamics(parents={"data": "d1"}, facts={"steps": 5})
    store.save("dynamics", made)
    back = store.load("dynamics")
    assert back.hash == made.hash and back.parents == {"data": "d1"} and back.facts["steps"] == 5
    again, hash_ = store.component("dynamics")
    assert hash_ == made.hash and not again.training
    for name, tensor in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert not any(p.requires_grad for p in again.parameters())


def test_in_memory_an_artifact_is_read_once_for_each_time_it_is_made(store, monkeypatch):
    reads, read = [], artifact.read
    store.save("dynamics", small_dynamics()[1])
    monkeypatch.setattr(artifact, "read", lambda path, name: reads.append(name) or read(path, name))
    with in_memory():
        first = store.load("dynamics")
        assert Store(store.logdir, store.pipe).load("dynamics") is first and len(reads) == 1
        other = dataclasses.replace(first, tensors={name: array + 1 for name, array in first.tensors.items()})
        store.save("dynamics", other)
        reads.clear()
        assert store.load("dynamics").hash == other.hash != first.hash and store.load("dynamics") and len(reads) == 1
        store.path("dynamics").write_bytes(store.path("dynamics").read_bytes()[:-9])
        with pytest.raises(ArtifactError, match="truncated"):
            store.load("dynamics")
        store.path("dynamics").unlink()
        with pytest.raises(ArtifactError, match="missing"):
            store.load("dynamics")
    store.save("dynamics", first)
    assert store.load("dynamics") is not store.load("dynamics")


def test_an_artifact_says_who_made_it(store):
    store.save("dynamics", small_dynamics()[1])
    facts = store.load("dynamics").facts
    assert facts["provenance"]["wmrl"] and facts["provenance"]["argv"] and facts["provenance"]["packages"]["torch"]
    assert facts["pipeline"]["seed"] == 1


def test_an_artifact_says_of_which_commit_it_is_and_whether_the_tree_was_dirty(store, tmp_path, monkeypatch):
    def git(*words):
        who = ("-c", "user.name=n", "-c", "user.email=e")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    def said():
        store.path("dynamics").unlink(missing_ok=True)
        store.save("dynamics", small_dynamics()[1])
        return store.load("dynamics").facts["provenance"]["git"]

    monkeypatch.setattr(artifact, "CHECKOUT", tmp_path)
    monkeypatch.setattr(artifact, "provenance", artifact.provenance.__wrapped__)  # it is asked once a process
    assert said() is None
    git("init", "-q")
    (tmp_path / "code.py").write_text("a = 1")
    git("add", "code.py")
    git("commit", "-q", "-m", "one")
    assert said() == {"commit": git("rev-parse", "HEAD").strip(), "dirty": False}
    (tmp_path / "code.py").write_text("a = 2")
    assert said() == {"commit": git("rev-parse", "HEAD").strip(), "dirty": True}


def test_the_commit_is_looked_up_where_wmrl_lies():
    assert (artifact.CHECKOUT / "wmrl" / "artifact.py").samefile(artifact.__file__)


def test_the_content_hash_is_of_content():
    made = small_dynamics()[1]
    assert dataclasses.replace(made, facts={"at": "noon"}, parents={"data": "x"}).hash == made.hash
    name = next(iter(made.tensors))
    other = {**made.tensors, name: made.tensors[name] + 1e-3}
    assert dataclasses.replace(made, tensors=other).hash != made.hash
    assert dataclasses.replace(made, component={**made.component, "hidden": 9}).hash != made.hash
    assert dataclasses.replace(made, role="vae").hash != made.hash


def test_weights_that_do_not_fit_are_a_contract_error():
    made = small_dynamics()[1]
    with pytest.raises(ContractError, match="weights do not fit dynamics 'mdn-rnn'"):
        rebuild(dataclasses.replace(made, component={**made.component, "hidden": 16}))


def test_what_is_missing_says_how_to_make_it(store):
    with pytest.raises(ArtifactError, match="dynamics.h5 is missing; make it: wmrl train-dynamics --logdir"):
        store.load("dynamics")


BREAKOUT = {"id": "MinAtar/Breakout-v1", "backend": "minatar"}


@pytest.mark.parametrize(
    ("made", "asked", "differs"),
    [
        ({"id": "TakeCover-v1", "frame_skip": 4}, {}, None),
        ({"id": "TakeCover-v1"}, {"frame_skip": 4}, None),
        ({"id": "TakeCover-v1"}, {"frame_skip": 1}, "frame_skip = 4, the pipeline asks for 1"),
        ({"id": "TakeCover-v1", "frame_skip": 1}, {}, "frame_skip = 1, the pipeline asks for 4"),
        ({"id": "CarRacing-v3"}, {}, "id = 'CarRacing-v3', the pipeline asks for 'TakeCover-v1'"),
        ({"id": "TakeCover-v1", "size": 96}, {}, "size = 96, the pipeline asks for 64"),
        ({}, {}, None),
        (BREAKOUT, {"id": "MinAtar/Breakout-v1"}, None),
        (BREAKOUT, {"id": "MinAtar/Breakout-v1", "observe": "state", "sticky": 0.1, "ramping": True}, None),
        (
            BREAKOUT,
            {"id": "MinAtar/Breakout-v1", "observe": "pixels"},
            "observe = 'state', the pipeline asks for 'pixels'",
        ),
        (BREAKOUT, {"id": "MinAtar/Breakout-v1", "hide": [2]}, r"hide = \[\], the pipeline asks for \[2\]"),
        ({**BREAKOUT, "hide": [2]}, {"id": "MinAtar/Breakout-v1"}, r"hide = \[2\], the pipeline asks for \[\]"),
        (BREAKOUT, {"id": "MinAtar/Breakout-v1", "sticky": 0.0}, "sticky = 0.1, the pipeline asks for 0.0"),
        ({"id": "TakeCover-v1"}, {"action_repeat": 2}, "action_repeat = 1, the pipeline asks for 2"),
        ({"id": "TakeCover-v1", "backend": "imported"}, {"observe": "state"}, None),
    ],
)
def test_a_dataset_of_another_game_or_of_other_steps_is_refused(tmp_path, monkeypatch, made, asked, differs):
    monkeypatch.setattr("wmrl.data.episodes.Episodes", lambda folder: SimpleNamespace(env=made))
    store = Store(tmp_path, pipeline.parse({"env": {"id": "TakeCover-v1", **asked}}))
    if differs is None:
        assert store.episodes().env == made
        return
    with pytest.raises(ContractError, match=f"holds env.{differs}; .*or set env."):
        store.episodes()


def test_parents_that_changed_are_named(store):
    made = small_dynamics(parents={"representation": "a" * 64})[1]
    store.fits("dynamics", made, {"representation": "a" * 64})
    with pytest.raises(
        ContractError, match="made from representation aaaaaaaa, but bbbbbbbb is there now; run: wmrl train"
    ):
        store.fits("dynamics", made, {"representation": "b" * 64})


def test_a_reference_copies_nothing_and_notices_a_change(store, tmp_path):
    other = Store(tmp_path / "other", store.pipe)
    made = small_dynamics()[1]
    other.save("dynamics", made)
    store.refer("dynamics", str(tmp_path / "other"))
    assert store.load("dynamics").hash == made.hash
    assert store.path("dynamics").stat().st_size < other.path("dynamics").stat().st_size
    name = next(iter(made.tensors))
    other.save("dynamics", dataclasses.replace(made, tensors={**made.tensors, name: made.tensors[name] * 2}))
    with pytest.raises(ContractError, match="has changed since"):
        store.load("dynamics")


def test_a_reference_holds_from_any_folder_and_when_all_moves(store, tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    monkeypatch.chdir(tmp_path / "old")
    made = small_dynamics()[1]
    Store(Path("runs/a"), store.pipe).save("dynamics", made)
    Store(Path("runs/b"), store.pipe).refer("dynamics", "runs/a")
    monkeypatch.chdir(tmp_path)
    Path("old").rename("new")
    assert Store(Path("new/runs/b"), store.pipe).load("dynamics").hash == made.hash


def test_a_reference_to_a_reference_refers_to_what_lies_there(store, tmp_path):
    first, second = (Store(tmp_path / name, store.pipe) for name in ("first", "second"))
    made = small_dynamics()[1]
    first.save("dynamics", made)
    second.refer("dynamics", str(first.logdir))
    store.refer("dynamics", str(second.logdir))
    second.path("dynamics").unlink()
    assert store.load("dynamics").hash == made.hash and store.load("dynamics").tensors


def test_an_artifact_does_not_become_a_reference_to_itself(store, tmp_path):
    other = Store(tmp_path / "other", store.pipe)
    store.save("dynamics", small_dynamics()[1])
    other.refer("dynamics", str(store.logdir))
    before = store.path("dynamics").read_bytes()
    for target in (store.logdir, other.logdir):
        with pytest.raises(ConfigError, match="itself"):
            store.refer("dynamics", str(target))
    assert store.path("dynamics").read_bytes() == before


def test_a_part_comes_back_and_can_be_dropped(store):
    assert store.load_part("vae") is None and not store.begun("vae")
    store.save_part("vae", {"step": 3, "model": {"w": torch.ones(2)}, "best": None})
    back = store.load_part("vae")
    assert back["step"] == 3 and back["best"] is None and store.begun("vae") and not store.exists("vae")
    np.testing.assert_array_equal(back["model"]["w"], [1, 1])
    store.drop_part("vae")
    assert store.load_part("vae") is None


def test_one_process_at_a_time(tmp_path):
    code = f"from wmrl.locking import lock; from pathlib import Path\nwith lock(Path({str(tmp_path)!r})): pass"
    with lock(tmp_path):
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "another wmrl process is working in" in second.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def begun(store, *names):
    for name in names:
        store.save_part(name, {"step": 1})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=2", "seed: "),
        ("env.size=96", "env.size: "),
        ("representation.latent=16", "representation.latent: "),
        ("fit.vae.batch=7", "fit.vae.batch: "),
        ("validation=0.2", "validation: "),
    ],
)
def test_a_changed_key_of_a_begun_stage_names_itself(store, override, message):
    begun(store, "vae")
    with pytest.raises(ConfigError) as error:
        reconcile(store.logdir, store.pipe, pipeline.load(None, [override]))
    assert str(error.value).startswith(message) and "--logdir" in str(error.value)
    assert ("--noreload" in str(error.value)) == (not message.startswith(("seed", "env")))


@pytest.mark.parametrize(
    "override", ["fit.vae.steps=999999", "dynamics.hidden=4", "trainer.samples=3", "test.episodes=5"]
)
def test_growth_and_stages_to_come_may_change(store, override):
    begun(store, "vae")
    before = store.pipe.table()
    reconcile(store.logdir, store.pipe, pipeline.load(None, [override]))
    assert store.pipe.table() == before != pipeline.load(None, [override]).table()  # something did change


def test_the_target_at_which_a_search_stops_may_change(store):
    begun(store, "controller")
    reconcile(store.logdir, store.pipe, pipeline.load(None, ["trainer.target_return=900.0"]))
    with pytest.raises(ConfigError, match=r"trainer\.sigma"):
        reconcile(store.logdir, store.pipe, pipeline.load(None, ["trainer.sigma=0.5"]))


def test_less_than_a_default_is_no_growth(store):
    begun(store, "controller", "vae")
    for key in ("trainer.generations", "fit.vae.steps"):
        with pytest.raises(ConfigError, match=key):
            reconcile(store.logdir, store.pipe, pipeline.load(None, [f"{key}=1"]))


def test_a_default_spelt_out_is_no_change(store):
    begun(store, "dynamics")
    reconcile(store.logdir, store.pipe, pipeline.load(None, ["dynamics.mixture=joint"]))
    with pytest.raises(ConfigError, match=r"dynamics\.mixture"):
        reconcile(store.logdir, store.pipe, pipeline.load(None, ["dynamics.mixture=per_dimension"]))


def test_another_kind_is_what_is_named(store):
    begun(store, "dynamics")
    with pytest.raises(ConfigError, match=r"^dynamics\.kind: .*'mdn-rnn'.*'trade'"):
        reconcile(store.logdir, store.pipe, pipeline.load(None, ["dynamics.kind=trade"]))


def test_a_window_at_rollout_is_as_long_as_in_training():
    for kind in ("transformer-de", "trade"):
        for length, context in ((32, 48), (48, 32)):
            sets = [f"dynamics.kind={kind}", f"dynamics.context={context}", f"fit.dynamics.length={length}"]
            with pytest.raises(ConfigError, match=f"dynamics.context is {context} and fit.dynamics.length is {length}"):
                check_components(pipeline.load(None, sets))
            check_components(pipeline.load(None, [*sets, f"dynamics.context={length}"]))
    check_components(pipeline.load(None, ["fit.dynamics.length=48"]))  # an MDN-RNN has no window
    check_components(pipeline.load(None, ["dynamics.from=runs/other/seed-1", "fit.dynamics.length=48"]))


@pytest.mark.parametrize("wrong", ["hidden=0", "kind=transformer-de,heads=3", "kind=trade,density_blocks=0"])
def test_what_a_model_refuses_is_told_before_anything_is_trained(wrong):
    draws = torch.random.get_rng_state()
    with pytest.raises(ConfigError, match=f"^dynamics: .*{wrong.rpartition(',')[2].partition('=')[0]}"):
        check_components(pipeline.load(None, [f"dynamics.{s}" for s in wrong.split(",")]))
    assert draws.equal(torch.random.get_rng_state())


@pytest.mark.parametrize("kind", ["Pictures", "Tokens"])
def test_a_model_of_other_latents_than_vectors_is_taken_and_what_it_refuses_is_told(monkeypatch, kind):
    monkeypatch.setitem(DYNAMICS, "other", f"{__name__}:{kind}")
    check_components(pipeline.parse({"dynamics": {"kind": "other"}}))
    with pytest.raises(ConfigError, match="^dynamics: hidden must be at least 1"):
        check_components(pipeline.parse({"dynamics": {"kind": "other", "hidden": 0}}))


class Pictures:
    """A model that takes pictures, and is surprised by all else."""

    def __init__(self, latent, actions, *, hidden: int = 4):
        _channels, _height, _width = latent.shape
        if hidden < 1:
            raise ValueError("hidden must be at least 1")


class Tokens:
    """A model that takes tokens, and is surprised by all else."""

    def __init__(self, latent, actions, *, hidden: int = 4):
        torch.nn.Embedding(latent.vocab, 4)
        if hidden < 1:
            raise ValueError("hidden must be at least 1")


def test_a_stage_begun_anew_may_change(store):
    begun(store, "vae")
    reconcile(store.logdir, store.pipe, pipeline.load(None, ["representation.latent=16"]), anew="vae")
    with pytest.raises(ConfigError, match="seed"):
        reconcile(store.logdir, store.pipe, pipeline.load(None, ["seed=2"]), anew="vae")


def test_a_kill_while_the_last_logdir_is_noted_leaves_the_one_before(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*paths):
        raise Killed

    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Store(Path("runs", name), pipeline.load(None)).remember()
    session.remember(Path("runs/a"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", die)
        session.remember(Path("runs/b"))
    assert session.last() == Path("runs/a")
    Path("runs/.last.tmp-999999999").touch()  # what another process leaves that is killed there
    session.remember(Path("runs/b"))
    assert session.last() == Path("runs/b") and not list(Path("runs").glob("*.tmp-*"))
