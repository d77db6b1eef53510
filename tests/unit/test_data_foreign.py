"""Rollouts of others that are odd, and conversions that are stopped or killed."""

import json
import os
import signal

import numpy as np
import pytest
from toy_rollouts import killed
from typer.testing import CliRunner

from wmrl import interrupts
from wmrl.cli_data import app
from wmrl.data import convert_minari, convert_npz, shards
from wmrl.data.episodes import Episodes
from wmrl.data.ingest import Foreign, ingest
from wmrl.data.shards import Episode
from wmrl.errors import ArtifactError, ConfigError, Stopped
from wmrl.stages import convert

WANTED = convert_npz.Wanted((8, 8, 3), 3)
META = {
    "env": {"id": "Toy-v0", "backend": "toy"},
    "policy": {"policy": "white"},
    "actions": {"size": 3, "discrete": False, "low": [-1, 0, 0], "high": [1, 1, 1]},
}


@pytest.fixture(autouse=True)
def handlers():
    """The commands catch signals; give them back to pytest."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    interrupts.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


def rollout(frames=6, **changed):
    arrays = {
        "observations": np.zeros((frames, 8, 8, 3), np.uint8),
        "rewards": np.zeros(frames),
        "actions": np.zeros((9, 3)),
        "terminals": np.arange(frames) == frames - 1,
    }
    return {**arrays, **changed}


def npz(folder, *rollouts):
    folder.mkdir()
    for number, arrays in enumerate(rollouts):
        np.savez(folder / f"rollout_{number}.npz", **arrays)
    return folder, convert_npz.find(folder)


def read(folder, paths, wanted=WANTED):
    to_ours = lambda action: np.asarray(action, np.float32)  # noqa: E731
    more = {"env": META["env"], "actions": META["actions"], "to_ours": to_ours, "limit": 1000}
    return convert_npz.read(folder, paths, wanted=wanted, **more)


ODD = {
    "actions two": ({"actions": np.zeros((6, 2))}, r"actions are \(6, 2\) of float64; they must be \(T, 3\)"),
    "actions flat": ({"actions": np.zeros(6)}, r"actions are .* \(T, 3\)"),
    "actions scalar": ({"actions": np.zeros(())}, "actions are .* rows"),
    "actions text": ({"actions": np.full((6, 3), "left")}, "actions are .* finite numbers"),
    "actions nan": ({"actions": np.full((6, 3), np.nan)}, "actions are .* finite numbers"),
    "rewards nan": ({"rewards": np.full(6, np.nan)}, "rewards are .* finite numbers"),
    "rewards deep": ({"rewards": np.zeros((6, 1))}, r"rewards are \(6, 1\).* \(6,\)"),
    "terminals deep": ({"terminals": np.zeros((6, 3), bool)}, "terminals are .* one for each frame"),
    "terminal early": ({"terminals": np.arange(6) == 2}, "terminals are .* none before the last row"),
    "frames other": ({"observations": np.zeros((6, 9, 9, 3), np.uint8)}, r"observations are .*\(8, 8, 3\)"),
    "frames oblong": ({"observations": np.zeros((6, 8, 9, 3), np.uint8)}, "observations are .* H = W"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_rollout_is_refused_with_file_array_and_what_is_right(tmp_path, monkeypatch, name):
    monkeypatch.setattr(shards, "episodes_per_shard", lambda row, steps: 1)
    folder, paths = npz(tmp_path / "in", rollout(), rollout(**ODD[name][0]))
    with pytest.raises(ArtifactError, match=ODD[name][1]) as caught:
        ingest(read(folder, paths), tmp_path / "out")
    assert "rollout_1.npz" in str(caught.value)
    assert [shard.first for shard in shards.scan(tmp_path / "out")] == [0], "of the odd file nothing is written"


def test_numbers_that_are_no_actions_of_a_discrete_game_are_refused(tmp_path):
    wanted = convert_npz.Wanted((8, 8, 3), 3, [1, 2, 3])
    for actions in (np.array([1, 2, 3, 0, 1, 1]), np.ones((6, 1), int), np.ones(6)):
        folder, paths = npz(tmp_path / str(actions.sum() + actions.ndim), rollout(actions=actions))
        with pytest.raises(ArtifactError, match="integers from 1 to 3"):
            read(folder, paths, wanted).episode(0)


def episodes(count=3):
    zeros, ends = np.zeros(5, np.float32), np.arange(5) == 3
    action = np.zeros((5, 3), np.float32)
    return [Episode(np.full((5, 4), i, np.float32), action, zeros, ends, zeros > 1, seed=i) for i in range(count)]


def ours(folder):
    shards.write_shard(folder, 0, episodes(), META)
    shards.complete(folder)
    return folder


def test_a_signal_ends_an_import_after_whole_shards_and_the_same_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "episodes_per_shard", lambda row, steps: 1)
    made = episodes()

    def give(number):
        if number == 1 and not interrupted:
            interrupted.append(os.kill(os.getpid(), signal.SIGTERM))
        return made[number]

    interrupts.install()
    interrupted = []
    foreign = Foreign("x", 3, give, META)
    with pytest.raises(Stopped) as caught:
        ingest(foreign, tmp_path)
    assert caught.value.code == 143 and len(shards.scan(tmp_path)) == 2
    interrupts.clear()
    assert len(ingest(foreign, tmp_path).seeds) == 3


@pytest.fixture
def minari_folder(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def test_an_export_is_whole_or_absent_however_it_ends(tmp_path, minari_folder, monkeypatch):
    import minari.namespace

    data, real = ours(tmp_path / "a"), convert_minari._buffer

    def trouble(act):
        def buffer(episodes, number, to_theirs):
            if number == 1:
                act()
            return real(episodes, number, to_theirs)

        monkeypatch.setattr(convert_minari, "_buffer", buffer)

    trouble(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert killed(lambda: convert.export_rollouts(data, "toy/x-v0"))
    assert not minari.list_local_datasets() and list((minari_folder / ".wmrl-export").glob("*/*"))
    trouble(lambda: setattr(interrupts, "_pending", signal.SIGINT))
    with pytest.raises(Stopped):
        convert.export_rollouts(data, "toy/x-v0")
    interrupts.clear()
    monkeypatch.undo()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(minari_folder))
    assert not minari.list_local_datasets() and not list((minari_folder / ".wmrl-export").glob("*/*"))
    convert.export_rollouts(data, "toy/x-v0")
    assert minari.load_dataset("toy/x-v0").total_episodes == 3
    assert list(minari.list_local_datasets()) == ["toy/x-v0"] and "toy" in minari.namespace.list_local_namespaces()
    assert os.environ["MINARI_DATASETS_PATH"] == str(minari_folder)
    with pytest.raises(ConfigError, match="there is a Minari dataset of this id"):
        convert.export_rollouts(data, "toy/x-v0")


def test_commands_take_the_options_of_stages_and_print_json(tmp_path, minari_folder):
    data, common = str(ours(tmp_path / "a")), ["--debug", "-q", "--no-progress", "--json"]
    shown = {}
    for name, words in {
        "info": [data],
        "check": [data],
        "export": [data, "--id", "toy/x-v0"],
        "import": ["toy/x-v0", "--out", str(tmp_path / "b")],
    }.items():
        shown[name] = json.loads(CliRunner().invoke(app, [name, *words, *common]).stdout)
    assert all(about["schema_version"] == 1 for about in shown.values())
    assert shown["import"] | {"episodes": 3, "steps": 12, "hash": Episodes(data).hash} == shown["import"]
    assert shown["export"]["folder"] == str(minari_folder / "toy" / "x-v0" / "data")
    assert signal.getsignal(signal.SIGTERM) is interrupts._ask
