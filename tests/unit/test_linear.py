"""The linear controller of World Models."""

import numpy as np
import pytest
import torch

from wmrl.config import build
from wmrl.controllers import CONTROLLERS
from wmrl.controllers.linear import Linear
from wmrl.dynamics.mdn_rnn import MDNRNN
from wmrl.errors import ConfigError
from wmrl.representations.vae import VAE
from wmrl.rollout import Agent, Policy
from wmrl.spec import Actions, Space
from wmrl.world import WorldModel

CAR = Actions(3, False)


def test_has_the_published_sizes_and_begins_at_zero() -> None:
    car, doom = Linear((288,), CAR), Linear((1088,), Actions(1, False), bias=False)
    assert [sum(p.numel() for p in c.parameters()) for c in (car, doom)] == [867, 1088]
    assert not any(p.any() for p in car.parameters())


def test_squashes() -> None:
    view = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -4.0]])
    outs = {}
    for squash in ("tanh", "hm", "none"):
        made = Linear((3,), CAR, squash=squash).requires_grad_(False)  # type: ignore[arg-type]
        made.out.weight.copy_(torch.eye(3))
        outs[squash], memory = made.act(view, ())
        assert memory == ()
    torch.testing.assert_close(outs["none"], view)
    torch.testing.assert_close(outs["tanh"], view.tanh())
    torch.testing.assert_close(outs["hm"][:, :2], view.tanh()[:, :2])
    brake = (outs["hm"][:, 2] + 1) / 2  # in the environment's units, 0 to 1
    torch.testing.assert_close(brake, torch.tensor([0.5, -4.0]).tanh().clamp(0, 1))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="vector of features"):
        Linear((3, 64, 64), CAR)
    with pytest.raises(ConfigError, match="three continuous"):
        build(CONTROLLERS, {"kind": "linear", "squash": "hm"}, "controller", (8,), Actions(3, True))


def test_unless_told_otherwise_it_acts_on_the_posterior_mean() -> None:
    world = WorldModel(VAE(Space((3, 32, 32)), latent=4), MDNRNN(Space((4,)), CAR, hidden=5)).eval()
    controller = build(CONTROLLERS, {"kind": "linear"}, "controller", (9,), CAR).requires_grad_(False)
    frames = np.full((2, 3, 32, 32), 99, np.uint8)
    agent = Agent(world, Policy(controller))
    agent.begin(frames, [1, 2])
    expected = world.draw(world.encode(torch.from_numpy(frames)), sample=False)
    assert torch.equal(agent.state.z, expected)
