"""CMA-ES in dreams: both worlds are measured, one judges, and it goes on to the bit wherever it was killed."""

from typing import Any

import numpy as np
import pytest
from torch import nn

from wmrl.controllers.linear import Linear
from wmrl.spec import Actions
from wmrl.trainers.evolve import Evolve
from wmrl.trainers.grounds import Grounds

SMALL = {"population": 8, "samples": 3, "validation_episodes": 4, "validate_every": 2, "where": "dream"}


class Worlds:
    """A dream that pays for every step away from zero, and a world that pays for the first ones only."""

    def __init__(self, alive: int = 3) -> None:
        self.alive, self.tree, self.played, self.saves, self.asked = alive, None, [], 0, []
        self.fail_at, self.logged, self.said = None, [], []

    def world(self, name: str, worth: Any):
        def score(parameters, seeds, cells, scores, *, abort=0, after_wave=lambda: None, tick=lambda r, s: None):
            for k in range(0, len(cells), self.alive):
                who, what = cells[k : k + self.alive].T
                if scores.played[who, what].all():
                    continue
                scores.returns[who, what] = worth(parameters[who].mean(1)) + 1e-3 * np.sin(seeds[what] % 100)
                scores.steps[who, what] = 10
                self.played.append((name, parameters[who].tobytes(), tuple(what)))
                after_wave()

        return score

    def save(self, tree: dict[str, Any]) -> None:
        self.tree = _copy(tree)
        self.saves += 1
        if self.saves == self.fail_at:
            raise KeyboardInterrupt

    def asleep(self, *how: Any):
        self.asked.append(how)
        return self.world("dream", lambda x: x)

    def train(self, **how: Any) -> tuple[np.ndarray, dict[str, Any]]:
        controller = Linear((7,), Actions(1, False)).requires_grad_(False)
        grounds = Grounds(
            world=None,  # type: ignore[arg-type]
            batches=None,  # type: ignore[arg-type]
            awake=self.world("env", lambda x: np.minimum(x, 1 - x)),  # best at a half: beyond it the dream lies
            asleep=self.asleep,
            seed=3,
            save=self.save,
            resume=lambda: _copy(self.tree),
            log=lambda step, metrics: self.logged.append((step, metrics)),
            say=self.said.append,
            over=how.pop("over", lambda: False),
        )
        facts = Evolve(**{**SMALL, "sigma": 0.5, "generations": 12, **how}).train(controller, grounds)
        return nn.utils.parameters_to_vector(controller.parameters()).numpy(), facts

    def curve(self, name: str) -> list[tuple[int, float]]:
        return [(step, metrics[name]) for step, metrics in self.logged if name in metrics]


def _copy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _copy(v) for k, v in tree.items()}
    return tree.copy() if isinstance(tree, np.ndarray) else tree


def test_both_curves_are_logged_and_kept_and_told() -> None:
    worlds = Worlds()
    _, facts = worlds.train(real_every=4, temperature=1.2, ends="sample", dream_steps=50, generations=6)
    assert worlds.asked == [(1.2, "sample", 50)]
    for kept, name, generations in (("validation", "dream/return", [2, 4, 6]), ("awake", "eval/return_mean", [4, 6])):
        curve = facts[kept]
        assert curve["generation"].tolist() == generations
        assert worlds.curve(name) == list(zip(curve["steps"], curve["returns"].mean(1), strict=True))
    assert all(
        f"{name}_{what}" in str(worlds.logged) for name in ("dream/return", "eval/return") for what in ("std", "iqm")
    )
    (line,) = [text for text in worlds.said if text.startswith("generation 4")]
    dreamt, real = facts["validation"]["returns"][1].mean(), facts["awake"]["returns"][0].mean()
    assert (
        f"the mean dreams {dreamt:.2f} +- 0.00, and scores {real:.2f} +- 0.00 awake, on 4 validation episodes" in line
    )
    assert "dreamt steps" in line and "asleep" in line
    assert not any("awake" in text for text in worlds.said if text.startswith("generation 2"))


def test_by_default_both_worlds_are_measured_at_each_validation() -> None:
    _, facts = Worlds().train(generations=6)
    assert facts["awake"]["generation"].tolist() == facts["validation"]["generation"].tolist() == [2, 4, 6]


def test_a_real_validation_brings_one_of_the_dream_with_it() -> None:
    _, facts = Worlds().train(generations=5, real_every=3)
    assert facts["awake"]["generation"].tolist() == [3, 5]
    assert facts["validation"]["generation"].tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("how", [{}, {"target_return": 0.5}, {"over": lambda: True}], ids=["all", "target", "time"])
def test_with_real_every_zero_no_environment_is_stepped(how: dict[str, Any]) -> None:
    worlds = Worlds()
    _, facts = worlds.train(real_every=0, **how)
    assert {name for name, *_ in worlds.played} == {"dream"} and not len(facts["awake"]["returns"])
    assert "awake" not in facts["best"] and not worlds.curve("eval/return_mean")


@pytest.mark.parametrize("judge", ["dream", "env"])
def test_where_a_dream_is_exploited_the_curves_part_and_the_judge_decides_what_is_kept(judge: str) -> None:
    best, facts = Worlds().train(judge=judge, validate_every=1)
    dreamt, real = (facts[name]["returns"].mean(1) for name in ("validation", "awake"))
    assert dreamt[-1] == dreamt.max() > 1 > 0.4 > 0 > real[-1]
    assert real.max() > 0.3 and 0 < real.argmax() < 6
    kept = {"dream": dreamt, "env": real}[judge]
    assert facts["best"] == {
        "return": kept.max(),
        "generation": kept.argmax() + 1,
        "dreamt": dreamt[kept.argmax()],
        "awake": real[kept.argmax()],
    }
    assert best.mean() == pytest.approx(dreamt[kept.argmax()], abs=0.01)


@pytest.mark.parametrize("how", [{"target_return": 0.5}, {"over": lambda: True}], ids=["target", "time"])
def test_however_a_search_ends_the_last_mean_is_scored_in_both_worlds(how: dict[str, Any]) -> None:
    _, facts = Worlds().train(real_every=100, **how)
    assert facts["awake"]["generation"].tolist() == [len(facts["history"]["steps"])]
    assert facts["validation"]["generation"][-1] == facts["awake"]["generation"][-1]


def test_the_judge_reaches_the_target() -> None:
    lengths = [
        len(Worlds().train(judge=judge, validate_every=1, target_return=0.49)[1]["history"]["steps"])
        for judge in ("dream", "env")
    ]
    assert lengths[0] < lengths[1] == 12  # awake nothing comes that near to a half


@pytest.mark.parametrize("judge", ["dream", "env"])
def test_killed_after_any_save_in_either_world_it_ends_with_the_same_bits_and_repeats_no_wave(judge: str) -> None:
    how = {"judge": judge, "generations": 4, "samples": 1}
    whole = Worlds()
    expected, facts = whole.train(**how)
    for k in range(1, whole.saves + 1):
        worlds = Worlds()
        worlds.fail_at = k
        with pytest.raises(KeyboardInterrupt):
            worlds.train(**how)
        worlds.fail_at = None
        best, again = worlds.train(**how)
        np.testing.assert_array_equal(best, expected)
        assert again["best"] == facts["best"] and sorted(worlds.played) == sorted(whole.played)
        for name in ("validation", "awake"):
            for key in ("generation", "steps", "returns"):
                np.testing.assert_array_equal(again[name][key], facts[name][key])


def test_a_validation_that_the_time_cut_off_is_not_mixed_with_a_later_one() -> None:
    worlds, whole = Worlds(), Worlds()
    expected, facts = whole.train(generations=4)

    def over() -> bool:
        done = len(worlds.tree["history"]) if worlds.tree else 0
        return done == 3

    real, half = worlds.save, []

    def save(tree: dict[str, Any]) -> None:
        real(tree)
        if len(tree["history"]) == 3 and tree["looking"] is not None:
            half.append(np.isnan(tree["looking"]["returns"]).sum())
            raise KeyboardInterrupt

    worlds.save = save  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        worlds.train(generations=4, over=over)
    assert half == [1]
    worlds.save = real  # type: ignore[method-assign]
    best, again = worlds.train(generations=4)
    np.testing.assert_array_equal(best, expected)
    np.testing.assert_array_equal(again["validation"]["returns"], facts["validation"]["returns"])


def test_an_environment_that_does_not_work_is_told_before_anything_is_dreamt() -> None:
    worlds = Worlds()

    def broken(name: str, worth: Any):
        def score(*args: Any, **how: Any) -> None:
            raise OSError("the engine died")

        return score if name == "env" else Worlds.world(worlds, name, worth)

    worlds.world = broken  # type: ignore[method-assign]
    with pytest.raises(OSError, match="engine"):
        worlds.train()
    assert not worlds.played


def test_what_is_said_of_dreams_has_no_part_awake_and_that_is_told() -> None:
    worlds = Worlds()
    worlds.train(where="env", temperature=1.2, dream_steps=50, real_every=3, judge="env", generations=1)
    assert any("temperature, dream_steps, real_every, judge is of dreams" in line for line in worlds.said)
    dreaming, plain = Worlds(), Worlds()
    dreaming.train(temperature=1.2, generations=1)
    plain.train(where="env", generations=1)
    assert not any("of dreams" in line for line in dreaming.said + plain.said)
