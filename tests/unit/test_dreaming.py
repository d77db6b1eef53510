"""The offline loop of trainers that learn in dreams: what it keeps, how it goes on, what it refuses."""

import copy
from typing import Any

import numpy as np
import pytest
import tabular
import torch
from torch import nn

from wmrl import config
from wmrl.controllers.mlp import MLP
from wmrl.errors import ConfigError, ContractError, UserError
from wmrl.spec import Batch
from wmrl.trainers import TRAINERS
from wmrl.trainers.actor_critic import ActorCritic
from wmrl.trainers.grounds import Grounds
from wmrl.trainers.learner import starts_of

SMALL = {"horizon": 3, "critic_layers": 1, "critic_units": 8, "batch": 4, "length": 2, "slow_every": 2}
LOOP = {"steps": 60, "validate_every": 20, "validation_episodes": 3, "actor_learning_rate": 0.01}


class Eyes(tabular.Table):
    """The chain with eyes: a frame tells the state."""

    def start(self, latent, *, rng):
        return latent

    def observe(self, state, action, latent, *, rng):
        return latent


class World(tabular.WorldModel):
    """Codes are what the dynamics model sees."""

    def draw(self, code, *, sample, rng=None):
        return code


class Toy:
    """Grounds on the chain; awake, episodes return how likely the first state is left, and something of the seed's."""

    def __init__(self) -> None:
        table = tabular.chain()
        self.world = World(nn.Identity(), Eyes(table.moves.data, table.reward, table.cont)).requires_grad_(False)
        self.tree, self.saves, self.fail_at, self.played = None, 0, None, []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.began: list[int] = []
        self.left = 10**9
        self.scored = lambda p: float(p.sum())

    def awake(self, parameters, seeds, cells, scores, *, abort=0, after_wave=lambda: None, tick=lambda r, s: None):
        for who, what in cells:
            if not scores.played[who, what]:
                scores.returns[who, what] = self.scored(parameters[who]) + 0.1 * np.sin(seeds[what] % 1000)
                scores.steps[who, what] = 5
                self.played.append(int(seeds[what]))
                after_wave()

    def batches(self, batch, length, start):
        self.began.append(start)
        k = start
        while True:
            rng = torch.Generator().manual_seed(k)
            code = torch.eye(3)[torch.randint(3, (batch, length + 1), generator=rng)]
            ends, ones = (code[:, 1:, 2] > 0).float(), torch.ones(batch, length)
            yield Batch(None, torch.eye(2)[torch.zeros(batch, length).long()], ones, ends, ones, code)
            k += 1

    def save(self, tree: dict[str, Any]) -> None:
        self.tree, self.saves = _stored(tree), self.saves + 1
        if self.saves == self.fail_at:
            raise KeyboardInterrupt

    def over(self) -> bool:
        self.left -= 1
        return self.left < 0

    def grounds(self, **more: Any) -> Grounds:
        given = {"world": self.world, "batches": self.batches, "awake": self.awake, "save": self.save, "seed": 3}
        given |= {"resume": lambda: copy.deepcopy(self.tree), "view": (3,), "over": self.over, "asleep": None}
        given |= {"log": lambda step, metrics: self.rows.append((step, dict(metrics)))}
        return Grounds(**{**given, **more})  # type: ignore[arg-type]


def _stored(tree: Any) -> Any:
    """As a file gives it back: arrays."""
    if isinstance(tree, dict):
        return {k: _stored(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_stored(v) for v in tree]
    return tree.detach().cpu().numpy().copy() if isinstance(tree, torch.Tensor) else copy.deepcopy(tree)


def _train(toy: Toy, how: dict[str, Any] | None = None, **more: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    torch.manual_seed(5)
    controller = MLP((3,), toy.world.dynamics.actions, layers=1, units=8).requires_grad_(False).eval()
    facts = ActorCritic(**{**SMALL, **LOOP, **(how or {})}).train(controller, toy.grounds(**more))
    assert not any(p.requires_grad for p in controller.parameters())
    return nn.utils.parameters_to_vector(controller.parameters()), facts


def test_killed_after_any_save_it_ends_with_the_same_bits(monkeypatch):
    monkeypatch.setattr("wmrl.trainers.dreaming.SAVE_EVERY", 0.0)
    whole = Toy()
    weights, facts = _train(whole)
    for stop in (1, 26, 28, whole.saves - 1):
        toy = Toy()
        toy.fail_at = stop
        with pytest.raises(KeyboardInterrupt):
            _train(toy)
        again, more = _train(toy)
        assert torch.equal(weights, again) and sorted(toy.played) == sorted(whole.played)
        np.testing.assert_array_equal(more["validation"]["returns"], facts["validation"]["returns"])


def test_a_row_of_metrics_after_a_kill_is_of_all_its_updates(monkeypatch):
    def told(toy):
        return [(step, {k: v for k, v in row.items() if not k.startswith("time/")}) for step, row in toy.rows]

    monkeypatch.setattr("wmrl.trainers.dreaming.SAVE_EVERY", 0.0)
    whole, toy = Toy(), Toy()
    _train(whole)
    toy.fail_at = 12
    with pytest.raises(KeyboardInterrupt):
        _train(toy)
    assert toy.tree["step"] == 11 and not toy.rows
    _train(toy)
    assert told(toy) == told(whole)


def test_a_killed_validation_of_spent_time_is_not_taken_for_a_later_one():
    whole, toy = Toy(), Toy()
    toy.left, toy.fail_at = 10, 4  # over after 10 updates, killed in the validation of what there is
    with pytest.raises(KeyboardInterrupt):
        _train(toy)
    toy.left = 10**9
    assert torch.equal(_train(whole)[0], _train(toy)[0])
    assert len(toy.played) == len(whole.played) + 2


def test_more_steps_continue_it_and_all_batches_are_new():
    toy, whole = Toy(), Toy()
    _train(toy, {"steps": 40})
    weights, facts = _train(toy)
    assert torch.equal(weights, _train(whole)[0]) and facts["steps"] == 60 and toy.began == [0, 40]


def test_the_weights_that_validated_best_are_kept_and_learning_goes_on_from_the_last():
    toy, scores = Toy(), iter([3.0, 9.0, 1.0, 2.0])
    toy.scored = lambda p: next(score)
    score = iter([x for s in scores for x in [s] * 3])
    seen = []
    toy.save_real = toy.save
    best, facts = _train(toy, {"steps": 80}, save=lambda tree: (seen.append(tree["best"].clone()), toy.save_real(tree)))
    assert facts["best"]["step"] == 40 and facts["best"]["return"] == pytest.approx(9, abs=0.2)
    assert facts["validation"]["steps"].tolist() == [20, 40, 60, 80]
    last = torch.cat([torch.as_tensor(p).flatten() for p in toy.tree["learner"]["controller"].values()])
    assert torch.equal(best, seen[-1]) and not torch.equal(best, last)


def test_a_target_ends_it_and_without_validations_the_last_weights_are_kept():
    toy = Toy()
    toy.scored = lambda p: 5.0
    assert _train(toy, {"target_return": 4.0})[1]["steps"] == 20
    toy = Toy()
    weights, facts = _train(toy, {"validation_episodes": 0})
    last = torch.cat([torch.as_tensor(p).flatten() for p in toy.tree["learner"]["controller"].values()])
    assert torch.equal(weights, last) and facts["steps"] == 60 and not toy.played


def test_spent_time_ends_it_with_a_validation():
    toy = Toy()
    toy.left = 7
    _, facts = _train(toy)
    assert facts["steps"] == 7 and facts["validation"]["steps"].tolist() == [7]


def test_a_controller_trained_before_is_validated_first():
    assert _train(Toy(), trained=True)[1]["validation"]["steps"].tolist() == [0, 20, 40, 60]


def test_measuring_the_arithmetic_changes_nothing():
    def measure(work):
        for _ in range(3):
            work()
        return "fp32"

    assert torch.equal(_train(Toy(), arithmetic=measure)[0], _train(Toy())[0])


def test_metrics_have_their_names():
    toy = Toy()
    _train(toy)
    rows = {step: row for step, row in toy.rows if "losses/actor" in row}
    assert list(rows) == [20, 25, 40, 50, 60] and "time/updates_per_second" in rows[25]
    assert {"losses/critic", "losses/entropy", "dream/reward", "dream/value"} <= rows[25].keys()
    assert [step for step, row in toy.rows if "eval/return_mean" in row] == [20, 40, 60]


def test_numbers_that_are_not_finite_are_named_and_never_saved():
    toy = Toy()
    toy.world.dynamics.reward = torch.full((3, 2), torch.nan)
    with pytest.raises(UserError, match=r"losses/actor is nan at update 1; begin anew with --noreload"):
        _train(toy)
    assert toy.tree["step"] == 0


def test_the_state_of_another_network_is_refused():
    toy = Toy()
    _train(toy)
    with pytest.raises(ContractError, match="the state is of other networks"):
        _train(toy, {"critic_units": 9})


def test_dreams_begin_at_real_states_that_are_no_ends():
    mask, ends, first = torch.ones(4, 4), torch.zeros(4, 4), torch.zeros(4, 5)
    mask[0, 2:], ends[0, 1] = 0, 1  # terminates at row 2; padding behind it
    mask[1, 1], ends[1, 0], first[1, 2] = 0, 1, 1  # terminates at row 1; another episode from row 2 on
    mask[2, 1], first[2, 2] = 0, 1  # a time limit at row 1
    mask[3, 0], first[3, 1] = 0, 1  # row 0 is the last of its episode, which may have terminated
    batch, states = Batch(None, torch.zeros(4, 4, 1), ends, ends, mask, first=first), torch.arange(20.0).view(4, 5, 1)
    starts, weight = starts_of(batch, (states,))
    assert starts[0].flatten().tolist() == list(range(20))
    wanted = [[1, 1, 0, 0, 0], [1, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]
    assert weight.view(4, 5).tolist() == wanted
    batch.first = None
    assert starts_of(batch, (states,))[1].view(4, 5)[0].tolist() == wanted[0]


@pytest.mark.parametrize("kind", ["actor-critic", "ppo", "reward", "td3", "value"])
def test_numbers_that_make_no_sense_are_refused_by_every_trainer(kind):
    counts = dict.fromkeys(("steps", "batch", "length", "validate_every", "horizon"), 0)
    for key, wrong in {**counts, "validation_episodes": -1, "discount": 1.5}.items():
        with pytest.raises(ConfigError, match=f"trainer: {key} must be .*, got {wrong}"):
            config.build(TRAINERS, {"kind": kind, key: wrong}, "trainer")
