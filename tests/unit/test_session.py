"""Which pipeline and which logdir a command line means."""

from pathlib import Path

import pytest

from wmrl import pipeline, session
from wmrl.errors import ConfigError
from wmrl.session import Asked, resolve
from wmrl.store import Store


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make(logdir: str, *sets: str) -> Store:
    store = Store(Path(logdir), pipeline.load(None, sets))
    store.remember()
    return store


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


def test_the_pipeline_of_a_logdir_holds():
    make("here", "seed=7", "dynamics.hidden=64")
    for asked in (Asked(logdir=Path("here")), Asked(pipeline="here")):
        pipe, logdir = resolve(asked)
        assert pipe.seed == 7 and pipe.dynamics["hidden"] == 64 and logdir == Path("here")


def test_a_logdir_as_pipeline_may_serve_another_logdir():
    make("here", "seed=7")
    pipe, logdir = resolve(Asked(pipeline="here", logdir=Path("there")))
    assert pipe.seed == 7 and logdir == Path("there")


def test_flags_make_runs_of_their_own():
    asked = Asked(pipeline="carracing-mdnrnn", flags={"seed": 3, "env.size": None})
    assert str(resolve(asked)[1]) == "runs/carracing-mdnrnn/seed-3"
    pipe, logdir = resolve(Asked(pipeline="carracing-mdnrnn", flags={"env.id": "Pendulum-v1"}))
    assert str(logdir) == "runs/carracing-mdnrnn/pendulum/seed-1" and pipe.data == "datasets/pendulum"


def test_data_can_be_named():
    pipe, _ = resolve(Asked(data=Path("my data"), flags={"env.id": "Pendulum-v1"}))
    assert pipe.data == "my data"


def test_another_seed_or_environment_is_an_error_not_a_continuation():
    make("here", "seed=7")
    for flags, word in (({"seed": 8}, "seed"), ({"env.id": "Pendulum-v1"}, "env.id")):
        with pytest.raises(ConfigError, match=word):
            resolve(Asked(logdir=Path("here"), flags=flags))


def test_text_flags_survive_quoting():
    sets = list(session.flags_as_sets({"env.id": 'we"ird\\id', "x": None, "y": True, "z": 1.5}))
    assert sets == ['env.id="we\\"ird\\\\id"', "y=true", "z=1.5"]
    assert pipeline.with_overrides({}, sets)["env"]["id"] == 'we"ird\\id'
