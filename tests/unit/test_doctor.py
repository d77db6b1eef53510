"""`wmrl doctor` tells what works, on a broken installation too."""

import builtins
import importlib
import json
import re
import time
import tomllib
from pathlib import Path

import pytest

from wmrl import doctor


def test_a_working_installation_is_healthy_and_quickly_told(capsys):
    began = time.monotonic()
    assert doctor.run()
    assert time.monotonic() - began < 30
    out, err = capsys.readouterr()
    for word in ("Python", "torch", "H.264", "Zstandard", "GiB free", "display"):
        assert word in out
    assert "BAD" not in out and not err


def test_json_is_one_object(capsys):
    assert doctor.run(as_json=True)
    table = json.loads(capsys.readouterr().out)
    assert table["schema_version"] == 1 and table["ok"] is True
    assert {"topic", "level", "text", "advice"} == set(table["findings"][0])


def test_a_broken_package_hides_no_other_finding(monkeypatch, capsys):
    whole = importlib.import_module
    plain = builtins.__import__

    def broken(name, *more, **named):
        if name.split(".")[0] in ("torch", "h5py"):
            raise OSError("libsomething.so: cannot open shared object file")
        return (plain if more or named else whole)(name, *more, **named)

    monkeypatch.setattr(importlib, "import_module", broken)
    monkeypatch.setattr(builtins, "__import__", broken)
    assert not doctor.run()
    out = capsys.readouterr().out
    assert "libsomething.so" in out and "pip install --force-reinstall 'torch'" in out
    assert "Python" in out and "GiB free" in out and "envpool" in out


def test_without_rich_the_report_is_plain(monkeypatch, capsys):
    plain = builtins.__import__

    def no_rich(name, *more, **named):
        if name.split(".")[0] == "rich":
            raise ImportError("no rich")
        return plain(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", no_rich)
    doctor._print([doctor.Finding("disk", "note", "full", "make room")])
    assert capsys.readouterr().out == "note  disk     full  -> make room\n"


@pytest.mark.parametrize(("writable", "level"), [(True, "ok"), (False, "bad")])
def test_a_folder_that_cannot_be_written_is_bad(monkeypatch, writable, level):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: writable)
    assert {f.level for f in doctor.disk()} <= {level, "note"}
    assert level == "ok" or all(f.advice for f in doctor.disk())


def test_a_missing_extra_names_the_command(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    found = {f.advice for f in doctor.extras()}
    assert "pip install 'wmrl[wandb]'" in found and {f.level for f in doctor.extras()} == {"note"}


def test_every_dependency_is_looked_at():
    """What pyproject.toml requires, doctor imports; each extra for users is named."""
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    base = {re.split(r"[\[<>=]", requirement)[0] for requirement in project["dependencies"]}
    assert base <= set(doctor.REQUIRED)
    assert set(project["optional-dependencies"]) - {"dev"} == set(doctor.EXTRAS)
