import io
import json
import multiprocessing
import sys
import warnings

import cv2
import numpy as np
import pytest
import torch

from wmrl import progress, sinks
from wmrl.errors import ArtifactError, ConfigError
from wmrl.log import Log
from wmrl.progress import Bar, Meter, span, wants_bar
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
    assert record["step"] == 3
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
    assert [(r["step"], r["a"]) for r in records] == [(0, 0), (1, 1), (2, 2), (3, 30)]


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
    assert [r["step"] for r in read_metrics(path)] == [0, 2]


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


@pytest.mark.parametrize(
    ("env", "asked", "expected"),
    [
        ({}, None, True),
        ({}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({"CI": "1"}, None, False),
        ({"CI": "1"}, True, True),
    ],
)
def test_when_a_bar_is_drawn(monkeypatch, env, asked, expected):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert wants_bar(Terminal(), asked, 0) is expected
    assert not wants_bar(io.StringIO(), asked, 0)
    assert not wants_bar(Terminal(), asked, -1)


def test_no_color_is_honoured_by_the_bar(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    bar = Bar(stream)
    bar.update(1, 2, "steps", "loss [0.5]", "")
    bar.print("between [brackets]", stream)
    bar.close()
    assert "\x1b[3" not in stream.getvalue()
    assert "between [brackets]" in stream.getvalue()
    assert "loss [0.5]" in stream.getvalue()


def test_what_others_write_stands_above_the_bar_and_in_the_log_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with Log("s", tmp_path) as log:
        sys.stderr.write("before\n")
        log.progress(1, 4)
        sys.stderr.write("foreign [words]\n")
        sys.stderr.write("and ")
        sys.stderr.write("more\n")
        log.say("own words")
        log.progress(4, 4)
    shown = stream.getvalue()
    for line in ("before", "foreign [words]", "and more", "own words"):
        assert line in lines(tmp_path)
        assert shown.count(line) == 1
    assert "4/4 steps" in shown


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_come_soon_and_every_half_minute_with_rate_and_time_left(clock):
    meter = Meter()
    told = []
    for step in range(101):
        told.append(meter.line(step, 100, "steps", ""))
        clock[0] += 1
    shown = [line for line in told if line]
    assert [told.index(line) for line in shown] == [0, 5, 35, 65, 95, 100]
    assert shown[2] == "35/100 steps (35 %), 1 steps/s, 1 min 05 s left"


def test_the_rate_of_a_resumed_stage_counts_from_where_it_began(clock):
    meter = Meter()
    meter.line(900, 1000, "steps", "")
    clock[0] += 10
    meter.line(950, 1000, "steps", "")
    assert meter.rate == pytest.approx(5)
    assert meter.left == pytest.approx(10)


@pytest.mark.parametrize(("seconds", "words"), [(45, "45 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")])
def test_durations(seconds, words):
    assert span(seconds) == words
