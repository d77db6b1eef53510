"""Pipelines with trainers that learn in dreams: what is refused early, and what continues a logdir."""

import pytest

from wmrl.agreement import check_components, reconcile
from wmrl.errors import ConfigError
from wmrl.pipeline import Pipeline, parse
from wmrl.store import Store


def pipe(kind: str = "actor-critic", controller: str = "mlp", **trainer) -> Pipeline:
    return parse({"controller": {"kind": controller}, "trainer": {"kind": kind, **trainer}})


@pytest.mark.parametrize("kind", ["actor-critic", "value", "reward"])
def test_a_controller_without_a_policy_is_refused_by_name(kind):
    check_components(pipe(kind))
    with pytest.raises(ConfigError, match=rf"controller.kind: 'linear' has no policy, and trainer '{kind}' needs one"):
        check_components(pipe(kind, "linear"))


@pytest.mark.parametrize(
    ("kind", "key", "value", "words"),
    [
        ("actor-critic", "horizon", 0, "horizon must be at least 1, got 0"),
        ("value", "discount", 1.5, "discount must be in 0..1, got 1.5"),
        ("reward", "steps", 0, "steps must be at least 1, got 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_early(kind, key, value, words):
    with pytest.raises(ConfigError, match=words):
        check_components(pipe(kind, **{key: value}))


def test_updates_may_grow_and_not_shrink_and_a_search_may_end_anywhere(tmp_path):
    Store(tmp_path, pipe()).save_part("controller", {"step": 1})
    reconcile(tmp_path, pipe(steps=100), pipe(steps=200))
    reconcile(tmp_path, pipe(steps=100), pipe(steps=100, target_return=3.0))
    with pytest.raises(ConfigError, match=r"trainer.steps: .* was begun with 200, this call says 100"):
        reconcile(tmp_path, pipe(steps=200), pipe(steps=100))
    with pytest.raises(ConfigError, match=r"trainer.horizon"):
        reconcile(tmp_path, pipe(), pipe(horizon=5))
    reconcile(tmp_path, pipe("cma-es", "linear", steps=200), pipe("cma-es", "linear", steps=100))
