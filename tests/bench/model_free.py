"""What a model-free agent scores in the same game: PPO of stable-baselines3, at equal frames or at equal wall time.

    python tests/bench/model_free.py MinAtar/Breakout-v1 --frames 500000 --minutes 40
    python tests/bench/model_free.py MinAtar/Breakout-v1 --hide 2

It plays wmrl's environments (the same observations, limits and seeds of test episodes), and prints the mean return of
the test episodes with its interval. PPO's numbers are those that stable-baselines3 gives it, but for shorter rollouts
of more environments, and two hidden layers of 128 units on the flattened grid.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from wmrl import envs, evaluation
from wmrl.pipeline import Env
from wmrl.seeding import number
from wmrl.stats import summary


class Games(VecEnv):
    """Slots of a wmrl environment, each beginning anew by itself; observations are flat floats."""

    def __init__(self, env: Env, n: int, seed: int) -> None:
        self.inner, self.seed_, self.begun = envs.make(env, n, threads=1), seed, 0
        size = int(np.prod(self.inner.observation.shape))
        actions = spaces.Discrete(self.inner.actions.size)
        super().__init__(n, spaces.Box(0.0, 1.0, (size,), np.float32), actions)
        self.returns = np.zeros(n)
        self.ids = np.arange(n)

    def _fresh(self, count: int) -> list[int]:
        self.begun += count
        return [number(self.seed_, "model-free", i) for i in range(self.begun - count, self.begun)]

    def reset(self) -> np.ndarray:
        return flat(self.inner.reset(self._fresh(self.num_envs)))

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = np.eye(self.inner.actions.size, dtype=np.float32)[actions]

    def step_wait(self) -> Any:
        out = self.inner.step(self.actions, self.ids)
        over, obs, infos = out.terminated | out.truncated, out.obs, list[dict[str, Any]]({} for _ in self.ids)
        if over.any():
            ended, obs = np.flatnonzero(over), obs.copy()
            for i in ended:
                infos[i] = {
                    "terminal_observation": flat(obs[i : i + 1])[0],
                    "TimeLimit.truncated": bool(out.truncated[i]),
                }
            obs[ended] = self.inner.restart(self._fresh(len(ended)), ended)
        return flat(obs), out.reward, over, infos

    def close(self) -> None:
        self.inner.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def flat(obs: np.ndarray) -> np.ndarray:
    """Grids (n, C, H, W) bool -> (n, C H W) float32."""
    return obs.reshape(len(obs), -1).astype(np.float32)


class Until(BaseCallback):
    """Ends a training after so many minutes."""

    def __init__(self, minutes: float) -> None:
        super().__init__()
        self.end = time.monotonic() + 60 * minutes

    def _on_step(self) -> bool:
        return time.monotonic() < self.end


def score(agent: PPO, env: Env, episodes: int) -> np.ndarray:
    """Returns (E,) of the test episodes, actions drawn from the policy as it was trained."""
    protocol = evaluation.protocol(env.id, episodes=episodes)
    seeds = protocol.test_seeds()
    returns = np.zeros(episodes)
    with envs.make(env, episodes, threads=1) as games:
        obs, alive = games.reset(seeds), np.arange(episodes)
        while len(alive):
            action, _ = agent.predict(flat(obs), deterministic=False)
            out = games.step(np.eye(games.actions.size, dtype=np.float32)[action], alive)
            returns[alive] += out.reward
            going = ~(out.terminated | out.truncated)
            alive, obs = alive[going], out.obs[going]
    return returns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env_id")
    parser.add_argument("--frames", type=int, default=10**9)
    parser.add_argument("--minutes", type=float, default=10**6)
    parser.add_argument("--hide", type=int, nargs="*", default=[])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    env = Env(id=args.env_id, hide=tuple(args.hide))
    games = Games(env, 16, args.seed)
    net = {"net_arch": [128, 128]}
    agent = PPO("MlpPolicy", games, n_steps=128, batch_size=256, policy_kwargs=net, seed=args.seed, device="cpu")
    began = time.monotonic()
    agent.learn(args.frames, callback=Until(args.minutes))
    took = time.monotonic() - began
    found = summary(score(agent, env, args.episodes))
    head = {"env": args.env_id, "hide": args.hide, "frames": agent.num_timesteps, "minutes": took / 60}
    print(json.dumps({**head, **found.record()}))


if __name__ == "__main__":
    main()
