"""Play the episodes of a protocol, wave by wave, so that a killed test continues where it was."""

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmrl import evaluation, files
from wmrl.envs import make
from wmrl.evaluation import Protocol, Score
from wmrl.log import Log
from wmrl.pipeline import Env
from wmrl.protocols import Actor
from wmrl.recording import Episode, Recorder, Tree, unpack
from wmrl.rollout import play, waves
from wmrl.run import cores
from wmrl.stats import told

MANY = 32  # environments of a wave, if it is not of processes: batches large enough, and it takes less than a minute
PER_PROCESS = 4  # gymnasium's environments in each process: a wave of CarRacing takes half a minute
FEW = 16  # rows up to which one thread computes the network: more would only take the environments' cores


@dataclass
class Tally:
    """The episodes played so far under one protocol.

    Args:
        protocol: The conditions.
        environments: How many environments a wave has; part of what makes results reproducible to the last bit.
        returns: (E',) of the first E' episodes.
        lengths: (E',).
        terminated: (E',).
        episodes: The first few episodes, whole.
        fps: Frames per second of the game.
    """

    protocol: Protocol
    environments: int
    returns: np.ndarray = field(default_factory=lambda: np.zeros(0))
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    terminated: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    episodes: list[Episode] = field(default_factory=list)
    fps: float = 30.0

    @property
    def complete(self) -> bool:
        """Whether all episodes were played."""
        return len(self.returns) >= self.protocol.episodes

    @property
    def score(self) -> Score:
        """The score so far."""
        return Score(self.protocol, self.returns, self.lengths, self.terminated)

    def tree(self) -> Tree:
        """The tally as a tree, for the state of a stage in progress."""
        columns = {"returns": self.returns, "lengths": self.lengths, "terminated": self.terminated}
        head = {"protocol": asdict(self.protocol), "environments": self.environments, "fps": self.fps}
        return {**head, **columns, "episodes": [e.pack() for e in self.episodes]}

    @classmethod
    def of_tree(cls, tree: Mapping[str, Any]) -> "Tally":
        """The tally that `tree` made."""
        episodes = [unpack(e) for e in tree["episodes"]]
        columns = {name: tree[name] for name in ("environments", "returns", "lengths", "terminated", "fps")}
        return cls(Protocol(**tree["protocol"]), episodes=episodes, **columns)


def environments(protocol: Protocol, threads: int, most: int) -> int:
    """How many environments to step at once."""
    wanted = PER_PROCESS * threads if protocol.backend == "gymnasium" else MANY
    return max(1, min(wanted, most, protocol.episodes))


def complete(
    tally: Tally,
    env: Env,
    actor: Callable[[Any], Actor],
    *,
    threads: int,
    record: int,
    log: Log,
    save: Callable[[], None],
) -> None:
    """Play the episodes that a tally still lacks.

    Args:
        tally: What there is; it grows.
        env: What is seen of the environment (size, crop, observe, hide); all else is the protocol's.
        actor: Environment -> what acts in it.
        threads: Threads or processes of the environments.
        record: How many of the first episodes to keep whole.
        log: Where to tell how far it is.
        save: Called after each wave.

    Raises:
        Stopped: if a signal asked for it; all waves before are saved.
    """
    protocol = tally.protocol
    seeds = game_seeds(protocol)
    table = replace(
        env,
        id=protocol.env_id,
        backend=_backend(protocol),
        max_steps=protocol.max_steps,
        frame_skip=protocol.frame_skip,
        action_repeat=protocol.action_repeat or 1,
        sticky=protocol.sticky,
        ramping=protocol.ramping,
    )
    few = tally.environments <= FEW
    with one_thread(few), make(table, tally.environments, threads=min(threads, tally.environments)) as games:
        meter, tally.fps = _Meter(tally, log, protocol.max_steps or games.max_steps), games.fps
        for part in waves(protocol.episodes, tally.environments):
            if part.stop <= len(tally.returns):
                continue
            recorder = Recorder(max(0, min(record, part.stop) - part.start))
            wave = seeds[part]
            played = play(games, actor(games), wave, on_step=_both(recorder, meter), max_steps=protocol.max_steps)
            tally.returns = np.concatenate([tally.returns, played.returns])
            tally.lengths = np.concatenate([tally.lengths, played.lengths])
            tally.terminated = np.concatenate([tally.terminated, played.terminated])
            tally.episodes += recorder.episodes()
            save()


@contextlib.contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Compute with one thread, if that is `wanted`."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if wanted else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def game_seeds(protocol: Protocol) -> list[int]:
    """The test seeds as the protocol's game takes them: envpool's are signed 32-bit numbers, so bit 31 is the sign."""
    seeds = protocol.test_seeds()
    return [seed - (1 << 32) for seed in seeds] if protocol.backend == "envpool" else seeds


def measure_random(protocol: Protocol, *, threads: int, log: Log) -> Score:
    """Play the random policy (white noise) under a protocol."""
    from wmrl.data.policies import White

    tally = Tally(protocol, environments(protocol, threads, 256))
    complete(tally, Env(), lambda games: White(games.actions), threads=threads, record=0, log=log, save=lambda: None)
    return tally.score


def _backend(protocol: Protocol) -> Any:
    return protocol.backend


def _both(*listeners: Callable[..., None]) -> Callable[..., None]:
    def call(*args: Any) -> None:
        for listener in listeners:
            listener(*args)

    return call


class _Meter:
    """Tells how many episodes are over, running ones by their share of the longest episode, and how fast it goes."""

    def __init__(self, tally: Tally, log: Log, longest: int | None) -> None:
        self._tally, self._log, self._longest = tally, log, longest
        self._steps, self._over, self._began = 0, len(tally.returns), time.monotonic()
        self._ages: dict[int, int] = {}
        log.progress(self._over, tally.protocol.episodes, "episodes")

    def __call__(self, ids: np.ndarray, obs: Any, action: np.ndarray, outcome: Any) -> None:
        over = outcome.terminated | outcome.truncated
        self._steps, self._over = self._steps + len(ids), self._over + int(over.sum())
        self._ages = {i: self._ages.get(i, 0) + 1 for i, ended in zip(ids.tolist(), over, strict=True) if not ended}
        running = sum(min(age / self._longest, 0.99) for age in self._ages.values()) if self._longest else 0.0
        note = f"{self._steps / max(time.monotonic() - self._began, 1e-9):,.0f} steps/s"
        if played := len(self._tally.returns):
            note += f", mean return of the first {played} {told(self._tally.returns.mean())}"
        done = math.floor(10 * (self._over + running)) / 10
        self._log.progress(done, self._tally.protocol.episodes, "episodes", note)


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m wmrl.evaluation --measure-random carracing-100`."""
    parser = argparse.ArgumentParser("python -m wmrl.evaluation", description="Measure the random policy.")
    parser.add_argument("--measure-random", metavar="PROTOCOL", required=True, help="such as carracing-100")
    parser.add_argument("--threads", type=int, default=cores(), help="environment processes")
    parser.add_argument("--out", type=Path, help="file to write; default: inside the package")
    args = parser.parse_args(argv)
    protocol = evaluation.named(args.measure_random)
    out = args.out or Path(__file__).parent / "baselines" / f"{protocol.id}.json"
    with Log("measure-random", Path("runs") / "measure-random") as log:
        score = measure_random(protocol, threads=args.threads, log=log)
        files.atomic_text(out, evaluation.baseline_text(score, " ".join(["python -m wmrl.evaluation", *sys.argv[1:]])))
        log.out(json.dumps(score.summary().record()))
        log.say(f"wrote {out}")
