"""Reports on a stdout that takes no more: a reader that has gone, a full disk."""

import io
import os
import sys
from pathlib import Path

import pytest

from wmrl import cli, describe, doctor, pipeline, stdout
from wmrl.store import Store

FULL = Path("/dev/full")


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The words of each command that reports."""
    monkeypatch.setattr(doctor, "CHECKS", (doctor.python,))
    Store(tmp_path, pipeline.load(None)).remember()
    return {"doctor": ["doctor"], "describe": ["describe", "env"], "status": ["status", str(tmp_path)]}


@pytest.mark.parametrize("flags", [[], ["--json"]])
@pytest.mark.parametrize("command", ["doctor", "describe", "status"])
def test_a_reader_that_has_gone_is_no_failure(calls, monkeypatch, capsys, command, flags):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as end:
            cli.main([*calls[command], *flags])
        pipe.write("what is buffered goes nowhere")
    assert end.value.code == 0 and capsys.readouterr().err == ""


@pytest.mark.skipif(not FULL.exists(), reason="a system without /dev/full")
@pytest.mark.parametrize("flags", [[], ["--json"]])
@pytest.mark.parametrize("command", ["doctor", "describe", "status"])
def test_a_full_disk_is_one_line_and_no_bug(calls, monkeypatch, capsys, command, flags):
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as end:
            cli.main([*calls[command], *flags])
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: the report cannot be written to stdout: No space left on device\n"


def test_without_a_stdout_nothing_is_written(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdout", None)
    stdout.write("nobody reads this")
    assert capfd.readouterr() == ("", "")


def test_what_the_encoding_does_not_have_is_a_question_mark(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    stdout.write("lower is better ↓\n")
    assert narrow.buffer.getvalue() == b"lower is better ?\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("out", "coloured"), [(Terminal(), True), (io.StringIO(), False)])
def test_a_report_is_coloured_on_a_terminal_only(monkeypatch, out, coloured):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", out)
    describe.run("env.size")
    assert ("\033[" in out.getvalue()) == coloured and "pixels" in out.getvalue()
