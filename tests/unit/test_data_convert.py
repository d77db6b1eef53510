"""Datasets of other programs: npz rollouts shifted by one, Minari there and back without loss."""

import json
import pickle
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from wmrl.cli_data import app
from wmrl.data import convert_minari, convert_npz, shards
from wmrl.data.check import check
from wmrl.data.episodes import Episodes
from wmrl.data.shards import Episode
from wmrl.errors import ArtifactError, ConfigError, ContractError
from wmrl.stages import convert

LOW, HIGH = np.array([-1.0, 0, 0]), np.array([1.0, 1, 1])


@pytest.fixture(autouse=True)
def handlers():
    """The commands catch signals; give them back to pytest."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.h5")}


def write(folder, rollouts):
    """Save rollouts as `rollout_<i>.npz`."""
    folder.mkdir(parents=True)
    for number, arrays in enumerate(rollouts):
        np.savez(folder / f"rollout_{number}.npz", **arrays)
    return str(folder)


def test_an_interrupted_import_goes_on_from_a_copy_too(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "episodes_per_shard", lambda row, steps: 1)
    made, out = [rollout(9, seed) for seed in range(3)], tmp_path / "ours"
    whole = (convert.import_rollouts(write(tmp_path / "a", made), out), files_of(out))[1]
    for lost in ("complete.h5", "shard-000001-1.h5"):
        (out / lost).unlink()
    convert.import_rollouts(write(tmp_path / "copy", made), out)
    assert files_of(out) == whole and len(whole) == 4
    monkeypatch.setattr("wmrl.__version__", "999")
    convert.import_rollouts(str(tmp_path / "a"), out)
    assert files_of(out) == whole, "what another version imported is not made again"


@pytest.mark.parametrize("change", ["content", "name", "more", "fewer"])
def test_another_source_of_the_same_kind_is_refused(tmp_path, change):
    made, out = [rollout(9, seed) for seed in range(3)], tmp_path / "ours"
    convert.import_rollouts(write(tmp_path / "a", made), out)
    before = files_of(out)
    others = {"content": [*made[:2], rollout(9, 7)], "more": [*made, rollout(9, 7)], "fewer": made[:2]}
    other = write(tmp_path / "b", others.get(change, made))
    if change == "name":
        (tmp_path / "b" / "rollout_1.npz").rename(tmp_path / "b" / "rollout_10.npz")
    with pytest.raises(ConfigError, match=r"with source npz \w+ already, .*/b has source npz \w+; .*--out") as caught:
        convert.import_rollouts(other, out)
    assert "\n" not in str(caught.value) and str(out) in str(caught.value) and files_of(out) == before


def test_an_import_beside_episodes_of_ours_or_of_another_environment_is_refused(tmp_path, public):
    ours(tmp_path / "a", (3, 16, 16), np.uint8, False)
    with pytest.raises(ConfigError, match="with no source already.*has source npz"):
        convert.import_rollouts(str(public[0]), tmp_path / "a")
    convert.import_rollouts(str(public[0]), tmp_path / "b")
    shard = next((tmp_path / "b").glob("shard-*"))
    meta = shards.provenance(shards.read_meta(shard)) | {"env": {"id": "CarRacing-v2"}}
    shards.write_shard(tmp_path / "b", 0, [Episodes(tmp_path / "b").episode(i) for i in range(3)], meta)
    with pytest.raises(ConfigError, match="CarRacing-v2"):
        convert.import_rollouts(str(public[0]), tmp_path / "b")


def test_rollouts_of_equal_numbers_are_in_the_order_of_their_names():
    a, b = Path("x/a/rollout_1.npz"), Path("x/b/rollout_1.npz")
    for listed in ([a, b], [b, a]):
        assert convert_npz.find(SimpleNamespace(rglob=lambda pattern, listed=listed: listed)) == [a, b]


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
    for first, policy in ((3, "white"), (4, "held")):  # appended: another partition, then another policy
        shards.write_shard(folder, first, made[:1], {**meta, "policy": {"policy": policy}})
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
        ((7, 3, 3), np.uint8, True),
    ],
)
def test_minari_there_and_back_gives_the_same_bytes(tmp_path, minari_folder, shape, dtype, discrete):
    import minari

    ours(tmp_path / "a", shape, dtype, discrete)
    shown = CliRunner().invoke(app, ["export", str(tmp_path / "a"), "--id", "toy/test-v0"])
    assert shown.exit_code == 0, shown.output
    theirs = minari.load_dataset("toy/test-v0")
    assert (theirs.total_episodes, theirs.total_steps) == (5, 34)
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
        assert files_of(tmp_path / "a") == files_of(out)


def theirs(name, shape=(5,), dtype=np.float64, seed=0):
    """A Minari dataset that others made; its episodes."""
    import minari
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    rng = np.random.default_rng(seed)
    buffers = [
        EpisodeBuffer(
            observations=(9 * rng.normal(size=(n + 1, *shape))).astype(dtype),
            actions=rng.integers(2, 6, n),
            rewards=rng.normal(size=n),
            terminations=np.arange(n) == n - 1,
            truncations=np.arange(n) == n - 1,
        )
        for n in (4, 6)
    ]
    space = {"observation_space": spaces.Box(-9, 9, shape), "action_space": spaces.Discrete(4, start=2)}
    minari.create_dataset_from_buffers(name, buffers, data_format="hdf5", jpeg_encoding=False, **space)
    return buffers


def test_a_minari_dataset_of_others_is_read(tmp_path, minari_folder):
    buffers = theirs("xx/yy-v1")
    convert.import_rollouts("xx/yy-v1", tmp_path / "ours")
    read = Episodes(tmp_path / "ours")
    episode = read.episode(1)
    assert read.lengths.tolist() == [4, 6] and read.actions.discrete and read.actions.size == 4
    assert np.array_equal(episode.obs, buffers[1].observations.astype(np.float32))
    assert np.array_equal(episode.action[:-1].argmax(1) + 2, buffers[1].actions)
    assert episode.terminated[5] and not episode.truncated[5] and not episode.action[-1].any()
    assert read.env["id"] == "xx/yy-v1"


def test_another_minari_dataset_is_refused_and_the_same_one_is_not(tmp_path, minari_folder):
    for seed in (0, 1):
        theirs("xx/yy-v1", seed=seed)
        (minari_folder / "xx" / "yy-v1").rename(tmp_path / str(seed))
    convert.import_rollouts(str(tmp_path / "0"), tmp_path / "ours")
    before = files_of(tmp_path / "ours")
    convert.import_rollouts(str(tmp_path / "0"), tmp_path / "ours")
    with pytest.raises(ConfigError, match=r"source minari \w+ already, .*/1 has source minari \w+; .*--out"):
        convert.import_rollouts(str(tmp_path / "1"), tmp_path / "ours")
    assert files_of(tmp_path / "ours") == before


@pytest.mark.parametrize(
    ("shape", "size", "last"), [((12, 10, 6), 12, True), ((12, 10, 3), 12, True), ((4, 12, 10), 12, False)]
)
def test_pictures_of_others_are_turned_and_their_size_is_the_height(tmp_path, minari_folder, shape, size, last):
    buffers = theirs("xx/yy-v1", shape, np.uint8)
    convert.import_rollouts("xx/yy-v1", tmp_path / "ours")
    read, seen = Episodes(tmp_path / "ours"), buffers[0].observations
    assert read.env["size"] == size == read.observation.shape[1]
    assert np.array_equal(read.episode(0).obs, seen.transpose(0, 3, 1, 2) if last else seen)


def test_an_export_that_others_added_to_is_a_dataset_of_others(tmp_path, minari_folder):
    import minari

    ours(tmp_path / "a", (7, 3, 3), np.uint8, True)
    convert.export_rollouts(tmp_path / "a", "toy/test-v0")
    more = minari.load_dataset("toy/test-v0").storage
    more.update_episodes([convert_minari._buffer(Episodes(tmp_path / "a"), 0, lambda action: action.argmax(1))])
    convert.import_rollouts("toy/test-v0", tmp_path / "b")
    read = Episodes(tmp_path / "b")
    assert len(read) == 6 and read.policy["policy"] == "imported" and read.meta["source"].startswith("minari ")
    assert np.array_equal(read.episode(5).obs, Episodes(tmp_path / "a").episode(0).obs)


def test_an_export_of_another_partition_is_refused(tmp_path, minari_folder):
    ours(tmp_path / "a", (17,), np.float32, True)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "shard-000004-1.h5").unlink()
    shards.complete(tmp_path / "b")
    for name in ("a", "b"):
        convert.export_rollouts(tmp_path / name, f"toy/{name}-v0")
    convert.import_rollouts("toy/b-v0", tmp_path / "out")
    convert.import_rollouts("toy/a-v0", tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "a"), "the longer one continues the shorter one"
    with pytest.raises(ConfigError, match="--out"):
        convert.import_rollouts("toy/b-v0", tmp_path / "out")


@pytest.mark.parametrize("text", ["{", "[]", '{"shards": [{"meta": {}}]}', '{"shards": 3}'])
def test_a_damaged_description_of_shards_is_refused(tmp_path, minari_folder, text):
    ours(tmp_path / "a", (17,), np.float32, True)
    path = convert.export_rollouts(tmp_path / "a", "toy/test-v0") / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"wmrl": text}))
    with pytest.raises(ArtifactError, match="no readable description"):
        convert.import_rollouts("toy/test-v0", tmp_path / "b")


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
    runs = [(run["meta"]["policy"]["policy"], run["counts"]) for run in about["shards"]]
    assert runs == [("white", [2, 1, 1]), ("held", [1])], "neighbours that say the same say it once"


def test_unfinished_datasets_are_not_exported(tmp_path, minari_folder):
    ours(tmp_path / "a", (17,), np.float32, True)
    (tmp_path / "a" / "complete.h5").unlink()
    with pytest.raises((ArtifactError, ContractError), match="unfinished"):
        convert.export_rollouts(tmp_path / "a", "toy/test-v0")
