"""The linter: a good dataset gives no finding, each kind of damage gives its own."""

import dataclasses
import json

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from wmrl import files
from wmrl.cli_data import app
from wmrl.data import shards
from wmrl.data.alignment import Alignment
from wmrl.data.check import check
from wmrl.data.policies import Brown, Held, White
from wmrl.data.shards import Episode
from wmrl.spec import Actions

META = {
    "env": {"id": "CarRacing-v3", "size": 32, "crop": False, "backend": "toy"},
    "policy": {"policy": "brown"},
    "actions": {"size": 2, "discrete": False, "low": [-1, 0], "high": [1, 1]},
    "seed": 1,
}
STEPS = 300
POLICIES = {
    "brown": lambda: Brown(Actions(2, False), np.array([-1.0, 0]), np.ones(2)),
    "white": lambda: White(Actions(2, False)),
    "held": lambda: Held(Actions(2, False)),
}


def driven(seed, policy="brown", steps=STEPS):
    """Two instruments that follow the actions, as CarRacing's wheels do, over a flickering field."""
    actor, rng = POLICIES[policy](), np.random.default_rng(seed)
    action = actor.begin(np.zeros((1, 1)), [seed])
    shown, field = np.zeros(2), rng.integers(0, 60, (3, 32, 32))
    obs, actions, rewards = [], [], []
    for t in range(steps + 1):
        frame = field + rng.integers(0, 12, (3, 32, 32))
        frame[0, 4:12, 4:12] += int(60 * (shown[0] + 1))
        frame[1, 20:28, 8:20] += int(60 * (shown[1] + 1))
        obs.append(frame.astype(np.uint8))
        if t == steps:
            break
        shown = shown + 0.5 * (action[0] - shown)
        actions.append(action[0])
        rewards.append(3.2 if rng.random() < 0.05 else -0.1)
        action = actor.step(obs[-1])
    zero = lambda column: np.concatenate([column, np.zeros_like(column[:1])])  # noqa: E731
    ends = np.arange(steps) == steps - 1
    return Episode(
        obs=np.stack(obs),
        action=zero(np.array(actions, np.float32)),
        reward=zero(np.array(rewards, np.float32)),
        terminated=np.zeros(steps + 1, bool),
        truncated=zero(ends),
        seed=seed,
    )


@pytest.fixture(scope="module")
def good():
    return [driven(seed) for seed in range(4)]


def write(folder, made, meta=META, complete=True):
    for first in range(0, len(made), 2):
        shards.write_shard(folder, first, made[first : first + 2], meta)
    if complete:
        shards.complete(folder)
    return folder


def kinds(folder):
    return {finding.kind for finding in check(folder)}


def change(made, number, **columns):
    """The dataset with some columns of one episode changed by functions."""
    changed = {name: function(getattr(made[number], name).copy()) for name, function in columns.items()}
    return [*made[:number], dataclasses.replace(made[number], **changed), *made[number + 1 :]]


def put(rows, value):
    def function(column):
        column[rows] = value
        return column

    return function


@pytest.mark.parametrize("policy", POLICIES)
def test_a_good_dataset_gives_no_finding(tmp_path, policy):
    made = [driven(seed, policy) for seed in range(4)]
    assert list(check(write(tmp_path, made, {**META, "policy": {"policy": policy}}))) == []


def doubled(column):
    return np.repeat(column[::2], 2, axis=0)[: len(column)]


def late(column):
    """Obs as public code stores them: the frame after the action."""
    return np.concatenate([column[1:], column[-1:]])


def early(column):
    return np.concatenate([column[:1], column[:-1]])


DAMAGES = {
    "reset": [
        lambda made: change(made, 1, terminated=put(100, True)),
        lambda made: change(made, 1, truncated=put(slice(None), False)),
        lambda made: change(made, 2, reward=put(-1, 3.0)),
        lambda made: change(made, 2, action=put(-1, 0.5)),
        lambda made: change(made, 0, terminated=put(-2, True)),
    ],
    "blank": [lambda made: change(made, 1, obs=put(slice(50, 90), 0))],
    "still": [lambda made: [dataclasses.replace(e, obs=doubled(e.obs)) for e in made]],
    "duplicate": [lambda made: change(made, 2, obs=lambda obs: made[0].obs)],
    "seeds": [lambda made: [*made[:3], dataclasses.replace(made[3], seed=made[0].seed)]],
    "constant": [
        lambda made: change(made, 3, action=put(slice(None, -1), 0.25)),
        lambda made: [change([e], 0, action=put((slice(None, -1), 1), 1.0))[0] for e in made],
    ],
    "clipped": [
        lambda made: [dataclasses.replace(e, reward=np.clip(e.reward, -1, 1)) for e in made],
        lambda made: [dataclasses.replace(e, reward=np.sign(e.reward)) for e in made],
    ],
    "misaligned": [
        lambda made: [dataclasses.replace(e, obs=late(e.obs)) for e in made],
        lambda made: [dataclasses.replace(e, obs=late(late(e.obs))) for e in made],
        lambda made: [dataclasses.replace(e, obs=early(e.obs)) for e in made],
        lambda made: [dataclasses.replace(e, obs=early(early(e.obs))) for e in made],
    ],
    "values": [
        lambda made: change(made, 1, reward=put(7, np.nan)),
        lambda made: change(made, 1, action=put(7, 4.0)),
    ],
}


@pytest.mark.parametrize(("kind", "number"), [(kind, i) for kind, cases in DAMAGES.items() for i in range(len(cases))])
def test_each_damage_gives_its_own_finding(tmp_path, good, kind, number):
    found = kinds(write(tmp_path, DAMAGES[kind][number](good)))
    assert kind in found
    assert found <= {kind, {"blank": "still", "still": "misaligned"}.get(kind)}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("lag", [-2, -1, 0, 1, 2])
def test_alignment_finds_the_lag(policy, lag):
    seen = Alignment()
    for seed in range(4):
        episode = driven(seed, policy)
        obs, action = episode.obs, episode.action
        if lag < 0:
            obs, action = obs[-lag:], action[:lag]
        elif lag > 0:
            obs, action = obs[:-lag], np.concatenate([action[lag:-1], action[-1:]])
        seen.add(obs, action)
    assert seen.best() == lag


def test_frames_that_do_not_follow_actions_say_nothing():
    seen, rng = Alignment(), np.random.default_rng(0)
    for seed in range(4):
        seen.add(rng.integers(0, 255, (STEPS + 1, 3, 32, 32), np.uint8), driven(seed).action)
    assert seen.best() is None
    assert Alignment().best() is None


def rewrite(path, edit):
    """Change a shard and seal it anew, as a faulty program would have written it."""
    with files.open(path) as old:

        def fill(file):
            for name in old:
                old.copy(name, file)
            for name, value in old.attrs.items():
                file.attrs[name] = value
            edit(file)

        files.write(path, fill, role=shards.ROLE)


def replace(name, value):
    def edit(file):
        del file[name]
        file.create_dataset(name, data=value)

    return edit


def meta(**changes):
    def edit(file):
        file.attrs["meta"] = json.dumps({**json.loads(file.attrs["meta"]), **changes})

    return edit


SCHEMA = [
    lambda file: file.__delitem__("truncated"),
    replace("start", np.array([0, 100, 2 * STEPS])),
    replace("start", np.array([0, 1, 2 * STEPS + 2])),
    replace("reward", np.zeros(7, np.float32)),
    replace("reward", np.zeros(2 * STEPS + 2, np.float64)),
    replace("seed", np.zeros(1, np.int64)),
    replace("reward", np.zeros((2 * STEPS + 2, 1), np.float32)),
    replace("action", np.zeros((2 * STEPS + 2, 3), np.float32)),
    replace("obs", np.zeros((2 * STEPS + 2, 3, 4, 4), np.uint8)),
    replace("start", np.int64(0)),
    meta(actions={"size": 3, "discrete": False}),
]


@pytest.mark.parametrize("number", range(len(SCHEMA)))
def test_a_shard_of_another_schema_is_found(tmp_path, good, number):
    write(tmp_path, good, complete=False)
    rewrite(tmp_path / "shard-000002-2.h5", SCHEMA[number])
    assert "schema" in kinds(tmp_path)


def test_wrong_tables_are_found(tmp_path, good):
    write(tmp_path, good)
    rewrite(tmp_path / "shard-000002-2.h5", replace("return", np.array([5.0, 6.0])))
    assert kinds(tmp_path) == {"lengths", "digest"}
    write(tmp_path / "b", good)
    shards.write_shard(tmp_path / "b", 2, [good[3], driven(9, steps=200)], META)
    assert {"lengths", "digest"} <= kinds(tmp_path / "b")


def test_damaged_and_missing_shards_are_found_and_the_others_still_read(tmp_path, good):
    write(tmp_path, change(good, 3, terminated=put(100, True)))
    path = tmp_path / "shard-000000-2.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 4]) + whole[5001:])
    assert kinds(tmp_path) == {"digest", "reset"}
    path.write_bytes(whole[:-9])
    assert kinds(tmp_path) == {"digest", "reset"}
    path.unlink()
    assert kinds(tmp_path) == {"digest", "reset"}


def test_an_unfinished_dataset_is_found(tmp_path, good):
    write(tmp_path, good[:2])
    shards.write_shard(tmp_path, 2, good[2:], META)
    assert kinds(tmp_path) == {"unfinished"}
    (tmp_path / "complete.h5").unlink()
    assert kinds(tmp_path) == {"unfinished"}


def run(*words):
    return CliRunner().invoke(app, list(map(str, words)))


def test_the_command_lists_findings_and_exits_with_1(tmp_path, good):
    write(tmp_path / "good", good)
    write(tmp_path / "bad", change(good, 1, terminated=put(100, True)))
    fine, bad = run("check", tmp_path / "good"), run("check", tmp_path / "bad")
    assert fine.exit_code == 0 and "nothing is wrong" in fine.stdout
    assert bad.exit_code == 1 and "reset: episode 1 goes on after its end at row 100" in bad.stdout
    listed = run("check", tmp_path / "bad", "--json")
    assert listed.exit_code == 1 and json.loads(listed.stdout)["findings"][0]["kind"] == "reset"
    assert json.loads(run("check", tmp_path / "good", "--json").stdout)["findings"] == []


def test_info_tells_what_is_there(tmp_path, good):
    write(tmp_path, good)
    about = json.loads(run("info", tmp_path, "--json").stdout)
    assert (about["episodes"], about["steps"], about["complete"]) == (4, 4 * STEPS, True)
    assert about["observation"] == {"shape": [3, 32, 32], "dtype": "uint8"} and about["policy"] == {"policy": "brown"}
    assert about["return"]["mean"] == pytest.approx(np.mean([e.score for e in good]))
    assert about["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("shard-*"))
    shown = run("info", tmp_path).stdout
    assert "4, 1,200 steps" in shown and "CarRacing-v3" in shown and "brown" in shown
    (tmp_path / "complete.h5").unlink()
    assert "unfinished" in run("info", tmp_path).stdout


def test_shards_open_with_any_hdf5_program(tmp_path, good):
    write(tmp_path, good)
    with h5py.File(tmp_path / "shard-000000-2.h5") as file:
        assert sorted(file) == ["action", "obs", "return", "reward", "seed", "start", "terminated", "truncated"]
        assert file["obs"].chunks[0] in range(16, 65)
