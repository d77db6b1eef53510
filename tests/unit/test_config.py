"""A table is a call: names, types and values are checked, and the message says where and what."""

from dataclasses import dataclass
from typing import Literal

import pytest

from wmrl import config
from wmrl.errors import ArtifactError, ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner."""

    rate: float = 0.5
    steps: int = 3


class Thing:
    def __init__(self, size: int, *, hidden: int = 8, mode: Literal["a", "b"] = "a", gain: float = 1.0,
                 shape: tuple[int, ...] = (1, 2), inner: Inner = Inner(steps=9), name: str | None = None):  # fmt: skip
        if hidden % 2:
            raise ValueError(f"hidden must be even, got {hidden}")
        self.args = (size, hidden, mode, gain, shape, inner, name)


class Needs:
    def __init__(self, *, must: int):
        self.must = must


REGISTRY = {"thing": f"{__name__}:Thing", "needs": f"{__name__}:Needs", "gone": "wmrl.no_such_module:X"}


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


def build(table):
    return config.build(REGISTRY, table, "dynamics", 5)


def test_defaults_and_types():
    made = build({"kind": "thing", "gain": 2, "shape": [3, 4], "inner": {"rate": 1}})
    assert made.args == (5, 8, "a", 2.0, (3, 4), Inner(rate=1.0, steps=9), None)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "thingy"}, "dynamics.kind: 'thingy' is not known; did you mean 'thing'?"),
        ({}, "dynamics.kind: missing; known: gone, needs, thing"),
        ({"kind": "thing", "hiden": 3}, "dynamics.hiden: unknown key; did you mean 'hidden'?"),
        ({"kind": "thing", "hidden": "big"}, "dynamics.hidden: expected int, got 'big'"),
        ({"kind": "thing", "hidden": True}, "dynamics.hidden: expected int, got True"),
        ({"kind": "thing", "hidden": 2.5}, "dynamics.hidden: expected int, got 2.5"),
        ({"kind": "thing", "gain": float("nan")}, "dynamics.gain: must be a finite number, got nan"),
        ({"kind": "thing", "gain": float("inf")}, "dynamics.gain: must be a finite number, got inf"),
        ({"kind": "thing", "inner": {"rate": float("nan")}}, "dynamics.inner.rate: must be a finite number, got nan"),
        ({"kind": "thing", "hidden": 3}, "dynamics: hidden must be even, got 3"),
        ({"kind": "thing", "mode": "c"}, "dynamics.mode: 'c' is not one of 'a', 'b'"),
        ({"kind": "thing", "inner": {"stps": 1}}, "dynamics.inner.stps: unknown key; did you mean 'steps'?"),
        ({"kind": "thing", "inner": 3}, "dynamics.inner: expected Inner, got 3"),
        ({"kind": "thing", "shape": [1, "x"]}, "dynamics.shape[1]: expected tuple[int, ...], got [1, 'x']"),
        ({"kind": "needs"}, "dynamics.must: missing, and it has no default"),
    ],
)
def test_messages(table, message):
    with pytest.raises(ConfigError) as error:
        build(table)
    assert str(error.value) == message


def test_a_missing_package_is_an_artifact_error():
    with pytest.raises(ArtifactError, match="needs a package that is not installed"):
        build({"kind": "gone"})


def test_resolved_writes_every_default_out():
    full = config.resolved(REGISTRY, {"kind": "thing", "gain": 3}, "dynamics")
    assert full == {"kind": "thing", "hidden": 8, "mode": "a", "gain": 3.0, "shape": [1, 2],
                    "inner": {"rate": 0.5, "steps": 9}}  # fmt: skip


def test_a_plug_in_is_found_by_its_entry_point(monkeypatch):
    monkeypatch.setattr(config, "plugins", lambda where: {"extra": f"{__name__}:Needs"})
    assert build_extra().must == 4


def build_extra():
    return config.build(REGISTRY, {"kind": "extra", "must": 4}, "dynamics")


def test_a_broken_plug_in_warns_and_is_an_error_of_its_user_only(monkeypatch):
    monkeypatch.setattr(config, "plugins", lambda where: {"extra": "no_such_package:X"})
    with pytest.warns(UserWarning, match="plug-in no_such_package:X is broken"), pytest.raises(ConfigError):
        config.build(REGISTRY, {"kind": "extra"}, "dynamics")
    assert config.build(REGISTRY, {"kind": "needs", "must": 1}, "dynamics").must == 1
