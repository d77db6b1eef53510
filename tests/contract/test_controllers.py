"""Every registered controller keeps the promises of `wmrl.protocols.Controller`."""

import pytest
import torch

from wmrl.config import build
from wmrl.controllers import CONTROLLERS
from wmrl.rollout import Policy
from wmrl.spec import Actions

SHAPES = {"features": (12,), "frame": (3, 64, 64)}
SPACES = [Actions(3, False), Actions(1, False), Actions(4, True)]


@pytest.fixture(params=[(kind, a) for kind in CONTROLLERS for a in SPACES], ids=lambda p: f"{p[0]}-{p[1].size}")
def controller(request):
    kind, actions = request.param
    looks_at = build(CONTROLLERS, {"kind": kind}, "controller", (12,), actions).looks_at
    made = build(CONTROLLERS, {"kind": kind}, "controller", SHAPES[looks_at], actions).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


def _views(controller, rows: int) -> torch.Tensor:
    return torch.rand(rows, *SHAPES[controller.looks_at], generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_actions_are_legal(controller) -> None:
    action, _ = controller.act(_views(controller, 64), controller.initial(64))
    assert action.shape == (64, controller.actions.size) and action.dtype == torch.float32
    if controller.actions.discrete:
        assert ((action == 0) | (action == 1)).all() and (action.sum(1) == 1).all() and action.any(0).sum() > 1
    else:
        assert action.abs().max() <= 1 and action.std() > 0


def test_rows_do_not_mix_and_nothing_is_remembered_in_the_module(controller) -> None:
    views, memory = _views(controller, 8), controller.initial(8)
    together, _ = controller.act(views, memory)
    again, _ = controller.act(views, memory)
    alone = torch.cat([controller.act(views[i : i + 1], controller.initial(1))[0] for i in range(8)])
    assert torch.equal(together, again)
    torch.testing.assert_close(together, alone)


def test_many_controllers_act_as_one_batch(controller) -> None:
    size = sum(p.numel() for p in controller.parameters())
    many = torch.randn(5, size, generator=torch.Generator().manual_seed(2))
    views, policy = _views(controller, 5), Policy(controller, many)
    policy.begin(5, range(5))
    batch = policy.act(views)
    for i in range(5):
        torch.nn.utils.vector_to_parameters(many[i], controller.parameters())
        alone, _ = controller.act(views[i : i + 1], controller.initial(1))
        torch.testing.assert_close(batch[i], alone[0], atol=1e-5, rtol=1e-5)
