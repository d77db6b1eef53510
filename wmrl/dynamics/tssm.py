"""TSSM: a world model with a stochastic state whose past is read by a transformer."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmrl.limits import at_least
from wmrl.nn.bound import log_density
from wmrl.nn.heads import masked_mean
from wmrl.nn.latents import Kind, balance, floored, latents
from wmrl.nn.mlp import Activation, Norm, mlp
from wmrl.nn.observation import Decoder, Encoder, Likelihood
from wmrl.nn.outcomes import ContinueHead, RewardHead, RewardKind
from wmrl.nn.sliding import Past, Positions, SlidingTransformer
from wmrl.nn.steps import Layout, StepTokens, ages, arrived
from wmrl.nn.transformer import Sizes
from wmrl.spec import Actions, Batch, Loss, Metrics, Space, Step, where

Kept = list[tuple[Tensor, Tensor]]
GOLDEN = 0.618034
"""The multiples of this, modulo 1, spread evenly however many they are."""


class TSSMState(NamedTuple):
    """What a TSSM knows at one moment."""

    z: Tensor  # (B, S) the stochastic state, drawn with eyes open or closed
    h: Tensor  # (B, d) what the transformer made of all earlier steps in its sight; zero at first
    reward: Tensor  # (B,) what came with this state, or what the model thinks came; zero at first
    seen: Tensor  # (B,) 0 if later steps are not to read z and reward
    past: Past  # keys and values of the steps before this one


class TSSM(nn.Module):
    """A stochastic state of each observation alone, and a transformer over states, actions and rewards as its prior.

    The transformer state-space model of Chen et al. (TransDreamer, 2022) and mauicv/world-model-rl (2024), whose three
    layouts it has. A posterior that does not know the past lets all steps of a window be learnt at once. Other than the
    published code it is causal asleep too, and within a step; relative positions are scaled; a dream remembers the
    steps before it; controllers see the transformer's output, since one picture hides velocities; the encoder is taught
    what can be predicted; rewards and ends are read off the state that has consumed the action. With eyes open, the
    reward that a step reads is the model's own guess unless `observe` is told.

    Args:
        state: "categorical" with straight-through gradients, or "gaussian".
        variables: Categorical variables, or Gaussian numbers. Source: mauicv and DreamerV2, 32.
        classes: Of each categorical variable. Source: mauicv and DreamerV2, 32.
        unimix: Share of the uniform distribution in categorical probabilities. Source: DreamerV3, 0.01.
        min_std: Least standard deviation of Gaussian numbers. Source: Dreamer, 0.1.
        layout: "stack", "concat" or "add"; see `StepTokens`.
        positions: "relative" or "rotary"; see `SlidingTransformer`.
        width: Size of an embedding. Source: mauicv 512, TWM 256.
        blocks: Blocks of the transformer. Source: mauicv 12, TransDreamer 2.
        heads: Attention heads.
        feedforward: Units of its feed-forward layers. Source: TWM and TransDreamer, 1024.
        context: Steps of the windows that it is learnt in: the same as `fit.dynamics.length`.
        reach: Steps that a token looks back, its own included, and at most `context`. It is what a state remembers, and
            a dream is begun at every step of many windows: memory and time grow with it. Source: TWM, 16.
        dropout: In training, also on attention weights. Source: mauicv 0.1, in its examples 0.
        actions_only: Whether a dream reads its start and its actions, and none of the states that it dreamt, so that
            gradients reach an action directly (Ma et al. 2024); it is learnt with eyes that close at a random step.
        features: What controllers see of a state: "zh" draw and transformer output, "z" the draw alone (published).
        activation: Of all MLPs, of grids' convolutions, and with a norm of pictures'.
        norm: Of all MLPs and of pictures' convolutions.
        dense: Whether MLPs read and draw pictures and grids too, and no convolutions.
        depth: Channels after the first convolution. Source: Dreamer 32.
        embedding: Size of a linear layer behind the convolutions, 0 for none.
        units: Of prior and heads, and of eyes that are MLPs.
        layers: Hidden layers of the same.
        observation: Likelihood, as in `rssm`: "gaussian", "scaled", "bernoulli", "symlog".
        reward: Distribution of the reward, as in `rssm`: "gaussian", "two-hot".
        objective: "kl", or "published": cross entropy with soft targets, and an encoder that learns from its
            reconstructions alone.
        dyn_scale: Weight of KL(posterior || prior) as it trains the prior. Source: DreamerV2, balance 0.8.
        rep_scale: Weight of the same as it trains the posterior; not if published. Source: DreamerV2, 0.2.
        free_nats: Of the mean KL, which cost nothing; not if published.
        observation_scale: Weight of the observations' likelihood.
        reward_scale: Weight of the reward's. Source: mauicv and TWM have 10.
        continue_scale: Weight of the end's.

    Raises:
        ContractError: if there is no encoder for such observations.
        ValueError: if a number makes no sense.
    """

    crosses = True

    def __init__(
        self,
        latent: Space,
        actions: Actions,
        *,
        state: Kind = "categorical",
        variables: int = 32,
        classes: int = 32,
        unimix: float = 0.01,
        min_std: float = 0.1,
        layout: Layout = "stack",
        positions: Positions = "relative",
        width: int = 256,
        blocks: int = 4,
        heads: int = 4,
        feedforward: int = 1024,
        context: int = 32,
        reach: int = 16,
        dropout: float = 0.0,
        actions_only: bool = False,
        features: Literal["zh", "z"] = "zh",
        activation: Activation = "silu",
        norm: Norm = "layer",
        dense: bool = False,
        depth: int = 32,
        embedding: int = 0,
        units: int = 256,
        layers: int = 2,
        observation: Likelihood = "gaussian",
        reward: RewardKind = "gaussian",
        objective: Literal["kl", "published"] = "kl",
        dyn_scale: float = 0.8,
        rep_scale: float = 0.2,
        free_nats: float = 1.0,
        observation_scale: float = 1.0,
        reward_scale: float = 1.0,
        continue_scale: float = 1.0,
    ):
        super().__init__()
        at_least(1, width=width, depth=depth, units=units, layers=layers)
        at_least(2, context=context, reach=reach)
        self.scales = {"observation": observation_scale, "reward": reward_scale, "continue": continue_scale}
        self.scales |= {"dyn": dyn_scale, "rep": rep_scale}
        at_least(0, embedding=embedding, free_nats=free_nats, **{f"{k}_scale": v for k, v in self.scales.items()})
        self.space = latents(state, variables, classes, unimix=unimix, min_std=min_std)
        self.tokens = StepTokens(self.space.size, actions.size, width, layout=layout, blind=actions_only)
        reach, size = min(reach, context), self.space.size + self.tokens.width
        sizes = Sizes(width=self.tokens.width, blocks=blocks, heads=heads, feedforward=feedforward)
        how: dict[str, Any] = {"tokens": self.tokens.tokens, "positions": positions, "dropout": dropout}
        self.trunk = SlidingTransformer(sizes, reach=reach, **how)
        mlps: dict[str, Any] = {"units": units, "layers": layers, "activation": activation, "norm": norm}
        eyes: dict[str, Any] = {"depth": depth, "dense": dense, **mlps}
        self.encoder = Encoder(latent, embedding=embedding, squash=observation == "symlog", **eyes)
        self.decoder = Decoder(self.space.size, latent, likelihood=observation, **eyes)
        self.posterior = nn.Linear(self.encoder.size, self.space.parameters)
        self.prior = mlp(self.tokens.width, self.space.parameters, **mlps)
        self.reward = RewardHead(size, reward, **mlps)
        self.goes_on = ContinueHead(size, **mlps)
        self.shown, self.actions_only, self.published = features, actions_only, objective == "published"
        self.feature_shape = (size if features == "zh" else self.space.size,)
        self.free_nats = free_nats

    def start(self, latent: Tensor, *, rng: torch.Generator | None = None) -> TSSMState:
        """A first observation (B, *obs): there is no past."""
        z = self._look(latent, rng)
        none, one = z.new_zeros(len(z)), z.new_ones(len(z))
        return TSSMState(z, z.new_zeros(len(z), self.trunk.width), none, one, self.trunk.empty(z))

    def observe(
        self,
        state: TSSMState,
        action: Tensor,
        latent: Tensor,
        *,
        rng: torch.Generator | None = None,
        reward: Tensor | None = None,
    ) -> TSSMState:
        """The past takes in the last state and the action (B, A); the new one is drawn from what is seen, (B, *obs).

        `reward` (B,) is what the action gave, where that is known; left out, the next step reads the model's guess.
        """
        h, past = self._advance(state, action)
        z = self._look(latent, rng)
        guess = self.reward(torch.cat([z, h], -1)) if reward is None else reward
        return TSSMState(z, h, guess, torch.ones_like(guess), past)

    def imagine(
        self, state: TSSMState, action: Tensor, *, rng: torch.Generator | None = None, temperature: float = 1.0
    ) -> Step:
        """As `observe`, but the new state is drawn from the prior: logits / temperature, noise * sqrt(temperature)."""
        h, past = self._advance(state, action)
        z = self.space.sample(self.prior(h), rng, temperature)
        both = torch.cat([z, h], -1)
        reward = self.reward(both)
        seen = torch.zeros_like(reward) if self.actions_only else torch.ones_like(reward)
        return Step(TSSMState(z, h, reward, seen, past), reward, self.goes_on(both))

    def features(self, state: TSSMState) -> Tensor:
        """What a controller sees: (B, S + d) or (B, S)."""
        return torch.cat([state.z, state.h], -1) if self.shown == "zh" else state.z

    def latent(self, state: TSSMState) -> Tensor:
        """The decoded observation, (B, *obs): pictures and grids in 0..1, vectors in their own units."""
        return self.decoder.mean(self.decoder(state.z))

    @property
    def log_prob(self) -> Callable[[TSSMState, Tensor, Tensor], Tensor]:
        """See `log_density`; absent where observations are no vectors or have no density."""
        if self.decoder.axes != 1 or self.decoder.likelihood not in ("gaussian", "scaled"):
            raise AttributeError("log_prob")
        return lambda state, action, latent: self._density(self._advance(state, action)[0], latent)

    def loss(self, latent: Tensor, batch: Batch, *, rng: torch.Generator | None = None) -> Loss:
        """The weighted sum of likelihoods of observations (B, T + 1, *obs), rewards and ends, and the KL, on windows.

        Metrics: `observation` in nats per row, `reward` squared error, `termination` cross entropy, `kl` and the
        posterior's `entropy` in nats per step; in eval mode, where there is a density, `nll` per dimension.
        """
        return self._learnt(latent, batch, rng)[:2]

    def learn(
        self, latent: Tensor, batch: Batch, *, rng: torch.Generator | None = None
    ) -> tuple[Tensor, Metrics, TSSMState]:
        """As `loss`, and the states (B, T + 1, ...) met on the way, detached."""
        total, metrics, z, read = self._learnt(latent, batch, rng)
        again = self.actions_only or self.trunk.dropout  # eyes were closed, or something was left out
        return total, metrics, self._met(z.detach(), batch, None if again else read)

    def states(self, latent: Tensor, batch: Batch, *, rng: torch.Generator | None = None) -> TSSMState:
        """The states (B, T + 1, ...) at all rows of windows (B, T + 1, *obs), told the rewards."""
        return self._met(self._look(latent, rng), batch)

    def _look(self, latent: Tensor, rng: torch.Generator | None) -> Tensor:
        return self.space.sample(self.posterior(self.encoder(latent)), rng)

    def _advance(self, state: TSSMState, action: Tensor) -> tuple[Tensor, Past]:
        """The transformer's output (B, d) after one more step, and the past with it."""
        out, past = self.trunk.step(state.past, self.tokens(state.z, action, state.reward, state.seen))
        return out[:, -1].float(), past

    def _read(self, z: Tensor, batch: Batch, seen: Tensor, rng: torch.Generator | None = None) -> tuple[Tensor, Kept]:
        """Windows of draws (B, T + 1, S) -> outputs (B, T, d) after each step, and keys and values."""
        tokens = self.tokens(z[:, :-1], batch.action, arrived(batch)[:, :-1], seen)
        out, kept = self.trunk(tokens, ages(batch)[:, :-1], rng)
        return out[:, :, -1].float(), kept

    def _met(self, z: Tensor, batch: Batch, read: tuple[Tensor, Kept] | None = None) -> TSSMState:
        """The states (B, T + 1, ...) of a window, that was read already or is read with open eyes."""
        at, reward = ages(batch), arrived(batch)
        h, kept = read or self._read(z, batch, torch.ones_like(batch.reward))
        h = F.pad(h.detach(), (0, 0, 1, 0)) * (at > 0)[..., None]
        return TSSMState(z, h, reward, torch.ones_like(reward), self.trunk.pasts(kept, at))

    def _eyes(self, batch: Batch, rng: torch.Generator | None) -> Tensor:
        """(B, T): which steps read their state and reward; if dreams read actions only, none behind a random one."""
        if not self.actions_only or rng is None:
            return torch.ones_like(batch.reward)
        draw, row = batch.reward.new_empty(1).uniform_(generator=rng), torch.arange(len(batch.reward)).to(batch.reward)
        last = (draw + row * GOLDEN).frac() * batch.reward.shape[1]  # evenly over the windows of any batch
        return (ages(batch)[:, :-1] <= last[:, None]).float()

    def _density(self, h: Tensor, latent: Tensor) -> Tensor:
        """Log density (B,) of observations (B, n) where the transformer gives h (B, d)."""
        posterior = self.posterior(self.encoder(latent))
        prior, decoder = self.prior(h), self.decoder
        return log_density(self.space, prior, posterior, lambda z: decoder.log_prob(decoder(z), latent))

    def _learnt(
        self, latent: Tensor, batch: Batch, rng: torch.Generator | None
    ) -> tuple[Tensor, Metrics, Tensor, tuple[Tensor, Kept]]:
        """The loss and its parts, the draws (B, T + 1, S), and what `_read` made of them."""
        seen = self._eyes(batch, rng)
        q = self.posterior(self.encoder(latent))
        drawn = self.space.sample(q, rng)
        z = drawn.detach() if self.published else drawn
        h, kept = self._read(z, batch, seen, rng)
        both, mask = torch.cat([z[:, 1:], h], -1), batch.mask
        rows = torch.cat([batch.rows[:, 1:2], batch.rows[:, 1:]], 1)  # a window of padding counts for nothing
        terms = self._divergences(q[:, 1:], self.prior(h), mask)
        terms["observation"] = masked_mean(self.decoder.loss(self.decoder(drawn), latent), rows)
        terms["reward"], error = (masked_mean(x, mask) for x in self.reward.losses(both, batch.reward))
        terms["continue"] = masked_mean(self.goes_on.losses(both, batch.terminated), mask)
        metrics = {"observation": terms["observation"], "reward": error, "termination": terms["continue"]}
        metrics |= {name: terms.pop(name) for name in ("kl", "entropy")}
        total = torch.stack([self.scales[name] * term for name, term in terms.items()]).sum()
        if not self.training and hasattr(self, "log_prob"):
            metrics["nll"] = -masked_mean(self._walked(latent, batch), mask) / latent.shape[-1]
        return total, {name: value.detach() for name, value in metrics.items()}, drawn, (h, kept)

    @torch.no_grad()
    def _walked(self, latent: Tensor, batch: Batch) -> Tensor:
        """Log densities (B, T) step by step, along the likeliest states, with guessed rewards: as `log_prob` has it."""
        state, log_prob = self.start(latent[:, 0]), []
        for t, action in enumerate(batch.action.unbind(1), 1):
            state = self.observe(state, action, latent[:, t])
            log_prob.append(self._density(state.h, latent[:, t]))
            if batch.first is not None:
                state = where(batch.first[:, t] > 0, self.start(latent[:, t]), state)
        return torch.stack(log_prob, 1)

    def _divergences(self, q: Tensor, p: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """What posterior and prior (B, T, P) cost, `dyn` and `rep`; the mean `kl` and `entropy` in nats."""
        prior, posterior = balance(self.space, q, p)
        kl, entropy = masked_mean(prior, mask), masked_mean(self.space.entropy(self.space.parts(q.detach())), mask)
        if self.published:
            return {"dyn": kl + entropy, "kl": kl, "entropy": entropy}
        dyn, rep = (floored(each, mask, self.free_nats, each=False) for each in (prior, posterior))
        return {"dyn": dyn, "rep": rep, "kl": kl, "entropy": entropy}
