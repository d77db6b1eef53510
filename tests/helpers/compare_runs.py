"""Datasets and runs of a toy for tests of `wmrl compare`: what is seen says what the last action was."""

import dataclasses
from typing import Any

import numpy as np
import torch

from wmrl import artifact
from wmrl.config import build, resolved
from wmrl.data.episodes import Episodes
from wmrl.data.shards import Episode, complete, write_shard
from wmrl.dynamics import DYNAMICS
from wmrl.pipeline import parse
from wmrl.representations import REPRESENTATIONS
from wmrl.spec import Actions, Space
from wmrl.store import Store

FRAMES, ACTIONS = Space((3, 32, 32)), Actions(1, False)
GRIDS, VECTORS = Space((2, 10, 10)), Space((3,))
DTYPES = {FRAMES: np.uint8, GRIDS: np.bool_, VECTORS: np.float32}
TABLE: dict[str, Any] = {
    "name": "toy",
    "env": {"id": "Toy-v0", "size": 32},
    "representation": {"kind": "vae", "latent": 2},
    "dynamics": {"kind": "mdn-rnn", "hidden": 4, "mixtures": 2},
    "trainer": {"kind": "cma-es", "dream_steps": 5},
    "validation": 0.4,
    "fit": {"dynamics": {"steps": 10, "length": 8}},
}


def meta(space=FRAMES):
    """What a dataset of these observations says of itself."""
    return {
        "env": {"id": "Toy-v0", "size": 32, "crop": False},
        "policy": {"policy": "white"},
        "observation": {"shape": space.shape, "vocab": None, "dtype": np.dtype(DTYPES[space]).name},
        "actions": {"size": 1, "discrete": False},
    }


def dataset(folder, first=0, count=16, short=(), space=FRAMES):
    """Frames whose brightness the action sets; odd episodes end by themselves, `short` ones after two steps."""
    write_shard(folder, 0, list(made(range(first, first + count), short, space)), meta(space))
    complete(folder)
    return folder


def made(numbers, short=(), space=FRAMES):
    """The episodes of these numbers."""
    for number in numbers:
        rng = np.random.default_rng(number)
        action = rng.uniform(-1, 1, (3 if number in short else 20 + number % 3, 1)).astype(np.float32)
        obs = np.stack([seen(-1.0, space), *(seen(float(a), space) for a in action[:-1, 0])])
        action[-1], end = 0, np.arange(len(action)) == len(action) - 2
        yield Episode(obs, action, action[:, 0], end & bool(number % 2), end & (number % 2 == 0), seed=number)


def seen(action, space=FRAMES):
    """What is seen after an action: its brightness, so many columns, or the number itself."""
    if space == FRAMES:
        return np.full(space.shape, 130 + 90 * action, np.uint8)
    if space == GRIDS:
        return np.broadcast_to(np.arange(10) < 5 + 5 * action, space.shape)
    return np.full(space.shape, 100 + action, np.float32)  # half precision would round it


def run(logdir, data, *, vae=0, seed=0, pipeline_seed=1, space=FRAMES, **tables):
    """A logdir with parts of random weights that say they were trained."""
    pipe = parse({**TABLE, **tables, "data": str(data), "seed": pipeline_seed})
    store = Store(logdir, pipe)
    logdir.mkdir()
    store.remember()
    given, parents = (space,), {"data": Episodes(data).hash}
    for name, registry, table, number in (
        ("vae", REPRESENTATIONS, pipe.representation, vae),
        ("dynamics", DYNAMICS, pipe.dynamics, seed),
    ):
        where = "representation" if name == "vae" else name
        with torch.random.fork_rng():
            torch.manual_seed(number)
            module = build(registry, table, where, *given)
        made = artifact.of(module, name, resolved(registry, table, where), given, parents=dict(parents))
        store.save(name, dataclasses.replace(made, facts={"untrained": False, "fit": {"steps": 10, "seconds": 6}}))
        given, parents[where] = (getattr(module, "latent", None), ACTIONS), made.hash
    return logdir
