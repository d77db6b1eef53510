"""What can be wrong with an episode, or with all of them together."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wmrl.data.alignment import Alignment
from wmrl.data.shards import Episode

RANDOM = ("brown", "white", "held", "random")
"""Policies that do not look: only their actions are news (see `wmrl.data.alignment`)."""
IMMEDIATE = ("CarRacing",)
"""Games that show an action in the very next frame; elsewhere a frame may answer one step later."""
BLANK_SHARE, STILL_SHARE = 0.005, 0.45
"""CarRacing with a brownian policy: no blank frame, 3 to 12 % of frames equal to the one before."""
TELLING = 100
"""Episodes of fewer steps in a small world (grids, vectors) may well be equal."""
SHORT = 20
"""Episodes of fewer steps may well have constant actions."""
ALIGNED_EPISODES = 48


@dataclass(frozen=True)
class Finding:
    """Something wrong.

    Args:
        kind: One word for programs: schema, digest, unfinished, lengths, reset, blank, still, duplicate, constant,
            clipped, misaligned, seeds, values.
        where: File or episode.
        text: One sentence.
    """

    kind: str
    where: str
    text: str


@dataclass
class Tally:
    """What is counted over all episodes."""

    meta: dict[str, Any]
    frames: int = 0
    blank: int = 0
    pairs: int = 0
    still: int = 0
    rewards: Counter = field(default_factory=Counter)
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    steps: int = 0
    episodes: int = 0
    seeds: dict[int, int] = field(default_factory=dict)
    prints: dict[bytes, int] = field(default_factory=dict)
    alignment: Alignment = field(default_factory=Alignment)


def episode_findings(number: int, episode: Episode, tally: Tally) -> Iterator[Finding]:
    """What is wrong with one episode; counts it into `tally`."""
    where = f"episode {number}"
    yield from _ends(where, episode)
    yield from _values(where, episode)
    steps = len(episode.reward) - 1
    actions = episode.action[:steps]
    if steps >= SHORT and (actions == actions[0]).all():
        yield Finding("constant", where, f"all {steps} actions of {where} are the same")
    yield from _known(where, number, episode, tally)
    _count(episode, tally)


def _ends(where: str, episode: Episode) -> Iterator[Finding]:
    over = episode.terminated | episode.truncated
    if over[:-2].any():
        row = int(np.flatnonzero(over[:-2])[0])
        yield Finding("reset", where, f"{where} goes on after its end at row {row}: windows would cross a reset")
    if len(over) > 1 and not over[-2]:
        yield Finding("reset", where, f"the last step of {where} neither terminates nor truncates it")
    if over[-1] or episode.reward[-1] or episode.action[-1].any():
        yield Finding(
            "reset", where, f"the last row of {where} holds an action, a reward or a flag; it must hold zeros"
        )
    if (episode.terminated & episode.truncated).any():
        yield Finding("reset", where, f"{where} has a step that terminates and truncates at once")


def _values(where: str, episode: Episode) -> Iterator[Finding]:
    if not np.isfinite(episode.reward).all() or not np.isfinite(episode.action).all():
        yield Finding("values", where, f"{where} has rewards or actions that are not finite")
    elif episode.obs.dtype.kind == "f" and not np.isfinite(episode.obs).all():
        yield Finding("values", where, f"{where} has observations that are not finite")
    elif np.abs(episode.action).max(initial=0) > 1 + 1e-5:
        worst = np.abs(episode.action).max()
        yield Finding("values", where, f"{where} has an action of {worst:.3g}; they must lie in [-1, 1] or be one-hot")


def _known(where: str, number: int, episode: Episode, tally: Tally) -> Iterator[Finding]:
    first = tally.seeds.setdefault(episode.seed, number)
    if first != number:
        yield Finding("seeds", where, f"{where} has the seed {episode.seed} of episode {first}")
    if not _is_picture(episode.obs) and len(episode.reward) <= TELLING:
        return
    image = hashlib.sha256(np.ascontiguousarray(episode.obs).data).digest()
    first = tally.prints.setdefault(image, number)
    if first != number:
        yield Finding("duplicate", where, f"{where} shows the same frames as episode {first}")


def _count(episode: Episode, tally: Tally) -> None:
    steps = len(episode.reward) - 1
    actions, rewards = episode.action[:steps], episode.reward[:steps]
    if _is_picture(episode.obs):
        flat = episode.obs.reshape(len(episode.obs), -1)
        tally.frames += len(flat)
        tally.blank += int((flat.max(1) == flat.min(1)).sum())
        tally.pairs += steps
        tally.still += int((flat[1:] == flat[:-1]).all(1).sum())
    if steps:
        tally.low = actions.min(0) if tally.low is None else np.minimum(tally.low, actions.min(0))
        tally.high = actions.max(0) if tally.high is None else np.maximum(tally.high, actions.max(0))
    values, counts = np.unique(np.round(rewards, 4), return_counts=True)
    if len(tally.rewards) < 10_000:
        tally.rewards.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    tally.steps += steps
    tally.episodes += 1
    if tally.episodes <= ALIGNED_EPISODES and tally.meta.get("policy", {}).get("policy") in RANDOM:
        tally.alignment.add(episode.obs, episode.action)


def _is_picture(obs: np.ndarray) -> bool:
    return obs.ndim == 4 and obs.dtype == np.uint8 and min(obs.shape[2:]) >= 16


def dataset_findings(tally: Tally) -> Iterator[Finding]:
    """What is wrong with the episodes taken together."""
    whole = "dataset"
    if tally.blank > BLANK_SHARE * tally.frames:
        yield Finding("blank", whole, f"{tally.blank} of {tally.frames} frames are of one colour (black, say)")
    if tally.still > STILL_SHARE * max(tally.pairs, 1):
        share = tally.still / tally.pairs
        yield Finding(
            "still", whole, f"{share:.0%} of all frames equal the one before: repeated frames, or a frozen game"
        )
    yield from _constant(whole, tally)
    yield from _clipped(whole, tally)
    yield from _misaligned(whole, tally)


def _constant(where: str, tally: Tally) -> Iterator[Finding]:
    if tally.low is None or tally.high is None or tally.steps < SHORT:
        return
    for number in np.flatnonzero(tally.low == tally.high):
        value = float(tally.low[number])
        if not tally.meta["actions"]["discrete"] or value != 0:
            yield Finding("constant", where, f"action {number} is {value:g} in all {tally.steps} steps")


def _clipped(where: str, tally: Tally) -> Iterator[Finding]:
    values = np.array(sorted(tally.rewards))
    if not len(values) or np.abs(values).max() > 1:
        return
    game = str(tally.meta.get("env", {}).get("id", ""))
    bounds = max(tally.rewards[1.0], tally.rewards[-1.0])
    inside = values[(np.abs(values) < 1) & (values != 0)]
    if bounds > 1 and len(inside) and values.min() < 0:
        yield Finding("clipped", where, f"no reward exceeds 1, and {bounds} are exactly 1 or -1: they look clipped")
    elif game.startswith("CarRacing") and set(values.tolist()) <= {-1.0, 0.0, 1.0}:
        yield Finding("clipped", where, "all rewards are -1, 0 or 1: they are clipped to their signs")


def _misaligned(where: str, tally: Tally) -> Iterator[Finding]:
    lag = tally.alignment.best()
    game = str(tally.meta.get("env", {}).get("id", ""))
    if lag is None or lag == 0 or (lag == 1 and not game.startswith(IMMEDIATE)):
        return
    when = f"{-lag} too early" if lag < 0 else f"{lag} too late"
    yield Finding(
        "misaligned", where, f"frames answer actions {when} by rows: obs[t] must be what action[t] was chosen on"
    )
