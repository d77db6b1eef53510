"""The stage train-dynamics on toy episodes: what it learns, reports, keeps and refuses."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch

from wmrl import artifact, interrupts
from wmrl.config import build, resolved
from wmrl.data import codes
from wmrl.data.episodes import Episodes
from wmrl.data.shards import Episode, complete, write_shard
from wmrl.dynamics.mdn_rnn import MDNRNN
from wmrl.errors import ArtifactError, ConfigError, ContractError, Stopped
from wmrl.log import Log
from wmrl.pipeline import Pipeline, parse
from wmrl.representations import REPRESENTATIONS
from wmrl.run import Run
from wmrl.spec import Space
from wmrl.stages import train_dynamics as stage
from wmrl.store import Store

RUN = Run(precision="fp32")


def episode(number: int) -> Episode:
    """A grey frame whose brightness the action before it set: predictable, and not from the frame itself."""
    rng = np.random.default_rng(number)
    rows = 13 + number % 3
    action = np.where(rng.random((rows, 1)) < 0.5, -1.0, 1.0).astype(np.float32)
    obs = np.full((rows, 3, 32, 32), 40, np.uint8)
    obs[1:] = np.where(action[:-1] > 0, 220, 40).astype(np.uint8)[..., None, None]
    action[-1], end = 0, np.arange(rows) == rows - 2
    reward = np.where(end, 0, action[:, 0]).astype(np.float32)
    return Episode(obs, action, reward, end, end & False, seed=number)


def vae(store: Store, seed: int = 0) -> artifact.Artifact:
    """A VAE with random weights: enough to tell two greys apart."""
    table, frames = {"kind": "vae", "latent": 2}, Space((3, 32, 32))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build(REPRESENTATIONS, table, "representation", frames)
        module.mean.weight.data.mul_(30)
        module.log_std.bias.data.fill_(-2)
    made = artifact.of(module, "vae", resolved(REPRESENTATIONS, table, "representation"), (frames,))
    store.save("vae", made)
    return made


@pytest.fixture
def pipe(tmp_path) -> Pipeline:
    meta = {
        "env": {"id": "toy", "size": 32, "crop": False},
        "policy": {"policy": "white"},
        "observation": {"shape": (3, 32, 32), "vocab": None, "dtype": "uint8"},
        "actions": {"size": 1, "discrete": False},
    }
    for first in (0, 6):
        write_shard(tmp_path / "data", first, [episode(first + i) for i in range(6)], meta)
    complete(tmp_path / "data")
    return parse(
        {
            "name": "toy",
            "data": str(tmp_path / "data"),
            "env": {"id": "toy", "size": 32},
            "representation": {"kind": "vae", "latent": 2},
            "dynamics": {"kind": "mdn-rnn", "hidden": 16, "mixtures": 2},
            "validation": 0.25,
            "fit": {
                "dynamics": {
                    "steps": 60,
                    "batch": 16,
                    "length": 8,
                    "learning_rate": 0.02,
                    "validate_every": 20,
                    "validation_batches": 2,
                }
            },
        }
    )


def train(pipe: Pipeline, store: Store, run: Run = RUN) -> artifact.Artifact:
    with Log.quiet("train-dynamics", store.logdir) as log:
        stage.train_dynamics(pipe, store, log, run)
    return store.load("dynamics")


@pytest.fixture
def store(tmp_path, pipe) -> Store:
    store = Store(tmp_path / "run", pipe)
    vae(store)
    return store


def test_it_learns_and_beats_both_baselines(pipe, store, capsys):
    made = train(pipe, store)
    found = made.facts["validation"]
    assert found["model"]["nll"] < found["last latent"]["nll"] - 0.2
    assert found["model"]["nll"] < found["untrained"]["nll"] - 0.2
    assert found["model"]["reward"] < 0.5 * found["untrained"]["reward"]
    assert made.facts["untrained"] is False and made.facts["fit"]["steps"] == 60
    assert made.parents == {"data": Episodes(pipe.data).hash, "representation": store.load("vae").hash}
    table = capsys.readouterr().out.splitlines()
    assert "on 32 fixed validation windows of 8 steps" in table[0]
    assert [line.split("  ")[0] for line in table[2:]] == ["model", "untrained", "last latent"]
    rows = [json.loads(x) for x in (store.logdir / "metrics" / "train-dynamics.jsonl").read_text().splitlines()]
    assert any("eval/nll" in row for row in rows) and any("losses/nll" in row for row in rows)


def test_the_world_it_saves_can_be_used(pipe, store):
    train(pipe, store)
    world, hashes = store.world()
    assert hashes["dynamics"] == store.load("dynamics").hash and not world.training
    frame = torch.from_numpy(Episodes(pipe.data).read(0, 3)["obs"])
    state = world.start(frame)
    assert world.features(state).shape == (3, 2 + 16) and not world.features(state).requires_grad
    assert state.z.equal(world.draw(world.encode(frame), sample=False))  # the mean, when awake


def test_equal_runs_give_equal_weights(pipe, store, tmp_path):
    other = Store(tmp_path / "other", pipe)
    vae(other)
    assert train(pipe, store).hash == train(pipe, other).hash
    assert train(pipe, store).hash == store.load("dynamics").hash  # nothing left to do


def stop_in_the_middle(pipe, store, monkeypatch):
    """A signal comes in the second validation."""
    plain, calls = stage.evaluate, []

    def evaluate(*args):
        calls.append(1)
        if len(calls) == 2:
            monkeypatch.setattr(interrupts, "_pending", 15)
        return plain(*args)

    monkeypatch.setattr(stage, "evaluate", evaluate)
    with pytest.raises(Stopped):
        train(pipe, store)
    assert not store.exists("dynamics")
    monkeypatch.setattr(interrupts, "_pending", None)


def test_a_stopped_training_ends_with_the_same_bits(pipe, store, tmp_path, monkeypatch):
    whole = train(pipe, store).hash
    other = Store(tmp_path / "other", pipe)
    vae(other)
    stop_in_the_middle(pipe, other, monkeypatch)
    assert train(pipe, other).hash == whole


def test_more_steps_continue(pipe, store):
    train(pipe, store)
    fits = dataclasses.replace(pipe.fit, dynamics=dataclasses.replace(pipe.fit.dynamics, steps=80))
    longer = dataclasses.replace(pipe, fit=fits)
    assert train(longer, Store(store.logdir, longer)).facts["fit"]["steps"] == 80


def test_untrained_is_the_first_weights_and_encodes_nothing(pipe, store, monkeypatch):
    monkeypatch.setattr(codes, "source", None)
    made = train(pipe, store, dataclasses.replace(RUN, untrained=True))
    assert made.facts["untrained"] is True
    first = stage.fresh(pipe, made.given).state_dict()
    assert all(np.array_equal(made.tensors[name], t.numpy()) for name, t in first.items())


def test_untrained_replaces_a_trained_one_only_when_told(pipe, store):
    trained = train(pipe, store).hash
    with pytest.raises(ConfigError, match="is trained"):
        train(pipe, store, dataclasses.replace(RUN, untrained=True))
    assert store.load("dynamics").hash == trained
    assert train(pipe, store, dataclasses.replace(RUN, untrained=True, noreload=True)).hash != trained


def test_training_replaces_an_untrained_one_only_when_told(pipe, store):
    first = train(pipe, store, dataclasses.replace(RUN, untrained=True)).hash
    with pytest.raises(ConfigError, match="is untrained"):
        train(pipe, store)
    assert train(pipe, store, dataclasses.replace(RUN, noreload=True)).hash != first
    assert store.load("dynamics").facts["untrained"] is False


def test_an_untrained_one_does_not_cut_off_a_training_under_way(pipe, store, monkeypatch):
    stop_in_the_middle(pipe, store, monkeypatch)
    with pytest.raises(ConfigError, match="a training under way"):
        train(pipe, store, dataclasses.replace(RUN, untrained=True))
    assert train(pipe, store).facts["untrained"] is False


def test_the_memory_of_a_z_only_model_is_hidden_from_controllers(pipe, store):
    alone = dataclasses.replace(pipe, dynamics={"kind": "mdn-rnn", "features": "z"})
    train(alone, store, dataclasses.replace(RUN, untrained=True))
    assert store.world()[0].feature_shape == (2,)


def test_from_refers_and_copies_nothing(pipe, store, tmp_path):
    made = train(pipe, store)
    shared = dataclasses.replace(pipe, dynamics={"from": str(store.logdir)})
    other = Store(tmp_path / "other", shared)
    vae(other)
    assert train(shared, other).hash == made.hash
    assert other.path("dynamics").stat().st_size < store.path("dynamics").stat().st_size


def test_from_another_representation_is_refused(pipe, store, tmp_path):
    train(pipe, store)
    shared = dataclasses.replace(pipe, dynamics={"from": str(store.path("dynamics"))})
    other = Store(tmp_path / "other", shared)
    vae(other, seed=1)
    with pytest.raises(ContractError, match="representation"):
        train(shared, other)
    assert not other.exists("dynamics")


def test_another_representation_needs_noreload(pipe, store):
    train(pipe, store)
    vae(store, seed=1)
    with pytest.raises(ContractError, match="--noreload"):
        train(pipe, store)
    again = train(pipe, store, dataclasses.replace(RUN, noreload=True))
    assert again.parents["representation"] == store.load("vae").hash


def test_on_a_representation_that_was_moved_on_purpose_training_goes_on(pipe, store):
    before = train(pipe, store)
    vae(store, seed=1)
    earlier = dataclasses.replace(RUN, earlier={"representation": [before.parents["representation"]]})
    after = train(pipe, store, earlier)
    assert after.parents["representation"] == store.load("vae").hash and after.hash != before.hash
    assert "representation has changed: 60 more steps" in (store.logdir / "logs/train-dynamics.log").read_text()
    assert train(pipe, store, earlier).hash == train(pipe, store).hash == after.hash, "nothing is left to do"
    vae(store, seed=2)
    with pytest.raises(ContractError, match="--noreload"):
        train(pipe, store, earlier)


def test_last_latent_is_the_likelihood_of_a_gaussian_walk(pipe, store):
    """In closed form: around the last latent, latents that move by s have 0.5 log(2 pi e s^2) nats."""

    class Walk(torch.nn.Module):
        latent = Space((3,))

        def draw(self, code, *, sample, rng=None):
            scale = torch.tensor([0.1, 1.0, 5.0])
            return (torch.randn(64, 50, 3, generator=rng) * scale).cumsum(1)

        def encode(self, obs):
            return obs

    fits = dataclasses.replace(pipe.fit, dynamics=dataclasses.replace(pipe.fit.dynamics, batch=64, length=49))
    data = stage.Windows(
        Episodes(pipe.data), dataclasses.replace(pipe, fit=fits), np.arange(9), np.arange(9, 12), "cpu"
    )
    world = stage.WorldModel(Walk(), torch.nn.Identity())
    expected = 0.5 * (math.log(2 * math.pi * math.e) + np.mean([2 * math.log(s) for s in (0.1, 1.0, 5.0)]))
    assert stage.last_latent(world, data) == pytest.approx(expected, abs=0.03)


class Rows:
    """Ten episodes of five steps; the code of a row is its number."""

    lengths, start = np.full(10, 5), 6 * np.arange(11)

    def gather(self, rows):
        none = np.zeros(rows.shape, np.float32)
        return {
            "code": rows.astype(np.float32)[..., None],
            "action": none[..., None],
            "reward": none,
            "terminated": none,
        }


def test_validation_windows_are_of_episodes_that_are_never_trained_on(pipe):
    train, valid = np.array([0, 2, 3, 5, 6, 8, 9]), np.array([1, 4, 7])
    data = stage.Windows(Rows(), pipe, train, valid, "cpu")
    held, sample = list(data.validation()), list(data.sample())
    assert len(held) == len(sample) == pipe.fit.dynamics.validation_batches

    def episodes(batches):
        return {int(row) // 6 for batch in batches for row in batch.code.flatten()}

    assert episodes(batch for batch, _ in held) == set(valid)
    assert episodes(batch for batch, _ in sample) == episodes(itertools.islice(data.training(), 4)) == set(train)
    assert all(a.code.equal(b.code) for (a, _), (b, _) in zip(held, data.validation(), strict=True))


def test_the_stage_validates_on_the_episodes_that_are_held_out(pipe, store, monkeypatch):
    seen = []
    monkeypatch.setattr(stage, "_fit", lambda world, data, *rest: seen.append(data) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(pipe, store)
    train_, valid = Episodes(pipe.data).split(pipe.validation, pipe.seed)
    assert seen[0].train.tolist() == train_.tolist() and seen[0].valid.tolist() == valid.tolist()


def test_a_copied_logdir_without_training_state_is_complete_but_cannot_grow(pipe, store, monkeypatch):
    made = train(pipe, store).hash
    store.drop_part("dynamics")
    monkeypatch.setattr(codes, "source", None)
    assert train(pipe, store).hash == made and not store.part("dynamics").exists()
    fits = dataclasses.replace(pipe.fit, dynamics=dataclasses.replace(pipe.fit.dynamics, steps=80))
    with pytest.raises(ArtifactError, match="--noreload"):
        train(dataclasses.replace(pipe, fit=fits), store)


def test_begun_anew_nothing_of_before_is_continued(pipe, store):
    first = train(pipe, store).hash
    vae(store, seed=1)
    store.begin_anew("dynamics")  # and then killed: what goes on is the new training
    again = train(pipe, store)
    assert again.parents["representation"] == store.load("vae").hash and again.hash != first
    assert again.facts["fit"]["steps"] == 60


def test_a_representation_of_other_frames_is_refused(pipe, store):
    table, frames = {"kind": "vae", "latent": 2}, Space((3, 64, 64))
    module = build(REPRESENTATIONS, table, "representation", frames)
    made = artifact.of(module, "vae", resolved(REPRESENTATIONS, table, "representation"), (frames,))
    store.save("vae", made)
    with pytest.raises(ContractError, match="but these frames are"):
        train(pipe, store)


def test_models_that_cross_get_windows_that_cross_also_in_validation(pipe, store, monkeypatch):
    seen = []
    monkeypatch.setattr(stage, "_fit", lambda world, data, *rest: seen.append((world, data)) or 1 / 0)
    monkeypatch.setattr(MDNRNN, "crosses", True, raising=False)
    with pytest.raises(ZeroDivisionError):
        train(pipe, store)
    data = seen[0][1]
    assert next(data.training()).first is not None and next(data.validation())[0].first is not None


def test_crossing_validation_windows_hold_rows_of_held_out_episodes_only(pipe):
    data = stage.Windows(Rows(), pipe, np.array([0, 2, 3, 5, 6, 8, 9]), np.array([1, 4, 7]), "cpu", crossing=True)
    batches = [batch for batch, _ in data.validation()]
    assert {int(row) // 6 for batch in batches for row in batch.code.flatten()} == {1, 4, 7}
    assert any(batch.first.any() for batch in batches)
