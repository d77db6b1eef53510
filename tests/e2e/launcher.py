"""Runs `wmrl` many times quickly: a process that has imported everything forks for each command.

It reads a JSON object a line on stdin: `words`, `folder`, `out`, `err`, `journal`, `environ`, `fault`; it answers with
the child's pid, and with its exit status when it is over. The child writes each event (a file operation, a line of the
log, a gradient step, a step or reset of the environments) into the journal, and a `fault` strikes at one of them:

    {"at": 12}                                              the 12th event of all
    {"on": "replace", "match": "vae.part.h5", "nth": 2}     the second event of this kind whose text has this in it
    "when": "before" (default) or "after"; "do": "kill" (default), "term", "int" or "full" (no space left on the disk)

Nothing of this is known to wmrl: functions are replaced around it, in the child only.
"""

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}


class Fault:
    """Counts events, keeps the journal, and strikes once."""

    def __init__(self, plan: dict[str, Any], journal: str):
        self.plan, self.events, self.matched = plan, 0, 0
        self.file = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.write, self.done = os.write, False

    def event(self, kind: str, text: str, call: Callable[[], Any]) -> Any:
        """An event: `call` with a fault before it or after it, or neither."""
        self.events += 1
        hit = not self.done and self._hits(kind, text)
        self.write(self.file, f"{kind} {text}\n".encode())
        if hit and self.plan.get("when", "before") == "before":
            self._strike()
        found = call()
        if hit and self.plan.get("when") == "after":
            self._strike()
        return found

    def _hits(self, kind: str, text: str) -> bool:
        if "at" in self.plan:
            return self.events == self.plan["at"]
        if kind != self.plan.get("on") or self.plan.get("match", "") not in text:
            return False
        self.matched += 1
        return self.matched == self.plan.get("nth", 1)

    def _strike(self) -> None:
        self.done = True
        what = self.plan.get("do", "kill")
        if what == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.kill(os.getpid(), SIGNALS[what])


def watch(fault: Fault) -> None:
    """Put `fault` around everything that counts as an event."""
    import torch

    from wmrl.envs.base import SlotEnv
    from wmrl.log import Log

    def around(holder: Any, name: str, kind: str, text: Callable[..., str]) -> None:
        original = getattr(holder, name)
        setattr(
            holder, name, lambda *a, **k: fault.event(kind, text(*a, **k).split("\n")[0], lambda: original(*a, **k))
        )

    around(os, "replace", "replace", lambda source, target: os.fspath(target))
    around(os, "fsync", "fsync", _path_of)
    around(os, "write", "write", lambda handle, data: f"{_path_of(handle)}")
    around(Log, "keep", "log", lambda log, text: text)
    around(SlotEnv, "reset", "reset", lambda env, seeds: " ".join(str(int(seed)) for seed in seeds))
    around(SlotEnv, "step", "env", lambda env, action, ids: str(len(ids)))
    around(torch.optim.Adam, "step", "gradient", lambda *args: "")


def _path_of(handle: int) -> str:
    return str(Path(f"/proc/self/fd/{handle}").readlink())


def child(order: dict[str, Any]) -> int:
    """Be `wmrl WORDS` in a folder; the exit code."""
    os.chdir(order["folder"])
    for number, path in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
        handle = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.update(order["environ"])
    sys.argv = ["wmrl", *order["words"]]
    watch(Fault(order["fault"], order["journal"]))
    from wmrl.cli import main

    try:
        main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001  the test will see it
        traceback.print_exc()
        return 1
    return 0


def warm_up() -> None:
    """Import what commands need, but compute nothing: threads do not survive a fork."""
    import importlib
    import pkgutil

    import wmrl

    for module in pkgutil.walk_packages(wmrl.__path__, "wmrl."):
        importlib.import_module(module.name)
    importlib.import_module("tiny_env")


def main() -> None:
    warm_up()
    print("ready", flush=True)
    for text in sys.stdin:
        order = json.loads(text)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = child(order)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
