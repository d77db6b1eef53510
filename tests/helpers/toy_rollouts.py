"""A toy game whose rollouts are collected by the real stage, for tests of `generate`."""

import os
import signal
from collections import namedtuple

import numpy as np

from wmrl import interrupts, seeding
from wmrl.data import shards
from wmrl.data.episodes import Episodes
from wmrl.log import Log
from wmrl.pipeline import Env, Generate, Pipeline
from wmrl.run import Run
from wmrl.spec import Actions, Space
from wmrl.stages import generate as stage
from wmrl.store import Store

Outcome = namedtuple("Outcome", "obs reward terminated truncated")
LONGEST = 12


class Game:
    """Episodes of 2 to 12 steps; frames tell seed, step and last action; odd lengths terminate, even ones truncate."""

    observation, actions, fps, native, max_steps = Space((3, 8, 8)), Actions(2, False), 50.0, (8, 8), LONGEST
    info = {"backend": "toy", "versions": {"toy": "1"}, "notes": []}  # noqa: RUF012
    steps: list[tuple[int, int]] = []  # noqa: RUF012  (seed, step) of all steps made
    at_step: dict[int, object] = {}  # noqa: RUF012  number of a call of `step` -> what happens then
    calls = 0

    def __init__(self, env, n, *, threads):
        self.n = n

    def __enter__(self):
        return self

    def close(self):
        pass

    def __exit__(self, *error):
        return None

    def native_action(self, action):
        return action * np.float32([1, 2]) + np.float32([0, 2])

    def reset(self, seeds):
        assert 0 < len(seeds) <= self.n
        self.seeds, self.t = list(seeds), np.zeros(len(seeds), int)
        return np.stack([frame(seed, 0, np.zeros(2)) for seed in seeds])

    def step(self, action, ids):
        Game.calls += 1
        if Game.calls in Game.at_step:
            Game.at_step[Game.calls]()
        self.t[ids] += 1
        mine = [self.seeds[i] for i in ids]
        Game.steps += [(seed, int(t)) for seed, t in zip(mine, self.t[ids], strict=True)]
        ends = self.t[ids] == [length_of(seed) for seed in mine]
        odd = self.t[ids] % 2 == 1
        obs = np.stack([frame(s, t, a) for s, t, a in zip(mine, self.t[ids], action, strict=True)])
        return Outcome(obs, self.t[ids].astype(np.float32), ends & odd, ends & ~odd)


def length_of(seed):
    return 2 + seed % (LONGEST - 1)


def frame(seed, t, action):
    picture = np.zeros((3, 8, 8), np.uint8)
    picture[0], picture[1], picture[2, 0, :2] = seed % 251, t, 100 * action + 100
    return picture


def game(monkeypatch):
    """Put the toy in the place of real games; a fixture's body."""
    monkeypatch.setattr(stage, "make", Game)
    monkeypatch.setattr("wmrl.data.shards.episodes_per_shard", lambda row, steps: 4)
    for name, value in {"steps": [], "at_step": {}, "calls": 0}.items():
        monkeypatch.setattr(Game, name, value)
    yield Game
    interrupts.clear()


def pipe_for(folder, rollouts=10, seed=1, size=8, **generate):
    settings = Generate(rollouts=rollouts, **{"policy": "white", **generate})
    return Pipeline(data=str(folder), seed=seed, env=Env(id="Toy-v0", size=size), generate=settings)


def generate(folder, rollouts=10, *, append=0, threads=1, max_workers=3, **more):
    pipe = pipe_for(folder, rollouts, **more)
    logdir = folder.parent / "log"
    log = Log.quiet("generate", logdir)
    try:
        stage.generate(pipe, Store(logdir, pipe), log, Run(append=append, threads=threads, max_workers=max_workers))
    finally:
        log.close()
    return Episodes(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.h5*")}


def said(folder):
    return (folder.parent / "log" / "logs" / "generate.log").read_text()


def whole_dataset(tmp_path):
    """The bytes of an uninterrupted dataset of 10 episodes."""
    generate(tmp_path / "whole" / "data")
    Game.steps, Game.calls = [], 0
    return contents(tmp_path / "whole" / "data")


def killed(work):
    """Run `work` in a forked process that kills itself; whether it got killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def finishes_like(whole, folder):
    """The same command again: the same bytes, and no finished shard made twice."""
    kept = {name.first: name for name in shards.scan(folder)}
    finished = [i for name in kept.values() for i in range(name.first, name.first + name.count)]
    Game.steps, Game.at_step = [], {}
    generate(folder)
    assert contents(folder) == whole
    done = {seeding.number(1, "episode", i) for i in finished}
    if len(done) < 10:
        first_wave = {seed for seed, t in Game.steps if t > 1}
        assert not done & first_wave, "a finished shard was played again"
