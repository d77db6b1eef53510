"""What stands beside each other in a film: the real frame, its reconstruction, and what the world model dreams.

All that is computed here ends with `Stopped` soon after a signal asked for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import cv2
import numpy as np
import torch
from torch import Tensor

from wmrl import interrupts
from wmrl.recording import Episode
from wmrl.rollout import Policy, look
from wmrl.seeding import generator
from wmrl.spec import State
from wmrl.traces import Traces, scale_of
from wmrl.video import beside, picture, scaled, titled
from wmrl.world import WorldModel

BLOCK = 64  # frames encoded and decoded at a time
LABEL = 118  # width of a strip's first column, pixels


@dataclass(frozen=True)
class Column:
    """One column of a film.

    Args:
        title: What it shows.
        frames: Its pictures, (H, W, 3) uint8, one for each row of the episode.
        notes: Words behind the title, one for each picture; empty for none.
    """

    title: str
    frames: Sequence[np.ndarray]
    notes: Sequence[str] = ()

    def caption(self, i: int) -> str:
        """Title and note of picture i."""
        return f"{self.title}  {self.notes[i]}" if self.notes else self.title


class Encoded(Sequence[np.ndarray]):
    """Pictures kept as PNG and decoded one at a time."""

    def __init__(self, data: Sequence[bytes]) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    @overload
    def __getitem__(self, i: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, i: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        if isinstance(i, slice):
            return Encoded(self._data[i])
        return np.asarray(cv2.imdecode(np.frombuffer(self._data[i], np.uint8), cv2.IMREAD_COLOR))[:, :, ::-1]


@dataclass(frozen=True)
class Dreaming:
    """How to dream.

    Args:
        seed: Of the dynamics' draws.
        temperature: Of the dynamics' draws.
        device: Where to compute.
    """

    seed: int
    temperature: float = 1.0
    device: str = "cpu"


class Dreamt(NamedTuple):
    """A pure dream of T steps."""

    frames: Sequence[np.ndarray]  # T + 1
    reward: np.ndarray  # (T,)
    cont: np.ndarray  # (T,)


def real(episode: Episode) -> Column:
    """What the environment showed, in its own resolution if that was recorded; of vectors, curves."""
    if episode.native:
        return Column("real", Encoded(episode.native))
    return Column("real", _pictures(torch.from_numpy(np.ascontiguousarray(episode.obs))))


@torch.inference_mode()
def reconstruction(representation: Any, episode: Episode, device: str) -> Column:
    """What the representation keeps of each frame."""
    frames: list[np.ndarray] = []
    for begin in range(0, len(episode.obs), BLOCK):
        interrupts.check()
        obs = torch.from_numpy(np.ascontiguousarray(episode.obs[begin : begin + BLOCK])).to(device)
        latent = representation.draw(representation.encode(obs), sample=False)
        frames += _pictures(representation.decode(latent))
    return Column("reconstruction", frames)


@torch.inference_mode()
def dream(world: WorldModel, episode: Episode, how: Dreaming, *, every: int) -> Column:
    """What the world model expects to see, given the actions that were taken.

    Args:
        world: The frozen world model.
        episode: What happened.
        how: Seed, temperature, device.
        every: Dreamt steps after which the truth is shown, and the dream begins again from it; 0: never.
    """
    rng = generator(how.seed, "dream column", device=how.device)
    obs = torch.from_numpy(np.ascontiguousarray(episode.obs)).to(how.device)
    action = torch.from_numpy(np.ascontiguousarray(episode.action)).to(how.device)
    awake = world.start(obs[:1], rng=rng)
    asleep, since, expected = awake, 0, 0.0
    frames, notes = [world.frame(asleep).float().cpu()], ["awake"]
    for t in range(len(episode)):
        interrupts.check()
        asleep, reward, _ = world.imagine(asleep, action[t : t + 1], rng=rng, temperature=how.temperature)
        since, expected = since + 1, expected + float(reward)
        if every:
            awake = world.observe(awake, action[t : t + 1], obs[t + 1 : t + 2], rng=rng)
            if since > every:
                asleep, since, expected = awake, 0, 0.0
        frames.append(world.frame(asleep).float().cpu())
        notes.append(f"+{since} steps, reward {expected:.1f}" if since else "awake")
    return Column("dream", _pictures(torch.cat(frames), episode.obs), notes)


@torch.inference_mode()
def pure_dream(world: WorldModel, policy: Policy, first: np.ndarray, how: Dreaming, *, steps: int) -> Dreamt:
    """A dream from one real frame in which the controller acts; it ends where the world model thinks it does.

    Args:
        world: The frozen world model.
        policy: What acts on its view of the dream.
        first: (C, H, W), the frame it begins with.
        how: Seed, temperature, device.
        steps: Most steps to dream.
    """
    rng = generator(how.seed, "pure dream", device=how.device)
    policy.begin(1, [how.seed])
    state: State = world.start(torch.from_numpy(np.ascontiguousarray(first[None])).to(how.device), rng=rng)
    frames, rewards, conts = [world.frame(state).float().cpu()], [], []
    for _ in range(steps):
        interrupts.check()
        action = policy.act(look(world, policy.controller, state))
        state, reward, cont = world.imagine(state, action, rng=rng, temperature=how.temperature)
        frames.append(world.frame(state).float().cpu())
        rewards.append(float(reward))
        conts.append(float(cont))
        if conts[-1] < 0.5:
            break
    return Dreamt(_pictures(torch.cat(frames)), np.array(rewards), np.array(conts))


def side_by_side(columns: Sequence[Column], i: int, header: str, height: int) -> np.ndarray:
    """Picture i of a film: a header, and the columns beside each other, `height` pixels high."""
    panels = [titled(scaled(column.frames[i], height), column.caption(i)) for column in columns]
    return titled(beside(panels), header)


def stacked(columns: Sequence[Column], i: int, header: str, height: int) -> np.ndarray:
    """One moment of a strip: the columns above each other."""
    return titled(np.concatenate([scaled(column.frames[i], height) for column in columns]), header)


def labels(columns: Sequence[Column], height: int) -> np.ndarray:
    """The first column of a strip: what the rows show."""
    rows = []
    for column in columns:
        row = titled(np.full((height, LABEL, 3), 24, np.uint8), column.title)
        rows.append(row[:height])
    return titled(np.concatenate(rows), "")


def _pictures(frames: Tensor, like: np.ndarray | None = None) -> Sequence[np.ndarray]:
    """Frames (T, C, H, W) or vectors (T, n) as pictures; curves of vectors are to the scale of `like` (T', n)."""
    if frames.ndim == 2:
        values = frames.float().cpu().numpy()
        return Traces(values, scale_of(values if like is None else like))
    return [picture(frame) for frame in frames]
