"""Curves of several runs in one picture."""

import json

import cv2
import pytest
from matplotlib.colors import to_rgba

from wmrl import curves
from wmrl.errors import ArtifactError
from wmrl.log import Log

A, B, C = "vae: kl", "vae: loss", "vae: nll"
RUNS = {
    "late": {B: ([0, 1], [2.0, 1.0])},
    "both": {A: ([0, 1], [3.0, 2.0]), B: ([0, 1], [4.0, 3.0])},
    "nothing": {},
    "last": {C: ([5], [1.0]), B: ([0, 1], [9.0, 8.0])},
}


def colours(sheet):
    """Run -> the colours that it has, of the legend and of all plots."""
    (legend,) = sheet.legends
    found = {
        text.get_text(): {to_rgba(h.get_color())} for text, h in zip(legend.texts, legend.legend_handles, strict=True)
    }
    owners = {tuple(map(float, curve[1])): run for run, table in RUNS.items() for curve in table.values()}
    for plot in sheet.axes:
        for line in plot.lines:
            found[owners[tuple(map(float, line.get_ydata()))]].add(to_rgba(line.get_color()))
    return found


def test_a_run_has_one_colour_everywhere_and_the_legend_has_every_run_that_is_drawn():
    found = colours(curves.figure(RUNS))
    assert list(found) == ["late", "both", "last"]
    assert all(len(each) == 1 for each in found.values())
    assert len(set.union(*found.values())) == 3


@pytest.mark.parametrize("count", [2, 10, 11, 40])
def test_no_two_runs_have_the_same_colour(count):
    sheet = curves.figure({f"run-{i}": {A: ([0, 1], [i, i])} for i in range(count)})
    assert len({to_rgba(line.get_color()) for line in sheet.axes[0].lines}) == count


def test_a_single_run_needs_no_legend():
    assert not curves.figure({"both": RUNS["both"]}).legends


def test_what_a_dream_pays_is_drawn_into_the_plot_of_the_real_return():
    real, dreamt = "train-controller: eval/return_mean", "train-controller: dream/return"
    sheet = curves.figure({"run": {dreamt: ([1, 2, 3], [5.0, 6.0, 7.0]), real: ([1, 3], [4.0, 3.0])}})
    beside, both = sheet.axes
    assert beside.get_title() == dreamt and both.get_title() == f"{real} (dashed: dream/return)"
    assert [(list(line.get_ydata()), line.get_linestyle()) for line in both.lines] == [
        ([4.0, 3.0], "-"),
        ([5.0, 6.0, 7.0], "--"),
    ]


def test_a_picture_replaces_the_one_that_was_there(tmp_path):
    with Log.quiet("train-vae", tmp_path / "run") as log:
        for step in range(3):
            log.metrics(step, {"loss": step})
    path = tmp_path / "out" / "c.png"
    path.parent.mkdir()
    path.write_bytes(b"old")
    assert curves.draw([tmp_path / "run"], path) == path
    assert cv2.imread(str(path)).std() > 1
    assert list(path.parent.iterdir()) == [path]


DAMAGE = [
    '{"global_step":1,"time":2,"loss":[1]}',
    '{"loss":1}',
    '{"global_step":"x","loss":null}',
    "[1]",
    '{"global_step":',
    '{"global_step":null}',
]


def metrics(logdir, *lines):
    path = logdir / "metrics" / "train-vae.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize("line", DAMAGE)
def test_lines_that_are_no_metrics_are_left_out_and_told(tmp_path, line):
    whole = [json.dumps({"global_step": step, "time": 0, "loss": step}) for step in (3, 4)]
    path, told = metrics(tmp_path, whole[0], line, line, whole[1]), []
    assert curves.collect(tmp_path, told.append) == {"train-vae: loss": ([3, 4], [3, 4])}
    assert told == [f"{path}: 2 of 4 lines are no metrics and left out, line 2 the first"]
    with Log.quiet("train-vae", tmp_path) as log:
        log.rewind(3)
        log.metrics(4, {"loss": 9})
    assert curves.collect(tmp_path, pytest.fail) == {"train-vae: loss": ([3, 4], [3, 9])}


def test_a_damaged_run_does_not_hide_the_one_beside_it(tmp_path):
    path, told = metrics(tmp_path / "bad", *DAMAGE), []
    metrics(tmp_path / "good", '{"global_step": 0, "loss": 1}', '{"global_step": 1, "loss": 2}')
    curves.draw([tmp_path / "good", tmp_path / "bad"], tmp_path / "c.png", told.append)
    assert cv2.imread(str(tmp_path / "c.png")).std() > 1
    assert [str(path) in text and "6 of 6" in text for text in told] == [True]


def test_metrics_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "metrics" / "train-vae.jsonl").mkdir(parents=True)
    with pytest.raises(ArtifactError, match=r"train-vae\.jsonl cannot be read: Is a directory"):
        curves.draw([tmp_path], tmp_path / "c.png")


def test_a_logdir_that_is_not_there_is_named(tmp_path):
    with Log.quiet("train-vae", tmp_path / "run") as log:
        log.metrics(0, {"loss": 1})
    with pytest.raises(ArtifactError, match="nowhere"):
        curves.draw([tmp_path / "run", tmp_path / "nowhere"], tmp_path / "c.png")
