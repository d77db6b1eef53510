"""A finished run's world model as gymnasium environments: what it dreams is stepped, no game is.

    import gymnasium as gym
    env = gym.make("wmrl.envs:wmrl/Dream-v0", logdir="runs/carracing-mdnrnn/seed-1")
    envs = gym.make_vec("wmrl.envs:wmrl/Dream-v0", num_envs=64, logdir="runs/carracing-mdnrnn/seed-1")

Actions are those of the real game, in its own units, so that what learns here can play there. All N rows are dreamt in
one batch. Equal seeds give equal dreams, and what a row dreams depends on the seed, N, its place and its own actions,
not on what happens in other rows.
"""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from wmrl import config, pipeline, run
from wmrl.data.episodes import Episodes
from wmrl.dream import ENDS, Ends, Rules, first_codes
from wmrl.envs import DREAM
from wmrl.envs.actions import ActionMap
from wmrl.errors import ConfigError
from wmrl.rollout import check_finite
from wmrl.seeding import generator, number
from wmrl.sources import is_logdir, no_logdir
from wmrl.spec import Space, State, where
from wmrl.store import Store
from wmrl.video import picture
from wmrl.world import WorldModel

OBSERVATIONS = ("features", "latent", "frame")
RENDER_MODES = ("rgb_array",)
MAX_STEPS = 1000
"""An episode's limit where the dataset does not tell the game's own (imported rollouts)."""
FPS = 30.0
"""Likewise, frames a second."""


class DreamVectorEnv(VectorEnv):
    """N dreams side by side; a row that ended begins anew at the next step, whose action it ignores (NEXT_STEP).

    Args:
        num_envs: N, how many rows.
        logdir: The run whose V and M dream; its dataset gives the first frames that dreams begin at.
        observation: "features", what wmrl's controllers see; "latent"; or "frame", decoded, (H, W, 3) uint8.
        temperature: Of the model's draws. Source: Ha & Schmidhuber 2018, 1.15 to 1.3 for Doom.
        ends: When the model terminates an episode: "threshold", where its chance to go on falls below 0.5; "sample",
            by a draw.
        max_steps: Steps after which an episode is truncated; the game's own limit if left out.
        device: Where the model computes: "auto", "cpu", "cuda", "cuda:N".
        render_mode: "rgb_array" lets `render` give decoded frames, (H, W, 3) uint8.

    Raises:
        ConfigError: if an argument has a value that it cannot have.
        ArtifactError: if the run, its world model or its dataset is missing or damaged.
        ContractError: if they do not fit together.
    """

    metadata = {  # noqa: RUF012  as gymnasium declares it
        "render_modes": list(RENDER_MODES),
        "render_fps": FPS,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        logdir: str | Path = "",
        observation: str = "features",
        temperature: float = 1.0,
        ends: Ends = "threshold",
        max_steps: int | None = None,
        device: str = "auto",
        render_mode: str | None = None,
    ) -> None:
        _one_of("observation", observation, OBSERVATIONS)
        _one_of("ends", ends, ENDS)
        if render_mode is not None:
            _one_of("render_mode", render_mode, RENDER_MODES)
        for name, value in {"num_envs": num_envs, "max_steps": 1 if max_steps is None else max_steps}.items():
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not 0 <= temperature < np.inf:
            raise ConfigError(f"temperature must be a finite number and not negative, got {temperature}")
        self.num_envs, self.render_mode, self._observation = num_envs, render_mode, observation
        self._device = torch.device(run.device(device, "device"))
        world, episodes = _open(logdir, self._device)
        self._rules = Rules(world, first_codes(world, episodes, self._device), temperature, ends)
        episodes.close()
        about = episodes.meta.get("environment", {})
        self._max_steps = max_steps or about.get("max_steps") or MAX_STEPS
        self.metadata = {**self.metadata, "render_fps": about.get("fps") or FPS}
        self.single_observation_space = _observation_space(observation, world, episodes.observation)
        self.single_action_space = _action_space(episodes.meta["actions"])
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._actions = ActionMap(self.single_action_space, str(episodes.env["id"]))
        self._state: State = None

    @torch.inference_mode()
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode in every row; their first observations, (N, ...)."""
        super().reset(seed=seed)
        self._seed = int(self.np_random.integers(2**31))
        self._rng = generator("dreams", self._seed, device=self._device)
        self._now = 0  # steps since this reset
        self._begun, self._steps = np.zeros((2, self.num_envs), np.int64)
        self._over = np.zeros(self.num_envs, bool)
        self._state = self._first()
        return self._look(), {}

    @torch.inference_mode()
    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Move all rows by `actions` (N, ...): observations, reward (N,), terminated (N,), truncated (N,), {}.

        Raises:
            ResetNeeded: before the first `reset`.
            ValueError: if an action is none of the game's.
            UserError: if the model gives numbers that are not finite.
        """
        if self._state is None:
            raise ResetNeeded("the dream was not begun: call reset first")
        again = self._over
        state, reward, ended = self._rules.step(self._state, self._inner(actions), self._rng)
        self._now += 1
        self._steps = np.where(again, 0, self._steps + 1)
        if again.any():
            self._begun = self._begun + again
            state = where(torch.from_numpy(again).to(self._device), self._first(), state)
        self._state = state
        terminated = ended.cpu().numpy() & ~again
        truncated = (self._steps >= self._max_steps) & ~terminated
        self._over = terminated | truncated
        return self._look(), np.where(again, 0.0, reward.double().cpu().numpy()), terminated, truncated, {}

    @torch.inference_mode()
    def render(self) -> tuple[np.ndarray, ...] | None:
        """Every row's state as a picture, (H, W, 3) uint8; None without `render_mode`."""
        if self.render_mode is None:
            return None
        if self._state is None:
            raise ResetNeeded("there is no dream to show yet: call reset first")
        return self._pictures()

    def close_extras(self, **how: Any) -> None:
        """Forget the dreams."""
        self._state = None

    def _first(self) -> State:
        """First states of all rows, of which the caller takes some: what one row gets does not depend on the others."""
        seeds = [number("episode", self._seed, row, int(count)) for row, count in enumerate(self._begun)]
        return self._rules.begin(seeds, generator("first", self._seed, self._now, device=self._device))

    def _inner(self, actions: np.ndarray) -> Tensor:
        """Actions of the game -> what the model takes, (N, A); a number beyond its bound counts as the bound."""
        given = np.asarray(actions)
        discrete = self._actions.actions.discrete
        fits = self.action_space.contains(given) if discrete else given.shape == self.action_space.shape
        if not (fits and np.isfinite(given).all()):
            raise ValueError(f"step takes {self.num_envs} actions of {self.single_action_space}, got {actions}")
        unit = np.clip(self._actions.from_native(given), -1, 1)
        return torch.from_numpy(unit).to(self._device)

    def _look(self) -> np.ndarray:
        """The observations of all rows: arrays of their own, which share nothing with the state."""
        if self._observation == "frame":
            return np.stack(self._pictures())
        world = self._rules.world
        view = world.features(self._state) if self._observation == "features" else world.dynamics.latent(self._state)
        check_finite(view)
        return np.array(view.cpu().numpy(), self.single_observation_space.dtype)

    def _pictures(self) -> tuple[np.ndarray, ...]:
        frames = self._rules.world.frame(self._state)
        check_finite(frames)
        return tuple(picture(frame) for frame in frames)


class DreamEnv(gymnasium.Env):
    """One dream: a `DreamVectorEnv` of one row, of which each episode is begun by `reset`.

    Args and errors are those of `DreamVectorEnv`.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": FPS}  # noqa: RUF012  as gymnasium declares it

    def __init__(self, **how: Any) -> None:
        self._rows = DreamVectorEnv(1, **how)
        self.render_mode = self._rows.render_mode
        self.metadata = {**self.metadata, "render_fps": self._rows.metadata["render_fps"]}
        self.observation_space, self.action_space = self._rows.single_observation_space, self._rows.single_action_space
        self._over = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._over = False
        obs, info = self._rows.reset(seed=int(self.np_random.integers(2**31)))
        return obs[0], info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """As `DreamVectorEnv.step`, of one row.

        Raises:
            ResetNeeded: also after the end of an episode.
        """
        if self._over:
            raise ResetNeeded("the episode has ended: call reset before the next step")
        obs, reward, terminated, truncated, info = self._rows.step(np.asarray(action)[None])
        self._over = bool(terminated[0] or truncated[0])
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> np.ndarray | None:
        """The state as a picture, (H, W, 3) uint8; None without `render_mode`."""
        pictures = self._rows.render()
        return None if pictures is None else pictures[0]

    def close(self) -> None:
        """Forget the dream."""
        self._rows.close()


def _open(logdir: str | Path, device: torch.device) -> tuple[WorldModel, Episodes]:
    if not str(logdir):
        raise ConfigError(f'{DREAM} needs a run with a world model: gym.make(..., logdir="runs/NAME/seed-1")')
    if not is_logdir(str(logdir)):
        raise no_logdir(Path(logdir))
    store = Store(Path(logdir), pipeline.load(logdir))
    return store.world(str(device))[0], store.episodes()


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name}: {value!r} is not known{config.hint(str(value), known)}")


def _observation_space(kind: str, world: WorldModel, frames: Space) -> spaces.Space:
    if kind == "frame":
        return spaces.Box(0, 255, (*frames.shape[1:], 3), np.uint8)
    latent: Space = world.representation.latent
    if kind == "latent" and latent.vocab is not None:
        return spaces.MultiDiscrete(np.full(latent.shape, latent.vocab))
    shape = latent.shape if kind == "latent" else world.feature_shape
    return spaces.Box(-np.inf, np.inf, tuple(shape), np.float32)


def _action_space(meta: dict[str, Any]) -> spaces.Space:
    if meta["discrete"]:
        return spaces.Discrete(meta["size"])
    return spaces.Box(np.float32(meta["low"]), np.float32(meta["high"]), dtype=np.float32)
