"""The words that every module shares: spaces, batches, and how to treat a state as one value.

Letters in shape comments: B batch, T steps, L context, Z latent size, A action size, F features, H hidden size,
M mixtures, N environments, P population, S seeds, R rows, C x H x W image.

Time, written once:

    row      0        1        2   ...  T-1         T
    obs      o0 -a0->  o1 -a1->  o2 ...  oT-1 -aT-1-> oT     reward[t], terminated[t], truncated[t]: what
                                                           action[t] at obs[t] led to
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

State = Any
"""A tree (tuples, NamedTuples, dicts) of tensors whose first axis is the batch; opaque outside its model."""
Metrics = dict[str, Tensor]
"""Detached scalars to log."""
Loss = tuple[Tensor, Metrics]
"""A scalar with gradient, and what to log of it."""


@dataclass(frozen=True)
class Space:
    """What one observation or latent is: floats (or uint8 pixels) of `shape`, or tokens in [0, vocab)."""

    shape: tuple[int, ...]
    vocab: int | None = None


@dataclass(frozen=True)
class Actions:
    """Actions inside models are always (..., size) floats: one-hot if `discrete`, else scaled to [-1, 1]."""

    size: int
    discrete: bool


@dataclass
class Batch:
    """B windows of T steps: at obs[t] the agent took action[t], got reward[t], and saw obs[t + 1].

    A source of cached encodings fills `code` and leaves `obs` out.

    Windows stay within one episode, and are padded behind its end, unless `first` is there: then they go on in the next
    episode. Row t + 1 begins it where first[t + 1] is 1, and step t is none: mask[t] is 0, nothing led from obs[t], the
    last of its episode, to obs[t + 1].
    """

    obs: Tensor | None  # (B, T + 1, *obs) uint8
    action: Tensor  # (B, T, A) float32
    reward: Tensor  # (B, T) float32, unclipped
    terminated: Tensor  # (B, T) float32, 1 where the episode terminated; a time limit does not terminate
    mask: Tensor  # (B, T) float32, 0 where the window is padding
    code: Tensor | None = None  # (B, T + 1, *code) cached encode(obs)
    first: Tensor | None = None  # (B, T + 1) float32, 1 where an episode begins inside the window; first[:, 0] is 0

    @property
    def rows(self) -> Tensor:
        """(B, T + 1) float32: which observations are no padding."""
        seen = self.mask if self.first is None else torch.maximum(self.mask, self.first[:, 1:])
        return torch.cat([torch.ones_like(seen[:, :1]), seen], 1)

    @property
    def ended(self) -> Tensor:
        """(B, T + 1) float32: which observations are the last ones of episodes that terminated."""
        return torch.nn.functional.pad(self.terminated * self.mask, (1, 0))

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: None if c is None else c.to(device) for name, c in columns.items()}
        return Batch(**moved)


class Step(NamedTuple):
    """One dreamt step."""

    state: State
    reward: Tensor  # (B,)
    cont: Tensor  # (B,) in [0, 1]: the chance that the episode goes on


def tree_map(fn: Callable[..., Tensor], tree: State, *rest: State) -> State:
    """Apply `fn` to each tensor of `tree` (and its counterparts in `rest`), keeping the structure."""
    if isinstance(tree, Tensor):
        return fn(tree, *rest)
    if isinstance(tree, dict):
        return {k: tree_map(fn, v, *(r[k] for r in rest)) for k, v in tree.items()}
    if isinstance(tree, tuple):
        parts = [tree_map(fn, *each) for each in zip(tree, *rest, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree


def where(mask: Tensor, a: State, b: State) -> State:
    """Take the rows of `a` where `mask` (B,) is true, of `b` elsewhere."""
    return tree_map(lambda x, y: torch.where(mask.view(-1, *[1] * (x.ndim - 1)), x, y), a, b)


def take(tree: State, index: Tensor) -> State:
    """The rows `index` (K,) of a state, in that order."""
    return tree_map(lambda x: x.index_select(0, index), tree)


def leaves(tree: State) -> list[Tensor]:
    """The tensors of a state, in the order of its structure."""
    found: list[Tensor] = []
    tree_map(lambda x: found.append(x) or x, tree)  # type: ignore[func-returns-value]
    return found


def rebuilt(like: State, tensors: Sequence[Tensor]) -> State:
    """A state with the structure of `like` and these tensors, as `leaves` gave them."""
    rest = iter(tensors)
    return tree_map(lambda x: next(rest).to(x.dtype), like)
