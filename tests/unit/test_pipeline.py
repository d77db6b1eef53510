"""Pipeline files: read, overridden, checked; and the logdir that follows from them."""

import json
from dataclasses import replace

import pytest

from wmrl import pipeline, sources
from wmrl.errors import ArtifactError, ConfigError
from wmrl.pipeline import load, parse


def test_every_pipeline_file_loads():
    assert "carracing-mdnrnn" in sources.names()
    for name in sources.names():
        pipe = load(name)
        assert pipe.name == name and parse(pipe.table()) == pipe


def test_overrides_take_toml_and_bare_words():
    pipe = load(None, ["seed=4", "fit.vae.steps=7", "env.id=Pendulum-v1", "dynamics.hidden=32", "env.crop=true"])
    assert (pipe.seed, pipe.fit.vae.steps, pipe.env.id, pipe.env.crop) == (4, 7, "Pendulum-v1", True)
    assert pipe.dynamics["hidden"] == 32


def test_a_nested_default_keeps_its_siblings():
    assert load(None, ["fit.vae.steps=7"]).fit.vae == replace(load(None).fit.vae, steps=7)


def test_another_kind_forgets_the_arguments_of_the_old_one(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text('dynamics = { kind = "mdn-rnn", hidden = 256 }')
    assert load(file, ["dynamics.kind=other"]).dynamics == {"kind": "other"}
    assert load(file, ["dynamics.kind=mdn-rnn"]).dynamics == {"kind": "mdn-rnn", "hidden": 256}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sede=3", "sede: unknown key; did you mean 'seed'?"),
        ("env.size=big", "env.size: expected int, got 'big'"),
        ("env.size=0", "env.size: must be greater than 0, got 0"),
        ("env.size=100000", "env.size: must be at most 4,096, got 100,000"),
        ("name=../evil", "name: '../evil' is to name a folder in runs/; it is no path"),
        ("fit.vae.steps=-1", "fit.vae.steps: must be greater than 0, got -1"),
        ("generate.rollouts=0", "generate.rollouts: must be greater than 0, got 0"),
        ("validation=1.0", "validation: must lie between 0 and 1, got 1.0"),
        ("seed=-1", "seed: must not be negative, got -1"),
        ("fit.vae.learning_rate=nan", "fit.vae.learning_rate: must be a finite number, got nan"),
        ("generate.noise=-inf", "generate.noise: must be a finite number, got -inf"),
        ("env.observe=planes", "env.observe: 'planes' is not one of 'auto', 'pixels', 'state'"),
        ("env.hide=[2, 2]", "env.hide: different numbers from 0 on, got [2, 2]"),
        ("env.hide=[-1]", "env.hide: different numbers from 0 on, got [-1]"),
        ("env.action_repeat=0", "env.action_repeat: must be greater than 0, got 0"),
        ("env.action_repeat=1000", "env.action_repeat: must be at most 100, got 1,000"),
        ("env.sticky=1.5", "env.sticky: a chance lies between 0 and 1, got 1.5"),
        ("env.max_steps=0", "env.max_steps: must be greater than 0, got 0"),
        ("fit.dynamics.clip=-1.0", "fit.dynamics.clip: must not be negative, got -1.0"),
        (
            "fit.vae={optimizer='rmsprop',weight_decay=0.1}",
            "fit.vae.weight_decay: is for the optimizer 'adam', and this is 'rmsprop'",
        ),
        ("nonsense", "--set takes a.b=c, got 'nonsense'"),
        ("seed.x=1", "seed.x: 'seed' is a value, not a table"),
        (
            "generate.policy=controller",
            "generate.controller: policy 'controller' needs the logdir of a trained controller",
        ),
    ],
)
def test_messages(override, message):
    with pytest.raises(ConfigError) as error:
        load("carracing-mdnrnn", [override])
    assert str(error.value) == message


def test_the_table_of_an_environment_is_as_it_was_before_there_were_vectors():
    """Shards keep it: with other words in it, the datasets that are there could not be continued."""
    was = {"id": "CarRacing-v3", "size": 64, "crop": False, "backend": "auto"}
    assert pipeline.Env().table() == was
    assert pipeline.Env(hide=(2,), observe="state").table() == {**was, "hide": [2], "observe": "state"}


def test_unknown_and_broken_files(tmp_path):
    with pytest.raises(
        ConfigError, match="no pipeline 'carracing-mdnrn' in pipelines/; did you mean 'carracing-mdnrnn'"
    ):
        load("carracing-mdnrn")
    with pytest.raises(ConfigError, match="no pipeline file"):
        load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("seed = = 3")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(tmp_path / "bad.toml")


def test_a_logdir_holds_its_pipeline(tmp_path):
    with pytest.raises(ArtifactError, match="it is no logdir"):
        load(tmp_path)
    (tmp_path / sources.STORED).write_text(json.dumps({"pipeline": load(None, ["seed=9"]).table(), "set": ["seed=9"]}))
    assert load(tmp_path).seed == 9
    for damaged in ("{", "[]", "{}", '{"pipeline": 3, "set": []}'):
        (tmp_path / sources.STORED).write_text(damaged)
        with pytest.raises(ArtifactError, match="damaged"):
            load(tmp_path)


@pytest.mark.parametrize(
    ("env_id", "name"),
    [("CarRacing-v3", "carracing"), ("ALE/Breakout-v5", "ale-breakout"), ("my.module:Thing-v0", "my.module-thing")],
)
def test_folders_are_named_after_environments(env_id, name):
    assert pipeline.slug(env_id) == name
    assert load(None, [f'env.id="{env_id}"', 'data=""']).data == f"datasets/{name}"


def test_runs_do_not_collide():
    own = load(None)
    assert str(pipeline.logdir_of(own, own.env.id)) == "runs/carracing-mdnrnn/seed-1"
    other = load(None, ["seed=3", "env.id=Pendulum-v1"])
    assert str(pipeline.logdir_of(other, own.env.id)) == "runs/carracing-mdnrnn/pendulum/seed-3"
