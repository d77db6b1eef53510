"""Learning online: what it does in which order, that a kill changes nothing, and what it refuses."""

import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from wmrl import agreement, artifact, config, envs, pipeline, status
from wmrl.data import shards
from wmrl.data.episodes import Episodes
from wmrl.data.policies import Held
from wmrl.data.replay import Replay
from wmrl.envs.arcade import ArcadeEnv
from wmrl.errors import ArtifactError, ConfigError, ContractError, UserError
from wmrl.log import Log
from wmrl.online import Online
from wmrl.run import Run
from wmrl.spec import Actions
from wmrl.stages import online as stage
from wmrl.stages.iterate import iterate
from wmrl.stages.learning import Pupils
from wmrl.stages.lockstep import Lockstep
from wmrl.stages.online_checks import Checks
from wmrl.stages.online_models import fresh
from wmrl.stages.snapshots import chosen
from wmrl.stages.test_controller import TestOptions, test_controller
from wmrl.store import Store
from wmrl.trainers import TRAINERS

pytest.importorskip("minatar")
TABLE = {
    "name": "tiny",
    "env": {"id": "MinAtar/Breakout-v1"},
    "dynamics": {
        "kind": "rssm",
        "variables": 2,
        "classes": 3,
        "deterministic": 8,
        "hidden": 8,
        "depth": 2,
        "embedding": 8,
        "units": 8,
        "layers": 1,
        "observation": "bernoulli",
    },
    "controller": {"kind": "mlp", "layers": 1, "units": 8},
    "trainer": {"kind": "actor-critic", "horizon": 2, "critic_layers": 1, "critic_units": 8, "slow_every": 3},
    "test": {"episodes": 2, "sample": True},
    "fit": {"dynamics": {"batch": 2, "length": 6}},
    "online": {
        "steps": 200,
        "environments": 4,
        "seed_steps": 80,
        "collect": 20,
        "updates_per_step": 0.1,
        "noise": 0.2,
        "evaluate_every": 60,
        "evaluate_episodes": 2,
        "keep_every": 100,
        "log_every": 2,
    },
}


class Killed(BaseException):
    """What a kill leaves undone."""


def run(logdir: Path, table=None, **how):
    pipe = pipeline.parse(table or TABLE)
    with Log("iterate", logdir, progress=False, verbosity=-1) as log:
        store = Store(logdir, pipe)
        store.remember()
        iterate(pipe, store, log, Run(device="cpu", precision="fp32", threads=1, **how))


def rows(logdir: Path):
    """The metrics but for what clocks say."""
    lines = (logdir / "metrics/iterate.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time")} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("online") / "run"
    run(logdir)
    return logdir


def test_it_acts_learns_looks_and_ends_with_a_score(whole):
    made = artifact.read(whole / "iterate.h5", "iterate")
    assert made.facts["updates"] == 12 and made.facts["global_step"] == 200
    assert [row["step"] for row in made.facts["online"]] == [60, 120, 180, 200]
    assert made.tensors["200/returns"].shape == (2,)
    assert artifact.read(whole / "test.h5", "test").facts["order"] == ["minatar-breakout-2-sampled"]
    learnt = [row for row in rows(whole) if "losses/kl" in row]
    assert [row["charts/updates"] for row in learnt] == [2, 4, 6, 8, 10, 12]
    assert learnt[0]["charts/exploration"] == pytest.approx(0.0)


def test_what_was_lived_is_a_dataset(whole):
    episodes = Episodes(whole / "rollouts")
    assert 0 < episodes.steps <= 200 and episodes.dtype == np.bool_ and episodes.observation.shape == (4, 10, 10)
    assert len(set(episodes.seeds.tolist())) == len(episodes)
    assert episodes.policy == {"policy": "online", "seed_policy": "white", "seed_steps": 80}, "which is no random one"


@pytest.mark.parametrize("at", [1, 4, 9, 17])
def test_a_run_that_is_killed_goes_on_with_the_same_curves_and_the_same_weights(whole, tmp_path, monkeypatch, at):
    monkeypatch.setattr(stage, "SAVE_EVERY", 0.0)
    saves, save = [], Store.save_part

    def counted(self, name, tree):
        save(self, name, tree)
        saves.append(name)
        if name == stage.NAME and saves.count(name) == at:
            raise Killed

    monkeypatch.setattr(Store, "save_part", counted)
    with pytest.raises(Killed):
        run(tmp_path)
    run(tmp_path)
    assert rows(tmp_path) == rows(whole)
    for name in ("dynamics", "controller"):
        assert artifact.read(tmp_path / f"{name}.h5", name).hash == artifact.read(whole / f"{name}.h5", name).hash
    assert Episodes(tmp_path / "rollouts").seeds.tolist() == Episodes(whole / "rollouts").seeds.tolist()


@pytest.mark.parametrize(("place", "at"), [((Pupils, "update"), 9), ((Lockstep, "step"), 37), ((Checks, "play"), 2)])
def test_what_a_kill_took_since_the_last_save_is_done_again(whole, tmp_path, monkeypatch, place, at):
    where, name = place
    monkeypatch.setitem(Replay.__init__.__kwdefaults__, "shard", 8000)  # some are written after what was saved
    monkeypatch.setattr("wmrl.data.growing.SHARDS", 10**9)
    done, calls = getattr(where, name), []

    def counted(*args):
        found = done(*args)
        calls.append(name)
        if len(calls) == at:
            raise Killed
        return found

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(where, name, counted)
        run(tmp_path)
    assert list((tmp_path / "rollouts").glob("shard-*.h5"))
    run(tmp_path)
    assert rows(tmp_path) == rows(whole)
    for name in ("dynamics", "controller"):
        assert artifact.read(tmp_path / f"{name}.h5", name).hash == artifact.read(whole / f"{name}.h5", name).hash
    assert Episodes(tmp_path / "rollouts").seeds.tolist() == Episodes(whole / "rollouts").seeds.tolist()


def test_games_that_do_not_come_back_cost_no_shard(tmp_path, monkeypatch):
    monkeypatch.setitem(Replay.__init__.__kwdefaults__, "shard", 8000)
    monkeypatch.setattr("wmrl.data.growing.SHARDS", 10**9)
    save = Store.save_part

    def first(self, name, tree):
        if not self.part(name).exists():
            save(self, name, tree)
        elif tree["step"] > 100:
            raise Killed  # the state that is kept knows none of the shards

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Store, "save_part", first)
        run(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "rollouts").glob("shard-*.h5")}
    assert before
    monkeypatch.setattr(np, "array_equal", lambda one, other: False)
    with pytest.raises(UserError, match="does not come back to where it was"):
        run(tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "rollouts").glob("shard-*.h5")} == before


def test_more_steps_go_on(whole, tmp_path):
    longer = {**TABLE, "online": {**TABLE["online"], "steps": 260}}
    run(tmp_path)
    run(tmp_path, longer)
    made = artifact.read(tmp_path / "iterate.h5", "iterate")
    assert made.facts["global_step"] == 260 and made.facts["updates"] == 18


def test_status_says_how_far_it_is_and_what_goes_on(whole, tmp_path, monkeypatch):
    assert status.report(whole).iterations == "step 200 of 200, learning online"
    over = iter([False] * 6)
    monkeypatch.setattr(Run, "over", lambda self: next(over, True))
    run(tmp_path)
    found = status.report(tmp_path)
    assert found.iterations.endswith(" of 200, learning online") and not found.iterations.startswith("step 200")
    assert found.next == f"wmrl iterate --logdir {tmp_path}" and not (tmp_path / "iterate.h5").exists()
    (tmp_path / "rollouts/complete.h5").unlink(missing_ok=True)  # as before the first end of a call
    found = status.report(tmp_path)
    assert re.fullmatch(r"\d+ episodes", found.entries[0].detail) and found.entries[0].command == found.next


def test_minutes_that_end_between_the_last_updates_end_nothing(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "over", lambda self: Pupils.made == 11)
    monkeypatch.setattr(Pupils, "made", 0, raising=False)
    update = Pupils.update
    monkeypatch.setattr(
        Pupils, "update", lambda self, batch: (update(self, batch), setattr(Pupils, "made", self.updates))
    )
    run(tmp_path)
    assert not (tmp_path / "iterate.h5").exists() and status.report(tmp_path).next.startswith("wmrl iterate")
    run(tmp_path)
    assert rows(tmp_path) == rows(whole)


def test_a_run_whose_state_is_gone_is_not_begun_again_over_what_it_made(whole, tmp_path):
    logdir = Path(shutil.copytree(whole, tmp_path / "run"))
    (logdir / "online.part.h5").unlink()
    before = (logdir / "dynamics.h5").read_bytes(), len(Episodes(logdir / "rollouts"))
    with pytest.raises(ArtifactError, match=r"online\.part\.h5 is missing: .*iterate\.h5 cannot go on"):
        run(logdir)
    (logdir / "iterate.h5").unlink()
    with pytest.raises(ArtifactError, match=r"online\.part\.h5 is missing: .*rollouts cannot go on"):
        run(logdir)
    assert ((logdir / "dynamics.h5").read_bytes(), len(Episodes(logdir / "rollouts"))) == before


def test_models_act_before_they_learn_as_they_do_after():
    pipe = pipeline.parse(TABLE)
    with envs.make(pipe.env, 1, threads=1) as env:
        world, _ = fresh(pipe, Store(Path("nowhere"), pipe), env, torch.device("cpu"))
    assert not any(module.training for module in world.modules())


def test_the_world_model_takes_its_epsilon_from_the_pipeline_and_the_behaviour_has_its_own():
    pipe = pipeline.parse({**TABLE, "fit": {"dynamics": {**TABLE["fit"]["dynamics"], "epsilon": 1e-3}}})
    with envs.make(pipe.env, 1, threads=1) as env:
        world, controller = fresh(pipe, Store(Path("nowhere"), pipe), env, torch.device("cpu"))
    learner = config.build(TRAINERS, pipe.trainer, "trainer").learner(
        controller, world.feature_shape, torch.device("cpu")
    )
    pupils = Pupils(world, learner, pipe.fit.dynamics, pipe.seed, torch.device("cpu"))
    assert pupils.optimizer.defaults["eps"] == 1e-3
    assert learner.actor_step._adam.defaults["eps"] == learner.critic_step._adam.defaults["eps"] == 1e-5


def test_episodes_that_another_command_has_added_are_not_lost(whole, tmp_path):
    logdir = Path(shutil.copytree(whole, tmp_path / "run"))
    there = Episodes(logdir / "rollouts")
    shards.write_shard(logdir / "rollouts", len(there), [there.episode(0)], shards.provenance(there.meta))
    shards.complete(logdir / "rollouts")
    with pytest.raises(ContractError, match="another command has added some"):
        run(logdir, {**TABLE, "online": {**TABLE["online"], "steps": 220}})
    assert len(Episodes(logdir / "rollouts")) == len(there) + 1


@pytest.mark.parametrize(("name", "command"), [("controller", "train-controller"), ("dynamics", "train-dynamics")])
def test_a_model_that_another_command_has_made_is_not_replaced(whole, tmp_path, name, command):
    made = artifact.read(whole / f"{name}.h5", name)
    path = tmp_path / f"{name}.h5"
    dataclasses.replace(made, parents={**made.parents, "data": "0" * 64}).write(path)
    before = path.read_bytes()
    with pytest.raises(ContractError, match=rf"{name}\.h5 was made by wmrl {command}, .*: move it away, or"):
        run(tmp_path)
    assert path.read_bytes() == before and not (tmp_path / "online.part.h5").exists()


def test_a_representation_that_has_changed_since_is_refused(whole, tmp_path):
    path = tmp_path / "other" / "vae.h5"
    pipe = pipeline.parse({**TABLE, "representation": {"from": str(path.parent)}})
    store, made = Store(tmp_path / "run", pipe), artifact.read(whole / "vae.h5", "vae")
    made.write(path)
    with envs.make(pipe.env, 1, threads=1) as env:
        for _ in range(2):
            fresh(pipe, store, env, torch.device("cpu"))
            store.save_part(stage.NAME, {})
        dataclasses.replace(made, tensors={"another": np.ones(1)}).write(path)
        with pytest.raises(ContractError, match="has changed since"):
            fresh(pipe, store, env, torch.device("cpu"))


def test_other_settings_are_refused_with_their_key(whole, tmp_path):
    run(tmp_path)
    other = {**TABLE, "online": {**TABLE["online"], "collect": 40, "steps": 260}}
    with pytest.raises(ContractError, match=r"online\.collect.* 20.* 40"):
        run(tmp_path, other)
    with pytest.raises(ConfigError, match=r"online\.collect: .* 20, .* 40; take another --logdir$"):
        agreement.reconcile(whole, pipeline.load(whole), pipeline.parse(other))


def test_snapshots_are_scored_under_one_protocol(whole, capsys):
    assert list(chosen(whole, "all")) == [100, 200] and list(chosen(whole, "200")) == [200]
    with pytest.raises(ConfigError, match=r"none of step 7; there are 100, 200"):
        chosen(whole, "7")
    with pytest.raises(ArtifactError, match=r"online\.keep_every"):
        chosen(whole / "rollouts", "all")
    pipe = pipeline.load(whole)
    for more in ({"target_return": 1.0}, {"baselines": (whole,)}, {"capture_video": True}):
        with pytest.raises(ConfigError, match=r"--snapshots goes with neither --target-return"):
            test_controller(pipe, None, None, Run(), TestOptions(snapshots="all", **more))

    def scored(snapshots, **how):
        with Log("test-controller", whole, progress=False) as log:
            options = TestOptions(snapshots=snapshots, **how)
            test_controller(pipe, Store(whole, pipe), log, Run(device="cpu", threads=1), options)
        found = [json.loads(line) for line in (whole / "metrics/snapshots.jsonl").read_text().splitlines()]
        return {row.pop("global_step"): row["eval/return_mean"] for row in found}

    seen = scored("all")
    assert list(seen) == [100, 200]
    assert "minatar-breakout-2-sampled" in capsys.readouterr().out
    assert scored("200") == seen, "the rows of the others are kept"
    assert list(scored("200", episodes=1)) == [200], "scores of two protocols are in no table together"
    assert "but not under minatar-breakout-1-sampled, are left out of the metrics: 1" in capsys.readouterr().err
    store = Store(whole / "snapshots/000000100", pipe)
    made = store.load("controller")
    store.save("controller", dataclasses.replace(made, tensors={k: v + 1 for k, v in made.tensors.items()}))
    assert list(scored("200")) == [200], "a score of another controller is none of this one"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trainer": {"kind": "cma-es"}, "controller": {"kind": "linear"}}, "trainer.kind: 'cma-es' scores whole"),
        ({"dynamics": {"from": "elsewhere"}}, "dynamics.from: online"),
        ({"representation": {"kind": "vae"}}, "representation.kind: 'vae' is not trained online"),
        ({"online": {**TABLE["online"], "seed_policy": "brown"}}, "brown walks in a box of actions, and these are"),
    ],
)
def test_what_cannot_learn_online_is_refused(tmp_path, change, words):
    table = {**TABLE, **change}
    table = {**table, "env": {"id": "Pendulum-v1", "size": 32}} if "representation" in change else table
    with pytest.raises(ConfigError, match=words):
        run(tmp_path, table)
    assert not (tmp_path / "rollouts").exists()


def test_no_more_environments_are_alive_than_workers_are_allowed(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"--max-workers: 5 .* online\.environments = 4 and the 2 .*; allow 6$"):
        run(tmp_path / "few", max_workers=5)
    assert not (tmp_path / "few/online.part.h5").exists()
    alive, most, close = [], [], ArcadeEnv.close

    def make(self, env, n, *, threads):
        begin(self, env, n, threads=threads)
        alive.append(self)
        most.append(sum(each.n for each in alive))

    begin = ArcadeEnv.__init__
    monkeypatch.setattr(ArcadeEnv, "__init__", make)
    monkeypatch.setattr(ArcadeEnv, "close", lambda self: (close(self), self in alive and alive.remove(self)))
    run(tmp_path / "enough", {**TABLE, "test": {"episodes": 6}}, max_workers=6)
    assert max(most) == 6 and not alive


class Foreign:
    """A backend of another author, as it was before slots began anew one by one."""

    def __init__(self, env, n, *, threads):
        own = ArcadeEnv(env, n, threads=threads)
        for name in ("n", "observation", "actions", "fps", "max_steps", "native", "info", "reset", "step"):
            setattr(self, name, getattr(own, name))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def test_a_backend_that_begins_all_slots_at_once_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(envs.BACKENDS, "minatar", f"{__name__}:Foreign")
    with pytest.raises(ConfigError, match=r"env\.backend: the environments of 'auto' have no restart"):
        run(tmp_path)


def test_a_run_that_makes_no_updates_says_how_far_it_is(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(Log, "progress", lambda self, done, total, *words: told.append((done, total, *words)))
    run(tmp_path, {**TABLE, "online": {**TABLE["online"], "updates_per_step": 0.0}})
    assert (100, 200) in {each[:2] for each in told} and any(note.startswith("update 0, return") for *_, note in told)
    played = [row["global_step"] for row in rows(tmp_path) if "charts/updates" in row]
    assert played == [40, 80, 120, 160, 200], "every two turns"


def test_seed_episodes_follow_the_policy_that_is_asked_for_and_its_numbers_hold(tmp_path):
    online = {**TABLE["online"], "steps": 100, "seed_steps": 100, "evaluate_every": 0, "keep_every": 0}
    table = {**TABLE, "generate": {"hold": 3}, "online": {**online, "seed_policy": "held"}}
    run(tmp_path, table)
    episode, walk = Episodes(tmp_path / "rollouts").episode(0), Held(Actions(3, True), 3).walk
    np.testing.assert_array_equal(
        episode.action[:-1], list(itertools.islice(walk(episode.seed), len(episode.reward) - 1))
    )
    with pytest.raises(ContractError, match=r"generate\.hold: .* was begun with 3, this call says 4"):
        run(tmp_path, {**table, "generate": {"hold": 4}})


def test_the_train_ratio_counts_the_steps_after_the_seed_steps():
    how = Online(steps=100, seed_steps=10, updates_per_step=0.1, noise=0.5, noise_final=0.1, noise_steps=20)
    assert [how.updates(step) for step in (0, 10, 19, 20, 30)] == [0, 0, 0, 1, 2]
    assert [round(how.exploration(step), 3) for step in (0, 10, 20, 30, 99)] == [0.5, 0.5, 0.3, 0.1, 0.1]


@pytest.mark.parametrize(("key", "value"), [("environments", 0), ("updates_per_step", -1.0), ("collect", 0)])
def test_wrong_numbers_are_named(key, value):
    with pytest.raises(ConfigError, match=rf"online\.{key}"):
        pipeline.parse({"online": dataclasses.asdict(Online()) | {key: value}})
