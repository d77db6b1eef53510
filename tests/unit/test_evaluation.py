import json
from dataclasses import replace

import numpy as np
import pytest

from wmrl import evaluation, scoring
from wmrl.errors import ConfigError
from wmrl.evaluation import SHORT, Score, baseline_text, named, protocol, random_score
from wmrl.log import Log
from wmrl.seeding import number

GOLDEN = "a7e8014025860babd40ec3870e14823d6e2e195c076202fa266e5883dcf82a88"


def test_the_hash_of_carracing_100_never_changes():
    """A score is comparable with those of years ago only if this holds; a new rule needs a new name."""
    assert named("carracing-100").hash == GOLDEN
    assert protocol("CarRacing-v3") == named("carracing-100")


def test_the_test_seeds_never_change():
    seeds = named("carracing-100").test_seeds()
    assert seeds[:3] == [2222550461, 3771977481, 3730769907]


def test_test_seeds_are_distinct_and_disjoint_from_all_others():
    seeds = named("carracing-100").test_seeds()
    assert len(set(seeds)) == 100
    assert all(2**31 <= seed < 2**32 for seed in seeds)
    others = [
        number(seed, word, i) for seed in range(5) for word in ("episode", "train", "validation") for i in range(500)
    ]
    assert max(others) < 2**31
    assert not set(seeds) & set(others)


def test_envpools_seeds_are_as_disjoint():
    seeds = scoring.game_seeds(protocol("CarRacing-v3", backend="envpool"))
    assert all(-(2**31) <= seed < 0 for seed in seeds)
    assert len(set(seeds)) == 100


def test_fewer_episodes_are_the_first_ones_under_another_name_and_hash():
    few, all_ = protocol("CarRacing-v3", episodes=16), protocol("CarRacing-v3")
    assert few.id == "carracing-16"
    assert few.hash != all_.hash
    assert few.family == all_.family
    assert few.test_seeds() == all_.test_seeds()[:16]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"max_steps": 200}, "carracing-100-max200"),
        ({"backend": "envpool"}, "carracing-100-envpool"),
        ({"max_steps": 200, "backend": "envpool"}, "carracing-100-max200-envpool"),
        ({"max_steps": 200, "action_repeat": 4}, "carracing-100-max200-repeat4"),
    ],
)
def test_other_conditions_have_another_name_hash_and_family(change, name):
    other = protocol("CarRacing-v3", **change)
    assert other.id == name
    assert other.hash != protocol("CarRacing-v3").hash
    assert other.family != protocol("CarRacing-v3").family
    assert named(name) == other


@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        ("ALE/Breakout-v5", "ale-breakout-v5-10"),
        ("toys:Three-v0", "toys-three-v0-10"),
        ("CartPole-v1", "cartpole-v1-10"),
    ],
)
def test_other_environments_have_derived_protocols(env_id, name):
    assert protocol(env_id, episodes=10).id == name


def test_a_game_that_envpool_alone_has_is_scored_there_and_its_frame_skip_is_part_of_the_protocol():
    doom = named("takecover-100")
    assert (doom.env_id, doom.backend, doom.frame_skip, doom.max_steps) == ("TakeCover-v1", "envpool", 4, None)
    assert doom == protocol("TakeCover-v1") == protocol("TakeCover-v1", frame_skip=4, backend="envpool")
    slow = protocol("TakeCover-v1", frame_skip=1)
    assert slow.id == "takecover-100-skip1" and named(slow.id) == slow and slow.test_seeds() == doom.test_seeds()
    assert slow.hash != doom.hash and slow.family != doom.family
    with pytest.raises(ConfigError, match="env.frame_skip: CarRacing-v3"):
        protocol("CarRacing-v3", frame_skip=2)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"sticky": 0.0}, "minatar-asterix-100-sticky0"),
        ({"ramping": False}, "minatar-asterix-100-flat"),
        ({"action_repeat": 2}, "minatar-asterix-100-repeat2"),
    ],
)
def test_rules_that_are_not_the_games_own_are_part_of_the_protocol(change, name):
    usual, other = named("minatar-asterix-100"), protocol("MinAtar/Asterix-v1", **change)
    assert (usual.env_id, usual.backend, usual.max_steps) == ("MinAtar/Asterix-v1", "minatar", None)
    assert usual == protocol("MinAtar/Asterix-v1", sticky=0.1, ramping=True), "as published"
    assert other.id == name and other.hash != usual.hash and other.family != usual.family
    with pytest.raises(ConfigError, match=r"env\.sticky: only MinAtar's games"):
        protocol("CarRacing-v3", sticky=0.0)


def test_records_of_other_games_are_as_they_were():
    """Their hashes are stored with scores."""
    assert protocol("CarRacing-v3").hash.startswith("a7e801402586")


def test_survival_is_told_in_tics_where_a_game_counts_in_them():
    lengths = np.array([10, 20])
    score = Score(protocol("TakeCover-v1", episodes=2), lengths * 1.0, lengths, np.ones(2, bool))
    assert (score.summary().mean, score.tics().mean) == (15.0, 60.0)
    assert Score(protocol("CarRacing-v3", episodes=2), lengths * 1.0, lengths, np.ones(2, bool)).tics() is None


def test_the_package_knows_what_the_random_policy_scores():
    for name in sorted(SHORT.values()):
        score = random_score(named(f"{name}-100"))
        assert len(score.returns) == 100, name
    assert np.array_equal(score.returns, score.lengths) and score.terminated.all()


def test_environments_do_not_share_seeds_by_accident():
    assert protocol("A-v0").test_seeds() != protocol("B-v0").test_seeds()


@pytest.mark.parametrize("field", ["env_id", "backend", "episodes", "max_steps", "seeds", "policy"])
def test_every_field_is_in_the_hash(field):
    base = protocol("CarRacing-v3")
    assert replace(base, **{field: 7}).hash != base.hash


@pytest.mark.parametrize("bad", [{"episodes": 0}, {"max_steps": 0}])
def test_nothing_to_play_is_an_error(bad):
    with pytest.raises(ConfigError):
        protocol("CarRacing-v3", **bad)


@pytest.mark.parametrize("name", ["doom-100", "carracing", "carracing-100-fast"])
def test_unknown_names(name):
    with pytest.raises(ConfigError, match="carracing-100"):
        named(name)


def measured(of, n):
    return Score(of, np.arange(n) - 30.0, np.full(n, 1000), np.zeros(n, bool))


@pytest.fixture
def baselines(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "_baselines", lambda: tmp_path)
    return tmp_path


def test_the_random_row_serves_fewer_episodes_of_the_same_game_only(baselines):
    full = protocol("CarRacing-v3", episodes=20)
    (baselines / "carracing-20.json").write_text(baseline_text(measured(full, 20), "the command"))
    few = random_score(protocol("CarRacing-v3", episodes=5))
    np.testing.assert_array_equal(few.returns, np.arange(5) - 30.0)
    assert few.protocol.id == "carracing-5"
    assert random_score(protocol("CarRacing-v3", episodes=21)) is None
    assert random_score(protocol("CarRacing-v3", episodes=5, max_steps=100)) is None
    assert random_score(protocol("CarRacing-v3", episodes=5, backend="envpool")) is None


def test_the_stored_baseline_names_its_command(baselines):
    stored = json.loads(baseline_text(measured(protocol("CarRacing-v3", episodes=3), 3), "python -m wmrl.evaluation"))
    assert stored["command"] == "python -m wmrl.evaluation"
    assert stored["packages"]["gymnasium"]


def test_without_a_measurement_there_is_no_random_row(baselines):
    assert random_score(protocol("CarRacing-v3")) is None


def test_a_package_without_baselines_has_no_random_row(baselines, monkeypatch):
    monkeypatch.setattr(evaluation, "_baselines", lambda: baselines / "missing")
    assert random_score(protocol("CarRacing-v3")) is None


def test_a_test_episode_is_played_to_its_end_however_badly_it_goes(tmp_path, monkeypatch, toy):
    class Losing(toy):
        def step(self, action, ids):
            outcome = super().step(action, ids)
            over = self.t[ids] >= 300
            return replace(outcome, reward=-np.ones(len(ids)), terminated=over, truncated=over & False)

    monkeypatch.setattr(scoring, "make", Losing)
    score = scoring.measure_random(protocol("Toy-v0", episodes=3), threads=1, log=Log.quiet("m", tmp_path))
    assert score.lengths.tolist() == [300] * 3
    assert score.returns.tolist() == [-300.0] * 3


def test_drawn_actions_are_another_protocol_and_best_ones_are_the_one_of_old() -> None:
    best, drawn = protocol("CarRacing-v3"), protocol("CarRacing-v3", sample=True)
    assert (best.id, drawn.id, drawn.policy) == ("carracing-100", "carracing-100-sampled", "sampled")
    assert named(drawn.id) == drawn and drawn.hash != best.hash
    assert best.hash == GOLDEN
    assert random_score(drawn).returns.tolist() == random_score(best).returns.tolist()
