"""Finished runs whose models are easy to see through, for tests of dreams as environments.

Frames are grey. Episode e begins with one of grey 40 e; all later frames are white, so that no dream begins there.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wmrl import artifact, config
from wmrl.data.ingest import actions_meta
from wmrl.data.shards import Episode, complete, write_shard
from wmrl.dynamics import DYNAMICS
from wmrl.pipeline import parse
from wmrl.representations import REPRESENTATIONS
from wmrl.spec import Actions, Space, Step
from wmrl.store import Store

FRAMES, EPISODES = Space((3, 8, 8)), 6
BOX = (Actions(2, False), [-1.0, 0.0], [1.0, 4.0])
THREE = (Actions(3, True), None, None)
STARTS = torch.arange(EPISODES) * 40 / 100 - 1  # the latents of first frames: -1, -0.6, ... 1
ENVIRONMENT = {"fps": 25.0, "max_steps": 40}


class Grey(nn.Module):
    """A latent is a shade in [-1, 1]; nothing is drawn."""

    def __init__(self, observation):
        super().__init__()
        self.latent = Space((1,))

    def encode(self, obs):
        return obs.float().mean((-3, -2, -1))[..., None] / 100 - 1

    def draw(self, code, *, sample, rng=None):
        return code

    def decode(self, latent):
        return ((latent + 1) / 2)[..., None, None].expand(*latent.shape[:-1], 3, 8, 8)


class Word(Grey):
    """A latent is two tokens."""

    def __init__(self, observation):
        super().__init__(observation)
        self.latent = Space((2,), vocab=6)

    def draw(self, code, *, sample, rng=None):
        return ((code + 1) / 0.4).round().long().expand(*code.shape[:-1], 2)

    def decode(self, latent):
        return super().decode(latent[..., :1] / 3 - 1)


class Aim(nn.Module):
    """Reward for an action near the shade; a second action of more than 0.9 ends the episode. The shade shakes.

    A state also keeps its age, the first shade, and a number that is drawn when it starts.
    """

    feature_shape = (4,)
    seen: list[torch.Tensor] = []  # noqa: RUF012  the actions of all steps

    def __init__(self, latent, actions):
        super().__init__()
        self.actions = actions

    def start(self, latent, *, rng):
        luck = torch.rand(len(latent), generator=rng)
        return {"z": latent, "since": (torch.zeros(len(latent), dtype=torch.long), latent.clone(), luck)}

    def imagine(self, state, action, *, rng, temperature=1.0):
        Aim.seen.append(action.clone())
        z, (age, first, luck) = state["z"], state["since"]
        shaken = z + 0.1 * temperature * torch.randn(z.shape, generator=rng)
        cont = torch.where(action[:, 1] > 0.9, 0.0, 0.8)
        return Step({"z": shaken, "since": (age + 1, first, luck)}, 1 - (action[:, 0] - z[:, 0]).abs(), cont)

    def features(self, state):
        age, first, luck = state["since"]
        return torch.stack([state["z"][:, 0], age.float(), first[:, 0], luck], -1)

    def latent(self, state):
        return state["z"]


class Dice(Aim):
    """Tokens change at random."""

    feature_shape = (2,)

    def start(self, latent, *, rng):
        return (latent,)

    def imagine(self, state, action, *, rng, temperature=1.0):
        (z,) = state
        thrown = torch.randint(6, z.shape, generator=rng)
        return Step((thrown,), thrown[:, 0].float(), torch.ones(len(z)))

    def features(self, state):
        return state[0].float()

    def latent(self, state):
        return state[0]


def register(monkeypatch) -> None:
    """Let pipelines name these parts."""
    for registry, name, kind in ((REPRESENTATIONS, "grey", Grey), (REPRESENTATIONS, "word", Word)):
        monkeypatch.setitem(registry, name, f"{__name__}:{kind.__name__}")
    for name, kind in {"aim": Aim, "dice": Dice}.items():
        monkeypatch.setitem(DYNAMICS, name, f"{__name__}:{kind.__name__}")
    monkeypatch.setattr(Aim, "seen", [])


def make_run(folder: Path, dynamics: dict[str, Any], representation: str = "grey", box=BOX, about=ENVIRONMENT) -> str:
    """A dataset and a logdir with V and M; the logdir."""
    actions, low, high = box
    meta = {
        "env": {"id": "Grey-v0", "size": 8, "crop": False},
        "policy": {"policy": "white"},
        "actions": actions_meta(actions, low, high),
        "environment": about,
    }
    write_shard(folder / "data", 0, [_episode(e, actions.size) for e in range(EPISODES)], meta)
    complete(folder / "data")
    table = {"name": "grey", "data": str(folder / "data"), "env": {"id": "Grey-v0", "size": 8}}
    pipe = parse({**table, "representation": {"kind": representation}, "dynamics": dynamics})
    store = Store(folder / "run", pipe)
    store.remember()
    torch.manual_seed(0)
    v = config.build(REPRESENTATIONS, pipe.representation, "representation", FRAMES)
    made = artifact.of(v, "vae", config.resolved(REPRESENTATIONS, pipe.representation, "representation"), (FRAMES,))
    given = (v.latent, actions)
    m = config.build(DYNAMICS, pipe.dynamics, "dynamics", *given)
    table, parents = config.resolved(DYNAMICS, pipe.dynamics, "dynamics"), {"representation": made.hash}
    store.save("vae", made)
    store.save("dynamics", artifact.of(m, "dynamics", table, given, parents=parents))
    return str(store.logdir)


def _episode(e: int, size: int) -> Episode:
    obs = np.full((3, *FRAMES.shape), 255, np.uint8)
    obs[0] = 40 * e
    zeros = np.zeros(3, np.float32)
    return Episode(obs, np.zeros((3, size), np.float32), zeros, np.arange(3) == 1, zeros > 0, seed=e)
