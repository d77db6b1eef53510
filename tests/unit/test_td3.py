"""TD3 on dreams: targets, the pool of critics, delays and slow copies, and that it learns."""

import copy
from typing import Any

import line_world
import pytest
import torch
from torch import nn

from wmrl.config import build
from wmrl.controllers.mlp import MLP
from wmrl.errors import ConfigError, ContractError
from wmrl.nn.policies import Normal
from wmrl.precision import autocast
from wmrl.seeding import generator
from wmrl.spec import Actions
from wmrl.trainers import TRAINERS
from wmrl.trainers.imagine import Imagined
from wmrl.trainers.td3 import TD3, Explorer, Learner, Rows, n_steps

SMALL = {"critic_layers": 1, "critic_units": 16, "horizon": 6, "minibatches": 4, "transitions": 32}


def learner(**how: Any) -> Learner:
    torch.manual_seed(0)
    controller = MLP((1,), line_world.Line.actions, layers=1, units=16).requires_grad_(False)
    return TD3(**{**SMALL, **how}).learner(controller, (1,), torch.device("cpu"))


def update(it: Learner, k: int = 0, world: Any = None, count: int = 64) -> dict[str, Any]:
    x = line_world.starts(count)
    return it.update(world or line_world.world(), x, torch.ones(count), rng=generator("test", k))


def numbers(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
def test_targets_of_n_steps_are_nested_sums_cut_at_the_horizon(n) -> None:
    horizon, rows, gamma = 5, 3, 0.9
    rng = torch.Generator().manual_seed(1)
    views, action = torch.randn(horizon + 1, rows, 1, generator=rng), torch.randn(horizon, rows, 1, generator=rng)
    dream = Imagined(views, action, *(torch.rand(horizon, rows, generator=rng) for _ in range(4)))
    dream.cont[2] = 0  # state 3 is the end: its reward counts, nothing behind it does
    weight = torch.tensor([1.0, 0.0, 1.0])
    found = learner(n_steps=n, discount=gamma).rows(dream, weight)
    for h in range(horizon):
        for i in range(rows):
            total, left, last = 0.0, 1.0, min(h + n, horizon)
            for k in range(h, last):
                total, left = total + left * dream.reward[k, i], left * gamma * dream.cont[k, i]
            row, alive = h * rows + i, weight[i] * dream.cont[:h, i].prod()
            torch.testing.assert_close(found.total[row], total)
            torch.testing.assert_close(found.left[row], left)
            torch.testing.assert_close(found.weight[row], alive)
            assert torch.equal(found.view[row], views[h, i]) and torch.equal(found.after[row], views[last, i])
            assert torch.equal(found.action[row], action[h, i].clamp(-1, 1))


def test_n_steps_leaves_what_it_is_given_alone() -> None:
    reward, cont = torch.ones(4, 2), torch.full((4, 2), 0.5)
    n_steps(reward, cont, 3)
    assert bool((reward == 1).all()) and bool((cont == 0.5).all())


class Says(nn.Module):
    """A critic that answers with a number, or with the action that it is shown."""

    def __init__(self, number: float | None) -> None:
        super().__init__()
        self.number = number

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        return seen[:, -1] if self.number is None else torch.full((len(seen),), self.number)


def test_the_smaller_of_two_critics_drawn_from_the_pool_is_the_target() -> None:
    it, zeros = learner(critics=3), torch.zeros(1)
    it.slow_pool = nn.ModuleList([Says(1.0), Says(2.0), Says(3.0)])
    row = Rows(zeros[None], zeros[None], zeros + 10, zeros + 0.5, zeros[None], zeros + 1)
    seen = {float(it.targets(row, generator("drawn", k))) for k in range(40)}
    assert seen == {10.5, 11.0}  # never 11.5: of two different ones, one is at most 2


def test_the_targets_action_has_noise_that_is_clipped_and_stays_legal() -> None:
    it, many = learner(smoothing=0.5, smoothing_clip=0.3), torch.zeros(4000)
    it.slow_pool = nn.ModuleList([Says(None), Says(None)])
    rows = Rows(many[:, None], many[:, None], many, many + 1, many[:, None], many + 1)
    shown = it.targets(rows, generator("noise"))
    center = float(it.slow_controller.policy(many[:1, None], ())[0].mode())
    noise = shown - center
    assert abs(float(noise.max()) - 0.3) < 1e-5 and abs(float(noise.min()) + 0.3) < 1e-5
    assert abs(float(noise.mean())) < 0.02 and 0.3 < float((noise.abs() < 0.29).float().mean()) < 0.6
    last = it.slow_controller.net[-1]
    last.bias.data[0] = 100.0  # a mode at the end of the range
    assert float(it.targets(rows, generator("noise")).max()) == 1.0


def test_the_controller_waits_and_the_slow_copies_follow_when_it_moves() -> None:
    it = learner(delay=3, minibatches=4, slow_fraction=0.25)
    controller, slow = numbers(it.controller), numbers(it.slow_pool)
    object.__setattr__(it.how, "minibatches", 2)  # fewer than is allowed, to look between two steps of the controller
    update(it)
    assert same(controller, numbers(it.controller)) and same(slow, numbers(it.slow_pool)) and it.steps == 2
    object.__setattr__(it.how, "minibatches", 1)
    update(it, 1)
    assert not same(controller, numbers(it.controller))
    for pair, before in (((it.slow_pool, it.pool), slow), ((it.slow_controller, it.controller), controller)):
        for a, b, old in zip(numbers(pair[0]), numbers(pair[1]), before, strict=True):
            torch.testing.assert_close(a, old + 0.25 * (b - old))


def test_dreams_are_played_by_the_mode_and_a_little_noise() -> None:
    it, view = learner(), torch.zeros(5000, 1)
    it.controller.requires_grad_(False)
    mode = it.controller.policy(view[:1], ())[0].mode()
    policy, _ = Explorer(it.controller, 0.1).policy(view, ())
    action = policy.sample(generator("explorer"))
    assert isinstance(policy, Normal)
    assert abs(float((action - mode).mean())) < 0.01 and abs(float((action - mode).std()) - 0.1) < 0.01


def test_no_gradient_reaches_the_world_and_none_stays_in_the_critics() -> None:
    it, world = learner(), line_world.world()
    update(it, world=world)
    assert [p.grad for p in world.parameters()] == [None] and all(p.grad is None for p in it.pool.parameters())


def test_it_learns_in_bfloat16_too() -> None:
    it = learner()
    before = [numbers(it.controller), numbers(it.pool)]
    with autocast("bf16", "cpu"):
        update(it)
    for old, module in zip(before, (it.controller, it.pool), strict=True):
        assert all(not torch.equal(a, b) for a, b in zip(old, module.parameters(), strict=True))


def test_what_was_saved_goes_on_with_the_same_bits_targets_included() -> None:
    one, other = learner(critics=3, delay=3), learner(critics=3, delay=3)
    update(one)
    other.restore(copy.deepcopy(one.state()))
    for part in ("controller", "slow_controller", "pool", "slow_pool"):
        assert same(numbers(getattr(one, part)), numbers(getattr(other, part))), part
    for k in (1, 2):
        found, again = update(one, k), update(other, k)
        assert all(torch.equal(found[name], again[name]) for name in found)
    with pytest.raises(ContractError, match="--noreload"):
        learner(critics=2).restore(one.state())


def test_it_learns_continuous_actions() -> None:
    how = {"minibatches": 16, "transitions": 64, "n_steps": 3, "critics": 3, "slow_fraction": 0.05, "discount": 0.9}
    how |= {"actor_learning_rate": 3e-3, "critic_learning_rate": 3e-3, "exploration": 0.5}
    it, world = learner(**how), line_world.world()
    assert line_world.distance(world, it.controller) > 0.3
    for k in range(20):
        update(it, k, world)
    assert line_world.distance(world, it.controller) < 0.15


def test_discrete_actions_are_refused() -> None:
    trainer = build(TRAINERS, {"kind": "td3"}, "trainer")
    with pytest.raises(ConfigError, match="continuous actions, and there are 3 discrete ones; take 'ppo'"):
        trainer.learner(MLP((1,), Actions(3, True)), (1,), torch.device("cpu"))


def test_numbers_that_make_no_sense_are_refused() -> None:
    for wrong in ({"critics": 1}, {"n_steps": 0}, {"discount": 2.0}, {"smoothing": -1.0}, {"minibatches": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TD3(**wrong)
