"""Natural evolution strategies: solve a toy task, move as written, and share the search with CMA-ES."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from wmrl.controllers.linear import Linear
from wmrl.spec import Actions
from wmrl.trainers.grounds import Grounds
from wmrl.trainers.nes import NES, Natural, ranks

GOAL = np.linspace(-1, 1, 8)
SMALL: dict[str, Any] = {"population": 8, "samples": 3, "validation_episodes": 4, "validate_every": 2}


class Toy:
    """Grounds whose returns are a noisy paraboloid, the same awake and asleep; waves of six rollouts."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] | None = None
        self.played: list[tuple] = []
        self.saves, self.fail_at, self.world = 0, 0, ""

    def score(self, world: str):
        def play(parameters, seeds, cells, scores, *, abort=0, after_wave=lambda: None, tick=lambda r, s: None):
            for who, what in (cells[k : k + 6].T for k in range(0, len(cells), 6)):
                if scores.played[who, what].all():
                    continue
                noise = 0.1 * np.sin(seeds[what] % 1000 + 7 * who)
                scores.returns[who, what] = noise - ((parameters[who] - GOAL) ** 2).sum(1)
                scores.steps[who, what] = 10
                self.played.append((world, parameters[who].tobytes(), tuple(what)))
                after_wave()

        return play

    def save(self, tree: dict[str, Any]) -> None:
        self.tree, self.saves = _copy(tree), self.saves + 1
        if self.saves == self.fail_at:
            raise KeyboardInterrupt

    def train(self, **how: Any) -> tuple[np.ndarray, dict[str, Any]]:
        controller = Linear((7,), Actions(1, False)).requires_grad_(False)
        grounds = Grounds(
            world=None,  # type: ignore[arg-type]
            batches=None,  # type: ignore[arg-type]
            awake=self.score("env"),
            asleep=lambda *_: self.score("dream"),
            seed=3,
            save=self.save,
            resume=lambda: _copy(self.tree),
        )
        facts = NES(**{**SMALL, **how}).train(controller, grounds)
        return nn.utils.parameters_to_vector(controller.parameters()).numpy(), facts


def _copy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _copy(v) for k, v in tree.items()}
    return tree.copy() if isinstance(tree, np.ndarray) else tree


@pytest.mark.parametrize("antithetic", [False, True])
def test_it_solves_a_toy_task(antithetic: bool) -> None:
    best, facts = Toy().train(generations=150, population=20, antithetic=antithetic)
    assert np.abs(best - GOAL).max() < 0.2
    assert (facts["history"]["sigma"] == 0.05).all()


def test_ranks_are_centred_and_equal_fitnesses_share_theirs() -> None:
    np.testing.assert_allclose(ranks(np.array([30.0, -1.0, 2.0])), [0.5, -0.5, 0.0])
    np.testing.assert_allclose(ranks(np.array([5.0, 1.0, 5.0, 9.0, 5.0])), [0.0, -0.5, 0.0, 0.5, 0.0])
    assert not ranks(np.ones(6)).any()


def test_a_step_is_the_average_of_noise_times_rank() -> None:
    """The published update: (1 / sigma) mean(epsilon * rank), with epsilon the candidate's distance from the mean."""
    x0, fitness = np.linspace(1, 2, 5), np.array([3.0, -1.0, 8.0, 0.0])
    for rate, decay in ((1.0, 0.0), (0.3, 0.1)):
        search = Natural(x0, NES(population=4, sigma=0.2, learning_rate=rate, weight_decay=decay), seed=1)
        epsilon = search.ask() - x0
        search.tell(fitness)
        direction = (epsilon * np.array([1 / 6, -1 / 2, 1 / 2, -1 / 6])[:, None]).mean(0) / 0.2
        np.testing.assert_allclose(search.mean, x0 + rate * (direction - decay * x0))


def test_antithetic_candidates_mirror_each_other() -> None:
    search = Natural(np.ones(3), NES(population=6, antithetic=True), seed=1)
    away = search.ask() - 1
    np.testing.assert_allclose(away[:3], -away[3:])
    assert np.abs(away[:3]).min() > 0 and len(np.unique(away)) == 18
    plain = Natural(np.ones(3), NES(population=6), seed=1).ask() - 1
    assert np.abs(plain[:3] + plain[3:]).min() > 1e-3


def test_generations_draw_other_noise() -> None:
    search = Natural(np.zeros(3), NES(population=4), seed=1)
    first = search.ask()
    search.tell(np.zeros(4))  # equal fitnesses move nothing
    assert not search.mean.any() and np.abs(search.ask() - first).min() > 1e-6


@pytest.mark.parametrize("where", ["env", "dream"])
def test_stopped_after_any_save_it_continues_to_the_same_bits_and_repeats_no_wave(where: str) -> None:
    whole, how = Toy(), {"where": where, "generations": 3, "antithetic": True, "weight_decay": 0.01}
    expected, facts = whole.train(**how)
    assert whole.saves > 10 and {world for world, *_ in whole.played} == {"env", where}
    for k in range(1, whole.saves + 1):
        toy = Toy()
        toy.fail_at = k
        with pytest.raises(KeyboardInterrupt):
            toy.train(**how)
        toy.fail_at = 0
        best, again = toy.train(**how)
        np.testing.assert_array_equal(best, expected)
        np.testing.assert_array_equal(again["last"], facts["last"])
        assert sorted(toy.played) == sorted(whole.played)


def test_the_published_numbers_are_the_defaults() -> None:
    how = NES()
    assert (how.population, how.sigma, how.learning_rate) == (100, 0.05, 1.0)
    assert (how.antithetic, how.weight_decay) == (False, 0.0)


def test_numbers_that_make_no_sense_are_refused() -> None:
    for name, wrong in {
        "learning_rate": {"learning_rate": 0.0},
        "weight_decay": {"learning_rate": 2.0, "weight_decay": 0.5},
        "population": {"population": 9, "antithetic": True},
        "sigma": {"sigma": 0.0},
        "halving": {"halving": 16},
    }.items():
        with pytest.raises(ValueError, match=name):
            NES(**wrong)  # type: ignore[arg-type]


def test_the_global_generators_are_left_alone() -> None:
    before, torch_before = np.random.get_state()[1].copy(), torch.random.get_rng_state()  # noqa: NPY002
    Toy().train(generations=2)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), torch_before)
