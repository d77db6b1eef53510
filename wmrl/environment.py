"""The `env` table of a pipeline: the environment, and what of it is seen."""

from dataclasses import dataclass
from typing import Any, Literal

from wmrl import config
from wmrl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Env:
    """The environment, and what of it is seen.

    Args:
        id: A gymnasium id, or `module:Id`.
        size: Side of the square frames, pixels. Source: Ha & Schmidhuber 2018, 64.
        crop: Cut CarRacing's status bar (the lowest 12 of 96 rows) off. Source: Ha & Schmidhuber 2018 did, ctallec not.
        backend: What steps the environments: "envpool" (C++ threads), "gymnasium" (processes), "minatar" (this
            process), "auto" the fastest that has the id.
        max_steps: Steps after which an episode is truncated; the environment's own limit if left out.
        frame_skip: Tics of the game in a step, of which the last is seen; the game's default if left out. Only
            TakeCover-v1 has a choice: 4, for 525 steps at most, or 1, for 2,100. Source: Ha & Schmidhuber 2018, 1.
        observe: "pixels" (square frames, uint8), "state" (the environment's own observation, a vector of floats or
            boolean planes), "auto" pixels where there are any, but MinAtar's planes.
        hide: Planes, or numbers of the vector, that the agent does not see; they are cut out.
        action_repeat: Steps of the game for which an action is held; their rewards are summed. Limits of the game
            count its own steps, `max_steps` the agent's. Source: Hafner et al. 2019, 2.
        sticky: The chance that MinAtar repeats the last action instead; 0.1 if left out. Source: Young & Tian 2019.
        ramping: Whether MinAtar's games grow harder; they do if left out. Source: Young & Tian 2019.
    """

    id: str = "CarRacing-v3"
    size: int = 64
    crop: bool = False
    backend: Literal["auto", "envpool", "gymnasium", "minatar"] = "auto"
    max_steps: int | None = None
    frame_skip: int | None = None
    observe: Literal["auto", "pixels", "state"] = "auto"
    hide: tuple[int, ...] = ()
    action_repeat: int = 1
    sticky: float | None = None
    ramping: bool | None = None

    def table(self) -> dict[str, Any]:
        """A JSON-able table, without the keys that datasets made before there was `observe` do not know, if unused."""
        later = {"observe": "auto", "hide": [], "action_repeat": 1}
        return {key: value for key, value in config.plain(self).items() if later.get(key) != value}


def check_env(env: Env) -> None:
    """Check what types alone do not rule out.

    Raises:
        ConfigError: naming the key.
    """
    if not 0 <= (env.sticky or 0) <= 1:
        raise ConfigError(f"env.sticky: a chance lies between 0 and 1, got {env.sticky}")
    if len(set(env.hide)) < len(env.hide) or min(env.hide, default=0) < 0:
        raise ConfigError(f"env.hide: different numbers from 0 on, got {list(env.hide)}")
