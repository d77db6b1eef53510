"""The pipelines that learn online: their parts can be built, and the Dreamers have the sizes that were published."""

from functools import cache
from pathlib import Path

import pytest
import torch

from wmrl import config, pipeline
from wmrl.controllers import CONTROLLERS
from wmrl.dynamics import DYNAMICS
from wmrl.pipeline import Pipeline
from wmrl.spec import Actions, Space
from wmrl.trainers import TRAINERS

FOLDER = Path(__file__).resolve().parents[2] / "pipelines"
ONLINE = sorted(path.stem for path in FOLDER.glob("*.toml") if pipeline.load(path).online.steps)
PLANES = {"Breakout": (4, 3), "Asterix": (4, 5), "Freeway": (7, 3), "Seaquest": (10, 6), "SpaceInvaders": (6, 4)}
"""MinAtar's games: planes and actions."""
ACTIONS = {"Pendulum-v1": Actions(1, False), "CarRacing-v3": Actions(3, False), "CartPole-v1": Actions(2, True)}


def game(pipe: Pipeline) -> tuple[Space, Actions]:
    """What is seen and done, without the game itself."""
    env_id = pipe.env.id
    if env_id.startswith("MinAtar/"):
        planes, actions = PLANES[env_id.removeprefix("MinAtar/").removesuffix("-v1")]
        return Space((planes - len(pipe.env.hide), 10, 10)), Actions(actions, True)
    if env_id.startswith("MiniGrid-"):
        return Space((20, 7, 7)), Actions(7, True)
    return Space((3, pipe.env.size, pipe.env.size)), ACTIONS[env_id]


@cache
def sizes(name: str) -> dict[str, int]:
    """Numbers of parameters of a pipeline's world model, its parts, controller and critic."""
    pipe = pipeline.load(FOLDER / f"{name}.toml")
    space, actions = game(pipe)
    world = config.build(DYNAMICS, pipe.dynamics, "dynamics", space, actions)
    controller = config.build(CONTROLLERS, pipe.controller, "controller", world.feature_shape, actions)
    trainer = config.build(TRAINERS, pipe.trainer, "trainer")
    critic = trainer.learner(controller, world.feature_shape, torch.device("cpu")).critic
    modules = {"world": world, "controller": controller, "critic": critic, **dict(world.named_children())}
    return {part: sum(p.numel() for p in module.parameters()) for part, module in modules.items()}


@pytest.mark.parametrize("name", ONLINE)
def test_all_parts_of_a_pipeline_that_learns_online_can_be_built(name):
    assert min(sizes(name).values()) > 0


def test_dreamer_v1_has_the_layers_of_the_paper():
    counted = sizes(
        "dreamer-v1"
    )  # by hand, from the sizes that it tells: 30 and 200, 3 layers of 300, V of World Models
    head = 230 * 300 + 300 + 2 * (300 * 300 + 300) + 301
    assert counted["encoder"] == 1_568 + 32_832 + 131_200 + 524_544
    assert counted["decoder"] == (230 * 1024 + 1024) + 3_276_928 + 204_864 + 73_760 + 3_459
    assert counted["recurrence"] == ((30 + 1) * 200 + 200) + 3 * (2 * 200 * 200 + 2 * 200)
    assert counted["prior"] == 200 * 200 + 200 + 200 * 60 + 60
    assert counted["posterior"] == (200 + 1024) * 200 + 200 + 200 * 60 + 60
    assert counted["reward"] == counted["critic"] == head and counted["controller"] == head + 301


def test_dreamer_v2_has_the_20_million_parameters_of_the_paper_and_1_million_for_actor_and_critic_each():
    counted = sizes("dreamer-v2")
    assert {part: round(counted[part] / 1e6) for part in ("world", "controller", "critic")} == {
        "world": 20,
        "controller": 1,
        "critic": 1,
    }


def test_dreamer_v2_for_minatar_has_the_published_number_and_is_the_pipeline_for_breakout():
    counted = sizes("dreamer-v2-minatar")
    assert (counted["world"], counted["world"] + counted["controller"] + counted["critic"]) == (1_631_822, 1_792_826)
    preset, breakout = (
        pipeline.load(FOLDER / f"{n}.toml") for n in ("dreamer-v2-minatar", "minatar-breakout-dreamerv2")
    )
    for where in ("env", "fit", "test", "online", "representation"):
        assert getattr(preset, where) == getattr(breakout, where)
    for where, registry in {"dynamics": DYNAMICS, "controller": CONTROLLERS, "trainer": TRAINERS}.items():
        one, two = (config.resolved(registry, getattr(pipe, where), where) for pipe in (preset, breakout))
        assert one == two


def test_dreamer_v3_small_has_one_million_parameters():
    counted = sizes("dreamer-v3-small")
    assert counted["world"] + counted["controller"] + counted["critic"] == pytest.approx(1e6, rel=0.05)


def test_dreamer_v3_small_weighs_pictures_by_their_squared_error():
    pipe = pipeline.load(FOLDER / "dreamer-v3-small.toml")
    space, actions = game(pipe)
    world = config.build(DYNAMICS, pipe.dynamics, "dynamics", space, actions)
    seen, drawn = torch.rand(2, *space.shape), torch.rand(2, *space.shape)
    loss = world.scales["observation"] * world.decoder.loss(drawn - 0.5, seen)  # it draws pictures less 0.5
    torch.testing.assert_close(loss, (drawn - seen).square().sum((1, 2, 3)))
