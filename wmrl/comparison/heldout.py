"""The episodes that no model has learnt from, and the windows of them that all models see."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from wmrl import interrupts
from wmrl.comparison.subjects import Split, Subject, bare
from wmrl.data.codes import ENCODED_AT_ONCE, Codes, Encoder
from wmrl.data.episodes import Episodes, split
from wmrl.data.windows import cut
from wmrl.errors import ContractError
from wmrl.seeding import rng
from wmrl.spec import Batch
from wmrl.world import WorldModel

STEPS = 200
"""Steps of a window at most."""
WARMUP = 32
"""Steps with open eyes before a dream begins; fewer where episodes are short."""
HORIZONS = (1, 2, 5, 10, 20, 50)
"""Dreamt steps after which a dream is held against what happened."""
LEAST = 2
"""Held-out episodes below which no interval means anything."""
MOST = 64
"""Held-out episodes that are looked at; more would only take longer."""
MEMORY = 1 << 29
"""Bytes that they may have where a model sees the observations themselves: they are kept as they are."""


@dataclass(frozen=True)
class HeldOut:
    """What every model is measured on.

    Args:
        episodes: The dataset.
        numbers: (E,) which of its episodes are held out.
        lengths: (E,) their steps.
        window: (K,) of which of them each window is: 0..E-1.
        first: (K,) the step that each window begins at.
        steps: T, steps of a window; behind the end of its episode it is masked.
        warmup: The steps with open eyes at the beginning of a window, before a dream.
        count: Episodes that the first model's dataset held, appended ones left out.
    """

    episodes: Episodes
    numbers: np.ndarray
    lengths: np.ndarray
    window: np.ndarray
    first: np.ndarray
    steps: int
    warmup: int
    count: int = 0

    @property
    def horizon(self) -> int:
        """Steps that are dreamt: no more than some window has left."""
        left = self.lengths[self.window] - self.first - self.warmup
        return int(min(HORIZONS[-1], self.steps - self.warmup, left.max()))

    def encode(self, world: WorldModel, device: str, tick: Callable[[], None] = lambda: None) -> Codes:
        """The held-out episodes as this world's representation sees them; kept in memory only.

        Args:
            world: Its representation encodes.
            device: Where it computes.
            tick: Called after each block of frames.
        """
        encoder = Encoder(world.representation, device)
        plain = bare(world, self.episodes.observation)  # vectors would lose half their digits as codes
        columns: dict[str, list[np.ndarray]] = {name: [] for name in ("code", "action", "reward", "terminated")}
        for number in self.numbers:
            low, high = (int(row) for row in self.episodes.start[number : number + 2])
            for a in range(low, high, ENCODED_AT_ONCE):
                found = self.episodes.read(a, min(a + ENCODED_AT_ONCE, high))
                found["code"] = found["obs"] if plain else encoder(found["obs"])
                for name, parts in columns.items():
                    parts.append(found[name])
                tick()
                interrupts.check()
        start = np.concatenate([[0], np.cumsum(self.lengths + 1)])
        return Codes(start, self.lengths, {name: np.concatenate(parts) for name, parts in columns.items()})

    def windows(self, codes: Codes, rows: slice = slice(None)) -> Batch:
        """Some windows, codes in place of frames."""
        return cut(codes, self.window[rows], self.first[rows], self.steps)

    def frames(self, rows: np.ndarray, step: int) -> np.ndarray:
        """The real frames (n, C, H, W) in the windows `rows` (n,), `step` steps after their warm-up."""
        number = self.numbers[self.window[rows]]
        at = np.minimum(self.first[rows] + self.warmup + step, self.episodes.lengths[number])
        return self.episodes.gather((self.episodes.start[number] + at)[:, None])["obs"][:, 0]

    def by_episode(self, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Means over the windows of each episode: values and mask (K,) or (K, T) -> (E,), NaN where all is masked.

        Infinite where any value is no number: a model that diverged is not judged by the episodes in which it did not.
        """
        total, count = np.zeros(len(self.numbers)), np.zeros(len(self.numbers))
        summed = tuple(range(1, mask.ndim))
        np.add.at(total, self.window, np.where(mask > 0, values, 0.0).sum(summed, dtype=np.float64))
        np.add.at(count, self.window, (mask > 0).sum(summed))
        mean = np.where(np.isnan(total), np.inf, total) / np.maximum(count, 1)
        return np.where(count > 0, mean, np.nan)


def hold_out(episodes: Episodes, subjects: Sequence[Subject], *, starts: int, seed: int) -> HeldOut:
    """The validation episodes of all models together, and windows of them, equally many of each episode.

    An episode of the dataset counts only where no part of any model may have learnt from it: splits depend on an
    episode's own seed, so this holds for models of other datasets too.

    Args:
        episodes: The dataset of the first model; episodes appended after its training are left out.
        subjects: The models.
        starts: K, windows.
        seed: Decides which windows.

    Raises:
        ContractError: if too few episodes are held out of all.
    """
    lineage, trained = episodes.lineage(), subjects[0].hashes["data"]
    count = len(episodes)
    if trained in lineage:
        last = episodes.names[lineage.index(trained)]
        count = last.first + last.count
    splits = sorted({each for subject in subjects for each in subject.splits}, key=lambda s: (s.fraction, s.seed))
    numbers = held_out(episodes.seeds[:count], splits)
    numbers = numbers[episodes.lengths[numbers] > 1]  # a step with open eyes, and one to dream
    if len(numbers) < LEAST:
        ways = "; ".join(f"validation = {each.fraction:g} with seed {each.seed}" for each in splits)
        raise ContractError(
            f"only {len(numbers)} of {count} episodes were kept from all models ({ways}), and {LEAST} are needed: "
            "train them with the same seed and validation, or on more episodes"
        )
    draw = rng(seed, "compare", "windows")
    most = MOST
    if any(subject.bare for subject in subjects):
        row = math.prod(episodes.observation.shape) * episodes.dtype.itemsize
        most = min(MOST, max(LEAST, MEMORY // int(row * (episodes.lengths[numbers].mean() + 1))))
    if len(numbers) > most:
        numbers = np.sort(draw.choice(numbers, most, replace=False))
    lengths = episodes.lengths[numbers]
    window = np.sort(np.arange(max(starts, 1)) % len(numbers))
    steps = int(min(STEPS, lengths[window].max()))
    warmup = min(WARMUP, max(1, int(np.median(lengths[window])) // 2))  # so that some window is left to dream
    fits = np.where(lengths >= warmup + HORIZONS[-1], lengths - warmup - HORIZONS[-1], lengths - warmup - 1)
    first = draw.integers(0, np.maximum(fits[window], 0) + 1)
    return HeldOut(episodes, numbers, lengths, window, first, steps, warmup, count)


def held_out(seeds: np.ndarray, splits: Sequence[Split]) -> np.ndarray:
    """The numbers of the episodes with these seeds that are validation episodes in all splits, and training in none."""
    held = np.ones(len(seeds), bool)
    for each in splits:
        held[split(seeds, each.fraction, each.seed)[0]] = False
    return np.flatnonzero(held)


def blocks(count: int, size: int) -> list[slice]:
    """`count` rows in blocks of at most `size`."""
    return [slice(a, min(a + size, count)) for a in range(0, count, size)]


def tensor(array: np.ndarray, device: str) -> torch.Tensor:
    """An array on a device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
