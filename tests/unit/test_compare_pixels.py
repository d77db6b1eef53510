"""`wmrl compare` of models that see observations as they are: pictures, grids, vectors, and beside models on a V."""

import json

import numpy as np
import pytest
import torch
from compare_runs import DTYPES, FRAMES, GRIDS, VECTORS, dataset, run, seen

from wmrl.cli import main
from wmrl.comparison import baselines, gradients, heldout, speed
from wmrl.comparison.baselines import LastLatent
from wmrl.comparison.subjects import load
from wmrl.data.episodes import Episodes
from wmrl.representations.pixels import Pixels

PIXELS = {"kind": "pixels"}
NETS = {"units": 8, "layers": 1, "depth": 2, "variables": 4, "classes": 4}
RSSM = {"kind": "rssm", "deterministic": 8, "hidden": 8, **NETS}
TSSM = {"kind": "tssm", "width": 8, "blocks": 1, "heads": 2, "feedforward": 8, "context": 8, "reach": 4, **NETS}
FEW = ("--starts", "12", "--samples", "2", "-q", "--json")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(baselines, "BATCHES", 1)
    monkeypatch.setattr(baselines, "ROWS", 8)
    monkeypatch.setattr(gradients, "HORIZONS", (1, 5, 10))
    for name, value in {"ROUNDS": 1, "SECONDS": 0.01, "TRAIN_ROWS": 4, "DREAM_ROWS": 8, "AWAKE_STEPS": 3}.items():
        monkeypatch.setattr(speed, name, value)


def pixel_run(logdir, data, dynamics, space=FRAMES, **more):
    return run(logdir, data, space=space, representation=PIXELS, dynamics=dynamics, **more)


def compared(capsys, out, *words):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *map(str, words), *FEW, "--out", str(out)])
    told = capsys.readouterr()
    assert stopped.value.code == 0, told.err
    return json.loads(told.out), out.read_text()


def by_name(found):
    return {model["name"]: model["numbers"] for model in found["models"]}


def test_models_on_pixels_compare_in_frames_rewards_ends_speed_and_gradients(quick, tmp_path, capsys):
    data = dataset(tmp_path / "data")
    runs = [pixel_run(tmp_path / "one", data, RSSM), pixel_run(tmp_path / "two", data, TSSM)]
    found, page = compared(capsys, tmp_path / "page.html", *runs)
    numbers = by_name(found)
    assert list(numbers) == ["rssm", "tssm", "untrained", "last frame"]
    for name, each in numbers.items():
        assert {"seen_0", "seen_1", "seen_5", "ssim_5", "reward", "auc"} <= {k for k, v in each.items() if v}
        assert each["nats"] is None and not {"latent_1", "floor"} & set(each)
        slopes = {f"{kind}_{h}" for kind in gradients.NAMES for h in gradients.HORIZONS}
        assert slopes <= set(each) if name != "last frame" else not slopes & set(each)
        assert ("train" in each) == ("dream" in each) == (name != "last frame")
    assert 0 < numbers["rssm"]["seen_5_best"]["value"] < numbers["rssm"]["seen_5"]["value"] < 1
    assert numbers["last frame"]["seen_0"]["value"] < 1e-6 and numbers["last frame"]["ceiling"]["value"] > 0.999
    assert any(note.startswith("rssm, tssm: no density of observations") for note in found["notes"])
    assert "reconstructed by V" not in page and page.count("<img") == 2 * (1 + 4)


def test_models_on_pixels_stand_beside_those_on_a_v_which_have_nats(quick, tmp_path, capsys):
    data = dataset(tmp_path / "data")
    pixel, vae = pixel_run(tmp_path / "one", data, RSSM), run(tmp_path / "two", data)
    both = run(tmp_path / "three", data, dynamics={**RSSM, "observation": "scaled"})
    found, page = compared(capsys, tmp_path / "page.html", pixel, vae, both)
    numbers = by_name(found)
    assert list(numbers) == ["one", "two", "three", "untrained", "last latent"]
    for name in ("two", "three", "last latent"):
        assert numbers[name]["nats"] is not None and numbers[name]["latent_5"] is not None
    for name in ("one", "untrained"):  # the first model's twin
        assert numbers[name]["nats"] is None and "latent_5" not in numbers[name]
    assert all(each["seen_5"] is not None and each["reward"] is not None for each in numbers.values())
    assert "reconstructed by V of two" in page
    assert not any("another representation" in note for note in found["notes"])
    assert any(note.startswith("one: parameters and speed on pixels") for note in found["notes"])


@pytest.mark.parametrize(
    ("space", "likelihood"), [(GRIDS, "bernoulli"), (VECTORS, "scaled"), (VECTORS, "symlog")], ids=lambda x: str(x)
)
def test_grids_and_vectors_compare_too(quick, space, likelihood, tmp_path, capsys):
    data = dataset(tmp_path / "data", space=space)
    tables = {"one": {**RSSM, "observation": likelihood}, "two": {**TSSM, "observation": likelihood}}
    if space == VECTORS:
        tables["three"] = {"kind": "mdn-rnn", "hidden": 4, "mixtures": 2}
    runs = [pixel_run(tmp_path / name, data, table, space) for name, table in tables.items()]
    names = [word for name in tables for word in ("--name", name)]
    found, _ = compared(capsys, tmp_path / "page.html", *runs, *names)
    numbers = by_name(found)
    for each in numbers.values():
        assert each["seen_5"] is not None and ("ssim_5" in each) == (space == GRIDS)
    assert (numbers["one"]["nats"] is not None) == (numbers["two"]["nats"] is not None) == (likelihood == "scaled")
    assert space == GRIDS or numbers["three"]["nats"] is not None, "an mdn-rnn takes vectors as they are"
    last = "last frame" if space == GRIDS else "last latent"
    before, after = (np.stack([seen(a, space) for a in np.linspace(-1, 1, 41)]).astype(float) for _ in range(2))
    apart = np.square(before[:, None] - after).mean((-2, -1) if space == VECTORS else (-3, -2, -1)).mean()
    grows = 5 if space == VECTORS else 1  # of a random walk, as many times as it has steps, and what the truth differs
    assert 0.4 * apart < numbers[last]["seen_5"]["value"] < 2.5 * grows * apart


@pytest.mark.parametrize("space", list(DTYPES), ids=lambda space: DTYPES[space].__name__)
def test_held_out_observations_are_kept_to_the_last_bit(space, tmp_path):
    data = dataset(tmp_path / "data", space=space)
    found = load([pixel_run(tmp_path / "one", data, RSSM, space)], (), "cpu")
    episodes = Episodes(data)
    held = heldout.hold_out(episodes, found, starts=12, seed=0)
    code = held.encode(found[0].world, "cpu").columns["code"]
    low, high = episodes.start[held.numbers[0] : held.numbers[0] + 2]
    assert code.dtype == DTYPES[space] and np.array_equal(code[: high - low], episodes.read(low, high)["obs"])


def test_fewer_episodes_are_held_where_frames_are_large(tmp_path, monkeypatch):
    found = load([pixel_run(tmp_path / "one", dataset(tmp_path / "data"), RSSM)], (), "cpu")
    episodes = Episodes(tmp_path / "data")
    assert len(heldout.hold_out(episodes, found, starts=12, seed=0).numbers) == 4
    monkeypatch.setattr(heldout, "MEMORY", 3 * 22 * 3 * 32 * 32)
    assert len(heldout.hold_out(episodes, found, starts=12, seed=0).numbers) == 3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_the_guess_that_nothing_changes_leaves_pictures_as_they_are(dtype):
    frames = torch.arange(24).view(2, 3, 2, 2).to(dtype)
    guess = LastLatent(None, reward=0.5, end=0.25)
    step = guess.imagine(guess.start(frames), torch.zeros(2, 1), rng=torch.Generator())
    assert torch.equal(guess.latent(step.state), frames) and step.reward.tolist() == [0.5, 0.5]
    assert step.cont.tolist() == [0.75, 0.75] and not hasattr(guess, "log_prob")
    assert torch.equal(
        Pixels(FRAMES).decode(guess.latent(step.state)), frames.float() / (255 if dtype == torch.uint8 else 1)
    )
