"""What is measured of a model: likelihood step by step, the error of dreams, rewards and ends."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmrl import interrupts
from wmrl.comparison.heldout import HORIZONS, HeldOut, blocks
from wmrl.data.codes import Codes
from wmrl.seeding import generator
from wmrl.spec import Batch, State, take, tree_map
from wmrl.world import WorldModel

AWAKE_ROWS = 64
"""Windows that are stepped together with open eyes."""
DREAM_ROWS = 256
"""Dreams that are stepped together; memory bounds them."""
ASKED = 256
"""Steps of episodes that are asked about together: a model that draws number by number takes that long only once."""

SHOWN = sorted({*HORIZONS, 30, 40})
"""Dreamt steps whose latents are kept: for pixels, and for the strip."""
COLUMNS = ("latent", "reward", "mask")

Tick = Callable[[], None]


@dataclass(frozen=True)
class How:
    """What all measurements need.

    Args:
        seed: From which all randomness follows.
        device: Where to compute.
        tick: Called now and then, to show that time passes.
    """

    seed: int
    device: str
    tick: Tick

    def rng(self, *words: int | str) -> torch.Generator:
        """A generator of its own for these words."""
        return generator(self.seed, "compare", *words, device=self.device)


@dataclass(frozen=True)
class Likelihood:
    """Nats per dimension that the next latent of held-out windows costs; latents are drawn with a fixed noise.

    Args:
        awake: (K, T) through `observe` and `log_prob`, step by step.
        mask: (K, T), 0 where a window has ended.
        gap: (E,) what a step costs beyond the warm-up through `observe`, minus what it costs inside windows of the
            training length that are laid over the same steps; NaN where there is none, infinite where it diverged.
    """

    awake: np.ndarray
    mask: np.ndarray
    gap: np.ndarray


@torch.inference_mode()
def likelihood(world: WorldModel, held: HeldOut, codes: Codes, how: How, length: int) -> Likelihood | None:
    """Measure how probable the truth is to a model, one step ahead; None where it has no density.

    Args:
        world: The world model.
        held: The windows.
        codes: The held-out episodes, encoded.
        how: The latents' noise follows from its seed, and is the same for all models of one representation.
        length: Steps of the windows that the model was trained on.
    """
    if not hasattr(world.dynamics, "log_prob"):
        return None
    nats, masks, gaps = [], [], np.full(len(held.window), np.nan)
    for i, rows in enumerate(blocks(len(held.window), AWAKE_ROWS)):
        batch = held.windows(codes, rows).to(how.device)
        latent = world.latents(batch, how.rng("noise", i))
        rng = how.rng("awake", i)
        awake = _awake(world.dynamics, latent, batch.action, rng)
        nats.append(awake.cpu().numpy())
        masks.append(batch.mask.cpu().numpy())
        if hasattr(world.dynamics, "loss"):
            gaps[rows] = _gap(world.dynamics, latent, batch, awake, held.warmup, length, rng)
        how.tick()
    return Likelihood(np.concatenate(nats), np.concatenate(masks), held.by_episode(gaps, ~np.isnan(gaps)))


def _awake(dynamics: Any, latent: Tensor, action: Tensor, rng: torch.Generator) -> Tensor:
    """Nats per dimension of each step (B, T), eyes open."""
    size, found = latent[0, 0].numel(), []
    state = dynamics.start(latent[:, 0], rng=rng)
    for t in range(action.shape[1]):
        interrupts.check()
        found.append(-dynamics.log_prob(state, action[:, t], latent[:, t + 1]) / size)
        state = dynamics.observe(state, action[:, t], latent[:, t + 1], rng=rng)
    return torch.stack(found, 1)


def _gap(
    dynamics: Any, latent: Tensor, batch: Batch, awake: Tensor, warmup: int, length: int, rng: torch.Generator
) -> np.ndarray:
    """(B,) nats step by step minus nats in windows of the training length, over the same steps; NaN where none fits.

    Infinite where either is no number.
    """
    found = np.full(len(latent), np.nan)
    for i, steps in enumerate(batch.mask.sum(1).int().tolist()):
        interrupts.check()
        size = min(length, steps - warmup)
        if size < 1:
            continue
        first = sorted({*range(warmup, steps - size + 1, size), steps - size})  # the last one ends with the window
        cuts = [slice(a, a + size) for a in first]
        stacked = Batch(
            obs=None,
            action=torch.stack([batch.action[i, c] for c in cuts]),
            reward=torch.stack([batch.reward[i, c] for c in cuts]),
            terminated=torch.stack([batch.terminated[i, c] for c in cuts]),
            mask=torch.stack([batch.mask[i, c] for c in cuts]),
        )
        seen = torch.stack([latent[i, a : a + size + 1] for a in first])  # (windows, size + 1, *Z)
        metrics = dynamics.loss(seen, stacked, rng=rng)[1]
        if "nll" in metrics:
            gap = float(torch.stack([awake[i, c] for c in cuts]).mean()) - float(metrics["nll"])
            found[i] = gap if math.isfinite(gap) else math.inf
    return found


@dataclass(frozen=True)
class Dreams:
    """Dreams with the actions that were taken, held against what happened; K windows, S samples, H steps.

    Args:
        latent: (K, S, H) mean squared error per dimension, from the most likely latent of the real frame. Pictures and
            grids that are their own latents are in 0..1, and NaN stands at steps that nothing was decoded for.
        reward: (K, S, H) squared error.
        mask: (K, H), 0 where the episode has ended.
        dreamt: Step -> (K, S, *latent), the latents dreamt after so many steps; after none (K, 1, *latent), the latent
            of the state that the dreams begin in.
    """

    latent: np.ndarray
    reward: np.ndarray
    mask: np.ndarray
    dreamt: dict[int, Tensor]


@torch.inference_mode()
def dreams(world: WorldModel, held: HeldOut, codes: Codes, how: How, samples: int) -> Dreams:
    """Warm up with open eyes, then dream on at temperature 1.

    Args:
        world: The world model.
        held: The windows.
        codes: The held-out episodes, encoded.
        how: Seed and device.
        samples: S, dreams from each window.
    """
    size = max(1, DREAM_ROWS // samples)
    parts = []
    for i, rows in enumerate(blocks(len(held.window), size)):
        batch = held.windows(codes, rows).to(how.device)
        rng = how.rng("dream", i)
        parts.append(_dream(world, held, batch, samples, rng))
        how.tick()
    dreamt = {step: torch.cat([part.dreamt[step] for part in parts]) for step in parts[0].dreamt}
    latent, reward, mask = (np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS)
    return Dreams(latent, reward, mask, dreamt)


def _dream(world: WorldModel, held: HeldOut, batch: Batch, samples: int, rng: torch.Generator) -> Dreams:
    dynamics, count, warm = world.dynamics, len(batch.action), held.warmup
    assert batch.code is not None
    truth = world.draw(batch.code[:, : warm + held.horizon + 1], sample=False)  # (B, W + H + 1, *Z)
    frames = truth.dtype in (torch.uint8, torch.bool)  # they are their own latents, and dear to decode
    unit = world.representation.decode if frames else torch.Tensor.float
    state: State = dynamics.start(truth[:, 0], rng=rng)
    for t in range(warm):
        state = dynamics.observe(state, batch.action[:, t], truth[:, t + 1], rng=rng)
    each = torch.arange(count, device=truth.device).repeat_interleave(samples)
    latents, rewards, dreamt = [], [], {0: _kept(unit(dynamics.latent(state)), frames).unsqueeze(1)}
    state = take(state, each)
    for h in range(1, held.horizon + 1):
        interrupts.check()
        at = warm + h - 1
        state, reward, _ = dynamics.imagine(state, batch.action[each, at], rng=rng, temperature=1.0)
        rewards.append((reward - batch.reward[each, at]).square())
        if frames and h not in SHOWN:
            latents.append(torch.full_like(rewards[-1], torch.nan))
            continue
        z = unit(dynamics.latent(state))
        latents.append((z - unit(truth[each, at + 1])).flatten(1).square().mean(1))
        if h in SHOWN:
            dreamt[h] = _kept(z, frames).unflatten(0, (count, samples))
    mask = batch.mask[:, warm : warm + held.horizon]
    latent, reward = (torch.stack(c, 1).unflatten(0, (count, samples)).cpu().numpy() for c in (latents, rewards))
    return Dreams(latent, reward, mask.cpu().numpy(), dreamt)


def _kept(z: Tensor, frames: bool) -> Tensor:
    """Latents as they are kept; pictures, of which there are many, in half as many bytes."""
    return (z.half() if frames else z).cpu()


@torch.inference_mode()
def noise(world: WorldModel, held: HeldOut, codes: Codes, how: How) -> np.ndarray:
    """Mean squared distance per dimension (K,) of V's own draws from its most likely latents, where dreams begin.

    A dream that knew everything would err as much, for it is draws that models learn to predict.
    """
    rows = codes.start[:-1][held.window] + np.minimum(held.first + held.warmup, held.lengths[held.window])
    code = torch.from_numpy(codes.columns["code"][rows]).to(how.device)
    drawn = world.draw(code, sample=True, rng=how.rng("draws"))
    return (drawn.float() - world.draw(code, sample=False).float()).flatten(1).square().mean(1).cpu().numpy()


@dataclass(frozen=True)
class Outcomes:
    """What a model says, with open eyes, that each step of the held-out episodes leads to; N steps in all.

    Args:
        episode: (N,) of which held-out episode a step is.
        reward: (N,) squared error of the predicted reward.
        end: (N,) the predicted chance that the step ends the episode.
        ended: (N,) whether it did.
    """

    episode: np.ndarray
    reward: np.ndarray
    end: np.ndarray
    ended: np.ndarray


@torch.inference_mode()
def outcomes(world: WorldModel, held: HeldOut, codes: Codes, how: How) -> Outcomes:
    """Walk through whole episodes, all in step, and ask before each step what it will lead to.

    Args:
        world: The world model.
        held: The episodes.
        codes: The same, encoded.
        how: Seed and device.
    """
    dynamics, rng = world.dynamics, how.rng("outcomes")
    order = np.argsort(-held.lengths, kind="stable")  # the longest first: rows that have ended are the last ones
    start, lengths = codes.start[:-1][order], held.lengths[order]

    def column(name: str, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(codes.columns[name][rows]).to(how.device)

    def latents(rows: np.ndarray) -> Tensor:
        return world.draw(column("code", rows), sample=False)

    state, parts = dynamics.start(latents(start), rng=rng), []
    asked: list[tuple[State, Tensor, np.ndarray]] = []  # what is known before a step, its action, its rows

    def ask() -> None:
        states, actions, rows = zip(*asked, strict=True)
        asked.clear()
        at, steps = np.concatenate(rows), order[np.concatenate([np.arange(len(each)) for each in rows])]
        together = tree_map(lambda *each: torch.cat(each), *states)
        _, reward, cont = dynamics.imagine(together, torch.cat(actions), rng=rng, temperature=1.0)
        wrong = (reward - column("reward", at).float()).square()
        parts.append((steps, wrong.cpu().numpy(), 1 - cont.cpu().numpy(), codes.columns["terminated"][at]))

    for t in range(int(lengths.max())):
        interrupts.check()
        alive = int((lengths > t).sum())
        rows = start[:alive] + t
        if t and alive < int((lengths > t - 1).sum()):
            state = take(state, torch.arange(alive, device=how.device))
        action = column("action", rows).float()
        asked.append((state, action, rows))
        if sum(len(each[2]) for each in asked) >= ASKED:
            ask()
        state = dynamics.observe(state, action, latents(rows + 1), rng=rng)
        if t % 100 == 0:
            how.tick()
    if asked:
        ask()
    return Outcomes(*(np.concatenate(column) for column in zip(*parts, strict=True)))
