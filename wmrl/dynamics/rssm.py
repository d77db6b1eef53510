"""RSSM: the recurrent state-space model of PlaNet and the Dreamers."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from wmrl.limits import at_least
from wmrl.nn import latents, recurrent
from wmrl.nn.bound import log_density
from wmrl.nn.heads import masked_mean
from wmrl.nn.mlp import ACTIVATIONS, Activation, Norm, hidden, mlp
from wmrl.nn.observation import Decoder, Encoder, Likelihood
from wmrl.nn.outcomes import ContinueHead, RewardHead, RewardKind
from wmrl.nn.unrolled import Apart, Linear, unrolled
from wmrl.precision import working
from wmrl.spec import Actions, Batch, Loss, Metrics, Space, Step

DENSITIES = ("gaussian", "scaled")
"""Likelihoods of vectors that are densities."""


class RSSMState(NamedTuple):
    """What an RSSM knows at one moment."""

    deter: Tensor  # (B, D) what the GRU made of all earlier draws and actions; zero at first
    stoch: Tensor  # (B, S) a draw: one-hot variables, or Gaussian numbers


class _Posterior(nn.Module):
    """What an embedding adds to the deterministic state: the embedding's part is computed for all rows at once."""

    def __init__(
        self, deter: int, embedding: int, outputs: int, *, units: int, layers: int, activation: Activation, norm: Norm
    ):
        super().__init__()
        self.first = Apart(deter, embedding, units)
        self.act = nn.Sequential(recurrent.norm_layer(norm, units), ACTIVATIONS[activation]())
        self.rest = hidden(units, units, layers - 1, activation=activation, norm=norm).append(Linear(units, outputs))

    def forward(self, deter: Tensor, ahead: Tensor) -> Tensor:
        """State (B, D) and `first.ahead` of the embedding -> parameters (B, P)."""
        parameters: Tensor = self.rest(self.act(self.first(deter, ahead)))
        return parameters


class RSSM(nn.Module):
    """A GRU beside a stochastic state: the prior guesses it from the GRU, the posterior also sees the observation.

    After Hafner et al. 2019 (PlaNet), 2020 (Dreamer), 2021 (DreamerV2), 2023 (DreamerV3); with the defaults the
    latent path is that of RajGhugare19/dreamerv2, the MinAtar agent. It owns its encoder and decoder, on `pixels`
    (pictures, grids, vectors) or on the vectors of a frozen `vae`. Rewards and ends are predicted from the state that
    has consumed the action, and each observation is reconstructed, that of a game's end too. The prior at a window's
    or an episode's first row is not trained: dreams begin behind it, and nothing is known there but how observations
    look on average. Without `rng` a state is not drawn, but the most likely one.

    Args:
        state: "categorical" or "gaussian". Source: DreamerV2; Dreamer.
        variables: Categorical variables, or Gaussian numbers. Source: MinAtar 20, DreamerV2 32, Dreamer 30.
        classes: Of each categorical variable. Source: MinAtar 20, DreamerV2 32.
        unimix: Share of the uniform distribution in categorical probabilities. Source: DreamerV3, 0.01.
        min_std: Least standard deviation of Gaussian numbers. Source: Dreamer, 0.1.
        deterministic: Size of the GRU. Source: Dreamer, MinAtar 200; DreamerV3 512 to 12288.
        cell: "gru", torch's; "layer-norm" (DreamerV2); "block", block-diagonal (DreamerV3, 2024).
        blocks: Of the cell "block". Source: DreamerV3, 8.
        hidden: Units of the embedding before the GRU, of prior and posterior. Source: MinAtar 200.
        prior_layers: Hidden layers of the prior. Source: 1; DreamerV3, 2.
        posterior_layers: Hidden layers of the posterior. Source: 1.
        activation: Of all MLPs, of grids' convolutions, and with a norm of pictures'. Source: "elu"; DreamerV3, "silu".
        norm: Of all MLPs and of pictures' convolutions. Source: "none"; DreamerV3, "rms".
        dense: Whether MLPs read and draw pictures and grids too, and no convolutions. Source: MinAtar, an option.
        depth: Channels after the first convolution. Source: Dreamer 32, MinAtar 16.
        embedding: Size of a linear layer behind the convolutions, 0 for none. Source: MinAtar 200, else 0.
        units: Of the heads, and of eyes that are MLPs. Source: MinAtar 100, Dreamer 300, DreamerV2 400.
        layers: Hidden layers of the same. Source: MinAtar 3.
        observation: Likelihood: "gaussian" of unit variance, "scaled" with learnt standard deviations (for vectors),
            "bernoulli" (for grids of booleans), "symlog" (for vectors; the encoder's input is then symlog as well).
        reward: Distribution of the reward: "gaussian" of unit variance, or "two-hot" over symexp numbers (DreamerV3).
        outcomes: "arrival" predicts reward and end from the state that the action led to; "published" from the state
            before, which has not seen the action, as the MinAtar agent did: for comparison only.
        dyn_scale: Weight of KL(posterior || prior) as it trains the prior. Source: DreamerV2, balance 0.8 of scale 1;
            MinAtar 0.08, DreamerV3 1; both scales 1 are the plain KL of Dreamer.
        rep_scale: Weight of the same as it trains the posterior. Source: DreamerV2 0.2, MinAtar 0.02, DreamerV3 0.1.
        free_nats: KL that costs nothing. Source: Dreamer 3, DreamerV3 1.
        free: Whether the "mean" over states is floored (Dreamer), or "each" of them (DreamerV3).
        observation_scale: Weight of the observations' likelihood.
        reward_scale: Weight of the reward's.
        continue_scale: Weight of the end's. Source: MinAtar 5.

    Raises:
        ContractError: if observations are tokens, or no layers or likelihood fit them.
        ValueError: if a size is below 1, a scale negative, or blocks do not divide the GRU.
    """

    crosses = True

    def __init__(
        self,
        latent: Space,
        actions: Actions,
        *,
        state: latents.Kind = "categorical",
        variables: int = 20,
        classes: int = 20,
        unimix: float = 0.0,
        min_std: float = 0.1,
        deterministic: int = 200,
        cell: recurrent.Cell = "gru",
        blocks: int = 8,
        hidden: int = 200,
        prior_layers: int = 1,
        posterior_layers: int = 1,
        activation: Activation = "elu",
        norm: Norm = "none",
        dense: bool = False,
        depth: int = 32,
        embedding: int = 0,
        units: int = 200,
        layers: int = 3,
        observation: Likelihood = "gaussian",
        reward: RewardKind = "gaussian",
        outcomes: Literal["arrival", "published"] = "arrival",
        dyn_scale: float = 0.8,
        rep_scale: float = 0.2,
        free_nats: float = 0.0,
        free: Literal["mean", "each"] = "mean",
        observation_scale: float = 1.0,
        reward_scale: float = 1.0,
        continue_scale: float = 1.0,
    ):
        super().__init__()
        at_least(1, deterministic=deterministic, hidden=hidden, depth=depth, units=units, layers=layers)
        at_least(1, prior_layers=prior_layers, posterior_layers=posterior_layers)
        at_least(0, embedding=embedding, dyn_scale=dyn_scale, rep_scale=rep_scale, free_nats=free_nats)
        at_least(0, observation_scale=observation_scale, reward_scale=reward_scale, continue_scale=continue_scale)
        self.space = latents.latents(state, variables, classes, unimix=unimix, min_std=min_std)
        self.deter, self.outcomes, self.free_nats, self.free_each = deterministic, outcomes, free_nats, free == "each"
        self.scales = {"observation": observation_scale, "reward": reward_scale, "continue": continue_scale}
        self.scales |= {"dyn": dyn_scale, "rep": rep_scale}
        size = deterministic + self.space.size
        self.feature_shape, drawn, kl = (size,), self.space.size, self.space.parameters
        style: dict = {"activation": activation, "norm": norm}
        eyes: dict = {"depth": depth, "units": units, "layers": layers, "dense": dense, **style}
        self.encoder = Encoder(latent, embedding=embedding, squash=observation == "symlog", **eyes)
        self.decoder = Decoder(size, latent, likelihood=observation, **eyes)
        self.recurrence = recurrent.recurrence(
            cell, drawn, actions.size, deterministic, hidden=hidden, blocks=blocks, **style
        )
        self.prior = mlp(deterministic, kl, units=hidden, layers=prior_layers, **style)
        self.posterior = _Posterior(
            deterministic, self.encoder.size, kl, units=hidden, layers=posterior_layers, **style
        )
        self.reward = RewardHead(size, reward, units=units, layers=layers, **style)
        self.goes_on = ContinueHead(size, units=units, layers=layers, **style)

    def start(self, latent: Tensor, *, rng: torch.Generator | None = None) -> RSSMState:
        """A first observation (B, *obs): the GRU is zero, the posterior sees the observation."""
        ahead = self.posterior.first.ahead(self.encoder(latent))
        deter = ahead.new_zeros(len(latent), self.deter, dtype=torch.float32)
        return RSSMState(deter, self.space.sample(self.posterior(deter, ahead), rng))

    def observe(
        self, state: RSSMState, action: Tensor, latent: Tensor, *, rng: torch.Generator | None = None
    ) -> RSSMState:
        """The GRU takes in the last draw and the action (B, A), the posterior the observation (B, *obs)."""
        deter = self._advance(state, action)
        ahead = self.posterior.first.ahead(self.encoder(latent))
        return RSSMState(deter, self.space.sample(self.posterior(deter, ahead), rng))

    def imagine(
        self, state: RSSMState, action: Tensor, *, rng: torch.Generator | None = None, temperature: float = 1.0
    ) -> Step:
        """As `observe`, drawn from the prior: of categories p^(1 / temperature), of numbers noise * sqrt(temperature).

        Gradients reach action and state through the draw.
        """
        deter = self._advance(state, action)
        after = RSSMState(deter, self.space.sample(self.prior(deter), rng, temperature))
        told = self.features(after if self.outcomes == "arrival" else state)
        told = told.to(working(told))  # once for both heads
        return Step(after, self.reward(told), self.goes_on(told))

    def features(self, state: RSSMState) -> Tensor:
        """What controllers see of a state: (B, D + S)."""
        return torch.cat(state, -1)

    def latent(self, state: RSSMState) -> Tensor:
        """The expected observation (B, *obs): pictures and grids in 0..1, vectors in their own units."""
        return self.decoder.mean(self.decoder(self.features(state)))

    @property
    def log_prob(self) -> Callable[[RSSMState, Tensor, Tensor], Tensor]:
        """See `_log_prob`; absent where observations are no vectors, or their likelihood is no density."""
        if self.decoder.axes != 1 or self.decoder.likelihood not in DENSITIES:
            raise AttributeError("log_prob")
        return self._log_prob

    def loss(self, latent: Tensor, batch: Batch, *, rng: torch.Generator | None = None) -> Loss:
        """See `learn`."""
        return self.learn(latent, batch, rng=rng)[:2]

    def states(self, latent: Tensor, batch: Batch, *, rng: torch.Generator | None = None) -> RSSMState:
        """The states (B, T + 1, ...) at all rows, eyes open; nothing is decoded."""
        return self._filter(latent, batch, rng)[0]

    def learn(
        self, latent: Tensor, batch: Batch, *, rng: torch.Generator | None = None
    ) -> tuple[Tensor, Metrics, RSSMState]:
        """Losses on windows, observations (B, T + 1, *obs), and the detached states (B, T + 1, ...) met on the way.

        The scalar is the weighted sum of likelihoods (observations: per row; outcomes: per step) and both KL. Metrics:
        `observation` in nats per row, up to a constant where the likelihood is Gaussian of unit variance, `reward`
        squared error, `termination` cross entropy in nats, `kl` (before any floor) and the posterior's `entropy` in
        nats per step; in eval mode, where there is a density, `nll` in nats per dimension, by `log_prob`.
        """
        states, posterior = self._filter(latent, batch, rng)
        features = self.features(states)
        features = features.to(working(features))  # once for all heads
        rows = batch.rows * batch.rows[:, 1:].amax(1, keepdim=True)  # a window of padding alone has no first row either
        seen = masked_mean(self.decoder.loss(self.decoder(features), latent), rows)
        told = features[:, 1:] if self.outcomes == "arrival" else features[:, :-1]
        wrong, error = self.reward.losses(told, batch.reward)
        earned, ends = (masked_mean(x, batch.mask) for x in (wrong, self.goes_on.losses(told, batch.terminated)))
        prior, posterior = self.prior(states.deter[:, 1:]), posterior[:, 1:]  # first rows have mask 0, row 0 none
        dyn, rep = latents.balance(self.space, posterior, prior)
        terms = {"observation": seen, "reward": earned, "continue": ends}
        terms |= {
            name: latents.floored(kl, batch.mask, self.free_nats, each=self.free_each)
            for name, kl in (("dyn", dyn), ("rep", rep))
        }
        total = torch.stack([self.scales[name] * term for name, term in terms.items()]).sum()
        with torch.no_grad():
            states = RSSMState(states.deter.detach(), states.stoch.detach())
            metrics = {"observation": seen, "reward": masked_mean(error, batch.mask), "termination": ends}
            metrics |= {"kl": masked_mean(dyn, batch.mask)}
            metrics["entropy"] = masked_mean(self.space.entropy(self.space.parts(posterior)), batch.mask)
            if not self.training and hasattr(self, "log_prob"):
                metrics["nll"] = -masked_mean(self._along(states, latent, batch), batch.mask) / latent.shape[-1]
        return total, {name: value.detach() for name, value in metrics.items()}, states

    def _filter(self, latent: Tensor, batch: Batch, rng: torch.Generator | None) -> tuple[RSSMState, Tensor]:
        """The states at all rows, and the posterior's parameters (B, T + 1, P); draws are in the order of steps."""
        embedded = self.encoder(latent)
        with unrolled(self.recurrence, embedded.shape[1]), unrolled(self.posterior, embedded.shape[1]):
            return self._unroll(embedded, batch, rng)

    def _unroll(self, embedded: Tensor, batch: Batch, rng: torch.Generator | None) -> tuple[RSSMState, Tensor]:
        seen, acted = self.posterior.first.ahead(embedded).unbind(1), self.recurrence.ahead(batch.action).unbind(1)
        kept = None if batch.first is None else (1 - batch.first).unsqueeze(-1).unbind(1)
        deter = batch.action.new_zeros(len(embedded), self.deter)
        parameters, deters, stochs = [self.posterior(deter, seen[0])], [deter], []
        for t, action in enumerate(acted, 1):
            stochs.append(self.space.sample(parameters[-1], rng))
            deter = self.recurrence(deter, stochs[-1], action)
            deter = deter if kept is None else deter * kept[t]
            deters.append(deter)
            parameters.append(self.posterior(deter, seen[t]))
        stochs.append(self.space.sample(parameters[-1], rng))
        return RSSMState(torch.stack(deters, 1), torch.stack(stochs, 1)), torch.stack(parameters, 1)

    def _advance(self, state: RSSMState, action: Tensor) -> Tensor:
        deter: Tensor = self.recurrence(state.deter, state.stoch, self.recurrence.ahead(action))
        return deter

    def _log_prob(self, state: RSSMState, action: Tensor, latent: Tensor) -> Tensor:
        """A lower bound, in the mean, of the log density (B,) in nats of the vector (B, n) that the action leads to."""
        deter = self._advance(state, action)
        prior, posterior = self.prior(deter), self.posterior(deter, self.posterior.first.ahead(self.encoder(latent)))

        def likelihood(drawn: Tensor) -> Tensor:  # (16, B, S) -> (16, B)
            decoded = self.decoder(torch.cat([deter.expand(len(drawn), *deter.shape), drawn], -1))
            return self.decoder.log_prob(decoded, latent)

        return log_density(self.space, prior, posterior, likelihood)

    def _along(self, states: RSSMState, latent: Tensor, batch: Batch) -> Tensor:
        """`log_prob` (B, T) of the observations of a window."""
        steps = zip(*(x.unbind(1) for x in states), batch.action.unbind(1), latent[:, 1:].unbind(1), strict=False)
        return torch.stack([self._log_prob(RSSMState(d, s), action, seen) for d, s, action, seen in steps], 1)
