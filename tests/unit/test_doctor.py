"""`wmrl doctor` tells what works, on a broken installation too."""

import builtins
import importlib
import json
import re
import time
import tomllib
from pathlib import Path

import pytest

from wmrl import cli, doctor
from wmrl.errors import UserError


def test_a_working_installation_is_healthy_and_quickly_told(capsys):
    began = time.monotonic()
    doctor.run()
    assert time.monotonic() - began < 30
    out, err = capsys.readouterr()
    for word in ("Python", "torch", "H.264", "Zstandard", "GiB free", "display"):
        assert word in out
    assert "BAD" not in out and not err


def test_json_is_one_object(capsys):
    doctor.run(as_json=True)
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
    with pytest.raises(UserError, match="package torch: libsomething") as error:
        doctor.run()
    assert "\n" not in str(error.value)
    out = capsys.readouterr().out
    assert "libsomething.so" in out and "pip install --force-reinstall 'torch'" in out
    assert "Python" in out and "GiB free" in out and "envpool" in out


def broken(check="codecs"):
    def fail():
        raise RuntimeError("broken\nhere")
        yield

    fail.__name__ = check
    return fail


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_what_is_needed_and_broken_gives_exit_code_1_and_one_line(monkeypatch, capsys, flags):
    monkeypatch.setattr(doctor, "CHECKS", (doctor.python, broken()))
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", *flags])
    out, err = capsys.readouterr()
    assert end.value.code == 1
    assert err.count("\n") == 1 and "codecs RuntimeError: broken" in err
    assert json.loads(out)["ok"] is False if flags else "BAD" in out


@pytest.mark.parametrize("name", ["extras", "display", "plugins"])
def test_what_can_be_done_without_is_no_failure(monkeypatch, capsys, name):
    check = broken(name)
    monkeypatch.setattr(doctor, "CHECKS", (doctor.python, check))
    monkeypatch.setattr(doctor, "OPTIONAL", tuple(check if c.__name__ == name else c for c in doctor.OPTIONAL))
    doctor.run()
    out = capsys.readouterr().out
    assert "RuntimeError: broken" in out and "BAD" not in out


def test_without_rich_the_report_is_plain(monkeypatch):
    plain = builtins.__import__

    def no_rich(name, *more, **named):
        if name.split(".")[0] == "rich":
            raise ImportError("no rich")
        return plain(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", no_rich)
    assert doctor._text([doctor.Finding("disk", "note", "full", "make room")]) == "note  disk     full  -> make room\n"


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
