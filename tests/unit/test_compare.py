"""`wmrl compare` as a user calls it, on toy runs: whose numbers stand beside whose, and what is written."""

import dataclasses
import json
import re

import numpy as np
import pytest
from compare_runs import ACTIONS, TABLE, dataset, made, meta, run

from wmrl import artifact, evaluation
from wmrl.cli import main
from wmrl.comparison import baselines, gradients, measures, speed
from wmrl.comparison.subjects import labels, load
from wmrl.config import build, resolved
from wmrl.controllers import CONTROLLERS
from wmrl.data.episodes import Episodes
from wmrl.data.shards import complete, write_shard
from wmrl.pipeline import parse
from wmrl.store import Store

LINEAR = resolved(CONTROLLERS, {"kind": "linear"}, "controller")
FEW = ("--starts", "12", "--samples", "2", "--no-speed", "-q")


def act(logdir, returns, episodes=3):
    """Give a logdir a controller, and a test of it."""
    store = Store(logdir, parse({**TABLE, "data": "nowhere"}))
    parents = {"representation": store.load("vae").hash, "dynamics": store.load("dynamics").hash}
    given = (store.world()[0].feature_shape, ACTIONS)
    made = artifact.of(build(CONTROLLERS, {"kind": "linear"}, "controller", *given), "controller", LINEAR, given)
    store.save("controller", dataclasses.replace(made, parents=parents))
    protocol = evaluation.protocol("Toy-v0", episodes=episodes)
    tensors = {"toy/returns": np.array(returns), "toy/lengths": np.ones(3, int), "toy/terminated": np.ones(3, bool)}
    facts = {"order": ["toy"], "scores": {"toy": {"protocol": dataclasses.asdict(protocol)}}}
    test = artifact.Artifact("test", tensors=tensors, parents={**parents, "controller": made.hash}, facts=facts)
    store.save("test", test)


@pytest.fixture
def two(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "BATCHES", 1)
    monkeypatch.setattr(baselines, "ROWS", 8)
    monkeypatch.setattr(gradients, "HORIZONS", (1, 5, 10))
    data = dataset(tmp_path / "data")
    return run(tmp_path / "one", data, seed=1), run(tmp_path / "two", data, seed=2)


def compared(capsys, out, *words):
    """The JSON that `wmrl compare` prints, and the page."""

    def refuse(word):
        raise AssertionError(f"{word} is no number of JSON")

    assert compare_exits(*words, "--out", out, "--json") == 0
    return json.loads(capsys.readouterr().out, parse_constant=refuse), out.read_text()


def compare_exits(*words):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *map(str, words), *FEW])
    return stopped.value.code


def test_models_stand_beside_both_baselines(two, tmp_path, capsys):
    found, _ = compared(capsys, tmp_path / "page.html", *two)
    assert [model["name"] for model in found["models"]] == ["one", "two", "untrained", "last latent"]
    one, other, untrained, last = (model["numbers"] for model in found["models"])
    assert one["nats"]["low"] <= one["nats"]["value"] <= one["nats"]["high"]
    assert one["nats"]["value"] != other["nats"]["value"] != untrained["nats"]["value"]
    assert abs(one["gap"]["value"]) < 0.02 and last["gap"] is None and last["window"] is None
    for numbers in (one, other, untrained, last):
        assert {"latent_5", "ssim_5", "reward", "auc", "ece"} <= {k for k, v in numbers.items() if v is not None}
        assert numbers["ssim_1_best"]["value"] > numbers["ssim_1"]["value"]
        assert numbers["latent_5_best"]["value"] < numbers["latent_5"]["value"]
    assert last["auc"]["value"] == 0.5 and one["real"] is None and one["dreamt"] is None
    held = Episodes(tmp_path / "data").split(0.4, 1)[1]
    assert found["held_out"]["episodes"] == held.tolist()
    assert found["held_out"]["warmup"] == 10 and found["held_out"]["horizons"][:3] == [1, 2, 5]


def test_the_table_shows_the_numbers_of_the_json(two, tmp_path, capsys):
    found, _ = compared(capsys, tmp_path / "page.html", *two)
    assert compare_exits(*two, "--out", tmp_path / "page.html") == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "likeness of frames at +5" in line]
    for model in found["models"]:
        mean, best = (model["numbers"][key]["value"] for key in ("ssim_5", "ssim_5_best"))
        assert model["name"] in printed and f"{mean:.3f} ({best:.3f})" in line


def test_the_same_seed_gives_the_same_numbers(two, tmp_path, capsys):
    first, page = compared(capsys, tmp_path / "page.html", *two)
    again, same = compared(capsys, tmp_path / "page.html", *two)
    assert first == again and page == same
    assert compared(capsys, tmp_path / "page.html", *two, "--seed", "1")[0]["models"] != first["models"]


def test_logdirs_are_left_as_they_are(two, tmp_path, capsys):
    def state():
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for d in (*two, tmp_path / "data") for p in d.rglob("*.*")}

    before = state()
    compared(capsys, tmp_path / "page.html", *two)
    assert state() == before


def test_the_page_needs_nothing_else_and_escapes_names(two, tmp_path, capsys):
    _, page = compared(capsys, tmp_path / "page.html", *two, "--name", "<b>&", "--name", '"two"')
    assert "<b>" not in page and "&lt;b&gt;&amp;" in page
    assert not re.search(r"https?:|<script|<link|url\((?!#)|@import", page)
    assert all(src.startswith("data:image/png;base64,") for src in re.findall(r'src="([^"]*)"', page))
    assert all(href.startswith("#") for href in re.findall(r'href="([^"]*)"', page))
    assert page.count("<figure>") == 10 and page.count("<img") == 2 * (2 + 4)


def test_models_of_other_datasets_are_refused_unless_asked_for(two, tmp_path, capsys):
    other = run(tmp_path / "other", dataset(tmp_path / "more", first=100), seed=3)
    assert compare_exits(two[0], other) == 5
    assert "--anyway compares them all the same" in capsys.readouterr().err
    found, page = compared(capsys, tmp_path / "page.html", two[0], other, "--anyway")
    assert "other was trained on dataset" in found["notes"][0] and "other was trained on dataset" in page


def test_a_model_that_has_learnt_online_is_refused_in_one_line(two, capsys):
    store = Store(two[1], parse({**TABLE, "data": "nowhere"}))
    made = store.load("dynamics")
    parents = {name: hash_ for name, hash_ in made.parents.items() if name != "data"}
    store.save("dynamics", dataclasses.replace(made, parents=parents))
    assert compare_exits(*two) == 5
    assert "two has learnt online, from all that it lived: no episode is held out" in capsys.readouterr().err


def test_latents_of_another_representation_are_not_compared(two, tmp_path, capsys):
    other = run(tmp_path / "other", tmp_path / "data", vae=5, seed=3)
    found, _ = compared(capsys, tmp_path / "page.html", two[0], other)
    numbers = found["models"][1]["numbers"]
    assert numbers["nats"] is None and "latent_1" not in numbers and numbers["ssim_1"] is not None
    assert any("other has another representation than one" in note for note in found["notes"])


def test_controllers_are_scored_where_they_were_tested_and_in_their_dreams(two, tmp_path, capsys):
    act(two[0], [1.0, 2.0, 6.0])
    act(two[1], [0.0, 1.0, 5.0], episodes=4)
    found, _ = compared(capsys, tmp_path / "page.html", *two)
    one, other, untrained, _ = (model["numbers"] for model in found["models"])
    assert one["real"]["value"] == 3.0 and other["real"]["value"] == 2.0 and untrained["real"] is None
    assert one["dreamt"]["low"] < one["dreamt"]["value"] != other["dreamt"]["value"]
    assert any("different protocols" in note and "one toy-v0-3, two toy-v0-4" in note for note in found["notes"])


def test_a_controller_of_another_model_than_is_there_now_is_left_out(two, tmp_path, capsys):
    act(two[0], [1.0, 2.0, 6.0])
    store = Store(two[0], parse({**TABLE, "data": "nowhere"}))
    made = store.load("dynamics")
    store.save("dynamics", dataclasses.replace(made, tensors={k: v + 1 for k, v in made.tensors.items()}))
    assert compare_exits(*two, "--out", tmp_path / "page.html", "--json") == 0
    found = capsys.readouterr()
    one = json.loads(found.out)["models"][0]["numbers"]
    assert one["nats"] is not None and one["real"] is None and one["dreamt"] is None
    assert "its score is left out" in found.err and "its dreams are left out" in found.err


@pytest.fixture
def hurried(monkeypatch):
    for name, value in {"ROUNDS": 1, "SECONDS": 0.01, "TRAIN_ROWS": 4, "DREAM_ROWS": 8, "AWAKE_STEPS": 3}.items():
        monkeypatch.setattr(speed, name, value)


def test_speed_stands_beside_all_that_learn(two, hurried, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *map(str, two), *FEW[:4], "-q", "--json", "--out", str(tmp_path / "page.html")])
    assert stopped.value.code == 0
    rates = [
        [model["numbers"].get(key) for key in speed.NAMES] for model in json.loads(capsys.readouterr().out)["models"]
    ]
    assert all(min(each) > 0 for each in rates[:3]) and rates[3] == [None, None, None]


def test_speed_is_measured_of_all_that_learn_and_changes_nothing(two, hurried):
    found = load(two, (), "cpu")
    before = [{k: t.clone() for k, t in subject.world.state_dict().items()} for subject in found]
    rates = speed.measure(found, "cpu", lambda: None)
    assert all(set(each) == {"train", "dream", "awake"} and min(each.values()) > 0 for each in rates)
    for subject, weights in zip(found, before, strict=True):
        assert all(t.equal(weights[k]) and not t.requires_grad for k, t in subject.world.state_dict().items())


def test_episodes_must_be_held_out_of_all_models(two, tmp_path, capsys):
    kept = {seed: set(Episodes(tmp_path / "data").split(0.4, seed)[1]) for seed in range(1, 99)}
    apart = next(seed for seed, episodes in kept.items() if len(episodes & kept[1]) < 2)
    other, one, theirs = run(tmp_path / "other", tmp_path / "data", seed=3, pipeline_seed=apart), kept[1], kept[apart]
    assert compare_exits(two[0], other) == 5
    assert f"only {len(one & theirs)} of 16 episodes were kept from all models" in capsys.readouterr().err


def test_a_model_that_diverges_has_no_numbers_and_the_others_have_theirs(two, tmp_path, capsys):
    def spoilt(name):
        made = Store(two[1], parse({**TABLE, "data": "nowhere"})).load("dynamics")
        tensors = {k: v * np.float32("nan") if k.startswith(name) else v for k, v in made.tensors.items()}
        return dataclasses.replace(made, tensors=tensors)

    Store(two[1], parse({**TABLE, "data": "nowhere"})).save("dynamics", spoilt("rnn"))
    act(two[1], [0.0, 1.0, 5.0])
    found, page = compared(capsys, tmp_path / "page.html", *two)
    one, other = (model["numbers"] for model in found["models"][:2])
    assert one["nats"] is not None and one["ssim_5"] is not None
    assert all(other[key] is None for key in ("nats", "gap", "latent_5", "ssim_5", "reward", "auc", "ece", "dreamt"))
    assert "two diverged" in found["notes"][0] and "two diverged" in page


def test_windows_of_short_episodes_leave_something_to_dream(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "BATCHES", 1)
    data = dataset(tmp_path / "data")
    short = Episodes(data).split(0.4, 1)[1][:1]
    logdir = run(tmp_path / "run", dataset(tmp_path / "other", short=short))
    assert compare_exits(logdir, "--out", tmp_path / "page.html", "--starts", "1") == 0


def test_appended_episodes_change_nothing(two, tmp_path, capsys):
    before, _ = compared(capsys, tmp_path / "page.html", *two)
    more = tmp_path / "data"
    write_shard(more, 16, list(made(range(16, 40))), meta())
    complete(more)
    assert compared(capsys, tmp_path / "page.html", *two)[0] == before


def test_how_a_model_learnt_is_shown_where_it_is_noted(two, tmp_path, capsys):
    (two[0] / "metrics").mkdir()
    (two[0] / "metrics" / "train-dynamics.jsonl").write_text('{"global_step": 5, "time": 1.0, "eval/nll": 1.5}\n')
    found, page = compared(capsys, tmp_path / "page.html", *two)
    assert [model["curves"].get("training") for model in found["models"][:2]] == [{"x": [5], "y": [1.5]}, None]
    assert "Training: nats" in page
    (two[0] / "metrics" / "train-dynamics-2.jsonl").write_text('{"global_step": 3, "time": 1.0, "eval/nll": 1.25}\n')
    found, _ = compared(capsys, tmp_path / "page.html", *two)
    assert found["models"][0]["curves"]["training"] == {"x": [5, 8], "y": [1.5, 1.25]}, "an iterated model goes on"


def test_a_page_that_cannot_be_written_is_told_before_anything_is_measured(two, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert compare_exits(tmp_path / "nowhere", "--out", tmp_path / "file" / "page.html") == 3
    assert "page.html cannot be written" in capsys.readouterr().err
    assert compare_exits(tmp_path / "nowhere", "--out", tmp_path / "new" / "page.html") == 3
    assert not (tmp_path / "new").exists()


def test_a_damaged_score_is_told_before_the_work(two, monkeypatch, capsys):
    monkeypatch.setattr(measures, "likelihood", None)
    (two[1] / "test.h5").write_bytes(b"no score")
    assert compare_exits(*two) == 3
    assert "test.h5" in capsys.readouterr().err


def test_wrong_calls_are_told(two, tmp_path, capsys):
    assert compare_exits(tmp_path / "nowhere") == 3
    assert compare_exits(two[0], two[0]) == 2
    assert compare_exits(*two, "--name", "one") == 2
    assert compare_exits(*two, "--out", tmp_path) == 2


def test_a_run_is_called_what_tells_it_apart(tmp_path):
    runs = tmp_path / "runs"
    assert labels([runs / "a" / "seed-1", runs / "b" / "seed-1"], ["mdn-rnn", "trade"]) == ["mdn-rnn", "trade"]
    assert labels([runs / "a" / "seed-1", runs / "b" / "seed-1"], ["trade", "trade"]) == ["a", "b"]
    assert labels([runs / "a" / "seed-1", runs / "a" / "seed-2"], ["trade", "trade"]) == ["seed-1", "seed-2"]
