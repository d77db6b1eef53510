"""The stage train-controller on a toy: what it keeps, how it continues, and what it refuses."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from wmrl import artifact, envs
from wmrl.config import build, resolved
from wmrl.curves import collect
from wmrl.data.shards import Episode, complete, write_shard
from wmrl.dynamics import DYNAMICS
from wmrl.errors import ArtifactError, ContractError, UserError
from wmrl.log import Log
from wmrl.pipeline import Pipeline, parse
from wmrl.representations import REPRESENTATIONS
from wmrl.run import Run
from wmrl.seeding import number
from wmrl.spec import Actions, Space
from wmrl.stages import train_controller as stage
from wmrl.store import Store

FRAMES, ACTIONS = Space((3, 32, 32)), Actions(1, False)
META = {
    "env": {"id": "toy", "size": 32, "crop": False},
    "policy": {"policy": "white"},
    "observation": {"shape": (3, 32, 32), "vocab": None, "dtype": "uint8"},
    "actions": {"size": 1, "discrete": False},
}


class Outcome(NamedTuple):
    obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class Toy:
    """Frames as bright as the seed says; reward for acting near 0.5; 4 to 6 steps. Counts what it steps."""

    observation, actions = FRAMES, ACTIONS
    made = 0
    played: list[int]
    fail = False

    def __init__(self, n: int) -> None:
        self.n = n
        Toy.made += 1

    def reset(self, seeds):
        Toy.played.extend(seeds)
        self.seeds, self.t = np.array(seeds), np.zeros(len(seeds), int)
        return self._obs(np.arange(len(seeds)))

    def step(self, action, ids):
        if Toy.fail:
            raise UserError("worker 3 died")
        self.t[ids] += 1
        over = self.t[ids] >= 4 + self.seeds[ids] % 3
        return Outcome(self._obs(ids), -((action[:, 0] - 0.5) ** 2), over, over & False)

    def _obs(self, ids):
        shade = (self.seeds[ids] * 7 + self.t[ids] * 31) % 256
        return np.broadcast_to(shade[:, None, None, None], (len(ids), 3, 32, 32)).astype(np.uint8)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def _save(store: Store, role: str, registry: dict, table: dict, given: tuple, where: str, parents: dict, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build(registry, table, where, *given)
    made = artifact.of(module, role, resolved(registry, table, where), given, parents=parents)
    store.save(role, made)
    return made


def _add(folder: Path, first: int, seeds: Iterable[int], terminates: bool = True) -> None:
    """A shard of the toy's episodes, and the list of all shards."""
    zeros, last = np.zeros(6, np.float32), np.arange(6) == 4
    some = []
    for i in seeds:
        frames, ends = np.full((6, 3, 32, 32), 40 * i, np.uint8), (last, ~last & last)
        some.append(Episode(frames, zeros[:, None], zeros, *(ends if terminates else ends[::-1]), seed=i))
    write_shard(folder, first, some, META)
    complete(folder)


@pytest.fixture
def pipe(tmp_path, monkeypatch) -> Pipeline:
    Toy.made, Toy.played, Toy.fail = 0, [], False
    monkeypatch.setattr(envs, "make", lambda env, n, *, threads: Toy(n))
    _add(tmp_path / "data", 0, range(3))
    table = {
        "name": "toy",
        "data": str(tmp_path / "data"),
        "env": {"id": "toy", "size": 32},
        "representation": {"kind": "vae", "latent": 3},
        "dynamics": {"kind": "mdn-rnn", "hidden": 4, "mixtures": 2},
        "trainer": {
            "kind": "cma-es",
            "population": 6,
            "samples": 2,
            "generations": 4,
            "validate_every": 2,
            "validation_episodes": 4,
        },
    }
    store = Store(tmp_path / "run", parse(table))
    vae = _save(store, "vae", REPRESENTATIONS, table["representation"], (FRAMES,), "representation", {})
    given = (Space((3,)), ACTIONS)
    _save(store, "dynamics", DYNAMICS, table["dynamics"], given, "dynamics", {"representation": vae.hash})
    return parse(table)


def _run(pipe: Pipeline, tmp_path, name: str = "run", **how: Any) -> tuple[Store, artifact.Artifact]:
    store = Store(tmp_path / name, pipe)
    log = Log.quiet("train-controller", store.logdir)
    stage.train_controller(pipe, store, log, Run(**{"precision": "fp32", "threads": 1, "max_workers": 5, **how}))
    log.close()
    return store, store.load("controller")


def test_saves_the_best_mean_with_its_history_and_parents(pipe, tmp_path) -> None:
    store, made = _run(pipe, tmp_path)
    assert {name: t.shape for name, t in made.tensors.items()} == {"out.weight": (1, 7), "out.bias": (1,)}
    assert made.parents == {
        "data": store.episodes().hash,
        "representation": store.load("vae").hash,
        "dynamics": store.load("dynamics").hash,
    }
    history, validation = made.facts["history"], made.facts["validation"]
    assert history["generation"].tolist() == [1, 2, 3, 4] and np.diff(history["steps"]).min() >= 48
    assert history["mean"][-1] > history["mean"][0]
    assert validation["returns"].shape == (2, 4) and made.facts["last"].shape == (8,)
    assert made.facts["choices"] == {
        "environments": 5,
        "lanes": 1,
        "torch_threads": torch.get_num_threads(),
        "precision": "fp32",
    }
    controller, _ = store.component("controller")
    assert controller.out.weight.any() and not any(p.requires_grad for p in controller.parameters())
    rows = (store.logdir / "metrics/train-controller.jsonl").read_text()
    assert all(name in rows for name in ("charts/episodic_return", "charts/SPS", "eval/return_mean"))
    lengths = [row["charts/episodic_length"] for row in map(json.loads, rows.splitlines()) if "charts/SPS" in row]
    played = pipe.trainer["population"] * pipe.trainer["samples"]
    assert lengths == pytest.approx(np.diff(history["steps"], prepend=0) / played)
    assert made.facts["global_step"] == history["steps"][-1]


def _link(tmp_path, name: str) -> None:
    (tmp_path / name).mkdir()
    for role in ("vae", "dynamics"):
        (tmp_path / name / f"{role}.h5").hardlink_to(tmp_path / "run" / f"{role}.h5")


def test_stopped_after_any_save_it_ends_with_the_same_bits_and_plays_nothing_twice(pipe, tmp_path, monkeypatch) -> None:
    _, whole = _run(pipe, tmp_path)
    preflight = {number(1, "preflight", i) for i in range(2)}
    once = sorted(s for s in Toy.played if s not in preflight)
    count, real = [0], Store.save_part

    def save_part(self, name, tree):
        real(self, name, tree)
        count[0] += 1
        if count[0] == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "save_part", save_part)
    for stop in (1, 2, 4, 7, 9, 12, 15, 16):
        name, count[0], Toy.played = f"run-{stop}", 0, []
        _link(tmp_path, name)
        with pytest.raises(KeyboardInterrupt):
            _run(pipe, tmp_path, name)
        store, made = _run(pipe, tmp_path, name, max_workers=3, precision="auto")  # the choices of the first start hold
        assert made.hash == whole.hash
        assert sorted(s for s in Toy.played if s not in preflight) == once
        rows = (store.logdir / "metrics/train-controller.jsonl").read_text().splitlines()
        assert sum("charts/SPS" in row for row in rows) == 4


def test_called_again_it_does_nothing_and_more_generations_go_on(pipe, tmp_path) -> None:
    store, made = _run(pipe, tmp_path)
    Toy.played, Toy.made = [], 0
    before = store.path("controller").read_bytes()
    assert (
        _run(pipe, tmp_path)[1].hash == made.hash and Toy.made == 0 and store.path("controller").read_bytes() == before
    )
    table = pipe.table()
    longer = parse({**table, "trainer": {**table["trainer"], "generations": 6}})
    assert _run(longer, tmp_path)[1].facts["history"]["generation"].tolist() == [1, 2, 3, 4, 5, 6]
    assert _run(pipe, tmp_path, noreload=True)[1].hash == made.hash


def test_a_foreign_controller_is_no_complete_one(pipe, tmp_path) -> None:
    store, made = _run(pipe, tmp_path)
    foreign = dataclasses.replace(made, parents={**made.parents, "dynamics": "0" * 64})
    foreign.write(store.path("controller"))
    with pytest.raises(ContractError, match=r"made from dynamics 00000000, but .* is there now"):
        _run(pipe, tmp_path)


def test_a_copied_logdir_without_training_state_is_complete_but_cannot_grow(pipe, tmp_path) -> None:
    store, made = _run(pipe, tmp_path)
    store.drop_part("controller")
    Toy.made = 0
    assert _run(pipe, tmp_path)[1].hash == made.hash and Toy.made == 0
    table = pipe.table()
    longer = parse({**table, "trainer": {**table["trainer"], "generations": 6}})
    with pytest.raises(ArtifactError, match="--noreload"):
        _run(longer, tmp_path)
    assert store.load("controller").hash == made.hash


@pytest.mark.parametrize("copied", [False, True])
def test_what_an_earlier_wmrl_completed_with_fewer_options_is_complete(pipe, tmp_path, copied) -> None:
    store, made = _run(pipe, tmp_path)
    fewer = {key: value for key, value in made.facts["trainer"].items() if key not in ("real_every", "judge")}
    dataclasses.replace(made, facts={**made.facts, "trainer": fewer}).write(store.path("controller"))
    store.save_part("controller", {**store.load_part("controller"), "trainer": fewer})
    if copied:
        store.drop_part("controller")
    before = store.path("controller").read_bytes()
    _run(pipe, tmp_path)
    assert store.path("controller").read_bytes() == before


@pytest.mark.parametrize("most", [1, 3, 5])
def test_no_more_environments_are_alive_than_allowed_in_all_lanes_together(pipe, tmp_path, monkeypatch, most) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(envs, "make", lambda env, n, *, threads: sizes.append(n) or Toy(n))
    monkeypatch.setattr(envs, "backend", lambda env: SimpleNamespace(free_of_python=True))
    monkeypatch.setattr(stage, "cores", lambda: 2)
    _run(pipe, tmp_path, minutes=0.0, threads=2, max_workers=most)
    assert len(sizes) == min(2, most) and sum(sizes) <= most


def _asleep(pipe: Pipeline, **more: Any) -> Pipeline:
    table = pipe.table()
    return parse({**table, "trainer": {**table["trainer"], "where": "dream", "dream_steps": 8, **more}})


def test_in_the_dream_no_environment_is_made_if_none_is_asked_for(pipe, tmp_path) -> None:
    store, made = _run(_asleep(pipe, real_every=0, ends="sample", temperature=1.25), tmp_path)
    assert Toy.made == 0 and len(made.facts["history"]["mean"]) == 4
    rows = (store.logdir / "metrics/train-controller.jsonl").read_text()
    assert "dream/return" in rows and "eval/return_mean" not in rows
    log = (store.logdir / "logs/train-controller.log").read_text()
    assert "terminates" not in log and "at temperature 1.25" in log


def test_asleep_both_worlds_are_measured_and_drawn(pipe, tmp_path) -> None:
    store, made = _run(_asleep(pipe), tmp_path)
    real = {number(1, "validation", i) for i in range(4)}
    assert set(Toy.played) - {number(1, "preflight", i) for i in range(2)} == real
    drawn = collect(store.logdir)
    for kept, name in (("validation", "dream/return"), ("awake", "eval/return_mean")):
        steps, values = drawn[f"train-controller: {name}"]
        assert steps == made.facts[kept]["steps"].tolist() == made.facts["history"]["steps"][1::2].tolist()
        assert values == made.facts[kept]["returns"].mean(1).tolist()


EYES = {"rssm": {"deterministic": 4, "hidden": 4}, "tssm": {"width": 4, "heads": 1, "blocks": 1}, "latent": {"size": 4}}


@pytest.mark.parametrize("where", ["env", "dream"])
@pytest.mark.parametrize("kind", EYES)
def test_a_world_model_with_its_own_eyes_is_searched_in_as_any(pipe, tmp_path, kind, where) -> None:
    dynamics = {"kind": kind, "units": 4, "layers": 1, "depth": 2, **EYES[kind]}
    table = {**_asleep(pipe, where=where).table(), "representation": {"kind": "pixels"}, "dynamics": dynamics}
    store = Store(tmp_path / "own", parse(table))
    eyes = _save(store, "vae", REPRESENTATIONS, table["representation"], (FRAMES,), "representation", {})
    _save(store, "dynamics", DYNAMICS, dynamics, (FRAMES, ACTIONS), "dynamics", {"representation": eyes.hash})
    _, made = _run(parse(table), tmp_path, "own")
    assert len(made.facts["history"]["mean"]) == 4 and np.isfinite(made.facts["validation"]["returns"]).all()
    assert made.facts["validation"]["returns"].std() > 0


def test_killed_in_a_validation_of_either_world_it_ends_with_the_same_bits(pipe, tmp_path, monkeypatch) -> None:
    asleep = _asleep(pipe, validation_episodes=20)  # two waves in the dream, four in the environment
    monkeypatch.setattr(stage, "DREAMERS", 12)
    _, whole = _run(asleep, tmp_path)
    real = Store.save_part

    def save_part(self, name, tree):
        real(self, name, tree)
        looking = tree["tree"].get("looking")
        if looking is not None and np.isnan(looking["returns"]).any():
            where.append("env" if len(tree["tree"]["checks"]) > len(tree["tree"]["awakes"]) else "dream")
            if where[-1] == stop:
                raise KeyboardInterrupt

    for stop in ("dream", "env"):
        where: list[str] = []
        _link(tmp_path, stop)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Store, "save_part", save_part)
            _run(asleep, tmp_path, stop)
        assert _run(asleep, tmp_path, stop)[1].hash == whole.hash


def test_dreams_that_never_end_are_told(pipe, tmp_path) -> None:
    _add(tmp_path / "endless", 0, range(3), terminates=False)
    endless = parse({**_asleep(pipe, real_every=0).table(), "data": str(tmp_path / "endless")})
    store, _ = _run(endless, tmp_path, minutes=0.0)
    log = (store.logdir / "logs/train-controller.log").read_text()
    assert "warning: no episode of" in log and "trainer.dream_steps = 8 steps" in log


@pytest.mark.parametrize(("cores", "workers", "rows", "lanes"), [(1, 5, 80, 1), (2, 5, 40, 2), (2, 9999, 20, 2)])
def test_dreams_are_cut_into_a_wave_for_each_core_within_the_memory(
    pipe, tmp_path, monkeypatch, cores, workers, rows, lanes
) -> None:
    state = 4 * (3 + 4 + 4)  # z, h and c of the toy
    monkeypatch.setattr(stage, "STATE_BYTES", state * 80 if workers == 5 else state * 40)
    monkeypatch.setattr(stage, "cores", lambda: cores)
    _, made = _run(_asleep(pipe, real_every=0), tmp_path, minutes=0.0, threads=2, max_workers=workers)
    choices = made.facts["choices"]
    assert (choices["dreams"], choices["dream_lanes"]) == (rows, lanes)


def test_the_target_ends_it_early(pipe, tmp_path) -> None:
    table = pipe.table()
    eager = parse({**table, "trainer": {**table["trainer"], "target_return": -100.0}})
    assert len(_run(eager, tmp_path)[1].facts["history"]["mean"]) == 2


def test_spent_minutes_end_it_with_an_artifact_and_the_same_call_goes_on(pipe, tmp_path) -> None:
    _, made = _run(pipe, tmp_path, minutes=0.0)
    assert len(made.facts["history"]["mean"]) == 0 and made.facts["validation"]["generation"].tolist() == [0]
    assert len(_run(pipe, tmp_path)[1].facts["history"]["mean"]) == 4


def test_an_environment_that_fails_ends_it_before_anything_is_searched(pipe, tmp_path) -> None:
    Toy.fail = True
    with pytest.raises(UserError, match="worker 3 died"):
        _run(pipe, tmp_path)
    assert not Store(tmp_path / "run", pipe).begun("controller")


def test_features_that_are_not_finite_are_an_error_in_one_sentence(pipe, tmp_path) -> None:
    store = Store(tmp_path / "run", pipe)
    made = store.load("dynamics")
    made.tensors["rnn.weight_hh_l0"][:] = np.nan
    store.save("dynamics", made)
    with pytest.raises(UserError, match="not finite.*train-dynamics"):
        _run(pipe, tmp_path)


def test_other_parents_are_refused(pipe, tmp_path, monkeypatch) -> None:
    store, _ = _run(pipe, tmp_path, minutes=0.0)
    vae = store.load("vae")
    table, given = pipe.dynamics, (Space((3,)), ACTIONS)
    _save(store, "dynamics", DYNAMICS, table, given, "dynamics", {"representation": vae.hash}, seed=5)
    with pytest.raises(ContractError, match="dynamics.*--noreload"):
        _run(pipe, tmp_path)
    assert _run(pipe, tmp_path, noreload=True)[1].parents["dynamics"] == store.load("dynamics").hash
    monkeypatch.setattr(Toy, "actions", Actions(2, False))
    with pytest.raises(ContractError, match="actions"):
        _run(pipe, tmp_path, noreload=True)


def test_in_a_world_that_was_moved_on_purpose_a_new_search_begins_where_the_last_one_ended(pipe, tmp_path) -> None:
    store, before = _run(pipe, tmp_path)
    played, Toy.played = {*Toy.played}, []
    given = (Space((3,)), ACTIONS)
    parents = {"representation": store.load("vae").hash}
    _save(store, "dynamics", DYNAMICS, pipe.dynamics, given, "dynamics", parents, seed=5)
    earlier = {"dynamics": [before.parents["dynamics"]]}
    _, after = _run(pipe, tmp_path, earlier=earlier)
    assert after.parents["dynamics"] == store.load("dynamics").hash != before.parents["dynamics"]
    assert after.facts["history"]["generation"].tolist() == [1, 2, 3, 4]
    assert after.facts["validation"]["generation"].tolist() == [0, 2, 4], "what it begins with is to be beaten"
    search = store.load_part("controller")
    weights = np.concatenate([before.tensors[name].ravel() for name in ("out.weight", "out.bias")])
    assert np.array_equal(search["tree"]["x0"], weights.astype(np.float64))
    assert after.facts["global_step"] == before.facts["global_step"] + after.facts["steps"], "the axis goes on"
    assert played & {*Toy.played} == {number(1, "preflight", i) for i in range(2)}, "it plays fresh episodes"
    Toy.made = 0
    assert _run(pipe, tmp_path, earlier=earlier)[1].hash == after.hash and Toy.made == 0
    assert _run(pipe, tmp_path)[1].hash == after.hash


def test_appended_episodes_let_a_search_go_on_and_others_do_not(pipe, tmp_path) -> None:
    store, made = _run(pipe, tmp_path, minutes=0.0)
    _add(tmp_path / "data", 3, [3])
    _, grown = _run(pipe, tmp_path, minutes=0.0)
    assert grown.parents == {**made.parents, "data": store.episodes().hash} != made.parents
    assert "episodes were added" in (store.logdir / "logs/train-controller.log").read_text()
    _add(tmp_path / "other", 0, [5])
    with pytest.raises(ContractError, match="data.*--noreload"):
        _run(parse({**pipe.table(), "data": str(tmp_path / "other")}), tmp_path, minutes=0.0)


def test_begun_anew_nothing_of_before_is_continued(pipe, tmp_path) -> None:
    _link(tmp_path, "fresh")
    table = pipe.table()
    wider = parse({**table, "trainer": {**table["trainer"], "sigma": 0.9, "population": 8}})
    _, expected = _run(wider, tmp_path, "fresh")
    store, before = _run(pipe, tmp_path)
    store.begin_anew("controller")  # and then killed: what goes on is the new search
    assert _run(wider, tmp_path)[1].hash == expected.hash != before.hash


def _save_and_die(real):
    def save(self, tree):
        real(self, tree)
        raise KeyboardInterrupt

    return save


def test_dreams_are_as_many_at_once_as_when_the_search_began(pipe, tmp_path) -> None:
    asleep = _asleep(pipe, samples=20)
    _link(tmp_path, "other")
    _, whole = _run(asleep, tmp_path, "other", max_workers=2)
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage.Progress, "save", _save_and_die(stage.Progress.save))
        _run(asleep, tmp_path, max_workers=2)
    assert _run(asleep, tmp_path, max_workers=5)[1].hash == whole.hash


def test_a_trainer_of_dreams_learns_from_cached_codes_and_is_validated_as_it_will_be_tested(pipe, tmp_path) -> None:
    learner = {"kind": "actor-critic", "horizon": 2, "steps": 4, "batch": 2, "length": 3, "validate_every": 2}
    trainer = {**learner, "critic_layers": 0, "validation_episodes": 2, "actor_learning_rate": 1e-2}
    table = {**pipe.table(), "controller": {"kind": "mlp", "layers": 0}, "trainer": trainer}
    store, made = _run(parse(table), tmp_path)
    assert made.facts["steps"] == 4 and made.facts["validation"]["steps"].tolist() == [2, 4]
    assert made.facts["choices"]["arithmetic"] == "fp32" and list((store.logdir / "codes").glob("*.h5"))
    _link(tmp_path, "sampled")
    _, sampled = _run(parse({**table, "test": {"sample": True}}), tmp_path, "sampled")
    assert (sampled.facts["validation"]["returns"] != made.facts["validation"]["returns"]).all()
    for name, tensor in made.tensors.items():
        assert tensor.shape == sampled.tensors[name].shape
