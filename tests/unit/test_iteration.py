"""What an iteration may ask for, and how its stages' pipeline follows from it."""

import pytest

from wmrl.errors import ConfigError
from wmrl.iteration import Iterate
from wmrl.pipeline import parse
from wmrl.stages.rounds import Round, left, planned, words

PIPE = parse({"representation": {"kind": "vae"}, "trainer": {"kind": "cma-es", "generations": 9}})


def rounds(*settings: Iterate, stage: str = "") -> list[Round]:
    """Iterations of which the last one is in a stage."""
    found = [Round(i, each, 10 * i, stage="") for i, each in enumerate(settings, 1)]
    found[-1].stage = stage
    return found


@pytest.mark.parametrize("key", ["iterations", "rollouts", "vae_steps", "dynamics_steps", "generations", "episodes"])
def test_there_is_something_to_do_of_everything(key):
    with pytest.raises(ConfigError, match=f"iterate.{key}: must be greater than 0, got 0"):
        parse({"iterate": {key: 0}})


def test_the_first_iteration_is_the_pipelines_own():
    assert planned(PIPE, rounds(Iterate(vae_steps=3, dynamics_steps=4, generations=5))) == PIPE


def test_later_ones_have_their_own_amounts_and_the_last_ones_hold():
    many = [Iterate(), Iterate(vae_steps=3, dynamics_steps=4, generations=5), Iterate(train_vae=False, generations=6)]
    second, third = planned(PIPE, rounds(*many[:2])), planned(PIPE, rounds(*many))
    assert (second.fit.vae.steps, second.fit.dynamics.steps, second.trainer["generations"]) == (3, 4, 5)
    assert (third.fit.vae.steps, third.fit.dynamics.steps, third.trainer["generations"]) == (3, 2000, 6)
    assert third.fit.vae.batch == PIPE.fit.vae.batch and third.data == PIPE.data


def test_it_is_said_how_far_they_are():
    two = [Iterate(iterations=3)] * 2
    asked = parse({"iterate": {"iterations": 3}})
    assert words([], asked) == "" and left([], asked)
    assert words(rounds(*two, stage="train-vae"), asked) == "iteration 2 of 3, train-vae"
    assert words(rounds(*two), asked) == "2 of 3 iterations" and left(rounds(*two), asked)
    fewer = parse({"iterate": {"iterations": 1}})
    assert words(rounds(*two), fewer) == "2 of 2 iterations" and not left(rounds(*two), fewer)
    assert left(rounds(*two, stage="generate"), fewer), "what was begun is ended"
