"""A causal transformer over a window, as a whole and step by step.

Both forms give the same numbers: `forward` for windows of training, `step` with cached keys and values for rollouts. A
window of rollouts is as long as one of training and its positions count from 0. When it is full, the newest half is
computed anew as a window of its own, and the cache goes on from there: two tokens a step, amortised, and the cost of a
step does not grow with the episode.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmrl.limits import at_least
from wmrl.nn.dropout import Drop
from wmrl.spec import tree_map

Positions = Literal["sinusoidal", "rotary", "recurrent"]
BASE = 10_000.0


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Those of a transformer.

    Args:
        width: Size d of a token.
        blocks: Number of blocks.
        heads: Attention heads; they share the width.
        feedforward: Units of the feed-forward layers.

    Raises:
        ValueError: if they do not fit together.
    """

    width: int
    blocks: int
    heads: int
    feedforward: int

    def __post_init__(self) -> None:
        at_least(1, **asdict(self))
        if self.width % self.heads:
            raise ValueError(f"heads must divide the width, got {self.heads} heads for a width of {self.width}")

    @property
    def head(self) -> int:
        """Size of a head, d / heads."""
        return self.width // self.heads

    def check(self, positions: str) -> None:
        """Whether heads can have such positions.

        Raises:
            ValueError: if rotary ones cannot turn them.
        """
        if positions == "rotary" and self.head % 2:
            raise ValueError(f"rotary positions need an even width of a head, got {self.head}")

    def parts(self) -> Tensor:
        """Which numbers of a token are whose: (heads, d), 1 or 0."""
        return torch.eye(self.heads).repeat_interleave(self.head, 1)


class Memory(NamedTuple):
    """The window so far, of B rows; what lies behind `length` means nothing."""

    tokens: Tensor  # (B, L, d) what was put in
    cache: tuple[Tensor, ...]  # N of (B, 2, L, d), keys and values of each block
    carry: Tensor  # (B, d) the recurrent positions' state; (B, 0) if they are not
    length: Tensor  # (B,) int64, tokens that count


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each with a residual branch and a norm behind it (post-norm).

    Source: Vaswani et al. (2017), Attention Is All You Need, section 3; ReLU.
    """

    def __init__(self, width: int, feedforward: int):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, attend: Callable[[Tensor], Tensor], drop: Drop) -> Tensor:
        """Tokens (B, T, d) -> (B, T, d)."""
        x = self.norm1(x + drop(self.out(attend(self.qkv(x)))))
        return self.norm2(x + drop(self.down(drop(self.up(x).relu_()))))


class CausalTransformer(nn.Module):
    """Blocks of causal self-attention; token t sees tokens 0 to t.

    Args:
        sizes: Of tokens and blocks.
        dropout: On positions, attention weights, residual branches and inside the feed-forward layers; only where
            `forward` is given a generator in training mode, so never step by step.
        context: Length L of the window.
        positions: "sinusoidal", a table that is added (Vaswani et al. 2017); "rotary", queries and keys turned by their
            position (Su et al. 2021); "recurrent", a GRU over the tokens, whose outputs take their place (Fakoor et al.
            2020).

    Raises:
        ValueError: if sizes do not fit together.
    """

    table: Tensor
    parts: Tensor
    asks: Tensor

    def __init__(
        self,
        sizes: Sizes,
        *,
        context: int,
        dropout: float = 0.0,
        positions: Positions = "sinusoidal",
    ):
        super().__init__()
        sizes.check(positions)
        self.width, self.heads, self.context, self.positions = sizes.width, sizes.heads, context, positions
        self.keep, self.dropout = max(1, context // 2), dropout
        self.blocks = nn.ModuleList(Block(sizes.width, sizes.feedforward) for _ in range(sizes.blocks))
        self.register_buffer("table", _table(positions, context, sizes.head, sizes.width), persistent=False)
        self.register_buffer("parts", sizes.parts(), persistent=False)
        self.register_buffer("asks", sizes.parts() / math.sqrt(sizes.head), persistent=False)  # for queries
        if positions == "recurrent":
            self.gru = nn.GRU(sizes.width, sizes.width, batch_first=True)

    def forward(self, x: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Windows (B, T, d) with T at most L -> (B, T, d)."""
        drop = Drop(self.dropout if self.training and rng is not None else 0.0, rng)
        return self._window(x, drop)[0]

    def empty(self, like: Tensor) -> Memory:
        """The memory of rows that have seen nothing; `like` (B, ...) gives rows, device and type."""
        b, (d, n) = len(like), (self.width, self.context)
        return Memory(
            like.new_zeros(b, n, d),
            tuple(like.new_zeros(b, 2, n, d) for _ in self.blocks),
            like.new_zeros(b, d if self.positions == "recurrent" else 0),
            torch.zeros(b, dtype=torch.int64, device=like.device),
        )

    def step(self, memory: Memory, x: Tensor, *, own: bool = False) -> tuple[Tensor, Memory]:
        """One more token (B, d) -> its output (B, d) and the new memory.

        Args:
            memory: Of these rows; their lengths may differ.
            x: The tokens.
            own: The memory is nobody else's and may be written over.
        """
        least, most = (int(v) for v in torch.aminmax(memory.length))
        if most >= self.context:
            memory = self._with_room(memory)
            least, most = (int(v) for v in torch.aminmax(memory.length))
        at = memory.length
        slot = (slice(None), most) if least == most else (torch.arange(len(x), device=x.device), at)
        seen = None if least == most else (torch.arange(most + 1, device=x.device) <= at[:, None])[:, None]  # (B, 1, n)
        own = own and not torch.is_grad_enabled()  # what a gradient needs is not written over
        tokens = memory.tokens if own else memory.tokens.clone()
        tokens[slot] = x.to(tokens)
        caches = memory.cache if own else tuple(cache.clone() for cache in memory.cache)
        x, carry = self._placed(x, memory)
        for block, cache in zip(self.blocks, caches, strict=True):

            def attend(qkv: Tensor, cache: Tensor = cache) -> Tensor:
                q, both = self._queries(qkv, at[:, None])
                cache.transpose(1, 2)[slot] = both[:, :, 0].to(cache)
                return self._recall(q, cache[:, :, : most + 1].to(q), seen)

            x = block(x, attend, Drop(0.0))
        return x[:, 0], Memory(tokens, caches, carry, at + 1)

    def _window(self, x: Tensor, drop: Drop, *, outputs: bool = True) -> tuple[Tensor, list[Tensor], Tensor]:
        """A window from position 0 on: outputs (B, T, d), keys and values (B, 2, T, d) of each block, the carry.

        Without `outputs` the last block computes keys and values only.
        """
        n, kept = x.shape[1], []
        at, carry = torch.arange(n, device=x.device), x.new_zeros(len(x), 0)
        if self.positions == "recurrent":
            with self._kernels():
                x, last = self.gru(x)
            carry = last[0]
        elif self.positions == "sinusoidal":
            x = drop(x + self.table[:n].to(x))

        def attend(qkv: Tensor) -> Tensor:
            q, both = self._queries(qkv, at)
            kept.append(both)
            k, v = both.unbind(1)
            return self._read(q, k, v, drop)

        for block in self.blocks if outputs else self.blocks[:-1]:
            x = block(x, attend, drop)
        if not outputs:
            end: Any = self.blocks[-1]
            kept.append(self._queries(end.qkv(x), at)[1])
        return x, kept, carry

    def _kernels(self) -> AbstractContextManager:
        """Those in which the GRU has gradients: on a GPU, cuDNN's has none outside training."""
        frozen = torch.is_grad_enabled() and not self.training
        return torch.backends.cudnn.flags(enabled=False) if frozen else nullcontext()

    def _with_room(self, memory: Memory) -> Memory:
        """Rows whose window is full begin a new one with its newest half."""
        full = memory.length >= self.context
        rows = full.nonzero()[:, 0]
        newest = memory.tokens.index_select(0, rows)[:, -self.keep :]
        _, kept, carry = self._window(newest, Drop(0.0), outputs=False)
        part = self.empty(newest)
        part.tokens[:, : self.keep] = newest
        for cache, both in zip(part.cache, kept, strict=True):
            cache[:, :, : self.keep] = both
        part = part._replace(carry=carry.to(memory.carry), length=part.length + self.keep)
        if len(rows) == len(full):
            return part
        return Memory(*tree_map(lambda old, new: old.index_copy(0, rows, new), tuple(memory), tuple(part)))

    def _placed(self, x: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """A token (B, d) with its position (B, 1, d), and the carry after it."""
        carry = memory.carry
        if self.positions == "recurrent":
            w = [getattr(self.gru, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            x = carry = torch.gru_cell(x, carry, *w)
        elif self.positions == "sinusoidal":
            x = x + self.table[memory.length].to(x)
        return x[:, None], carry

    def _turned(self, x: Tensor, at: Tensor) -> Tensor:
        """Queries or keys (B, T, d) turned by their positions `at` (T,) or (B, T)."""
        return turned(x, self.table[at], self.heads)

    def _queries(self, qkv: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, T, d), and keys and values (B, 2, T, d), of tokens at positions `at` (T,) or (B, T)."""
        if self.positions != "rotary":
            return qkv[..., : self.width], qkv[..., self.width :].unflatten(-1, (2, -1)).transpose(1, 2)
        q, k, v = qkv.split(self.width, -1)
        return self._turned(q, at), torch.stack([self._turned(k, at), v], 1)

    def _recall(self, q: Tensor, both: Tensor, seen: Tensor | None) -> Tensor:
        """Attention of one query of each row (B, 1, d) on keys and values (B, 2, n, d) -> (B, 1, d).

        The heads are rows of a matrix, each zero where another head's numbers stand: one product of all heads is twice
        as fast on a CPU as attention in heads as narrow as the published ones.
        """
        keys, values = both.unbind(1)
        scores = torch.bmm(q * self.asks.to(q), keys.mT)  # (B, heads, n)
        if seen is not None:
            scores = scores.masked_fill(~seen, -math.inf)
        return (torch.bmm(scores.softmax(-1).to(q), values) * self.parts.to(q)).sum(1, keepdim=True)

    def _read(self, q: Tensor, k: Tensor, v: Tensor, drop: Drop) -> Tensor:
        """Causal attention of queries (B, T, d) on keys and values (B, T, d) -> (B, T, d)."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        if not drop.p:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.mT / math.sqrt(q.shape[-1])
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            out = drop(scores.masked_fill(hidden, -math.inf).softmax(-1)) @ v
        return out.transpose(1, 2).flatten(-2)


def turned(x: Tensor, angles: Tensor, heads: int) -> Tensor:
    """Queries or keys (*n, d), each head turned by the same angles, cosines and sines (*n, d / heads / 2, 2).

    Source: Su et al. (2021), RoFormer, equation 34, with the halves of a head in place of neighbours.
    """
    cos, sin = angles.to(x).unsqueeze(-3).unbind(-1)  # (*n, 1, d / heads / 2)
    a, b = x.unflatten(-1, (heads, 2, -1)).unbind(-2)  # (*n, heads, d / heads / 2)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def _table(positions: Positions, context: int, head: int, width: int) -> Tensor:
    """What positions look up: sines and cosines (L, d), (L, head / 2, 2) if rotary; nothing if recurrent."""
    size = {"sinusoidal": width, "rotary": head, "recurrent": 0}[positions]
    angles = torch.arange(context)[:, None] * BASE ** (-torch.arange(0, size, 2) / max(size, 1))  # (L, size / 2)
    both = torch.stack([angles.cos(), angles.sin()], -1)
    return both if positions == "rotary" else both.flip(-1).flatten(-2)[:, :size]
