"""Steps gymnasium environments for some slots, in this process or as a worker of another.

A worker is `python -c "from wmrl.envs.worker import main; main(FD)"`: it shares nothing with its parent but a socket
(FD) and a board, so it neither forks threads nor imports the parent's script again. It ends when the socket does.
"""

import contextlib
import importlib
import mmap
import os
import signal
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np

from wmrl.envs.board import Board, Layout
from wmrl.envs.pixels import resize, rgb
from wmrl.envs.views import State

FAILURES = (Exception, SystemExit)
"""What counts as a failure of an environment: one that calls sys.exit must not end us with its own exit code."""


@dataclass(frozen=True)
class Plan:
    """How to make an environment and what to look at.

    Args:
        spec: gymnasium's description of it.
        modules: Modules to import first.
        state: How its own observation is seen, or None: frames are looked at.
        order: Layout of the observed image, or None: look at what it renders.
        options: What it is made with, besides.
        crop: Rows cut off at the bottom.
        layout: The board.
    """

    spec: gymnasium.envs.registration.EnvSpec
    modules: tuple[str, ...]
    state: State | None
    order: str | None
    options: dict[str, Any]
    crop: int
    layout: Layout

    def make(self) -> gymnasium.Env:
        """One environment, without a time limit: the base class of the backends counts."""
        prepare(self.modules)
        return gymnasium.make(self.spec, max_episode_steps=-1, disable_env_checker=True, **self.options)


def prepare(modules: Iterable[str]) -> None:
    """Import what registers or defines an environment."""
    for name in modules:
        module = importlib.import_module(name)
        if name == "ale_py":
            module.ALEInterface.setLoggerMode(module.LoggerMode.Error)  # no banner for each game


def aside() -> contextlib.AbstractContextManager[Any]:
    """Let what an environment prints go to stderr: stdout is for results.

    It holds for the whole process: never step environments like this from several threads at once.
    """
    return contextlib.redirect_stdout(sys.stderr)


class EnvFailed(Exception):
    """An environment raised: which slot, doing what, the error in one line, the traceback."""

    def __init__(self, slot: int, doing: str, error: BaseException):
        line = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
        self.report = (slot, doing, line, traceback.format_exc())
        super().__init__(*self.report[:3])


class Block:
    """The environments of some slots, made when first needed and kept from episode to episode."""

    def __init__(self, plan: Plan, board: Board):
        self._plan, self._board = plan, board
        self._envs: dict[int, gymnasium.Env] = {}

    def call(self, name: str, argument: Any) -> None:
        """One of the methods below, by name.

        Raises:
            EnvFailed: if an environment raises.
        """
        getattr(self, name)(argument)

    def reset(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Begin an episode in each slot with its seed."""
        for slot, seed in pairs:
            try:
                if slot not in self._envs:
                    self._envs[slot] = self._plan.make()
                observation, _ = self._envs[slot].reset(seed=seed)
                self._show(slot, observation)
            except FAILURES as error:
                raise EnvFailed(slot, f"reset(seed={seed})", error) from error

    def step(self, slots: Iterable[int]) -> None:
        """Step each slot by the action on the board, as often as it says there."""
        board = self._board
        for slot in slots:
            try:
                action, total = board.action[slot], 0.0
                for _ in range(board.times[slot]):
                    native = action.copy() if action.ndim else int(action)
                    observation, reward, terminated, truncated, _ = self._envs[slot].step(native)
                    total += float(reward)
                    if terminated or truncated:
                        break
                board.reward[slot], board.terminated[slot], board.truncated[slot] = total, terminated, truncated
                self._show(slot, observation)
            except FAILURES as error:
                raise EnvFailed(slot, "step", error) from error

    def draw(self, slots: Iterable[int]) -> None:
        """Put what the environments render on the board, where their own observation is looked at."""
        for slot in slots:
            try:
                self._put(slot, np.asarray(self._envs[slot].render()))
            except FAILURES as error:
                raise EnvFailed(slot, "render", error) from error

    def close(self) -> None:
        """Close the environments."""
        while self._envs:
            self._envs.popitem()[1].close()

    def _show(self, slot: int, observation: Any) -> None:
        plan, board = self._plan, self._board
        if plan.state is not None:
            board.obs[slot] = plan.state(observation)
            return
        seen = self._envs[slot].render() if plan.order is None else rgb(np.asarray(observation)[None], plan.order)[0]
        self._put(slot, np.asarray(seen))
        kept = slice(slot, slot + 1)
        resize(board.frames[kept], plan.layout.obs[-1], plan.crop, out=board.obs[kept])

    def _put(self, slot: int, frame: np.ndarray) -> None:
        wanted = self._board.frames.shape[1:]
        if frame.shape != wanted or frame.dtype != np.uint8:
            raise ValueError(f"showed a frame {frame.shape} of {frame.dtype}, not {wanted} of uint8")
        self._board.frames[slot] = frame


def main(fd: int) -> None:
    """Serve a parent until it goes away.

    The first message is the plan and the board's descriptor; then come ("reset", pairs), ("step", slots) and ("draw",
    slots), each answered by None or by the report of an `EnvFailed`.
    """
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a pipe, but what it prints is to be seen
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # the parent gets them too, and decides
    os.set_inheritable(fd, False)
    with Connection(fd) as parent, contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _serve(parent)  # until the parent is gone


def _serve(parent: Connection) -> None:
    plan, board_fd = parent.recv()
    os.set_inheritable(board_fd, False)
    board = Board(plan.layout, mmap.mmap(board_fd, plan.layout.nbytes()))
    os.close(board_fd)
    block = Block(plan, board)
    while True:
        name, argument = parent.recv()
        try:
            block.call(name, argument)
            parent.send(None)
        except EnvFailed as failed:
            parent.send(failed.report)
