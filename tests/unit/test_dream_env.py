"""Dreams as gymnasium environments: the contract, where they begin and end, what is random in them, and what is not."""

import subprocess
import sys
import warnings

import dream_runs
import gymnasium as gym
import numpy as np
import pytest
from dream_runs import STARTS, THREE, Aim, make_run
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from wmrl.errors import ArtifactError, ConfigError, UserError

ID = "wmrl.envs:wmrl/Dream-v0"
MDN = {"kind": "mdn-rnn", "hidden": 4, "mixtures": 2}
AIM = {"kind": "aim"}
GO, QUIT = [0.0, 0.0], [0.0, 4.0]


@pytest.fixture(autouse=True)
def parts(monkeypatch) -> None:
    dream_runs.register(monkeypatch)


@pytest.fixture
def aim(tmp_path) -> str:
    return make_run(tmp_path, AIM)


def make(logdir: str, **how):
    return gym.make(ID, logdir=logdir, device="cpu", **how)


def rows(logdir: str, n: int = 4, **how):
    return gym.make_vec(ID, num_envs=n, logdir=logdir, device="cpu", **how)


def roll(envs, seed: int, steps: int = 30, quits=()) -> list[np.ndarray]:
    """All that a vector environment gives under random actions; in `quits` (step, row), the row ends."""
    envs.action_space.seed(7)
    out = [envs.reset(seed=seed)[0]]
    for step in range(steps):
        actions = envs.action_space.sample()
        for row in (row for at, row in quits if at == step):
            actions[row] = QUIT
        out += envs.step(actions)[:4]
    return out


def assert_equal(one: list[np.ndarray], other: list[np.ndarray], row=slice(None)) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a[row], b[row])


@pytest.mark.parametrize("observation", ["features", "latent", "frame"])
@pytest.mark.parametrize(
    ("dynamics", "representation", "box"),
    [(AIM, "grey", dream_runs.BOX), (MDN, "grey", THREE), ({"kind": "dice"}, "word", THREE)],
    ids=["boxes", "mdn-rnn", "tokens"],
)
def test_it_keeps_the_contract_of_gymnasium(tmp_path, dynamics, representation, box, observation) -> None:
    logdir = make_run(tmp_path, dynamics, representation, box)
    env = make(logdir, observation=observation, render_mode="rgb_array")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        check_env(env.unwrapped)
    # A latent has no bounds, and these actions of a game are not those of another.
    assert [str(w.message) for w in said if "infinit" not in str(w.message) and "symmetric" not in str(w.message)] == []


def test_what_is_seen_of_a_state(aim) -> None:
    seen = {kind: make(aim, observation=kind).reset(seed=1)[0] for kind in ("features", "latent", "frame")}
    assert {kind: (x.shape, x.dtype.name) for kind, x in seen.items()} == {
        "features": ((4,), "float32"),
        "latent": ((1,), "float32"),
        "frame": ((8, 8, 3), "uint8"),
    }
    assert seen["features"][0] == seen["latent"][0]
    assert (seen["frame"] == round(255 * (seen["latent"][0] + 1) / 2)).all()


def test_tokens_are_whole_numbers(tmp_path) -> None:
    env = make(make_run(tmp_path, {"kind": "dice"}, "word", THREE), observation="latent")
    assert env.observation_space == spaces.MultiDiscrete([6, 6]) and env.reset(seed=1)[0].dtype == np.int64


@pytest.mark.parametrize("observation", ["features", "latent", "frame"])
@pytest.mark.parametrize(("dynamics", "representation"), [(AIM, "grey"), ({"kind": "dice"}, "word")])
def test_a_vector_gives_what_its_spaces_say(tmp_path, dynamics, representation, observation) -> None:
    envs = rows(make_run(tmp_path, dynamics, representation, THREE), 5, observation=observation)
    assert envs.observation_space.contains(envs.reset(seed=1)[0])
    obs, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
    assert envs.observation_space.contains(obs) and len(obs) == 5 and info == {}
    assert {(x.shape, x.dtype.name) for x in (terminated, truncated)} == {((5,), "bool")}
    assert (reward.shape, reward.dtype.name) == ((5,), "float64")  # as gymnasium's own


def test_pictures_are_what_the_model_decodes_now(aim) -> None:
    env = make(aim, observation="frame", render_mode="rgb_array")
    env.reset(seed=2)
    for _ in range(3):
        obs = env.step(np.float32(GO))[0]
        np.testing.assert_array_equal(env.render(), obs)
    envs = rows(aim, observation="frame", render_mode="rgb_array")
    np.testing.assert_array_equal(np.stack(envs.render() if envs.reset(seed=1) else ()), envs.reset(seed=1)[0])
    assert env.metadata["render_fps"] == envs.metadata["render_fps"] == 25
    with pytest.raises(ResetNeeded):
        make(aim, render_mode="rgb_array").unwrapped.render()
    silent = make(aim)
    silent.reset()
    assert silent.unwrapped.render() is None


def test_actions_are_those_of_the_game(aim, tmp_path) -> None:
    envs = rows(aim, 3)
    assert envs.single_action_space == spaces.Box(np.float32([-1, 0]), np.float32([1, 4]), dtype=np.float32)
    envs.reset(seed=1)
    envs.step(np.float32([[-1, 0], [0.5, 3], [7, -9]]))
    assert Aim.seen[-1].tolist() == [[-1, -1], [0.5, 0.5], [1, -1]]  # what lies beyond a bound counts as the bound
    discrete = make(make_run(tmp_path / "discrete", AIM, box=THREE))
    assert discrete.action_space == spaces.Discrete(3)
    discrete.reset(seed=1)
    discrete.step(2)
    assert Aim.seen[-1].tolist() == [[0, 0, 1]]
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=r"step takes 1 actions of Discrete\(3\)"):
            discrete.unwrapped.step(wrong)


@pytest.mark.parametrize("wrong", [np.zeros((2, 2)), np.zeros((4, 3)), np.full((4, 2), np.nan)])
def test_actions_of_another_kind_are_refused(aim, wrong) -> None:
    envs = rows(aim)
    envs.reset(seed=1)
    with pytest.raises(ValueError, match="step takes 4 actions of Box"):
        envs.step(wrong)


def test_a_row_that_ended_begins_anew_at_the_next_step(aim) -> None:
    envs = rows(aim, temperature=0.0)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    first, _ = envs.reset(seed=3)
    last, reward, terminated, truncated, _ = envs.step(np.float32([GO, QUIT, GO, GO]))
    assert terminated.tolist() == [False, True, False, False] and not truncated.any()
    assert last[:, 1].tolist() == [1, 1, 1, 1] and last[1, 0] == first[1, 0]  # of an ended row its last state
    np.testing.assert_allclose(reward, 1 - np.abs(first[:, 0]), rtol=1e-5)
    begun, reward, terminated, truncated, _ = envs.step(np.float32([GO, QUIT, GO, QUIT]))
    assert terminated.tolist() == [False, False, False, True] and not truncated.any()
    assert begun[:, 1].tolist() == [2, 0, 2, 2] and reward[1] == 0  # its action was not one
    assert begun[0, 2] == first[0, 2] and begun[1, 0] == begun[1, 2]  # all leaves of the state are new, or none
    assert envs.step(np.float32([GO] * 4))[0][:, 1].tolist() == [3, 1, 3, 0]


def test_a_time_limit_truncates_and_does_not_terminate(aim) -> None:
    envs = rows(aim, 2, max_steps=3)
    envs.reset(seed=1)
    flags = []
    for act in (GO, GO, QUIT, GO, GO):
        _, _, terminated, truncated, _ = envs.step(np.float32([GO, act]))
        flags.append((terminated.tolist(), truncated.tolist()))
    going = ([False, False], [False, False])
    assert flags == [going, going, ([False, True], [True, False]), going, going]  # an end of the game is no limit
    assert envs.step(np.float32([GO, GO]))[3].tolist() == [False, False]
    assert envs.step(np.float32([GO, GO]))[3].tolist() == [True, True]  # the limit counts anew


def test_the_limit_is_that_of_the_game(tmp_path) -> None:
    def length(logdir: str, **how) -> int:
        env = make(logdir, **how)
        env.reset(seed=1)
        return next(i for i in range(1, 2000) if env.step(np.float32(GO))[3])

    known, imported = make_run(tmp_path / "a", AIM), make_run(tmp_path / "b", AIM, about={})
    assert (length(known), length(imported), length(known, max_steps=60)) == (40, 1000, 60)


def test_dreams_end_by_the_threshold_or_by_a_draw(aim) -> None:
    ended = {}
    for ends in ("threshold", "sample"):
        envs = rows(aim, 400, ends=ends)
        envs.reset(seed=1)
        ended[ends] = envs.step(np.tile(np.float32(GO), (400, 1)))[2].mean()
    assert ended["threshold"] == 0 and ended["sample"] == pytest.approx(0.2, abs=0.06)


def test_dreams_begin_at_first_frames_of_real_episodes(aim) -> None:
    envs = rows(aim, 64)
    first, luck = envs.reset(seed=1)[0][:, 2:].T
    envs.step(np.tile(np.float32(QUIT), (64, 1)))
    again, other = envs.step(np.tile(np.float32(GO), (64, 1)))[0][:, 2:].T
    assert len({*luck.tolist(), *other.tolist()}) == 128
    env, one = make(aim), []
    for seed in (1, *[None] * 40):
        one.append(env.reset(seed=seed)[0][2])
    for starts in (first, again, np.array(one)):
        assert set(starts.round(3).tolist()) == set(STARTS.numpy().round(3).tolist())
    assert (first != again).mean() > 0.5


@pytest.mark.parametrize("dynamics", [AIM, MDN], ids=["aim", "mdn-rnn"])
def test_equal_seeds_are_equal_dreams(tmp_path, dynamics) -> None:
    envs = rows(make_run(tmp_path, dynamics), ends="sample", max_steps=6)
    once, again, other = roll(envs, 1), roll(envs, 1), roll(envs, 2)
    assert_equal(once, again)
    assert (once[-4] != other[-4]).any()


def test_a_reset_without_a_seed_goes_on_with_the_seed_before(aim) -> None:
    env, runs = make(aim), []
    for _ in range(2):
        env.reset(seed=5)
        runs.append([env.step(np.float32(GO))[0].tolist(), *(env.reset()[0].tolist() for _ in range(8))])
    assert runs[0] == runs[1] and len({str(first) for first in runs[0][1:]}) > 2


@pytest.mark.parametrize("ends", ["threshold", "sample"])
def test_a_row_does_not_depend_on_what_others_do(aim, ends) -> None:
    """Not on their actions, nor on when they end."""
    envs = rows(aim, ends=ends)
    quiet, stirred = roll(envs, 1), roll(envs, 1, quits=[(2, 0), (3, 1), (8, 0), (14, 1)])
    for row in (0, 1):
        assert any((a[row] != b[row]).any() for a, b in zip(quiet, stirred, strict=True))
    assert_equal(quiet, stirred, slice(2, 4))


def test_without_temperature_dreams_repeat(aim) -> None:
    """Rows that begin at the same frame and act alike, though each has noise of its own."""

    def shades(temperature: float) -> np.ndarray:
        envs = rows(aim, 64, temperature=temperature)
        envs.reset(seed=1)
        return np.stack([envs.step(np.tile(np.float32(GO), (64, 1)))[0] for _ in range(5)])

    cold, warm = shades(0.0), shades(1.0)
    for start in np.unique(cold[0, :, 2]):
        same = cold[0, :, 2] == start
        assert same.sum() > 1 and (np.ptp(cold[:, same, :3], 1) == 0).all()
        assert (np.ptp(warm[:, same, 0], 1) > 0).all()


def test_what_is_returned_is_not_the_state(aim) -> None:
    env = make(aim, observation="latent", temperature=0.0)
    first, _ = env.reset(seed=1)
    kept = float(first[0])
    first[:] = 99
    assert env.step(np.float32(GO))[0][0] == pytest.approx(kept)


def test_one_dream_has_to_be_reset_before_it_is_stepped(aim) -> None:
    env = make(aim).unwrapped
    with pytest.raises(ResetNeeded, match="not begun"):
        env.step(np.float32(GO))
    for _ in range(2):
        env.reset(seed=1)
        assert env.step(np.float32(QUIT))[2] is True
        with pytest.raises(ResetNeeded, match="has ended"):
            env.step(np.float32(GO))
    env.reset()
    env.close()
    with pytest.raises(ResetNeeded, match="not begun"):
        env.step(np.float32(GO))


@pytest.mark.parametrize("observation", ["features", "latent", "frame"])
def test_a_model_that_diverges_says_so(aim, monkeypatch, observation) -> None:
    env = make(aim, observation=observation)
    env.reset(seed=1)
    monkeypatch.setattr(Aim, "features", lambda self, state: state["z"].expand(-1, 4) / 0)
    monkeypatch.setattr(Aim, "latent", lambda self, state: state["z"] / 0)
    with pytest.raises(UserError, match="not finite"):
        env.step(np.float32(GO))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"observation": "feature"}, "observation: 'feature' is not known; did you mean 'features'?"),
        ({"ends": "never"}, "ends: 'never' is not known; known: sample, threshold"),
        ({"render_mode": "ansi"}, "render_mode: 'ansi' is not known"),
        ({"temperature": -1.0}, "temperature must be a finite number and not negative, got -1.0"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"device": "gpu"}, "device is auto, cpu, cuda or cuda:N, not 'gpu'"),
        ({"logdir": ""}, "wmrl/Dream-v0 needs a run with a world model"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*render_mode='ansi'")
def test_what_cannot_be_is_said_in_a_sentence(aim, how, message) -> None:
    with pytest.raises(ConfigError) as error:
        gym.make(ID, **{"logdir": aim, **how})
    assert str(error.value).startswith(message)


def test_there_is_no_vector_of_no_dreams(aim) -> None:
    with pytest.raises(ConfigError, match="num_envs must be at least 1, got 0"):
        rows(aim, 0)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("run", "holds no pipeline.json: it is no logdir of wmrl"),
        ("run/dynamics.h5", "wmrl train-dynamics --logdir"),
        ("run/vae.h5", "wmrl train-vae --logdir"),
        ("data", "data"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_makes_it(aim, tmp_path, gone, message) -> None:
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    for maker in (make, rows):
        with pytest.raises(ArtifactError, match=message):
            maker(aim)


@pytest.mark.parametrize("modules", ["wmrl.envs, gymnasium", "gymnasium, wmrl.envs"])
def test_it_is_registered_once_and_loads_no_torch(modules) -> None:
    code = f"""import warnings; warnings.simplefilter("error")
import {modules}, importlib, sys
importlib.reload(wmrl.envs)
assert "torch" not in sys.modules
gymnasium.spec("wmrl/Dream-v0")"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_agent_of_stable_baselines_learns_in_a_dream(aim) -> None:
    """The nearer its action to the shade that it sees, the more reward: 5 for each episode at best."""
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_checker import check_env as check
    from stable_baselines3.common.evaluation import evaluate_policy

    env = make(aim, observation="latent", max_steps=5)
    check(env.unwrapped, warn=False)
    how = {"n_steps": 128, "batch_size": 128, "learning_rate": 1e-2, "gamma": 0.0, "gae_lambda": 0.0}
    agent = sb3.PPO("MlpPolicy", env, seed=1, device="cpu", **how)
    before, _ = evaluate_policy(agent, agent.get_env(), n_eval_episodes=30)
    agent.learn(1536)
    after, _ = evaluate_policy(agent, agent.get_env(), n_eval_episodes=30)
    assert before < 2.5 and after > 3.8
