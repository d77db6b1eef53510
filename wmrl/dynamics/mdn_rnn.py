"""MDN-RNN: an LSTM with a mixture-density head (M of V-M-C)."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from wmrl.errors import ContractError
from wmrl.limits import at_least
from wmrl.nn.heads import MixtureHead, OutcomeHead, masked_mean
from wmrl.spec import Actions, Batch, Loss, Space, Step

FEATURES = {"zh": ("z", "h"), "z": ("z",), "zch": ("z", "c", "h")}


class MDNState(NamedTuple):
    """What an MDN-RNN knows at one moment."""

    z: Tensor  # (B, Z) the latent now
    h: Tensor  # (B, H) output of the LSTM, which saw all earlier latents and actions
    c: Tensor  # (B, H) cell of the LSTM


class MDNRNN(nn.Module):
    """An LSTM that reads latent and action and gives a mixture of Gaussians over the next latent.

    The paper's M (Ha & Schmidhuber, World Models, 2018) as ctallec/world-models wrote it: one component for the whole
    vector, and heads for reward and termination, which are always trained. With `mixture = "per_dimension"` the head
    is the paper's: a component for each number. The state at a frame holds the frame's latent and what the LSTM made of
    all frames before it.

    Args:
        hidden: Size of the LSTM's state, units. Source: paper, CarRacing 256, Doom 512.
        mixtures: Gaussians in the mixture. Source: paper, 5.
        mixture: "joint" chooses one Gaussian for the whole latent vector (ctallec), "per_dimension" one for each of
            its numbers (paper).
        features: What controllers see of a state: "zh" latent and LSTM output (paper, CarRacing), "z" the latent alone
            (the baseline without a memory), "zch" latent, cell and output (paper, Doom).
        termination_weight: How much a step that terminates weighs against one that does not, in the loss of
            termination. Source: the authors' Doom code uses 10; 1 is ctallec's.

    Raises:
        ContractError: if the latent is not a vector of floats.
        ValueError: if a size is below 1, or the weight is not positive.
    """

    def __init__(
        self,
        latent: Space,
        actions: Actions,
        *,
        hidden: int = 256,
        mixtures: int = 5,
        mixture: Literal["joint", "per_dimension"] = "joint",
        features: Literal["zh", "z", "zch"] = "zh",
        termination_weight: float = 1.0,
    ):
        super().__init__()
        if latent.vocab is not None or len(latent.shape) != 1:
            what = "tokens" if latent.vocab is not None else f"an array of shape {latent.shape}"
            raise ContractError(f"mdn-rnn needs a vector of floats as latent, as vae gives, and was given {what}")
        at_least(1, hidden=hidden, mixtures=mixtures)
        if termination_weight <= 0:
            raise ValueError(f"termination_weight must be greater than 0, got {termination_weight}")
        (self.size,), self.hidden = latent.shape, hidden
        self.shown, self.termination_weight = FEATURES[features], termination_weight
        self.feature_shape = (sum(self.size if part == "z" else hidden for part in self.shown),)
        self.rnn = nn.LSTM(self.size + actions.size, hidden, batch_first=True)
        self.next = MixtureHead(hidden, self.size, mixtures, joint=mixture == "joint")
        self.outcome = OutcomeHead(hidden)

    def start(self, latent: Tensor, *, rng: torch.Generator | None = None) -> MDNState:
        """A first frame, latent (B, Z): the memory is zero."""
        zero = latent.new_zeros(len(latent), self.hidden)
        return MDNState(latent, zero, zero)

    def observe(
        self, state: MDNState, action: Tensor, latent: Tensor, *, rng: torch.Generator | None = None
    ) -> MDNState:
        """The memory takes in the last latent and the action (B, A); the new latent (B, Z) is the one seen."""
        return MDNState(latent, *self._advance(state, action))

    def imagine(
        self, state: MDNState, action: Tensor, *, rng: torch.Generator | None = None, temperature: float = 1.0
    ) -> Step:
        """As `observe`, but the new latent is drawn: mixture logits / temperature, noise * sqrt(temperature)."""
        h, c = self._advance(state, action)
        reward, end = self.outcome(h)
        return Step(MDNState(self.next(h).sample(rng, temperature), h, c), reward, torch.sigmoid(-end))

    def features(self, state: MDNState) -> Tensor:
        """What a controller sees: (B, Z + H), (B, Z) or (B, Z + 2 H)."""
        return torch.cat([getattr(state, part) for part in self.shown], -1)

    def latent(self, state: MDNState) -> Tensor:
        """The latent now, (B, Z)."""
        return state.z

    def log_prob(self, state: MDNState, action: Tensor, latent: Tensor) -> Tensor:
        """Log density (B,) in nats of the latent (B, Z) that the action (B, A) leads to."""
        return self.next(self._advance(state, action)[0]).log_prob(latent)

    def loss(self, latent: Tensor, batch: Batch, *, rng: torch.Generator | None = None) -> Loss:
        """Negative log-likelihood of the next latents, and the errors of reward and termination, on windows.

        Latents are (B, T + 1, Z); the memory is zero at the first. The scalar is (Z nll + reward + termination) /
        (Z + 2), as ctallec weighs them. Metrics: `nll` in nats per latent dimension, `reward` squared error,
        `termination` cross entropy in nats.
        """
        h, _ = self.rnn(torch.cat([latent[:, :-1], batch.action], -1))  # (B, T, H)
        nll = -masked_mean(self.next(h).log_prob(latent[:, 1:]), batch.mask) / self.size
        reward, termination = self.outcome.losses(h, batch, positive_weight=self.termination_weight)
        total = (self.size * nll + reward + termination) / (self.size + 2)
        metrics = {"nll": nll, "reward": reward, "termination": termination}
        return total, {name: value.detach() for name, value in metrics.items()}

    def _advance(self, state: MDNState, action: Tensor) -> tuple[Tensor, Tensor]:
        r: Any = self.rnn
        x = torch.cat([state.z, action], -1)  # (B, Z + A)
        h, c = torch.lstm_cell(x, (state.h, state.c), r.weight_ih_l0, r.weight_hh_l0, r.bias_ih_l0, r.bias_hh_l0)
        return h, c
