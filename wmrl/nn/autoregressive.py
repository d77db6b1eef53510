"""A density over a vector, one number after the other, by masked self-attention."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from wmrl.nn.heads import MixtureHead
from wmrl.nn.transformer import CausalTransformer, Sizes


class AutoregressiveHead(nn.Module):
    """p(x | h) = prod_d p(x_d | x_1, ..., x_(d-1), h), each factor a mixture of Gaussians.

    The numbers of the vector are the tokens of a causal transformer whose positions are recurrent; token d holds the
    number before it, its own place, and h. Exact likelihoods in one pass; a draw takes as many steps as numbers.
    Source: Fakoor, Chaudhari, Mueller & Smola (2020), TraDE; without its penalty on samples (MMD).

    Args:
        inputs: Size of h.
        size: Numbers in a vector, Z.
        mixtures: Gaussians in each factor.
        width: Size of a token.
        blocks: Blocks of the transformer.
        heads: Attention heads.
        feedforward: Units of the feed-forward layers.
    """

    def __init__(
        self,
        inputs: int,
        size: int,
        mixtures: int,
        *,
        width: int = 64,
        blocks: int = 2,
        heads: int = 4,
        feedforward: int = 256,
    ):
        super().__init__()
        self.size = size
        self.before, self.given = nn.Linear(1, width, bias=False), nn.Linear(inputs, width)
        self.place = nn.Parameter(torch.randn(size, width) / width**0.5)
        sizes = Sizes(width=width, blocks=blocks, heads=heads, feedforward=feedforward)
        self.trunk = CausalTransformer(sizes, context=size, positions="recurrent")
        self.factor = MixtureHead(width, 1, mixtures)

    def forward(self, h: Tensor) -> "Autoregressive":
        """Features (*n, inputs) -> a density for each leading index."""
        return Autoregressive(self, self.given(h))


class Autoregressive(NamedTuple):
    """Densities over vectors of Z numbers, one for each leading index."""

    head: AutoregressiveHead
    given: Tensor  # (*n, width) what each is conditioned on

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of vectors: (*n, Z) -> (*n,), in nats."""
        head = self.head
        before = torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], -1)[..., None]  # (*n, Z, 1)
        tokens = head.before(before) + head.place + self.given[..., None, :]  # (*n, Z, width)
        seen = head.trunk(tokens.reshape(-1, *tokens.shape[-2:])).view_as(tokens)
        return head.factor(seen).log_prob(x[..., None]).sum(-1)

    def sample(self, rng: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Draw vectors (*n, Z), each factor at this temperature as `Mixture.sample` has it."""
        head, given = self.head, self.given.flatten(0, -2)
        memory, x, drawn = head.trunk.empty(given), given.new_zeros(len(given), 1), []
        for d in range(head.size):
            seen, memory = head.trunk.step(memory, head.before(x) + head.place[d] + given, own=True)
            x = head.factor(seen).sample(rng, temperature)  # (n, 1)
            drawn.append(x)
        return torch.cat(drawn, -1).unflatten(0, self.given.shape[:-1])
