"""The shipped pipelines, and what the Makefile's helper and the package read in them alike."""

import dataclasses
import itertools
from pathlib import Path

import pytest

from wmrl import config, describe, pipeline, pipelines_rules
from wmrl.envs.names import CLOCKS
from wmrl.pipelines_rules import Chain, RulesError
from wmrl.trainers import TRAINERS

FOLDER = Path(__file__).resolve().parents[2] / "pipelines"
PIPELINES = sorted(FOLDER.glob("*.toml"))
TABLES = {"representation", "dynamics", "controller", "trainer"}


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_a_pipeline_loads_and_its_parts_can_be_built(path):
    pipe = pipeline.load(path)
    for where, address in describe.REGISTRIES.items():
        module, _, name = address.partition(":")
        registry = getattr(__import__(module, fromlist=[name]), name)
        table = getattr(pipe, where)
        assert "from" in table or config.resolved(registry, table, where)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_a_pipeline_says_on_top_what_it_is_and_what_it_takes(path):
    head = "".join(itertools.takewhile(lambda line: line.startswith("#"), path.open()))
    assert head.splitlines()[0].removeprefix("#").strip()
    assert "hardware" in head.lower()
    assert len(path.read_text().splitlines()) <= 60


@pytest.mark.parametrize("name", ["takecover-dream", "takecover-dream-quick"])
def test_the_papers_second_experiment_is_searched_in_dreams_alone_and_measured_in_both_worlds(name):
    pipe = pipeline.load(FOLDER / f"{name}.toml")
    trainer = config.resolved(TRAINERS, pipe.trainer, "trainer")
    assert (pipe.env.id, pipe.env.frame_skip, pipe.generate.policy) == ("TakeCover-v1", 4, "held")
    assert (pipe.representation["latent"], pipe.dynamics["hidden"]) == (64, 512)
    assert (pipe.dynamics["features"], pipe.dynamics["termination_weight"]) == ("zch", 10.0)
    assert (trainer["where"], trainer["judge"], trainer["temperature"]) == ("dream", "dream", 1.15)
    assert trainer["dream_steps"] * pipe.env.frame_skip == CLOCKS["TakeCover-v1"].limit
    assert trainer["real_every"] and trainer["real_every"] <= trainer["generations"]


def test_pipelines_that_share_a_dataset_agree_on_it():
    for one, two in itertools.combinations([pipeline.load(path) for path in PIPELINES], 2):
        if one.data == two.data:
            assert (one.env, one.generate, one.seed) == (two.env, two.generate, two.seed), f"{one.name}, {two.name}"


@pytest.mark.parametrize("env", ["", "MinAtar/Breakout-v1", "my.module:Car-v0"])
@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_make_and_the_command_line_use_the_same_folders(path, env):
    table = pipelines_rules.read(FOLDER)[path.stem]
    own = pipeline.load(path)
    pipe = dataclasses.replace(own, env=dataclasses.replace(own.env, id=env or own.env.id), seed=7)
    chain = Chain(path.stem, 7, "" if env == own.env.id else env)
    assert pipelines_rules.logdir_of(chain) == str(pipeline.logdir_of(pipe, own.env.id))
    assert pipelines_rules.data_of(table) == own.data
    assert pipelines_rules.data_of(table, env or own.env.id) == f"datasets/{pipeline.slug(pipe.env.id)}" or not env
    assert (pipelines_rules.own_seed(table), pipelines_rules.own_env(table)) == (own.seed, own.env.id)


def test_defaults_are_the_same_as_the_packages():
    assert pipelines_rules.own_env({}) == pipeline.Env().id
    assert pipelines_rules.own_seed({}) == pipeline.Pipeline().seed
    assert pipelines_rules.data_of({}) == pipeline.parse({}).data


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("", []), ("3", [3]), ("1-3", [1, 2, 3]), ("1,4", [1, 4]), ("2 4-5 4", [2, 4, 5])],
)
def test_seeds_are_read(text, numbers):
    assert pipelines_rules.seeds(text) == numbers


@pytest.mark.parametrize("text", ["x", "-1", "1-", "1.5", "1;2", "5-4"])
def test_what_is_no_seed_is_refused(text):
    with pytest.raises(RulesError, match="whole number"):
        pipelines_rules.seeds(text)


def test_each_dataset_has_one_maker_and_it_is_the_one_asked_for():
    pipes = {"a": {"data": "d"}, "b": {"data": "d"}}
    made = [word for word in pipelines_rules.words(pipes, ["b"], [], "") if word.startswith("data|")]
    assert made == ["data|d|b|-"]


def test_runs_that_share_models_in_a_circle_end():
    pipes = {name: {"representation": {"from": f"runs/{other}/seed-1/vae.h5"}} for name, other in ("ab", "ba")}
    assert len([w for w in pipelines_rules.words(pipes, ["a"], [], "") if w.startswith("run|")]) == 2


def test_names_are_words_for_make(tmp_path):
    (tmp_path / "my pipeline.toml").write_text("")
    with pytest.raises(RulesError, match="a pipeline's name"):
        pipelines_rules.read(tmp_path)
