"""A small game that costs next to nothing: a bright square is moved over a dark field, episodes take 8 to 20 steps."""

import os
import time

import gymnasium
import numpy as np

SLOWLY = float(os.environ.get("TINY_SECONDS", "0"))
"""Seconds that a step takes: some tests have to come in time."""


class Tiny(gymnasium.Env):
    """Two actions move the square; the nearer to the middle, the more reward."""

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(0, 255, (32, 32, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = self.np_random.uniform(4, 28, 2)
        self.left = int(self.np_random.integers(8, 21))
        return self._show(), {}

    def step(self, action):
        time.sleep(SLOWLY)
        self.at = np.clip(self.at + 3 * np.asarray(action, float), 2, 29)
        self.left -= 1
        reward = 1 - float(np.abs(self.at - 16).sum()) / 32
        return self._show(), reward, self.left <= 0, False, {}

    def _show(self):
        frame = np.full((32, 32, 3), 20, np.uint8)
        y, x = self.at.astype(int)
        frame[y - 2 : y + 3, x - 2 : x + 3] = (230, 120, 40)
        return frame


gymnasium.register("Tiny-v0", entry_point="tiny_env:Tiny")
