"""Transformer-DE: a causal transformer over time in place of the LSTM, with the mixture head of MDN-RNN."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmrl.errors import ContractError
from wmrl.limits import at_least
from wmrl.nn.dropout import chance
from wmrl.nn.heads import MixtureHead, OutcomeHead, masked_mean
from wmrl.nn.transformer import CausalTransformer, Memory, Positions, Sizes
from wmrl.spec import Actions, Batch, Loss, Space, Step

Features = Literal["zh", "published", "z"]


class WindowState(NamedTuple):
    """What a transformer over time knows at one moment."""

    z: Tensor  # (B, Z) the latent now
    h: Tensor  # (B, d) output of the last token, which saw all latents and actions of its window; zero at first
    memory: Memory  # the window


class TransformerDE(nn.Module):
    """A causal transformer that reads a token of latent and action for each step and gives a mixture of Gaussians.

    The model that starc52/tbwm calls Transformer-DE (after Ha & Schmidhuber, World Models, 2018), with three faults
    repaired: dropout acts in training only; the window of rollouts is that of training; and a controller sees the
    transformer's own output instead of its image in 256 numbers, which has its rank. It is not autoregressive over the
    latent's numbers.

    Args:
        width: Size of a token. Source: tbwm, 32.
        blocks: Blocks of attention and feed-forward layer. Source: tbwm, 3.
        heads: Attention heads. Source: tbwm, 8.
        feedforward: Units of the feed-forward layers. Source: tbwm, 2048.
        dropout: In training, also on attention weights. Source: tbwm, 0.1.
        hidden: Size of the linear layer between the transformer and the heads. Source: tbwm, 256.
        context: Steps in the window, at rollout as in training: the same as `fit.dynamics.length`. Source: tbwm, 32 in
            training (and 500 at rollout).
        positions: "sinusoidal", a table that is added (tbwm); "rotary", queries and keys turned by their position;
            "recurrent", a GRU over the tokens (what tbwm calls TraDE; see `trade`).
        mixtures: Gaussians in the mixture. Source: tbwm, 5.
        mixture: "joint" chooses one Gaussian for the whole latent vector (tbwm), "per_dimension" one for each of its
            numbers.
        features: What controllers see of a state: "zh" latent and normalised output of the transformer; "published"
            latent and the `hidden` numbers; "z" the latent alone.
        termination_weight: How much a step that terminates weighs against one that does not, in the loss of
            termination. Source: tbwm, 1.

    Raises:
        ContractError: if the latent is not a vector of floats, or a window is longer than the context.
        ValueError: if a size is below 1, the context below 2, or sizes do not fit together.
    """

    def __init__(
        self,
        latent: Space,
        actions: Actions,
        *,
        width: int = 32,
        blocks: int = 3,
        heads: int = 8,
        feedforward: int = 2048,
        dropout: float = 0.1,
        hidden: int = 256,
        context: int = 32,
        positions: Positions = "sinusoidal",
        mixtures: int = 5,
        mixture: Literal["joint", "per_dimension"] = "joint",
        features: Features = "zh",
        termination_weight: float = 1.0,
    ):
        super().__init__()
        if latent.vocab is not None or len(latent.shape) != 1:
            what = "tokens" if latent.vocab is not None else f"an array of shape {latent.shape}"
            raise ContractError(f"a transformer over time needs a vector of floats as latent, and was given {what}")
        sizes = Sizes(width=width, blocks=blocks, heads=heads, feedforward=feedforward)
        at_least(1, hidden=hidden, mixtures=mixtures)
        at_least(2, context=context)
        chance(dropout)
        if termination_weight <= 0:
            raise ValueError(f"termination_weight must be greater than 0, got {termination_weight}")
        (self.size,), self.shown, self.termination_weight = latent.shape, features, termination_weight
        self.feature_shape = (self.size + {"zh": width, "published": hidden, "z": 0}[features],)
        self.embed = nn.Linear(actions.size + self.size, width)
        self.trunk = CausalTransformer(sizes, context=context, dropout=dropout, positions=positions)
        self.hidden, self.outcome = nn.Linear(width, hidden), OutcomeHead(hidden)
        self.next: nn.Module = MixtureHead(hidden, self.size, mixtures, joint=mixture == "joint")

    def start(self, latent: Tensor, *, rng: torch.Generator | None = None) -> WindowState:
        """A first frame, latent (B, Z): the window is empty."""
        return WindowState(latent, latent.new_zeros(len(latent), self.trunk.width), self.trunk.empty(latent))

    def observe(
        self, state: WindowState, action: Tensor, latent: Tensor, *, rng: torch.Generator | None = None
    ) -> WindowState:
        """The window takes in the last latent and the action (B, A); the new latent (B, Z) is the one seen."""
        return WindowState(latent, *self._advance(state, action))

    def imagine(
        self, state: WindowState, action: Tensor, *, rng: torch.Generator | None = None, temperature: float = 1.0
    ) -> Step:
        """As `observe`, but the new latent is drawn: mixture logits / temperature, noise * sqrt(temperature)."""
        h, memory = self._advance(state, action)
        wide = self.hidden(h)
        reward, end = self.outcome(wide)
        return Step(WindowState(self.next(wide).sample(rng, temperature), h, memory), reward, torch.sigmoid(-end))

    def features(self, state: WindowState) -> Tensor:
        """What a controller sees: (B, Z + d), (B, Z + H) or (B, Z)."""
        if self.shown == "z":
            return state.z
        if self.shown == "zh":
            return torch.cat([state.z, F.layer_norm(state.h, state.h.shape[-1:])], -1)
        begun = (state.memory.length > 0)[:, None]
        return torch.cat([state.z, self.hidden(state.h) * begun], -1)

    def latent(self, state: WindowState) -> Tensor:
        """The latent now, (B, Z)."""
        return state.z

    def log_prob(self, state: WindowState, action: Tensor, latent: Tensor) -> Tensor:
        """Log density (B,) in nats of the latent (B, Z) that the action (B, A) leads to."""
        density = self.next(self.hidden(self._advance(state, action)[0]))
        log_prob: Tensor = density.log_prob(latent)
        return log_prob

    def loss(self, latent: Tensor, batch: Batch, *, rng: torch.Generator | None = None) -> Loss:
        """Negative log-likelihood of the next latents, and the errors of reward and termination, on windows.

        Latents are (B, T + 1, Z). The scalar is (Z nll + reward + termination) / (Z + 2). Metrics: `nll` in nats per
        latent dimension, `reward` squared error, `termination` cross entropy in nats.
        """
        if batch.action.shape[1] > self.trunk.context:
            raise ContractError(
                f"the dynamics model sees windows of at most {self.trunk.context} steps and was given "
                f"{batch.action.shape[1]}: give dynamics.context and fit.dynamics.length one value"
            )
        h = self.hidden(self.trunk(self._token(latent[:, :-1], batch.action), rng))  # (B, T, H)
        nll = -masked_mean(self.next(h).log_prob(latent[:, 1:]), batch.mask) / self.size
        reward, termination = self.outcome.losses(h, batch, positive_weight=self.termination_weight)
        total = (self.size * nll + reward + termination) / (self.size + 2)
        metrics = {"nll": nll, "reward": reward, "termination": termination}
        return total, {name: value.detach() for name, value in metrics.items()}

    def _token(self, latent: Tensor, action: Tensor) -> Tensor:
        return F.relu(self.embed(torch.cat([action, latent], -1)))

    def _advance(self, state: WindowState, action: Tensor) -> tuple[Tensor, Memory]:
        return self.trunk.step(state.memory, self._token(state.z, action))
