"""What a test says of the returns, on every way out: the table, JSON, metrics, the artifact, baselines and films."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from wmrl import artifact
from wmrl.errors import TargetMissed
from wmrl.evaluation import protocol
from wmrl.log import Log
from wmrl.run import Run
from wmrl.stages.test_controller import TestOptions, test_controller

RETURNS = (95, 95, 95, -5, -5, -5, -5, -5, -5, 95)
"""Four times 95 and six times -5: each statistic is worked out below by hand, and no two are alike.

The mean of ten draws is 10 k - 5, k binomial (10, 0.4): P(k < 1) = 0.6 %, P(k <= 1) = 4.6 %, P(k < 7) = 94.5 %,
P(k <= 7) = 98.8 %; so the 95 % interval is from k = 1 to k = 7. The middle six are four times -5 and twice 95.
"""
NUMBERS = {"episodes": 10, "mean": 35, "std": 2400**0.5, "iqm": 170 / 6, "low": 5, "high": 65, "least": -5, "most": 95}


@pytest.fixture
def returns(toy, monkeypatch):
    """The game pays the returns above, episode by episode, whoever plays."""
    worth = dict(zip(protocol("Toy-v0", episodes=len(RETURNS)).test_seeds(), RETURNS, strict=True))
    plain = toy.step

    def step(self, action, ids):
        outcome = plain(self, action, ids)
        mine = [worth[self.seeds[i]] for i in ids]
        outcome.reward = np.where(self.t[ids] == 1, mine, 0).astype(np.float32)
        return outcome

    monkeypatch.setattr(toy, "step", step)


@pytest.fixture
def store(workdir, returns, parts):
    """A logdir with untrained parts, `run` in the working directory."""
    return parts(Path("run"))


def score(store, *, as_json=True, **options):
    with Log("test-controller", store.logdir, progress=False, verbosity=-1, as_json=as_json) as log:
        asked = TestOptions(**{"episodes": len(RETURNS), **options})
        test_controller(store.pipe, store, log, Run(threads=2), asked)


def test_the_table_has_every_number_in_its_column(store, capsys):
    score(store, as_json=False)
    lines = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    head, row = next(line for line in lines if "std" in line), next(line for line in lines if "toy-v0-10" in line)
    assert dict(zip(["logdir", *head], row, strict=True)) == {
        "logdir": "run",
        "protocol": "toy-v0-10",
        "episodes": "10",
        "mean": "35.0",
        "std": "49.0",
        "95 % of mean": "5.0 to 65.0",
        "IQM": "28.3",
        "least": "-5.0",
        "most": "95.0",
    }


def test_the_metrics_are_those_of_all_returns(store):
    score(store)
    rows = (store.logdir / "metrics" / "test-controller.jsonl").read_text().splitlines()
    told = {name: value for row in map(json.loads, rows) for name, value in row.items() if name.startswith("eval/")}
    names = {"return_mean": "mean", "return_std": "std", "return_iqm": "iqm", "ci_low": "low", "ci_high": "high"}
    assert told == pytest.approx({f"eval/{name}": NUMBERS[key] for name, key in names.items()})


def test_the_summary_that_is_stored_is_that_of_all_returns(store):
    score(store)
    kept = artifact.read(store.path("test"), "test").facts["scores"]["toy-v0-10"]["summary"]
    assert {name: kept[name] for name in NUMBERS} == pytest.approx(NUMBERS)
    assert -5 <= kept["iqm_low"] < NUMBERS["iqm"] < kept["iqm_high"] <= 95


@pytest.mark.parametrize(("target", "met"), [(None, None), (35, True), (35.5, False)])
def test_json_says_the_numbers_and_whether_the_target_was_met(store, capsys, target, met):
    if met is False:
        with pytest.raises(TargetMissed, match=r"35\.0 is below the target 35\.5"):
            score(store, target_return=target)
    else:
        score(store, target_return=target)
    told = json.loads(capsys.readouterr().out)
    assert (told["target_return"], told["target_met"]) == (target, met)
    assert told["returns"] == list(RETURNS)
    assert {name: told["scores"][0][name] for name in NUMBERS} == pytest.approx(NUMBERS)


def test_of_a_baseline_with_several_protocols_the_comparable_one_is_shown(store, parts, capsys):
    other = parts(Path("other"), seed=1)
    for episodes in (5, 10, 3):
        score(other, episodes=episodes)
    capsys.readouterr()
    score(store, baselines=(other.logdir,))
    rows = [row for row in json.loads(capsys.readouterr().out)["scores"] if row["name"] == "other"]
    assert [(row["protocol"], row["comparable"], row["mean"]) for row in rows] == [("toy-v0-10", True, 35)]


@pytest.mark.parametrize(("episodes", "filmed"), [(1, 1), (3, 2)])
def test_no_more_is_filmed_than_was_played(store, capsys, episodes, filmed):
    score(store, episodes=episodes, capture_video=True)
    films = [store.logdir / "videos" / f"toy-v0-{episodes}-episode-{i}.mp4" for i in range(filmed)]
    assert json.loads(capsys.readouterr().out)["files"] == [str(film) for film in films]
    assert all(film.stat().st_size > 1000 for film in films)
