"""A step of an episode, state, action and reward, as tokens of a transformer."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmrl.nn.twohot import symlog
from wmrl.spec import Batch

Layout = Literal["stack", "concat", "add"]


class StepTokens(nn.Module):
    """Embeds the state, the action taken in it and the reward that came with it.

    Source: mauicv/world-model-rl (2024), where rewards are not squashed.

    Args:
        drawn: S, numbers of the state.
        actions: A, numbers of the action.
        width: E of each embedding.
        layout: "stack", three tokens of a step, in that order; "concat", one token three times as wide; "add", one
            token, their sum.
        blind: Whether there are steps whose state and reward nobody saw; learnt vectors stand for them.
    """

    def __init__(self, drawn: int, actions: int, width: int, *, layout: Layout, blind: bool = False):
        super().__init__()
        self.layout = layout
        self.tokens, self.width = (3 if layout == "stack" else 1), (3 * width if layout == "concat" else width)
        self.state, self.action = (
            nn.Sequential(nn.Linear(inputs, width), nn.ELU(), nn.Linear(width, width)) for inputs in (drawn, actions)
        )
        self.reward = nn.Linear(1, width)
        self.unseen = nn.Parameter(torch.randn(2, width) / width) if blind else None

    def forward(self, drawn: Tensor, action: Tensor, reward: Tensor, seen: Tensor) -> Tensor:
        """Draws (*n, S), actions (*n, A), rewards (*n,), and 1 or 0 (*n,), whether they were seen -> (*n, K, d)."""
        state, action, reward = self.state(drawn), self.action(action), self.reward(symlog(reward).unsqueeze(-1))
        if self.unseen is not None:
            there = seen.unsqueeze(-1) > 0
            state, reward = torch.where(there, state, self.unseen[0]), torch.where(there, reward, self.unseen[1])
        if self.layout == "stack":
            return torch.stack([state, action, reward], -2)
        if self.layout == "concat":
            return torch.cat([state, action, reward], -1).unsqueeze(-2)
        return (state + action + reward).unsqueeze(-2)


def ages(batch: Batch) -> Tensor:
    """(B, T + 1) int64: steps since the first one of the same episode, or of the window."""
    rows = torch.arange(batch.action.shape[1] + 1, device=batch.action.device).expand(len(batch.action), -1)
    return rows if batch.first is None else rows - torch.where(batch.first > 0, rows, 0).cummax(1).values


def arrived(batch: Batch) -> Tensor:
    """(B, T + 1): the reward that came with each row; 0 where an episode, or the window, begins."""
    return F.pad(batch.reward * batch.mask, (1, 0))
