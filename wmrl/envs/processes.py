"""The gymnasium backend: any registered id and any `module:Id`, stepped in this process or in workers.

gymnasium's own AsyncVectorEnv takes one process for each environment, steps all of them or none, and waits forever for
a worker that died; so here each worker holds the environments of many slots, and only the slots that are named move.
"""

import contextlib
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection, wait
from typing import IO, Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np

from wmrl.envs.base import Outcome, SlotEnv, drawn
from wmrl.envs.board import Board, Layout, allocate
from wmrl.envs.gym import Found, find
from wmrl.envs.worker import Block, EnvFailed, Plan, aside
from wmrl.errors import UserError
from wmrl.pipeline import Env

PATIENCE = 120.0
"""Seconds for each slot of a worker after which it counts as hanging."""

_ENVIRON = {"PYGAME_HIDE_SUPPORT_PROMPT": "1", "OMP_NUM_THREADS": "1"}


class ProcessEnv(SlotEnv):
    """gymnasium environments in `threads` workers; with one thread, in this process."""

    def __init__(self, env: Env, n: int, *, threads: int):
        found = find(env)
        super().__init__(
            env,
            n,
            action_map=found.action_map,
            native=found.native,
            state=found.state,
            limit=found.limit,
            fps=found.fps,
            info={"backend": "gymnasium", "pixels": found.pixels, "versions": found.versions},
        )
        crew = min(threads, n)
        self._plan = self._planned(found)
        self._fd = allocate(self._plan.layout.nbytes())
        self._board = Board(self._plan.layout, mmap.mmap(self._fd, self._plan.layout.nbytes()))
        self._block = Block(self._plan, self._board) if crew == 1 else None
        self._workers: list[Worker] = []
        if crew > 1:
            self._guard(self._hire, crew)

    def _hire(self, crew: int) -> None:
        for number in range(crew):
            self._workers.append(Worker(number, crew, self._plan, self._fd))

    def _planned(self, found: Found) -> Plan:
        seen = (self.observation.shape, self._dtype.str)
        frames = (0, 0) if found.pixels == "drawn" else found.native
        layout = Layout(self.n, frames, *seen, found.action_map.shape, found.action_map.dtype.str)
        return Plan(found.spec, found.modules, found.state, found.order, found.options, self._crop, layout)

    def _begin(self, seeds: list[int], ids: np.ndarray) -> np.ndarray:
        slots = ids.tolist()
        self._call("reset", list(zip(slots, seeds, strict=True)), slots)
        return self._board.obs[ids]

    def _advance(self, native: np.ndarray, ids: np.ndarray, times: np.ndarray) -> Outcome:
        board, slots = self._board, ids.tolist()
        board.action[ids], board.times[ids] = native, times
        self._call("step", slots, slots)
        reward = board.reward[ids].astype(np.float32)
        return Outcome(board.obs[ids], reward, board.terminated[ids], board.truncated[ids])

    def _call(self, name: str, arguments: list[Any], slots: list[int]) -> None:
        """Have each slot's worker (or this process) do `name` with the slot's argument."""
        if self._block is not None:
            try:
                with aside():
                    self._block.call(name, arguments)
            except EnvFailed as failed:
                raise self._failure("", failed.report) from failed.__cause__
            return
        crew = len(self._workers)
        shares = [[a for a, slot in zip(arguments, slots, strict=True) if slot % crew == w] for w in range(crew)]
        busy = [worker for worker, share in zip(self._workers, shares, strict=True) if worker.tell(name, share)]
        self._collect(busy, name, time.monotonic() + PATIENCE * max(map(len, shares)))

    def _collect(self, busy: list["Worker"], name: str, deadline: float) -> None:
        waiting = {worker.pipe: worker for worker in busy}
        while waiting:
            ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                names = ", ".join(str(worker) for worker in waiting.values())
                raise UserError(f"{names} of {self.info['id']} gave no answer to {name} in time: the environment hangs")
            for pipe in ready:
                worker = waiting.pop(pipe)  # type: ignore[call-overload]  # wait returns what it was given
                report = worker.answer(self.info["id"])
                if report is not None:
                    raise self._failure(f" in {worker}", report)

    def _failure(self, where: str, report: tuple[int, str, str, str]) -> UserError:
        slot, doing, line, trace = report
        error = UserError(f"environment {self.info['id']} failed in {doing} of slot {slot}{where}: {line}")
        error.add_note(trace.rstrip())
        return error

    def _frames(self, ids: np.ndarray) -> np.ndarray:
        if self.info["pixels"] == "drawn":
            return drawn(self._board.obs[ids])
        if self._state is not None:
            self._guard(self._call, "draw", ids.tolist(), ids.tolist())
        return self._board.frames[ids]

    def _shut(self) -> None:
        if self._block is not None:
            with aside():
                self._block.close()
        for worker in self._workers:
            worker.dismiss()
        for worker in self._workers:
            worker.bury()
        os.close(self._fd)


class Worker:
    """A process that steps every `crew`-th slot; what it and its libraries say goes to our stderr, line by line."""

    def __init__(self, number: int, crew: int, plan: Plan, board: int):
        self._name = f"environment worker {number + 1} of {crew}"
        ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from wmrl.envs.worker import main; main({fd})"],
                pass_fds=(fd, board),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_ENVIRON, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        self._listener = threading.Thread(target=_pass_on, args=(self.process.stdout,), daemon=True)
        self._listener.start()
        self.pipe = Connection(ours.detach())
        self._send(cloudpickle.dumps((plan, board)))

    def __str__(self) -> str:
        return self._name

    def tell(self, name: str, share: list[Any]) -> bool:
        """Ask for something, if there is anything to do; whether an answer will come."""
        if share:
            self._send(cloudpickle.dumps((name, share)))
        return bool(share)

    def answer(self, env_id: str) -> tuple[int, str, str, str] | None:
        """None, or the report of a failure.

        Raises:
            UserError: if the process is dead.
        """
        try:
            report: tuple[int, str, str, str] | None = self.pipe.recv()
            return report
        except (EOFError, OSError):
            raise UserError(f"{self} of {env_id} died: {self._cause()}") from None

    def dismiss(self) -> None:
        """Tell it that nothing more will come."""
        self.pipe.close()

    def bury(self) -> None:
        """Wait until it is gone, by force if it lingers, and its last words are passed on."""
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._hear_out()

    def _hear_out(self) -> None:
        self._listener.join(timeout=2)  # not for ever: a child of its own may live on and keep the pipe open

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # if it died, the answer says so
            self.pipe.send_bytes(message)

    def _cause(self) -> str:
        try:
            code = self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        self._hear_out()
        if code == -9:
            return "it was killed (signal 9), perhaps because memory ran out"
        return f"it was killed by signal {-code}" if code < 0 else f"it exited with code {code}; see its words above"


def _pass_on(words: IO[bytes]) -> None:
    """Write whole lines to whatever stderr is by then (a log keeps them too), until nobody can say any more.

    It goes on reading where stderr takes nothing: a worker is not to wait, nor to fail, for its words.
    """
    with words:
        for line in words:
            if sys.stderr is not None:
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.write(line.decode(errors="replace").removesuffix("\n") + "\n")
