"""Datasets of other programs: npz rollouts shifted by one, Minari there and back without loss."""

import json
import pickle

import numpy as np
import pytest
from typer.testing import CliRunner

from wmrl.cli_data import app
from wmrl.data import shards
from wmrl.data.check import check
from wmrl.data.episodes import Episodes
from wmrl.data.shards import Episode
from wmrl.errors import ArtifactError, ConfigError, ContractError
from wmrl.stages import convert

LOW, HIGH = np.array([-1.0, 0, 0]), np.array([1.0, 1, 1])


def rollout(frames, seed, size=16, over=True):
    """As ctallec's script writes it: observation t follows action t; 1,001 actions whatever the length."""
    rng = np.random.default_rng(seed)
    terminals = np.zeros(frames, bool)
    terminals[-1] = over
    return {
        "observations": rng.integers(0, 255, (frames, size, size, 3), dtype=np.uint8),
        "rewards": rng.normal(size=frames),
        "actions": rng.uniform(LOW, HIGH, (1001, 3)),
        "terminals": terminals,
    }


@pytest.fixture
def public(tmp_path):
    """A folder of rollouts of two threads; the order of numbers is not that of names."""
    made = {}
    for name, frames in {"thread_0/rollout_2": 30, "thread_0/rollout_10": 1000, "thread_1/rollout_0": 25}.items():
        made[name] = rollout(frames, seed=len(made), over=name != "thread_1/rollout_0")
        path = tmp_path / "public" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **made[name])
    return tmp_path / "public", made


def test_npz_rollouts_are_shifted_by_one(tmp_path, public):
    folder, made = public
    index = convert.import_rollouts(str(folder), tmp_path / "ours")
    read = Episodes(tmp_path / "ours")
    assert read.lengths.tolist() == [29, 999, 24] and index.hash == read.hash
    for number, theirs in enumerate(made.values()):
        ours, steps = read.episode(number), read.lengths[number]
        assert np.array_equal(ours.obs, theirs["observations"].transpose(0, 3, 1, 2))
        native = LOW + (ours.action[:steps] + 1) / 2 * (HIGH - LOW)
        assert native == pytest.approx(theirs["actions"][1 : steps + 1], abs=1e-6)
        assert np.array_equal(ours.reward[:steps], theirs["rewards"][1:].astype(np.float32))
        assert not ours.action[-1].any() and ours.reward[-1] == 0
    ends = [(bool(e.terminated[-2]), bool(e.truncated[-2])) for e in map(read.episode, range(3))]
    assert ends == [(True, False), (False, True), (False, True)], "a time limit does not terminate"
    assert {finding.kind for finding in check(tmp_path / "ours")} == set()
    assert read.env == {"id": "CarRacing-v3", "size": 16, "crop": False, "backend": "imported"}


def test_an_interrupted_import_goes_on_and_another_dataset_is_refused(tmp_path, public):
    folder, _ = public
    convert.import_rollouts(str(folder), tmp_path / "ours")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "ours").glob("*.h5")}
    (tmp_path / "ours" / "complete.h5").unlink()
    convert.import_rollouts(str(folder), tmp_path / "ours")
    assert {path.name: path.read_bytes() for path in (tmp_path / "ours").glob("*.h5")} == whole
    np.savez(tmp_path / "x.npz", **rollout(5, 1, size=8))
    (tmp_path / "other").mkdir()
    np.savez(tmp_path / "other" / "rollout_0.npz", **rollout(5, 1, size=8))
    with pytest.raises(ConfigError, match="holds other episodes already"):
        convert.import_rollouts(str(tmp_path / "other"), tmp_path / "ours")


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self):
        return pytest.fail, ("a stranger's file ran code",)


@pytest.mark.parametrize(
    "bad",
    [
        {"actions": np.zeros((3, 3))},
        {"observations": np.zeros((30, 16), np.uint8)},
        {"observations": np.zeros((30, 16, 16, 3), np.float32)},
        {"rewards": np.zeros(7)},
        {"terminals": np.array([Trap()], object)},
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, bad):
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "rollout_0.npz", **{**rollout(30, 1), **bad})
    with pytest.raises(ArtifactError, match=r"rollout_0\.npz"):
        convert.import_rollouts(str(tmp_path / "in"), tmp_path / "ours")


def test_a_damaged_file_and_an_empty_folder_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ArtifactError, match="neither npz rollouts"):
        convert.import_rollouts(str(tmp_path / "in"), tmp_path / "ours")
    for content in (b"", b"PK\x03\x04 and then nothing", pickle.dumps({"observations": 1})):
        (tmp_path / "in" / "rollout_0.npz").write_bytes(content)
        with pytest.raises(ArtifactError, match="is no rollout"):
            convert.import_rollouts(str(tmp_path / "in"), tmp_path / "ours")


def ours(folder, shape, dtype, discrete):
    rng = np.random.default_rng(0)
    actions = {"size": 3, "discrete": discrete}
    if not discrete:
        actions |= {"low": [-1, 0, 0], "high": [1, 1, 1]}
    meta = {
        "env": {"id": "Toy-v0", "backend": "toy"},
        "policy": {"policy": "white"},
        "actions": actions,
        "wmrl": "0.0.1",
    }
    made = []
    for number, steps in enumerate([7, 1, 12]):
        action = np.zeros((steps + 1, 3), np.float32)
        action[:-1] = np.eye(3)[rng.integers(3, size=steps)] if discrete else rng.uniform(-1, 1, (steps, 3))
        flags = np.zeros((2, steps + 1), bool)
        flags[number % 2, steps - 1] = True
        reward = np.append(rng.normal(size=steps), 0).astype(np.float32)
        obs = (100 * rng.normal(size=(steps + 1, *shape))).astype(dtype)
        made.append(Episode(obs, action, reward, *flags, seed=10**9 + number))
    for first in (0, 2):
        shards.write_shard(folder, first, made[first : first + 2], meta)
    shards.complete(folder)


@pytest.fixture
def minari_folder(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.mark.parametrize(
    ("shape", "dtype", "discrete"),
    [
        ((3, 16, 16), np.uint8, False),
        ((3, 16, 16), np.uint8, True),
        ((17,), np.float32, False),
        ((4, 10, 10), bool, True),
    ],
)
def test_minari_there_and_back_gives_the_same_bytes(tmp_path, minari_folder, shape, dtype, discrete):
    import minari

    ours(tmp_path / "a", shape, dtype, discrete)
    shown = CliRunner().invoke(app, ["export", str(tmp_path / "a"), "--id", "toy/test-v0"])
    assert shown.exit_code == 0, shown.output
    theirs = minari.load_dataset("toy/test-v0")
    assert (theirs.total_episodes, theirs.total_steps) == (3, 20)
    first, mine = theirs[0], Episodes(tmp_path / "a").episode(0)
    frames = mine.obs.transpose(0, 2, 3, 1) if len(shape) == 3 else mine.obs
    assert np.array_equal(first.observations, frames) and len(first.actions) == 7
    if discrete:
        assert np.array_equal(first.actions, mine.action[:-1].argmax(1))
    else:
        assert first.actions == pytest.approx(LOW + (mine.action[:-1] + 1) / 2 * (HIGH - LOW), abs=1e-6)
    for source in ("toy/test-v0", str(minari_folder / "toy" / "test-v0")):
        out = tmp_path / source.replace("/", "-")
        back = CliRunner().invoke(app, ["import", source, "--out", str(out)])
        assert back.exit_code == 0, back.output
        for path in (tmp_path / "a").glob("*.h5"):
            assert path.read_bytes() == (out / path.name).read_bytes(), path.name


def test_a_minari_dataset_of_others_is_read(tmp_path, minari_folder):
    import minari
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    rng = np.random.default_rng(0)
    buffers = [
        EpisodeBuffer(
            observations=rng.normal(size=(n + 1, 5)),
            actions=rng.integers(2, 6, n),
            rewards=rng.normal(size=n),
            terminations=np.arange(n) == n - 1,
            truncations=np.arange(n) == n - 1,
        )
        for n in (4, 6)
    ]
    space = {"observation_space": spaces.Box(-9, 9, (5,)), "action_space": spaces.Discrete(4, start=2)}
    minari.create_dataset_from_buffers("xx/yy-v1", buffers, data_format="hdf5", jpeg_encoding=False, **space)
    convert.import_rollouts("xx/yy-v1", tmp_path / "ours")
    read = Episodes(tmp_path / "ours")
    episode = read.episode(1)
    assert read.lengths.tolist() == [4, 6] and read.actions.discrete and read.actions.size == 4
    assert np.array_equal(episode.obs, buffers[1].observations.astype(np.float32))
    assert np.array_equal(episode.action[:-1].argmax(1) + 2, buffers[1].actions)
    assert episode.terminated[5] and not episode.truncated[5] and not episode.action[-1].any()
    assert read.env["id"] == "xx/yy-v1"


def test_an_id_that_is_taken_or_malformed_is_refused(tmp_path, minari_folder):
    ours(tmp_path / "a", (17,), np.float32, True)
    convert.export_rollouts(tmp_path / "a", "toy/test-v0")
    for name in ("toy/test-v0", "no good id!"):
        with pytest.raises(ConfigError, match="--id"):
            convert.export_rollouts(tmp_path / "a", name)


def test_unsupported_observations_are_refused(tmp_path, minari_folder):
    import minari
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    buffer = EpisodeBuffer(
        observations={"a": np.zeros((3, 2))},
        actions=np.zeros(2, int),
        rewards=np.zeros(2),
        terminations=np.zeros(2, bool),
        truncations=np.ones(2, bool),
    )
    space = {"observation_space": spaces.Dict(a=spaces.Box(-1, 1, (2,))), "action_space": spaces.Discrete(2)}
    minari.create_dataset_from_buffers("xx/dict-v0", [buffer], data_format="hdf5", jpeg_encoding=False, **space)
    with pytest.raises(ConfigError, match="supported are arrays"):
        convert.import_rollouts("xx/dict-v0", tmp_path / "ours")


def test_a_minari_export_is_json_inside(tmp_path, minari_folder):
    ours(tmp_path / "a", (17,), np.float32, True)
    folder = convert.export_rollouts(tmp_path / "a", "toy/test-v0")
    about = json.loads(json.loads((folder / "metadata.json").read_text())["wmrl"])
    assert about["meta"]["policy"] == {"policy": "white"} and about["per_shard"] == 2


def test_unfinished_datasets_are_not_exported(tmp_path, minari_folder):
    ours(tmp_path / "a", (17,), np.float32, True)
    (tmp_path / "a" / "complete.h5").unlink()
    with pytest.raises((ArtifactError, ContractError), match="unfinished"):
        convert.export_rollouts(tmp_path / "a", "toy/test-v0")
