"""Bars and plain lines: when they come, and what they say."""

import io

import pytest

from wmrl import progress
from wmrl.progress import EVERY, Bar, Meter, span, wants_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


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


def test_without_a_known_total_lines_come_as_rarely_and_nothing_is_ever_finished(clock):
    meter, shown = Meter(), {}
    for step in range(1, 101):
        if line := meter.line(step, 0, "steps", "note"):
            shown[step] = line
        clock[0] += 1
    assert list(shown) == [1, 6, 36, 66, 96]
    assert shown[1] == "1 steps, note"
    assert shown[36] == "36 steps, 1 steps/s, note"


def test_an_estimated_total_may_change_on_the_way(clock):
    """What is told stays rare, and the rate counts from the beginning."""
    meter = Meter()
    told = []
    for step in range(100):
        told.append(meter.line(step, 1000 - step, "steps", ""))
        clock[0] += 1
    assert [step for step, line in enumerate(told) if line] == [0, 5, 35, 65, 95]
    assert meter.rate == pytest.approx(1)


def test_what_follows_a_finished_count_is_a_new_one(clock):
    meter = Meter()
    for step in (0, 10):
        assert meter.line(step, 10, "episodes", "")
        clock[0] += 1
    assert meter.line(50, 100, "episodes", "") == "50/100 episodes (50 %)"
    clock[0] += EVERY
    meter.line(80, 100, "episodes", "")
    assert meter.rate == pytest.approx(1)


def test_a_bar_of_unknown_length_shows_the_count_and_is_drawn_now_and_then(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    bar = Bar(stream)
    for step in range(1, 100):
        bar.update(step, 0, "steps", "", "")
    clock[0] += 1
    bar.update(100, 0, "steps", "", "")
    bar.close()
    shown = stream.getvalue()
    assert "100 steps" in shown and "/0" not in shown and "inf" not in shown
    assert " 1 steps" in shown and " 50 steps" not in shown


def test_large_numbers_are_written_out():
    assert progress.counted(1234567, 2e6, "steps") == "1234567/2000000 steps"
    assert progress.counted(0.91, 16, "episodes") == "0.9/16 episodes"
