"""Randomness as a function of names: equal words, equal numbers, on every machine and in every order.

Nothing in wmrl draws from a global generator; step k of a stage draws from `rng(seed, stage, k)`, so a resumed run
continues exactly.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Word = int | str


def _digest(key: tuple[Word, ...]) -> bytes:
    words = "\0".join(f"{type(word).__name__[0]}{word}" for word in key)
    return hashlib.sha256(words.encode()).digest()


def number(*key: Word) -> int:
    """A number in [0, 2^31) that depends on the words of `key` alone: a seed for an environment, say."""
    return int.from_bytes(_digest(key)[:4], "little") >> 1


def rng(*key: Word) -> np.random.Generator:
    """A NumPy generator of its own for `key`."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(_digest(key)[:16], "little")))


def generator(*key: Word, device: "torch.device | str" = "cpu") -> "torch.Generator":
    """A torch generator of its own for `key`, on `device`."""
    import torch

    return torch.Generator(device).manual_seed(int.from_bytes(_digest(key)[:8], "little") >> 1)
