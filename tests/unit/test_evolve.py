"""CMA-ES: solves a toy task, resumes to the bit, and judges the mean."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from wmrl.config import resolved
from wmrl.controllers.linear import Linear
from wmrl.spec import Actions
from wmrl.trainers import TRAINERS
from wmrl.trainers.evolve import Evolve
from wmrl.trainers.grounds import Grounds, Scores
from wmrl.trainers.strategy import Strategy

GOAL = np.linspace(-1, 1, 8)


class Toy:
    """Grounds whose returns are a noisy paraboloid; waves of `alive` rollouts, each counted."""

    def __init__(self, alive: int = 6) -> None:
        self.alive, self.tree, self.played, self.saves, self.calls = alive, None, [], 0, []
        self.fail_at: int | None = None

    def score(self, parameters, seeds, cells, scores, *, abort=0, after_wave=lambda: None, tick=lambda r, s: None):
        self.calls.append((len(parameters), tuple(int(s) for s in seeds), abort))
        for k in range(0, len(cells), self.alive):
            who, what = cells[k : k + self.alive].T
            if scores.played[who, what].all():
                continue
            noise = np.sin(seeds[what] % 1000 + 7 * who)  # a candidate may be lucky on one seed and not on another
            scores.returns[who, what] = -((parameters[who] - GOAL) ** 2).sum(1) + 0.1 * noise
            scores.steps[who, what] = 10
            self.played.append((parameters[who].tobytes(), tuple(what)))
            tick(len(who), len(who))
            after_wave()

    def save(self, tree: dict[str, Any]) -> None:
        self.tree = _copy(tree)
        self.saves += 1
        if self.saves == self.fail_at:
            raise KeyboardInterrupt

    def grounds(self, **more: Any) -> Grounds:
        given = {"awake": self.score, "asleep": lambda *how: self.score, "save": self.save, "seed": 3}
        return Grounds(world=None, batches=None, resume=lambda: _copy(self.tree), **{**given, **more})  # type: ignore


def _copy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _copy(v) for k, v in tree.items()}
    return tree.copy() if isinstance(tree, np.ndarray) else tree


def _controller() -> nn.Module:
    return Linear((7,), Actions(1, False)).requires_grad_(False)


def _train(toy: Toy, trainer: Evolve, **more: Any) -> tuple[np.ndarray, dict[str, Any]]:
    controller = _controller()
    facts = trainer.train(controller, toy.grounds(**more))
    return nn.utils.parameters_to_vector(controller.parameters()).numpy(), facts


SMALL = {"population": 8, "samples": 3, "validation_episodes": 4, "validate_every": 2}


def test_solves_a_toy_task() -> None:
    best, facts = _train(Toy(), Evolve(**{**SMALL, "generations": 60, "sigma": 0.3}))
    assert np.abs(best - GOAL).max() < 0.1
    assert facts["history"]["mean"][-1] > -0.2 > facts["history"]["mean"][0]
    assert facts["history"]["steps"].tolist() == [240 * (k + 1) for k in range(60)]


def test_validation_plays_the_mean_on_the_same_fixed_seeds() -> None:
    toy, logged = Toy(), []
    _, facts = _train(toy, Evolve(**SMALL, generations=5, abort=50), log=lambda step, m: logged.append((step, m)))
    looks = [(seeds, abort) for rows, seeds, abort in toy.calls if rows == 1]
    assert len(looks) == 3 and len(set(looks)) == 1 and looks[0][1] == 0
    train = [seeds for rows, seeds, abort in toy.calls if rows == 8]
    assert {abort for rows, _, abort in toy.calls if rows == 8} == {50}  # hopeless ones are given up in training only
    assert len(set(train)) == 5 and not {s for t in train for s in t} & set(looks[0][0])
    assert facts["validation"]["generation"].tolist() == [2, 4, 5]
    assert [m["eval/return_mean"] for _, m in logged if "eval/return_mean" in m] == facts["validation"]["returns"].mean(
        1
    ).tolist()


def test_best_is_the_mean_that_validated_best_and_last_is_kept() -> None:
    toy = Toy()
    worse = iter([0.0, 5.0, -50.0, -50.0])

    def score(parameters, seeds, cells, scores, **how):
        toy.score(parameters, seeds, cells, scores, **how)
        if len(parameters) == 1:
            scores.returns[:] = next(worse)

    best, facts = _train(toy, Evolve(**SMALL, generations=8, keep_every=4), awake=score)
    assert facts["best"] == {"return": 5.0, "generation": 4}
    assert facts["kept"]["generation"].tolist() == [4, 8]
    np.testing.assert_array_equal(best, facts["kept"]["means"][0].astype(np.float32))
    np.testing.assert_array_equal(facts["last"], facts["kept"]["means"][1])


@pytest.mark.parametrize("halving", [0, 1])
def test_stopped_after_any_save_it_continues_to_the_same_bits_and_repeats_no_wave(halving: int) -> None:
    trainer = Evolve(**SMALL, generations=3, halving=halving)
    whole = Toy()
    expected, facts = _train(whole, trainer)
    assert whole.saves > 10
    for k in range(1, whole.saves + 1):
        toy = Toy()
        toy.fail_at = k
        with pytest.raises(KeyboardInterrupt):
            _train(toy, trainer)
        toy.fail_at = None
        best, again = _train(toy, trainer)
        np.testing.assert_array_equal(best, expected)
        np.testing.assert_array_equal(again["last"], facts["last"])
        np.testing.assert_array_equal(again["history"]["mean"], facts["history"]["mean"])
        assert sorted(toy.played) == sorted(whole.played)


def test_more_generations_continue_a_finished_search() -> None:
    whole, parts = Toy(), Toy()
    expected, _ = _train(whole, Evolve(**SMALL, generations=6))
    _train(parts, Evolve(**SMALL, generations=4))
    best, _ = _train(parts, Evolve(**SMALL, generations=6))
    np.testing.assert_array_equal(best, expected)
    assert sorted(parts.played) == sorted(whole.played)


def test_full_and_diagonal_replays_agree_with_one_pass() -> None:
    for diagonal, decay in ((False, 1.0), (True, 1.0), (False, 0.9)):
        toy, trainer = Toy(), Evolve(**SMALL, generations=12, diagonal=diagonal, sigma=0.5, sigma_decay=decay)
        expected, facts = _train(toy, trainer)
        again, replayed = _train(toy, trainer)
        np.testing.assert_array_equal(replayed["last"], facts["last"])
        np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize("diagonal", [False, True])
def test_a_diagonal_search_learns_no_covariances(diagonal: bool) -> None:
    """On a narrow valley along x = y the candidates of a full search come to lie along it."""
    search = Strategy(np.ones(2), sigma=0.5, population=50, diagonal=diagonal, seed=1)
    for _ in range(8):
        x, y = search.ask().T
        search.tell(-100 * (x - y) ** 2 - (x + y) ** 2)
    assert (np.corrcoef(search.ask().T)[0, 1] > 0.8) != diagonal


def test_diagonal_and_full_searches_differ() -> None:
    full, diagonal = (
        _train(Toy(), Evolve(**SMALL, generations=6, diagonal=diagonal))[1]["last"] for diagonal in (False, True)
    )
    assert np.abs(full - diagonal).max() > 1e-6


def test_the_published_numbers_are_the_defaults() -> None:
    """Population and samples of the paper, the first step size of ctallec."""
    table = resolved(TRAINERS, {"kind": "cma-es"}, "trainer")
    assert (table["population"], table["samples"], table["sigma"]) == (64, 16, 0.1)


def test_a_replay_that_differs_is_told() -> None:
    toy, said = Toy(), []
    _train(toy, Evolve(**SMALL, generations=3))
    _train(toy, Evolve(**SMALL, generations=3), say=said.append)
    assert not any("away" in text for text in said) and any("replaying" in text for text in said)
    toy.tree["fitness"] = toy.tree["fitness"][:, ::-1].copy()
    _train(toy, Evolve(**SMALL, generations=3), say=said.append)
    assert any("away from the search" in text for text in said)


def test_the_target_ends_the_search_early() -> None:
    toy = Toy()
    _, facts = _train(toy, Evolve(**SMALL, generations=60, sigma=0.3, target_return=-1.0))
    assert facts["validation"]["returns"][-1].mean() >= -1.0 and len(facts["history"]["generation"]) < 60


def test_steps_end_the_search_and_more_of_them_continue_it() -> None:
    toy = Toy()
    each = 10 * SMALL["population"] * SMALL["samples"]
    _, facts = _train(toy, Evolve(**SMALL, generations=6, steps=2 * each - 1))
    assert facts["validation"]["generation"][-1] == len(facts["history"]["generation"]) == 2
    assert facts["history"]["steps"].tolist() == [each, 2 * each]
    best, _ = _train(toy, Evolve(**SMALL, generations=6, steps=9 * each))
    expected, _ = _train(Toy(), Evolve(**SMALL, generations=6))
    np.testing.assert_array_equal(best, expected)


def test_a_target_that_is_reached_is_told() -> None:
    told: list[str] = []
    _train(Toy(), Evolve(**SMALL, generations=60, sigma=0.3, target_return=-1.0), say=told.append)
    assert told[-1] == "the target of -1 is reached; a higher one searches on"


def test_spent_time_ends_it_with_a_validated_mean_and_it_can_go_on() -> None:
    toy, trainer = Toy(), Evolve(**SMALL, generations=6)
    expected, _ = _train(Toy(), trainer)
    _, facts = _train(toy, trainer, over=lambda: len(toy.played) >= 15)
    assert facts["validation"]["generation"][-1] == len(facts["history"]["generation"]) == 3
    best, _ = _train(toy, trainer)
    assert len(toy.tree["history"]) == 6 and best.shape == expected.shape


def test_halving_plays_less_and_ranks_those_who_dropped_out_below() -> None:
    toy = Toy()

    def score(parameters, seeds, cells, scores, **how):
        toy.score(parameters, seeds, cells, scores, **how)
        scores.returns[:, 2:] -= 1000  # who goes on meets harder episodes

    how = Evolve(population=8, samples=4, generations=1, halving=1, validation_episodes=1)
    _, facts = _train(toy, how, awake=score)
    assert facts["steps"] == 10 * (8 * 2 + 4 * 2)
    fitness = np.sort(toy.tree["fitness"][0])
    assert len(np.unique(fitness[:5])) == 1 and len(np.unique(fitness)) == 4 and fitness[0] < -500


def test_the_step_size_decays_on_top_of_its_own_adaptation() -> None:
    plain, decayed = (
        _train(Toy(), Evolve(**SMALL, generations=30, sigma=0.3, sigma_decay=decay))[1]["history"]["sigma"]
        for decay in (1.0, 0.9)
    )
    assert decayed[0] == pytest.approx(0.9 * plain[0])  # the first generations play alike
    assert decayed[-1] < 0.1 * plain[-1]


def test_numbers_that_make_no_sense_are_refused() -> None:
    for wrong in (
        {"population": 3},
        {"sigma": 0.0},
        {"sigma_decay": 1.1},
        {"sigma_decay": 0.0},
        {"samples": 0},
        {"halving": 16},
        {"validate_every": 0},
        {"real_every": -1},
        {"real_every": 0, "judge": "env", "where": "dream"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Evolve(**wrong)  # type: ignore[arg-type]


def test_nothing_is_written_and_the_global_generator_is_left_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    torch_before = torch.random.get_rng_state()
    _train(Toy(), Evolve(**SMALL, generations=2))
    assert not list(tmp_path.iterdir())
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), torch_before)


def test_a_table_of_scores_knows_what_is_played() -> None:
    scores = Scores.empty(2, 3)
    scores.returns[1, 2] = 0.0
    assert scores.played.sum() == 1 and scores.played[1, 2]
