"""MinAtar's games: the package's own steps, planes first; each episode from its seed; time limits do not terminate."""

import subprocess
import sys

import numpy as np
import pytest

from wmrl.envs import make
from wmrl.envs.names import MINATAR
from wmrl.errors import ArtifactError, ConfigError
from wmrl.pipeline import Env

minatar = pytest.importorskip("minatar")

GAMES = pytest.mark.parametrize(("env_id", "name"), MINATAR.items())
MINIMAL = {"asterix": "nlurd", "breakout": "nlr", "freeway": "nud", "seaquest": "nlurdf", "space_invaders": "nlrf"}
POMDP = {
    "asterix": ([2], [0, 1, 3]),
    "breakout": ([2], [0, 1, 3]),
    "freeway": ([2, 3, 4, 5, 6], [0, 1]),
    "seaquest": ([3], [0, 1, 2, 4, 5, 6, 7, 8, 9]),
    "space_invaders": ([2, 3], [0, 1, 4, 5]),
}


def original(name, seed, **how):
    """The package's own game at the beginning of an episode."""
    game = minatar.Environment(name, **how)
    game.seed(seed)
    game.reset()
    return game


def hot(env, choices):
    return np.eye(env.actions.size, dtype=np.float32)[choices]


def until_over(env, choose, most=3000):
    """Rewards of slot 0 until it ends, and the last outcome."""
    rewards = []
    for t in range(most):
        out = env.step(hot(env, [choose(t)]), [0])
        rewards.append(float(out.reward[0]))
        if out.terminated[0] or out.truncated[0]:
            return rewards, out
    raise AssertionError("it never ended")


@GAMES
def test_a_game_is_the_packages_own(env_id, name):
    game, rng = original(name, 5), np.random.default_rng(0)
    letters = "nlurdf"
    with make(Env(id=env_id), 2, threads=1) as env:
        planes = game.state_shape()[2]
        assert env.observation.shape == (planes, 10, 10)
        assert (env.actions.size, env.actions.discrete) == (len(MINIMAL[name]), True)
        obs = env.reset([9, 5])[1]
        assert obs.dtype == bool and obs.flags["C_CONTIGUOUS"] and (obs == game.state().transpose(2, 0, 1)).all()
        for _ in range(400):
            choice = int(rng.integers(env.actions.size))
            reward, over = game.act(letters.index(MINIMAL[name][choice]))
            out = env.step(hot(env, [choice]), [1])
            assert (out.obs[0] == game.state().transpose(2, 0, 1)).all() and out.reward[0] == reward
            assert bool(out.terminated[0]) == over and not out.truncated[0]
            if over:
                break
        assert over or name == "freeway"


def test_version_0_has_all_actions():
    game = original("breakout", 3, sticky_action_prob=0.0)
    with make(Env(id="MinAtar/Breakout-v0", sticky=0.0), 1, threads=1) as env:
        assert env.actions.size == 6
        env.reset([3])
        for move in (3, 3, 5):  # to the right twice, then a button that does nothing
            game.act(move)
            assert (env.step(hot(env, [move]), [0]).obs[0] == game.state().transpose(2, 0, 1)).all()


@GAMES
def test_hidden_planes_are_cut_out(env_id, name):
    """Source: the wrappers of RajGhugare19/dreamerv2."""
    hidden, kept = POMDP[name]
    with make(Env(id=env_id), 1, threads=1) as whole, make(Env(id=env_id, hide=tuple(hidden)), 1, threads=1) as part:
        assert part.observation.shape == (len(kept), 10, 10)
        assert (whole.reset([4])[:, kept] == part.reset([4])).all()
        for choice in range(whole.actions.size):
            both = [env.step(hot(env, [choice]), [0]).obs for env in (whole, part)]
            assert (both[0][:, kept] == both[1]).all()
        assert (whole.frames([0]) == part.frames([0])).all(), "films show the whole game"


def test_an_action_is_not_remembered_beyond_its_episode():
    with make(Env(id="MinAtar/Breakout-v1", sticky=1.0), 1, threads=1) as env:
        env.reset([1])
        env._games[0].last_action = 3  # "right", as if the last episode had ended with it
        env.restart([1], [0])
        out = env.step(hot(env, [2]), [0])
        assert out.obs[0, 0, 9].argmax() == 4, "the first action of an episode can only be replaced by none"


def test_stickiness_and_ramping_are_the_published_ones_unless_said_otherwise():
    def made(**how):
        with make(Env(id="MinAtar/Asterix-v1", **how), 1, threads=1) as env:
            game = env._games[0]
            return game.sticky_action_prob, game.env.ramping, {k: env.info.get(k) for k in ("sticky", "ramping")}

    assert made() == (0.1, True, {"sticky": None, "ramping": None})
    assert made(sticky=0.0, ramping=False) == (0.0, False, {"sticky": 0.0, "ramping": False})


def test_an_action_repeated_is_that_many_steps_of_the_game():
    with make(Env(id="MinAtar/SpaceInvaders-v1", sticky=0.0, action_repeat=3), 1, threads=1) as env:
        game = original("space_invaders", 2, sticky_action_prob=0.0)
        env.reset([2])
        for _ in range(4):
            reward = sum(game.act(5)[0] for _ in range(3))
            out = env.step(hot(env, [3]), [0])
            assert out.reward[0] == reward and (out.obs[0] == game.state().transpose(2, 0, 1)).all()
        assert env.max_steps == 834 and env.fps == 5.0


@pytest.mark.parametrize(("limit", "steps"), [(None, 2501), (3000, 2501), (2400, 2400)])
def test_the_end_of_freeway_is_a_time_limit(limit, steps):
    with make(Env(id="MinAtar/Freeway-v1", max_steps=limit), 1, threads=1) as env:
        env.reset([1])
        rewards, out = until_over(env, lambda t: 1)
        assert len(rewards) == steps and sum(rewards) > 5
        assert out.truncated[0] and not out.terminated[0]


def test_a_limit_truncates_and_a_lost_ball_terminates():
    with make(Env(id="MinAtar/Breakout-v1", max_steps=5), 1, threads=1) as env:
        env.reset([1])
        rewards, out = until_over(env, lambda t: 0)
        assert len(rewards) == 5 and out.truncated[0] and not out.terminated[0]
    with make(Env(id="MinAtar/Breakout-v1"), 1, threads=1) as env:
        assert env.max_steps == 2500
        env.reset([1])
        _, out = until_over(env, lambda t: 1)
        assert out.terminated[0] and not out.truncated[0]
        assert out.obs[0, 1, 9].any(), "the last frame, with the ball at the bottom, is kept"


def test_films_show_planes_in_colours():
    with make(Env(id="MinAtar/Breakout-v1"), 3, threads=1) as env:
        env.reset([1, 2, 3])
        pictures = env.frames([2, 0])
        assert pictures.shape == (2, *env.native, 3) and pictures.dtype == np.uint8
        cells = pictures[:, 8::16, 8::16]
        assert (cells[:, 1:3] == cells[:, 1:2, :1]).all() and cells[:, 1:3].any(), "rows of bricks of one colour"
        assert (cells[:, 9, 4] != cells[:, 1, 4]).any() and cells[:, 9, 4].any(), "a paddle of another"
        assert not cells[:, 5:9].any()
    with make(Env(id="MinAtar/Breakout-v1", observe="pixels", size=32), 1, threads=1) as env:
        obs = env.reset([1])
        assert obs.shape == (1, 3, 32, 32) and obs.dtype == np.uint8 and obs.any()


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (Env(id="MinAtar/Pong-v1"), "env.id: MinAtar has no 'MinAtar/Pong-v1'; it has MinAtar/Asterix-v1, "),
        (Env(id="MinAtar/Breakout-v1", hide=(4,)), r"env.hide: \[4\] of .* shows 4 planes, 0 to 3"),
        (Env(id="MinAtar/Breakout-v1", hide=(0, 1, 2, 3)), r"env.hide: .* shows 4 planes"),
        (Env(id="MinAtar/Breakout-v1", hide=(2,), observe="pixels"), "env.hide: nothing can be hidden of pictures"),
        (Env(id="CarRacing-v3", sticky=0.1), "env.sticky: only MinAtar's games have it, CarRacing-v3 is none"),
    ],
)
def test_what_cannot_be_asked_for(env, words):
    with pytest.raises(ConfigError, match=words):
        make(env, 1, threads=1)


def test_without_the_package_one_line_tells_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "minatar", None)
    with pytest.raises(ArtifactError, match=r"minatar is not installed; to get it: pip install 'wmrl\[minatar\]'"):
        make(Env(id="MinAtar/Breakout-v1"), 1, threads=1)


def test_its_plotting_is_not_loaded_and_stays_loadable():
    code = (
        "import sys; from wmrl.envs import make; from wmrl.pipeline import Env; "
        "make(Env(id='MinAtar/Breakout-v1'), 1, threads=1); "
        "print(sorted({'seaborn', 'matplotlib', 'pandas'} & set(sys.modules))); import matplotlib.pyplot"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
