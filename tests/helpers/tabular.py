"""Worlds small enough to be computed by hand: the state is a one-hot, the transitions are a table."""

import torch
from torch import Tensor, nn

from wmrl.spec import Actions, Step
from wmrl.world import WorldModel


class Table(nn.Module):
    """A dynamics model: action a in state s leads to a state drawn from moves[s, a], and pays reward[s, a].

    Args:
        moves: (S, A, S) probabilities.
        reward: (S, A).
        cont: (S,) the chance that the episode goes on in each state, once it is reached.
    """

    def __init__(self, moves: Tensor, reward: Tensor, cont: Tensor) -> None:
        super().__init__()
        self.moves, self.reward, self.cont = nn.Parameter(moves), reward, cont
        self.feature_shape = (len(moves),)
        self.actions = Actions(moves.shape[1], True)

    def imagine(self, state: Tensor, action: Tensor, *, rng: torch.Generator, temperature: float = 1.0) -> Step:
        chances = torch.einsum("bs,ba,sat->bt", state, action, self.moves)
        race = torch.empty_like(chances).exponential_(generator=rng)
        drawn = nn.functional.one_hot((chances.detach() / race).argmax(-1), chances.shape[-1]).float()
        after = drawn + chances - chances.detach()
        return Step(after, torch.einsum("bs,ba,sa->b", state, action, self.reward), after @ self.cont)

    def features(self, state: Tensor) -> Tensor:
        return state


def world_of(dynamics: nn.Module) -> WorldModel:
    return WorldModel(nn.Identity(), dynamics).requires_grad_(False)


def chain() -> Table:
    """Three states in a row; action 1 moves right, action 0 stays. State 2 ends the episode.

    Moving out of state 1 pays 1, staying pays 0.1 in state 0 alone: the best policy moves always (discount 0.9).
    """
    moves = torch.zeros(3, 2, 3)
    for s in range(3):
        moves[s, 0, s] = moves[s, 1, min(s + 1, 2)] = 1
    return Table(moves, torch.tensor([[0.05, 0.0], [0.0, 1.0], [0.0, 0.0]]), torch.tensor([1.0, 1.0, 0.0]))


def values(table: Table, policy: Tensor, discount: float) -> Tensor:
    """The value (S,) of each state under policy (S, A), of the infinite horizon, by solving Bellman's equation."""
    step = torch.einsum("sa,sat->st", policy, table.moves) * (discount * table.cont)
    return torch.linalg.solve(torch.eye(len(step)) - step, (policy * table.reward).sum(-1))
