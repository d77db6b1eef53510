"""Every key of a pipeline is described, by the docstrings that stand beside its definition."""

import json

import pytest

from wmrl import describe
from wmrl.errors import ConfigError


def test_every_key_is_described():
    assert describe.undescribed() == []


def test_a_key_has_type_default_meaning_unit_and_source():
    (row,) = describe.describe("dynamics.mdn-rnn.hidden")
    assert (row.type, row.default, row.unit) == ("int", "256", "units")
    assert "LSTM" in row.meaning and "paper" in row.source


def test_defaults_come_from_the_instance_that_holds_them():
    def steps(name):
        return describe.describe(f"fit.{name}.steps")[0].default

    assert steps("vae") != steps("dynamics")


def test_a_kind_can_be_left_out():
    assert describe.describe("dynamics.hidden")[0].key == "dynamics.mdn-rnn.hidden"


def test_a_prefix_ends_at_a_dot():
    keys = [row.key for row in describe.describe("env")]
    assert keys[0] == "env" and "env.size" in keys and all(key.split(".")[0] == "env" for key in keys)


@pytest.mark.parametrize(
    ("wrong", "right"), [("dynamics.mdn-rn", "dynamics.mdn-rnn"), ("fit.vea.steps", "fit.vae.steps"), ("evn", "env")]
)
def test_an_unknown_prefix_names_the_nearest(wrong, right):
    with pytest.raises(ConfigError, match=rf"did you mean '{right}'"):
        describe.describe(wrong)


def test_an_undescribed_key_is_found():
    class Model:
        """A model.

        Args:
            known: How much.
        """

        def __init__(self, *, known: int = 1, unknown: int = 2):
            pass

    meanings = {row.key: row.meaning for row in describe._keys("m.", Model)}
    assert meanings == {"m.known": "How much.", "m.unknown": ""}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Side of the frames, pixels. Source: paper, 64.", ("Side of the frames.", "pixels", "paper, 64")),
        ("Steps between two looks.", ("Steps between two looks.", "steps", "")),
        ("Number of episodes.", ("Number of episodes.", "episodes", "")),
        ("Size of a window; for V, frames.", ("Size of a window; for V, frames.", "", "")),
        ("Weight of the loss.", ("Weight of the loss.", "", "")),
    ],
)
def test_units_and_sources_are_read_from_the_text(text, parts):
    assert describe._split(text) == parts


def test_it_prints_to_stdout_and_as_json(capsys):
    describe.run("env.size")
    out, err = capsys.readouterr()
    assert out.startswith("env.size = 64") and "pixels" in out and not err
    describe.run("env.size", as_json=True)
    table = json.loads(capsys.readouterr().out)
    assert table["schema_version"] == 1 and table["keys"][0]["key"] == "env.size"
