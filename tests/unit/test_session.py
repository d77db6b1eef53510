"""Which pipeline and which logdir a command line means."""

import shutil
from pathlib import Path

import pytest

from wmrl import pipeline, session, sources
from wmrl.errors import ArtifactError, ConfigError
from wmrl.session import Asked, Session
from wmrl.store import Store


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make(logdir: str, *sets: str) -> Store:
    store = Store(Path(logdir), pipeline.load(None, sets))
    store.remember(sets)
    return store


def resolve(asked: Asked, **more) -> tuple[pipeline.Pipeline, Path]:
    found = session.resolve(asked, **more)
    assert isinstance(found, Session)
    return found.pipe, found.logdir


def test_nothing_said_is_the_default():
    pipe, logdir = resolve(Asked())
    assert (pipe.name, str(logdir), pipe.data) == (
        "carracing-mdnrnn",
        "runs/carracing-mdnrnn/seed-1",
        "datasets/carracing",
    )


def test_nothing_said_is_the_logdir_used_last(capsys):
    make("runs/x/seed-5", "seed=5")
    session.remember(Path("runs/x/seed-5"))
    pipe, logdir = resolve(Asked())
    assert pipe.seed == 5 and str(logdir) == "runs/x/seed-5"
    assert "runs/x/seed-5" in capsys.readouterr().err


def test_a_logdir_that_is_gone_is_forgotten():
    session.remember(Path("runs/gone"))
    assert session.last() is None and resolve(Asked())[0].seed == 1


def test_a_damaged_note_of_the_last_logdir_is_ignored():
    session.LAST.parent.mkdir()
    session.LAST.write_bytes(b"\xff\xfe")
    assert session.last() is None and resolve(Asked())[0].seed == 1


def test_an_unreadable_stored_pipeline_is_one_sentence():
    Path("here", sources.STORED).mkdir(parents=True)
    with pytest.raises(ArtifactError, match=r"pipeline\.json cannot be read"):
        resolve(Asked(logdir=Path("here")))


def test_the_pipeline_of_a_logdir_holds():
    make("here", "seed=7", "dynamics.hidden=64")
    for asked in (Asked(logdir=Path("here")), Asked(pipeline="here")):
        pipe, logdir = resolve(asked)
        assert pipe.seed == 7 and pipe.dynamics["hidden"] == 64 and logdir == Path("here")


def test_a_logdir_as_pipeline_may_serve_another_logdir():
    make("here", "seed=7")
    pipe, logdir = resolve(Asked(pipeline="here", logdir=Path("there")))
    assert pipe.seed == 7 and logdir == Path("there")


def test_a_folder_of_the_same_name_does_not_hide_a_pipeline():
    Path("carracing-quick").mkdir()
    assert resolve(Asked(pipeline="carracing-quick"))[0].name == "carracing-quick"
    Path("empty").mkdir()
    with pytest.raises(ArtifactError, match="empty holds no pipeline.json"):
        resolve(Asked(pipeline="empty"))


def test_flags_make_runs_of_their_own():
    asked = Asked(pipeline="carracing-mdnrnn", flags={"seed": 3, "env.size": None})
    assert str(resolve(asked)[1]) == "runs/carracing-mdnrnn/seed-3"
    pipe, logdir = resolve(Asked(pipeline="carracing-mdnrnn", flags={"env.id": "Pendulum-v1"}))
    assert str(logdir) == "runs/carracing-mdnrnn/pendulum/seed-1" and pipe.data == "datasets/pendulum"


def test_data_can_be_named():
    pipe, _ = resolve(Asked(data=Path("my data"), flags={"env.id": "Pendulum-v1"}))
    assert pipe.data == "my data"


def test_another_seed_or_environment_is_an_error_not_a_continuation():
    make("here", "seed=7").begin_anew("vae")
    for flags, word in (({"seed": 8}, "seed"), ({"env.id": "Pendulum-v1"}, "env.id")):
        with pytest.raises(ConfigError, match=word):
            resolve(Asked(logdir=Path("here"), flags=flags))


def test_text_flags_survive_quoting():
    sets = list(session.flags_as_sets({"env.id": 'we"ird\\id', "x": None, "y": True, "z": 1.5}))
    assert sets == ['env.id="we\\"ird\\\\id"', "y=true", "z=1.5"]
    assert sources.with_overrides({}, sets)["env"]["id"] == 'we"ird\\id'


def test_overrides_hold_for_later_calls_in_the_same_logdir(tmp_path):
    file = tmp_path / "exp.toml"
    file.write_text('dynamics = { kind = "mdn-rnn", hidden = 32 }')
    first = session.resolve(Asked(pipeline=str(file), flags={"fit.vae.batch": 5}))
    store = Store(first.logdir, first.pipe)
    store.remember(first.sets)
    store.save_part("vae", {"step": 1})
    again = session.resolve(Asked(pipeline=str(file), flags={"fit.dynamics.batch": 6}))
    assert (again.pipe.fit.vae.batch, again.pipe.fit.dynamics.batch) == (5, 6)
    with pytest.raises(ConfigError, match=r"fit\.vae\.batch"):
        resolve(Asked(pipeline=str(file), flags={"fit.vae.batch": 7}))
    anew = resolve(Asked(pipeline=str(file)), writes="vae", anew=True)[0]
    assert anew.fit.vae.batch == pipeline.load(file).fit.vae.batch != 5


def test_an_edited_file_is_noticed(tmp_path):
    file = tmp_path / "exp.toml"
    file.write_text("fit = { vae = { batch = 4 } }")
    first = session.resolve(Asked(pipeline=str(file)))
    store = Store(first.logdir, first.pipe)
    store.remember(first.sets)
    store.save_part("vae", {"step": 1})
    file.write_text("fit = { vae = { batch = 8 } }")
    with pytest.raises(ConfigError, match=r"fit\.vae\.batch: .* begun with 4, this call says 8"):
        resolve(Asked(pipeline=str(file)))
    assert resolve(Asked(pipeline=str(file)), writes="vae", anew=True)[0].fit.vae.batch == 8


def test_a_run_is_found_whole_from_any_folder(tmp_path, monkeypatch):
    """Relative paths begin where the run was begun, not where a later call is made."""
    Path("datasets/mine").mkdir(parents=True)
    sets = ("data=datasets/mine", "representation.from=runs/first")
    make("runs/x", *sets)
    elsewhere = tmp_path / "some" / "where"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    pipe, logdir = resolve(Asked(str(tmp_path / "runs/x")))
    assert Path(pipe.data).resolve() == tmp_path / "datasets/mine"
    assert Path(pipe.representation["from"]).resolve() == tmp_path / "runs/first"
    Store(logdir, pipe).remember(sources.stored_sets(logdir))
    monkeypatch.chdir(tmp_path)
    again, _ = resolve(Asked("runs/x"))
    assert (again.data, again.representation["from"]) == ("datasets/mine", "runs/first")
    assert sorted(sources.stored_sets(Path("runs/x"))) == [f'{k}="{v}"' for k, v in (s.split("=") for s in sets)]


def test_absolute_paths_and_tables_hold_from_any_folder(tmp_path, monkeypatch):
    text = f'{{kind = "vae", from = "{tmp_path}/runs/first"}}'
    sets = (f"data={tmp_path}/datasets/mine", f"representation={text}", 'dynamics={from = "runs/first"}')
    store = make("runs/x", *sets)
    store.path("vae").write_text("begun")
    monkeypatch.chdir(tmp_path.parent)
    pipe, _ = resolve(Asked(str(tmp_path / "runs/x"), sets=sets[:2]))
    assert (pipe.data, pipe.representation["from"]) == (f"{tmp_path}/datasets/mine", f"{tmp_path}/runs/first")
    assert Path(pipe.dynamics["from"]).resolve() == tmp_path / "runs/first"


def test_links_lead_to_the_same_folders(tmp_path, monkeypatch):
    (tmp_path / "disk/deep/runs").mkdir(parents=True)
    (tmp_path / "project/datasets/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    Path("runs").symlink_to(tmp_path / "disk/deep/runs")
    make("runs/x", "data=datasets/mine")
    monkeypatch.chdir(tmp_path / "project/runs/x")
    assert Path(resolve(Asked("."))[0].data).resolve() == tmp_path / "project/datasets/mine"


def test_anothers_dataset_is_not_taken_for_ones_own(tmp_path, monkeypatch):
    make("runs/x", "data=datasets/mine")
    (tmp_path / "other/datasets/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "other")
    assert Path(resolve(Asked("../runs/x"))[0].data).resolve() == tmp_path / "datasets/mine"


def test_a_copied_logdir_takes_the_dataset_that_lies_here(tmp_path, monkeypatch):
    store = make("old/runs/x")
    here = tmp_path / "new"
    (here / "datasets/carracing").mkdir(parents=True)
    (here / "x").mkdir()
    (here / "x" / sources.STORED).write_text((store.logdir / sources.STORED).read_text())
    monkeypatch.chdir(here)
    assert resolve(Asked("x"))[0].data == "datasets/carracing"


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("to", ["runs/y", "other/deep/x"])
def test_the_dataset_inside_a_logdir_goes_with_it(tmp_path, monkeypatch, to, absolute):
    """That of an iterated run: a copy must not read, and never fill, the one of the run that it was copied from."""
    data = f"{tmp_path}/runs/x/rollouts" if absolute else "runs/x/rollouts"
    store = make("runs/x", f"data={data}")
    (store.logdir / "rollouts").mkdir()
    shutil.copytree(store.logdir, to)
    assert resolve(Asked(to))[0].data == f"{to}/rollouts"
    assert sources.stored_sets(Path(to)) == [f'data="{to}/rollouts"']
    assert resolve(Asked("runs/x"))[0].data == data
    monkeypatch.chdir(tmp_path / to)
    assert resolve(Asked("."))[0].data == "rollouts"


def test_a_wrong_value_in_a_stored_pipeline_names_the_file():
    store = make("runs/x")
    path = store.logdir / sources.STORED
    path.write_text(path.read_text().replace('"seed": 1', '"seed": "one"'))
    with pytest.raises(ArtifactError, match=r"runs/x/pipeline\.json: seed"):
        resolve(Asked("runs/x"))


def test_a_wrong_value_among_stored_overrides_names_the_file():
    store = make("runs/x")
    store.remember(["seed=1"])
    path = store.logdir / sources.STORED
    path.write_text(path.read_text().replace("seed=1", "seed=one"))
    with pytest.raises(ArtifactError, match=r"runs/x/pipeline\.json: .*seed"):
        resolve(Asked("runs/x"))
    with pytest.raises(ConfigError, match="seed"):
        resolve(Asked("runs/x", sets=("seed=two",)))


def test_a_kind_comes_before_its_arguments_in_whatever_order():
    sets = ("dynamics.hidden=64",)
    pipe, _ = resolve(Asked(sets=sets, flags={"dynamics.kind": "toy"}))
    assert dict(pipe.dynamics) == {"kind": "toy", "hidden": 64}


def test_another_kind_drops_the_arguments_that_were_kept_for_the_old_one():
    make("runs/x", "dynamics.hidden=64")
    assert dict(resolve(Asked("runs/x", flags={"dynamics.kind": "toy"}))[0].dynamics) == {"kind": "toy"}
    assert resolve(Asked("runs/x", flags={"dynamics.kind": "mdn-rnn"}))[0].dynamics["hidden"] == 64


def test_a_named_dataset_holds_for_later_calls_and_the_own_one_is_not_pinned():
    first = session.resolve(Asked("carracing-mdnrnn", Path("runs/x"), data=Path("datasets/mine")))
    Store(first.logdir, first.pipe).remember(first.sets)
    assert resolve(Asked("carracing-mdnrnn", Path("runs/x")))[0].data == "datasets/mine"
    own = session.resolve(Asked("carracing-mdnrnn", Path("runs/y"), data=Path("datasets/carracing")))
    assert own.sets == ()


def test_spaces_around_the_key_of_an_override_mean_nothing():
    sets = ("data = datasets/mine", "env.id=Pendulum-v1")
    assert resolve(Asked(sets=sets))[0].data == "datasets/mine"


def test_a_wrong_first_call_does_not_bind_a_logdir_in_which_nothing_is():
    make("runs/x", "env.id=CarRacing-v9")
    assert resolve(Asked(logdir=Path("runs/x"), flags={"env.id": "Pendulum-v1"}))[0].env.id == "Pendulum-v1"
