"""What `wmrl doctor` says of machines that lack something."""

import collections
import importlib.metadata
import os
import shutil
import subprocess
import sys

import pytest
import torch

from wmrl import doctor

Usage = collections.namedtuple("Usage", "total used free")
GIB = 2**30


def found(check, topic):
    (finding,) = {(f.level, f.text, f.advice) for f in doctor._safely(check) if f.topic == topic and f.level != "ok"}
    return finding


@pytest.mark.parametrize(("free", "levels"), [(2 * GIB - 1, {"note"}), (2 * GIB, {"ok"})])
def test_a_disk_of_less_than_two_gib_is_noted(monkeypatch, free, levels):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9 * GIB, 0, free))
    assert {f.level for f in doctor.disk()} == levels
    assert all(
        "2.0 GiB free" in f.text and ("--data and --logdir" in f.advice) == (f.level == "note") for f in doctor.disk()
    )


@pytest.mark.parametrize(("pages", "level"), [(4 * GIB // 4096 - 1, "note"), (4 * GIB // 4096, "ok")])
def test_less_than_four_gib_of_memory_are_noted(monkeypatch, pages, level):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": pages}.get)
    (finding,) = doctor.memory()
    assert (finding.level, finding.text) == (level, "4.0 GiB")
    assert finding.advice == ("stages take up to 3 GiB" if level == "note" else "")


@pytest.mark.parametrize(("version", "level"), [((3, 13, 9), "ok"), ((3, 14, 0), "note")])
def test_a_python_without_wheels_of_box2d_is_noted(monkeypatch, version, level):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version_info", version)
        (finding,) = doctor.python()
    assert finding.level == level and ("Box2D" in finding.advice) == (level == "note")


@pytest.mark.parametrize(("driver", "level"), [("/usr/bin/nvidia-smi", "note"), (None, "ok")])
def test_a_driver_that_torch_does_not_see_is_noted(monkeypatch, driver, level):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: driver if name == "nvidia-smi" else None)
    (finding,) = doctor.device()
    assert finding.level == level and ("pytorch.org" in finding.advice) == (level == "note")
    assert ("NVIDIA driver is here" in finding.text) == (level == "note")


def test_an_ffmpeg_without_h264_is_bad(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda call, **_: subprocess.CompletedProcess(call, 0, " V..... mpeg4", ""))
    level, text, advice = found(doctor.codecs, "codec")
    assert level == "bad" and text.endswith("cannot write H.264") and "libx264" in advice


@pytest.mark.parametrize(("named", "advice"), [(True, "unset IMAGEIO_FFMPEG_EXE"), (False, "imageio-ffmpeg")])
@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file"),
        subprocess.TimeoutExpired("ffmpeg", 20),
        subprocess.CalledProcessError(1, "ffmpeg"),
    ],
)
def test_an_ffmpeg_that_does_not_run_is_bad_and_hides_nothing(monkeypatch, named, advice, error):
    def fail(*args, **named):
        raise error

    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE", raising=False)
    if named:
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nonexistent")
    monkeypatch.setattr(subprocess, "run", fail)
    level, text, what_to_do = found(doctor.codecs, "codec")
    assert level == "bad" and text.startswith("ffmpeg does not run: ") and advice in what_to_do
    assert "Zstandard for rollouts" in {f.text for f in doctor._safely(doctor.codecs)}


def test_a_check_that_breaks_keeps_what_it_found_before():
    def codecs():
        yield doctor.Finding("codec", "ok", "one")
        raise RuntimeError("broken\nhere")

    assert [f.text for f in doctor._safely(codecs)] == ["one", "RuntimeError: broken"]


def test_a_broken_plug_in_is_named_with_its_package(monkeypatch):
    entry = importlib.metadata.EntryPoint("cfc", "nowhere_to_be_found:Cell", "wmrl.dynamics")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry] if group == entry.group else [])
    level, text, advice = found(doctor.plugins, "plug-in")
    assert level == "note" and "uninstall" in advice
    assert text == "dynamics: cfc (nowhere_to_be_found:Cell) is broken: No module named 'nowhere_to_be_found'"
