"""The MinAtar backend: five small games with boolean planes, all slots in this process.

Source: Young & Tian 2019. The package is under the GPL and optional; nothing of it is copied here. Its games are called
directly, one Python object for each slot; gymnasium's wrapper would cost more than the games do.

What differs from the package: channels come first; a sticky action does not reach over from the last episode; each
episode is seeded; and where a game does not end by itself it is truncated after `LIMIT` steps. Freeway's own end, after
2,501 steps, is a time limit too, and so truncates: nothing that the agent did led to it.
"""

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium import spaces

from wmrl.envs.actions import ActionMap
from wmrl.envs.base import Outcome, SlotEnv, drawn
from wmrl.envs.names import RAMPING, STICKY, canonical, minatar, observes, versions
from wmrl.envs.pixels import SIDE
from wmrl.envs.views import state_of
from wmrl.errors import missing_extra
from wmrl.pipeline import Env

LIMIT = 2500
"""Steps of an episode at most; the games but Freeway have no limit of their own."""

TIMED = {"freeway": 2501}
"""Games that end after so many steps, and never otherwise."""

FPS = 15.0
"""Frames a second of films: the games have no clock."""


class ArcadeEnv(SlotEnv):
    """MinAtar's games. `threads` is of no use to them: a step takes 3 to 40 microseconds."""

    def __init__(self, env: Env, n: int, *, threads: int):
        env_id = canonical(env.id)[0]
        self._game = minatar(env_id)
        self._make = {
            "sticky_action_prob": STICKY if env.sticky is None else env.sticky,
            "difficulty_ramping": RAMPING if env.ramping is None else env.ramping,
        }
        self._games = [_engine()(self._game, **self._make) for _ in range(n)]
        moves = self._games[0].minimal_action_set() if env_id.endswith("-v1") else range(self._games[0].num_actions())
        self._moves = np.array(moves)
        self._last = np.zeros((n, *self._games[0].state_shape()), bool)  # (n, H, W, C)
        planes = spaces.MultiBinary(self._last.shape[1:])
        seen = observes(env_id, env.observe)
        super().__init__(
            env,
            n,
            action_map=ActionMap(spaces.Discrete(len(self._moves)), env_id),
            native=(SIDE, SIDE),
            state=state_of(planes, env) if seen == "state" else None,
            limit=TIMED.get(self._game, LIMIT),
            fps=FPS,
            info={"backend": "minatar", "pixels": "drawn", "versions": versions("MinAtar", "numpy")},
        )

    def _begin(self, seeds: list[int], ids: np.ndarray) -> np.ndarray:
        for seed, slot in zip(seeds, ids.tolist(), strict=True):
            game = self._games[slot]
            game.seed(seed)
            game.last_action = 0
            game.reset()
            self._last[slot] = game.state()
        return self._see(ids)

    def _advance(self, native: np.ndarray, ids: np.ndarray, times: np.ndarray) -> Outcome:
        reward, over = np.zeros(len(ids), np.float32), np.zeros(len(ids), bool)
        games, last = self._games, self._last
        work = zip(ids.tolist(), self._moves[native].tolist(), times.tolist(), strict=True)
        for row, (slot, move, most) in enumerate(work):
            game = games[slot]
            reward[row], over[row] = game.act(move)
            for _ in range(most - 1):
                if over[row]:
                    break
                more, over[row] = game.act(move)
                reward[row] += more
            last[slot] = game.state()
        timed = self._game in TIMED
        return Outcome(self._see(ids), reward, over & (not timed), over & timed)

    def _see(self, ids: np.ndarray) -> np.ndarray:
        return self._state(self._last[ids], lead=1) if self._state else self._resized(self._frames(ids))

    def _frames(self, ids: np.ndarray) -> np.ndarray:
        return drawn(self._last[ids].transpose(0, 3, 1, 2))

    def _shut(self) -> None:
        self._games.clear()


def _engine() -> Any:
    """The package's class of games.

    Raises:
        ArtifactError: if it is not installed.
    """
    if sys.modules.get("minatar") is None:
        with _no_plots():
            try:
                importlib.import_module("minatar")
            except ImportError:
                raise missing_extra("minatar") from None
    return sys.modules["minatar"].Environment


@contextmanager
def _no_plots() -> Iterator[None]:
    """MinAtar does without what only draws its own windows, two seconds of importing; it would say so on stderr."""
    names = [name for name in ("matplotlib", "seaborn") if name not in sys.modules]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None: an import of it fails
    try:
        yield
    finally:
        logging.disable(before)
        for name in names:
            del sys.modules[name]
