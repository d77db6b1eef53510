"""A causal transformer that looks back a fixed number of steps, over windows and step by step.

A step is one token, or several; a token sees the tokens of its own step up to itself, and those of the steps before, as
far as it looks back. Places are told by distances only, so both forms give the same numbers however long an episode is:
`forward` for windows of any length, `step` with the keys and values of the last steps for rollouts. Nothing is ever
computed twice, and the memory of a state is as small as the look back.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmrl.limits import at_least
from wmrl.nn.dropout import Drop, chance
from wmrl.nn.transformer import BASE, Sizes, turned

NONE = Drop(0.0)
Positions = Literal["relative", "rotary"]


class Past(NamedTuple):
    """Keys and values of the last M - 1 steps of B rows, the newest last; places before the first step do not count.

    Its size is the same from the first step on. A step gives a new one, and does not write into the old one: states are
    values, and gradients go back through them.
    """

    keys: tuple[Tensor, ...]  # for each block (B, M - 1, K, d)
    values: tuple[Tensor, ...]  # the same
    length: Tensor  # (B,) int64, steps since the first one, all of them


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each a residual branch with a norm before it (pre-norm), GELU.

    Source: Radford et al. (2019), GPT-2; the relative table is that of Shaw et al. (2018), for keys only.
    """

    def __init__(self, width: int, feedforward: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, feedforward), nn.Linear(feedforward, width)

    def ask(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (*n, d) -> queries, keys and values of the same shape."""
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        return q, k, v

    def forward(self, x: Tensor, read: Tensor, drop: Drop = NONE) -> Tensor:
        """Tokens (*n, d) and what attention gave them -> (*n, d)."""
        x = x + drop(self.out(read))
        return x + drop(self.down(F.gelu(self.up(self.norm2(x)))))


class SlidingTransformer(nn.Module):
    """Blocks of causal self-attention that look back over `reach` steps of `tokens` tokens each, and a norm at the end.

    Args:
        sizes: Of tokens and blocks.
        reach: Steps M that a token sees, its own included.
        tokens: Tokens K in a step.
        positions: "relative", a vector for each distance and head that queries are multiplied with, scaled as keys are
            (Shaw et al. 2018); "rotary", queries and keys turned by their position (Su et al. 2021).
        dropout: On tokens, attention weights and residual branches; only where `forward` is given a generator in
            training mode, so never step by step.

    Raises:
        ValueError: if sizes do not fit together, or dropout is no share.
    """

    parts: Tensor
    age: Tensor
    later: Tensor
    rates: Tensor

    def __init__(
        self,
        sizes: Sizes,
        *,
        reach: int,
        tokens: int = 1,
        positions: Positions = "relative",
        dropout: float = 0.0,
    ):
        super().__init__()
        sizes.check(positions)
        at_least(2, reach=reach)
        chance(dropout)
        self.dropout = dropout
        self.width, self.heads, self.reach, self.tokens = sizes.width, sizes.heads, reach, tokens
        self.positions, self.scale, n = positions, 1 / math.sqrt(sizes.head), reach * tokens
        self.blocks = nn.ModuleList(Block(sizes.width, sizes.feedforward) for _ in range(sizes.blocks))
        self.norm = nn.LayerNorm(sizes.width)
        if positions == "relative":  # (heads, distances, d / heads) for each block
            tables = (torch.randn(sizes.heads, n, sizes.head) / math.sqrt(sizes.width) for _ in self.blocks)
            self.distances = nn.ParameterList(tables)
        rates = BASE ** (-torch.arange(0, sizes.head, 2, dtype=torch.float64) / sizes.head)
        age = torch.arange(reach).flip(0).repeat_interleave(tokens)
        later = torch.ones(tokens, n, dtype=torch.bool).triu(n - tokens + 1)
        for name, buffer in {"rates": rates, "parts": sizes.parts(), "age": age, "later": later}.items():
            self.register_buffer(name, buffer, persistent=False)

    def forward(
        self, x: Tensor, at: Tensor, rng: torch.Generator | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Windows -> outputs (B, T, K, d), and keys and values of each block, (B, T, K, d) both.

        Args:
            x: Tokens (B, T, K, d).
            at: (B, T) int64, steps since the first one of the same episode: what lies before that is not seen.
            rng: In training mode, dropout acts with this noise.
        """
        shape, kept, drop = x.shape, [], Drop(self.dropout, rng) if self.training and rng is not None else NONE
        x, angles, hidden = drop(x.flatten(1, 2)), self._angles(at), self._hidden(at)  # (B, L, d)
        for i, block in enumerate(self._blocks()):
            q, k, v = block.ask(x)
            q, k = self._placed(q, k, angles)
            kept.append((k.reshape(shape), v.reshape(shape)))
            q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, heads, L, d / heads)
            if self.positions == "rotary" and not drop.p:
                read = F.scaled_dot_product_attention(q, k, v, attn_mask=~hidden)
            else:
                near = self._relative(i, q, x.shape[1]) if self.positions == "relative" else 0.0
                scores = (q @ k.mT + near) * self.scale
                read = drop(scores.masked_fill(hidden, -math.inf).softmax(-1)).to(v) @ v
            x = block(x, read.transpose(1, 2).flatten(-2), drop)
        return self.norm(x).view(shape), kept

    def step(self, past: Past, x: Tensor) -> tuple[Tensor, Past]:
        """One more step, tokens (B, K, d) -> its outputs (B, K, d) and the past that it belongs to."""
        at, keys, values = past.length[:, None], [], []
        angles = self._angles(at)
        hidden = (self.later | (self.age > at)[:, None])[:, None]  # (B, 1, K, M K)
        for i, block in enumerate(self._blocks()):
            q, k, v = block.ask(x)
            q, k = self._placed(q, k, angles)
            keys.append(torch.cat([past.keys[i], k[:, None].to(past.keys[i])], 1))  # (B, M, K, d)
            values.append(torch.cat([past.values[i], v[:, None].to(past.values[i])], 1))
            x = block(x, self._recall(i, q, keys[-1].flatten(1, 2), values[-1].flatten(1, 2), hidden))
        newest = Past(tuple(k[:, 1:] for k in keys), tuple(v[:, 1:] for v in values), past.length + 1)
        return self.norm(x), newest

    def empty(self, like: Tensor) -> Past:
        """The past of rows that have seen nothing; `like` (B, ...) gives rows, device and type."""
        each = tuple(like.new_zeros(len(like), self.reach - 1, self.tokens, self.width) for _ in self.blocks)
        return Past(each, each, torch.zeros(len(like), dtype=torch.int64, device=like.device))

    def pasts(self, kept: list[tuple[Tensor, Tensor]], at: Tensor) -> Past:
        """What `forward` kept, as the past (B, T + 1, ...) before each step and after the last.

        Views: they cost nothing before they are flattened.

        Args:
            kept: Of T steps.
            at: (B, T + 1) int64, steps since the first one of the same episode.
        """
        n = self.reach - 1

        def before(x: Tensor) -> Tensor:
            return F.pad(x.detach(), (0, 0, 0, 0, n, 0)).unfold(1, n, 1).movedim(-1, 2)  # (B, T + 1, M - 1, K, d)

        keys, values = zip(*kept, strict=True)
        return Past(tuple(before(k) for k in keys), tuple(before(v) for v in values), at)

    def _blocks(self) -> list[Any]:
        return list(self.blocks)

    def _hidden(self, at: Tensor) -> Tensor:
        """(B, 1, L, L) bool: which tokens (columns) a token of a window (rows) does not see."""
        size = at.shape[1] * self.tokens
        token = torch.arange(size, device=at.device)
        steps = token // self.tokens
        far = at.clamp(max=self.reach - 1).repeat_interleave(self.tokens, 1)  # (B, L) steps that it looks back
        return ((token > token[:, None]) | (steps[:, None] - steps > far[..., None]))[:, None]

    def _angles(self, at: Tensor) -> Tensor | None:
        """Cosines and sines (B, T K, d / heads / 2, 2) of tokens of the steps `at` (B, T), if positions are rotary."""
        if self.positions != "rotary":
            return None
        token = (at[..., None] * self.tokens + torch.arange(self.tokens, device=at.device)).flatten(1)
        turn = token[..., None] * self.rates  # in float64: an episode may be a million steps long
        return torch.stack([turn.cos(), turn.sin()], -1)

    def _placed(self, q: Tensor, k: Tensor, angles: Tensor | None) -> tuple[Tensor, Tensor]:
        if angles is None:
            return q, k
        return turned(q, angles, self.heads), turned(k, angles, self.heads)

    def _relative(self, i: int, q: Tensor, n: int) -> Tensor:
        """What distances add to scores: queries (B, heads, Q, d / heads), the last of n tokens -> (B, heads, Q, n)."""
        table: Any = self.distances[i][:, :n].flip(1)  # the farthest first
        by_distance = torch.einsum("bhqc,hnc->bhqn", q, table.to(q))
        return skewed(F.pad(by_distance, (n - table.shape[1], 0)))

    def _recall(self, i: int, q: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
        """Attention of the queries of a step (B, K, d) on keys and values (B, M K, d) -> (B, K, d).

        As in `CausalTransformer`, the heads are rows of a matrix, each zero where another head's numbers stand: no key
        is moved to stand beside those of its head.
        """
        apart = self.parts[:, None].to(q)  # (heads, 1, d)
        scores = torch.bmm((q[:, None] * apart).flatten(1, 2), keys.to(q).mT).unflatten(1, (self.heads, -1))
        if self.positions == "relative":
            scores = scores + self._relative(i, q.unflatten(-1, (self.heads, -1)).transpose(1, 2), keys.shape[1])
        weight = (scores * self.scale).masked_fill(hidden, -math.inf).softmax(-1).to(q).flatten(1, 2)
        return (torch.bmm(weight, values.to(q)).unflatten(1, (self.heads, -1)) * apart).sum(1)


def skewed(by_distance: Tensor) -> Tensor:
    """Numbers by distance as numbers by place: (*n, Q, L) -> (*n, Q, L).

    Query i of Q is token L - Q + i of L. It has number c of row i for distance L - 1 - c, and wants that of token j at
    place j; tokens behind it get anything. Source: Huang et al. (2018), Music Transformer, section 3.4.1.
    """
    q, n = by_distance.shape[-2:]
    flat = F.pad(by_distance, (0, q)).flatten(-2)
    return flat[..., q - 1 : q - 1 + q * (n + q - 1)].unflatten(-1, (q, n + q - 1))[..., :n]
