import errno
import io
import json
import multiprocessing
import os
import subprocess
import sys
import warnings

import cv2
import numpy as np
import pytest
import torch

from wmrl import sinks
from wmrl.errors import ArtifactError, ConfigError
from wmrl.log import Log
from wmrl.sinks import read_metrics


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(logdir, stage="s"):
    return [line[20:] for line in (logdir / "logs" / f"{stage}.log").read_text().splitlines()]


def test_all_that_stderr_shows_stands_in_the_log_file(tmp_path, capsys):
    with Log("s", tmp_path) as log:
        log.say("hello\nagain")
        log.warn("odd")
        log.progress(1, 10, note="loss 0.5")
        sys.stderr.write("foreign\n")
        warnings.warn("look", stacklevel=1)
    shown = capsys.readouterr()
    assert shown.out == ""
    for line in shown.err.splitlines():
        assert line in lines(tmp_path)
    assert {"hello", "again", "warning: odd", "foreign"} <= set(lines(tmp_path))
    assert any("1/10 steps (10 %)" in line and "loss 0.5" in line for line in lines(tmp_path))


def test_stderr_is_given_back_and_a_traceback_is_kept(tmp_path, capsys):
    before = sys.stderr
    with pytest.raises(ZeroDivisionError), Log("s", tmp_path):
        assert sys.stderr is not before
        _ = 1 / 0
    assert sys.stderr is before
    kept = lines(tmp_path)
    assert "Traceback (most recent call last):" in kept
    assert "ZeroDivisionError: division by zero" in kept
    assert capsys.readouterr().err == ""


def _fail():
    raise RuntimeError("worker broke")


def test_a_forked_workers_traceback_is_kept(tmp_path, capfd):
    with Log("s", tmp_path):
        worker = multiprocessing.get_context("fork").Process(target=_fail)
        worker.start()
        worker.join()
    assert "RuntimeError: worker broke" in lines(tmp_path)
    assert "RuntimeError: worker broke" in capfd.readouterr().err


@pytest.mark.parametrize(("verbosity", "shown"), [(-1, ["warn"]), (0, ["say", "warn"]), (1, ["detail", "say", "warn"])])
def test_verbosity_decides_what_is_shown_and_nothing_is_lost(tmp_path, capsys, verbosity, shown):
    with Log("s", tmp_path, verbosity=verbosity) as log:
        for level in ("detail", "say", "warn"):
            getattr(log, level)(level)
    err = capsys.readouterr().err
    assert [word for word in ("detail", "say", "warn") if word in err] == shown
    assert {"detail", "say", "warning: warn"} <= set(lines(tmp_path))


def test_with_json_stdout_holds_one_object(tmp_path, capsys):
    with Log("s", tmp_path, as_json=True) as log:
        log.out("a table")
        log.result({"mean": np.float64(1.5), "returns": np.arange(2), "path": tmp_path})
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"schema_version": 1, "mean": 1.5, "returns": [0, 1], "path": str(tmp_path)}
    assert "a table" in shown.err


def test_without_json_results_go_to_stdout_as_text(tmp_path, capsys):
    with Log("s", tmp_path) as log:
        log.out("a table")
        log.result({"mean": 1})
    assert capsys.readouterr().out == "a table\n"


def test_metrics_are_read_back_with_tensors_and_what_json_has_not(tmp_path):
    with Log.quiet("s", tmp_path) as log:
        log.metrics(3, {"losses/nll": torch.tensor(0.5), "a": float("nan"), "b": float("-inf")})
    (record,) = read_metrics(tmp_path / "metrics" / "s.jsonl")
    assert record["global_step"] == 3
    assert record["losses/nll"] == 0.5
    assert np.isnan(record["a"])
    assert record["b"] == -np.inf
    json.loads((tmp_path / "metrics" / "s.jsonl").read_text(), parse_constant=pytest.fail)


def test_metrics_stand_on_disk_before_the_log_is_closed(tmp_path):
    log = Log.quiet("s", tmp_path)
    log.metrics(1, {"a": 1})
    assert len(read_metrics(tmp_path / "metrics" / "s.jsonl")) == 1


def test_rewind_drops_later_steps_and_only_them(tmp_path):
    with Log.quiet("s", tmp_path) as log:
        for step in range(5):
            log.metrics(step, {"a": step})
    with Log.quiet("s", tmp_path) as log:
        log.rewind(2)
        log.metrics(3, {"a": 30})
    records = read_metrics(tmp_path / "metrics" / "s.jsonl")
    assert [(r["global_step"], r["a"]) for r in records] == [(0, 0), (1, 1), (2, 2), (3, 30)]


def test_rewind_in_the_middle_of_a_run(tmp_path):
    with Log.quiet("s", tmp_path) as log:
        for step in range(3):
            log.metrics(step, {"a": step})
        log.rewind(0)
        log.metrics(1, {"a": 10})
    assert [r["a"] for r in read_metrics(tmp_path / "metrics" / "s.jsonl")] == [0, 10]


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_half_written_last_line_is_cut_off(tmp_path, cut):
    path = tmp_path / "metrics" / "s.jsonl"
    with Log.quiet("s", tmp_path) as log:
        log.metrics(0, {"a": 0})
        log.metrics(1, {"a": 1})
    path.write_bytes(path.read_bytes()[:-cut])
    with Log.quiet("s", tmp_path) as log:
        log.metrics(2, {"a": 2})
    assert [r["global_step"] for r in read_metrics(path)] == [0, 2]


class Broken:
    def metrics(self, step, values):
        raise OSError("server gone")


def test_a_failing_sink_warns_once_and_the_run_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sinks.TRACKERS, "trackio", lambda stage, logdir: Broken())
    monkeypatch.setattr("wmrl.log.installed", lambda module: module == "trackio")
    with Log("s", tmp_path, track="trackio") as log:
        for step in range(3):
            log.metrics(step, {"a": step})
    assert capsys.readouterr().err.count("server gone") == 1
    assert len(read_metrics(tmp_path / "metrics" / "s.jsonl")) == 3


class Chatty:
    def metrics(self, step, values):
        print("* project initialised")

    def close(self):
        print("* finished")


def test_a_chatty_sink_leaves_stdout_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sinks.TRACKERS, "trackio", lambda stage, logdir: Chatty())
    monkeypatch.setattr("wmrl.log.installed", lambda module: module == "trackio")
    with Log("s", tmp_path, track="trackio", as_json=True) as log:
        log.metrics(0, {"a": 0})
        log.result({"ok": True})
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert "* finished" in lines(tmp_path)


def test_a_tracker_that_is_asked_for_and_not_installed_is_an_error_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("wmrl.log.installed", lambda module: False)
    with pytest.raises(ArtifactError, match=r"pip install 'wmrl\[wandb\]'"):
        Log("s", tmp_path, track="wandb")


def test_an_unknown_tracker_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="wandb, trackio"):
        Log("s", tmp_path, track="mlflow")


def test_tensorboard_gets_scalars_and_pictures(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Log("s", tmp_path) as log:
        log.metrics(7, {"a": 0.25})
        log.image("sample", 7, np.zeros((8, 8, 3), np.uint8))
    events = accumulator.EventAccumulator(str(tmp_path / "tb" / "s")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("a")] == [(7, 0.25)]
    assert events.Tags()["images"] == ["sample"]


def test_pictures_keep_their_colours(tmp_path):
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[..., 0] = 200
    with Log.quiet("s", tmp_path) as log:
        log.image("red", 12, picture)
    (path,) = (tmp_path / "images" / "s").iterdir()
    assert path.name == "red-000012.png"
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], picture)


def terminal_of(monkeypatch):
    """Stderr, from here on a terminal that can draw a bar; no fixture, for pytest sets stderr anew before a test."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_what_others_write_stands_above_the_bar_and_in_the_log_file(tmp_path, monkeypatch):
    terminal = terminal_of(monkeypatch)
    with Log("s", tmp_path) as log:
        sys.stderr.write("before\n")
        log.progress(1, 4)
        sys.stderr.write("foreign [words]\n")
        sys.stderr.write("and ")
        sys.stderr.write("more\n")
        log.say("own words")
        log.progress(4, 4)
    shown = terminal.getvalue()
    for line in ("before", "foreign [words]", "and more", "own words"):
        assert line in lines(tmp_path)
        assert shown.count(line) == 1
    assert "4/4 steps" in shown


def test_a_last_line_without_an_end_is_shown_and_kept(tmp_path, monkeypatch):
    terminal = terminal_of(monkeypatch)
    with Log("s", tmp_path) as log:
        log.progress(1, 4)
        sys.stderr.write("whole\nhalf a line")
    assert lines(tmp_path)[-1] == "half a line"
    assert terminal.getvalue().count("half a line") == 1
    assert terminal.getvalue().count("whole") == 1


def test_a_last_line_without_an_end_is_kept_without_a_bar(tmp_path, capsys):
    with Log("s", tmp_path):
        sys.stderr.write("half a line")
    assert lines(tmp_path)[-1] == "half a line"
    assert capsys.readouterr().err == "half a line"


def test_a_line_that_begins_above_a_bar_and_ends_below_it_is_shown_once(tmp_path, monkeypatch):
    terminal = terminal_of(monkeypatch)
    with Log("s", tmp_path) as log:
        log.progress(1, 4)
        sys.stderr.write("begun ")
        log.out("a result ends the bar")
        sys.stderr.write("and ended\n")
        sys.stderr.write("once ")
        log.progress(2, 4)
        sys.stderr.write("more\n")
    for words in ("begun and ended", "once ", "more"):
        assert terminal.getvalue().count(words) == 1
    assert {"begun and ended", "once more"} <= set(lines(tmp_path))


def test_the_log_file_is_closed_and_what_comes_later_is_shown_only(tmp_path, capsys):
    with Log("s", tmp_path) as log:
        log.say("in time")
    assert log._file.closed
    log.say("too late")
    log.close()
    assert "too late" in capsys.readouterr().err
    assert lines(tmp_path)[-1] == "in time"


def test_a_picture_that_cannot_be_written_costs_no_run(tmp_path, capsys):
    (tmp_path / "images").write_text("in the way")
    with Log("s", tmp_path, progress=False) as log:
        log.image("sample", 1, np.zeros((2, 2, 3), np.uint8))
    assert "warning: " in capsys.readouterr().err
    assert any("sample-000001.png cannot be written" in line for line in lines(tmp_path))


@pytest.mark.parametrize("name", ["run", "run/logs"])
def test_a_file_in_place_of_the_logs_is_one_sentence(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("in the way")
    with pytest.raises(ArtifactError, match=r"logs.s\.log cannot be written"):
        Log("s", tmp_path / "run")


class Gone(Terminal):
    def write(self, text):
        raise BrokenPipeError

    flush = write


@pytest.mark.parametrize("bar", [True, False])
def test_a_terminal_that_went_away_ends_no_run(tmp_path, monkeypatch, bar):
    terminal_of(monkeypatch)
    monkeypatch.setattr(sys, "stderr", Gone())
    with Log("s", tmp_path, progress=bar) as log:
        log.say("own words")
        log.progress(1, 4)
        sys.stderr.write("foreign\n")
        print("flushed", file=sys.stderr, flush=True)
        log.progress(4, 4)
    assert {"own words", "foreign", "flushed"} <= set(lines(tmp_path))


@pytest.mark.parametrize("closed", ["pipe", "from the start"])
def test_a_process_without_stderr_comes_to_its_end(tmp_path, closed):
    code = "import sys; from wmrl.log import Log\nwith Log('s', sys.argv[1]) as log:\n"
    code += " log.say('one'); log.out('x'); log.say('two')"
    command = [sys.executable, "-c", code, str(tmp_path)]
    read, write = os.pipe()
    os.close(read)
    more = {"stdout": write, "stderr": write} if closed == "pipe" else {"preexec_fn": lambda: os.close(2)}
    done = subprocess.run(command, timeout=60, check=False, **more)
    os.close(write)
    assert done.returncode == 0
    assert lines(tmp_path)[-2:] == ["one", "two"]


FILL = """
import resource, sys
from wmrl import log
log.installed = lambda module: False  # TensorBoard's own thread would tell of its death
with log.Log("s", sys.argv[1]) as log:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # files, not pipes
    for step in range(100):
        log.say(f"words {step}")
        log.metrics(step, {"losses/nll": 0.5})
"""


def test_a_full_disk_ends_log_and_metrics_with_a_warning_each_and_not_the_run(tmp_path):
    command = [sys.executable, "-c", FILL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("words ") for line in done.stderr.splitlines()) == 100
    warned = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    for name in (f"{tmp_path / 'logs' / 's.log'} cannot be written", "metrics failed"):
        assert sum(name in line for line in warned) == 1, warned
    assert lines(tmp_path)[1] == "words 0"


class Full(Terminal):
    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_stderr_is_given_back_when_it_takes_nothing(tmp_path, monkeypatch):
    terminal_of(monkeypatch)
    full = Full()
    monkeypatch.setattr(sys, "stderr", full)
    with pytest.raises(OSError, match="No space"), Log("s", tmp_path) as log:
        log.progress(1, 4)
    assert sys.stderr is full
    assert log._file.closed


def test_a_part_has_files_of_its_own_and_leaves_stdout_and_the_whole_as_they_were(tmp_path, capsys):
    with Log("whole", tmp_path, progress=False, as_json=True) as log:
        stream = sys.stderr
        with log.part("piece") as piece:
            piece.say("inside")
            piece.out("a table")
            piece.result({"number": 1})
            piece.metrics(3, {"x": 1.0})
            piece.rewind(-1)
            print("foreign", file=sys.stderr)
        assert sys.stderr is stream
        log.metrics(3, {"x": 2.0})
        log.result({"number": 2})
    shown = capsys.readouterr()
    assert json.loads(shown.out)["number"] == 2
    assert all(word in shown.err for word in ("inside", "a table", "foreign"))
    logs = {name: (tmp_path / "logs" / f"{name}.log").read_text() for name in ("whole", "piece")}
    assert "foreign" in logs["piece"] and "foreign" not in logs["whole"]
    assert (tmp_path / "metrics/piece.jsonl").read_text() == "" and (tmp_path / "metrics/whole.jsonl").read_text()
