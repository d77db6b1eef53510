"""Tiny environments for tests, as a user's own module: `envs_toys:Three-v0`."""

import os
import signal
import time

import gymnasium
import numpy as np
from gymnasium import spaces


class Three(gymnasium.Env):
    """Every pixel tells the step (red), the seed (green) and the last action (blue); even seeds terminate at step 3."""

    metadata = {"render_modes": [], "render_fps": 7}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (20, 30, 3), np.uint8)
    action_space = spaces.Discrete(4, start=2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.seed, self.done = 0, seed, False
        return self.frame(0), {}

    def step(self, action):
        assert not self.done, "stepped after its end"
        assert self.action_space.contains(action), action
        self.t += 1
        self.done = self.t == 3 and self.seed % 2 == 0
        return self.frame(self.code(action)), self.t + self.code(action) / 100, self.done, False, {}

    def code(self, action):
        return int(action) * 10

    def frame(self, code):
        return np.full((20, 30, 3), (self.t * 10, self.seed, code), np.uint8)


class Box(Three):
    action_space = spaces.Box(np.float32([-1, 0]), np.float32([1, 4]))

    def code(self, action):
        assert action.dtype == np.float32 and action.shape == (2,)
        return round(float(10 * (action[0] + 2) + action[1]))


class Own(Three):
    """Truncates by itself at step 2."""

    def step(self, action):
        obs, reward, done, _, info = super().step(action)
        return obs, reward, done, self.t == 2, info


class Grey(Three):
    observation_space = spaces.Box(0, 255, (20, 30), np.uint8)

    def frame(self, code):
        return super().frame(code)[..., 0]


class First(Three):
    observation_space = spaces.Box(0, 255, (3, 20, 30), np.uint8)

    def frame(self, code):
        return super().frame(code).transpose(2, 0, 1)


class Rendered(Three):
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(-1, 1, (4,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def frame(self, code):
        self.code_shown = code
        return np.zeros(4, np.float32)

    def render(self):
        assert self.render_mode == "rgb_array"
        return Three.frame(self, self.code_shown)


class Numbers(Three):
    """Observes numbers of many kinds: the step, the seed, the last action; its pictures are those of `Three`."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Dict(
        {
            "action": spaces.Discrete(60),
            "both": spaces.Tuple([spaces.Box(0, 9, (), np.int64), spaces.MultiBinary(2)]),
            "seed": spaces.Box(-np.inf, np.inf, (1, 2), np.float64),
        }
    )

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def frame(self, code):
        self.code_shown = code
        seed = float("nan") if self.seed == 13 and self.t == 2 else self.seed
        return {"action": code, "both": (self.t, [self.t > 0, 1]), "seed": [[seed, -0.5]]}

    def render(self):
        return Three.frame(self, self.code_shown)


class Planes(Three):
    """Four boolean planes of 5 x 6 cells: plane 0 tells the step by its row, plane 3 the seed by its column."""

    observation_space = spaces.Box(0, 1, (5, 6, 4), bool)

    def frame(self, code):
        planes = np.zeros((5, 6, 4), bool)
        planes[self.t, :, 0] = planes[:, self.seed % 6, 3] = True
        return planes


class Blind(Rendered):
    metadata = {"render_modes": ["human"]}  # noqa: RUF012


class Unspoken(Blind):
    metadata = {"render_modes": None}  # noqa: RUF012


class Tables(Three):
    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = spaces.Dict({"x": spaces.Discrete(3)})


class Many(Three):
    action_space = spaces.MultiDiscrete([2, 2])


class Endless(Three):
    action_space = spaces.Box(-np.inf, np.inf, (2,))


class Unsteered(Three):
    action_space = spaces.Box(-1, 1, (0,))


class Whole(Three):
    action_space = spaces.Box(0, 5, (2,), np.int64)


class Unmade(Three):
    def __init__(self):
        raise RuntimeError("no such simulator")


class Leaves(Three):
    def __init__(self):
        raise SystemExit(3)


class Curtain(Rendered):
    def render(self):
        raise SystemExit


class Chatty(Rendered):
    """Prints in all that it does."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        print("in __init__")

    def reset(self, **how):
        print("in reset")
        return super().reset(**how)

    def step(self, action):
        print("in step")
        return super().step(action)

    def render(self):
        print("in render")
        return super().render()

    def close(self):
        print("in close")


class Crash(Three):
    """The seed says how it goes wrong in its second step."""

    def step(self, action):
        result = super().step(action)
        if self.t == 2:
            if self.seed == 101:
                raise ZeroDivisionError("the car fell\napart")
            if self.seed == 102:
                os._exit(7)
            if self.seed == 103:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.seed == 104:
                time.sleep(600)
            if self.seed == 105:
                print("words that must not reach stdout", flush=True)
            if self.seed == 107:
                raise SystemExit(3)
        return result

    def reset(self, *, seed=None, options=None):
        if seed == 106:
            raise KeyError("no track")
        if seed == 108:
            raise SystemExit
        return super().reset(seed=seed)


GOOD = (Three, Box, Own, Grey, First, Rendered, Chatty, Numbers, Planes)
BAD = (Blind, Unspoken, Tables, Many, Endless, Unsteered, Whole, Unmade, Leaves, Curtain, Crash)
for kind in GOOD + BAD:
    gymnasium.register(f"{kind.__name__}-v0", entry_point=f"{__name__}:{kind.__name__}", max_episode_steps=3)
gymnasium.register("Free-v0", entry_point=f"{__name__}:Three")
