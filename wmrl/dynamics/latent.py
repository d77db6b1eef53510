"""Latent world models without a decoder: they predict their own encodings, rewards and ends, and nothing else."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmrl.errors import ContractError
from wmrl.limits import at_least
from wmrl.nn.fsq import FSQ
from wmrl.nn.heads import masked_mean
from wmrl.nn.latents import Categorical
from wmrl.nn.mlp import Activation, Norm
from wmrl.nn.sight import Nets, Probe, Sight, effective_rank, pick, spread, stacks
from wmrl.nn.slow import Slow
from wmrl.spec import Actions, Batch, Loss, Metrics, Space, Step


class LatentState(NamedTuple):
    """What a latent world model knows at one moment."""

    z: Tensor  # (B, Z) the encoding, seen or imagined
    seen: Tensor  # (B, K - 1, E) the last observations, embedded, the newest first
    done: Tensor  # (B, K - 1, A) the action that led to each


class LatentModel(nn.Module):
    """Predicts the encoding that comes next, which a slow copy of its encoder gives, instead of the observation.

    Continuous (`codes = "continuous"`), encodings are vectors that are compared by their cosine: temporal consistency,
    as in TCRL (Zhao et al. 2023). With `codes = "fsq"` they are groups of few levels (finite scalar quantisation,
    Mentzer et al. 2023), whose codes are predicted as classes, as in DCWM (Scannell et al. 2025). Both as in
    mauicv/world-model-rl, with these repairs. Encodings have one length, sqrt(Z), seen or imagined: the cosine leaves
    the length open, and reward, end and controller would meet another one asleep than awake. So have the numbers that
    are quantised: without it, pictures that are alike had one code from the first step on. One function bounds them,
    so that all codes are reached. First states are quantised as all others are. Nothing is drawn at temperature 0 or
    without `rng`. The slow copy is stored.

    Windows are cut into pieces of `horizon` steps. Each begins with what the encoder sees and goes on with what the
    model imagines; step k weighs `decay`^k.

    Reward and end belong to the state that an action leads to, and are read from the encodings before and after it and
    the action. The published code keeps at (z_t, a_t) the reward that a_t at o_t led to: it is that of `imagine`'s
    state t + 1 here, and `batch.reward[:, t]`.

    The slow copy (`Slow`) lies in buffers and follows at the beginning of each `loss` that trains (training mode, with
    gradients): it is saved and restored with the weights, and `fit` knows nothing of it.

    In eval mode the scalar of `loss` leaves the consistency out, and metrics tell of collapse. A model is nowhere as
    consistent as where all encodings are one, and an untrained one is nearly there; reward, end and probe, over
    imagined steps, say how good it has become.

    Args:
        codes: "continuous" or "fsq".
        size: Numbers of an encoding. Source: mauicv/world-model-rl, 512.
        levels: Of "fsq": levels of each number of a group. Source: mauicv/world-model-rl and DCWM, 8 and 8.
        depth: Channels after the first convolution of pictures and grids. Source: Dreamer, 32.
        units: Units of hidden layers. Source: mauicv/world-model-rl, 512.
        layers: Hidden layers of each network. Source: mauicv/world-model-rl, 2 in the encoder and 1 elsewhere.
        activation: Of hidden layers. Source: mauicv/world-model-rl, "elu".
        norm: Of hidden layers. Source: mauicv/world-model-rl, "none"; DCWM, "layer".
        frames: Observations that the encoder sees at a time, with the actions between them: more than 1 where one does
            not tell the speed. Source: mauicv/world-model-rl, 1.
        horizon: Steps imagined from each observation in training. Source: mauicv/world-model-rl, 9.
        decay: What each further step weighs less. Source: mauicv/world-model-rl, 0.5.
        target_rate: How fast the slow copy follows. Source: mauicv/world-model-rl, 0.005.
        residual: Continuous: predict the change of the encoding. Source: mauicv/world-model-rl, an option.
        orthogonal: Begin with orthogonal weights in the encoder. Source: mauicv/world-model-rl.
        termination_weight: How much a step that terminates weighs against one that does not.
        consistency_scale: Weight of the consistency. Source: mauicv/world-model-rl, 1, as of the next two.
        reward_scale: Of the reward's error.
        continue_scale: Of the end's cross entropy.
        probe: Train a decoder that nothing learns from, for films and `compare`. Without it no state has a picture.

    Raises:
        ContractError: if the latent is tokens, or neither a vector nor of three axes.
        ValueError: if a number makes no sense.
    """

    crosses = True

    def __init__(
        self,
        latent: Space,
        actions: Actions,
        *,
        codes: Literal["continuous", "fsq"] = "continuous",
        size: int = 512,
        levels: tuple[int, ...] = (8, 8),
        depth: int = 32,
        units: int = 512,
        layers: int = 2,
        activation: Activation = "elu",
        norm: Norm = "none",
        frames: int = 1,
        horizon: int = 9,
        decay: float = 0.5,
        target_rate: float = 0.005,
        residual: bool = False,
        orthogonal: bool = True,
        termination_weight: float = 1.0,
        consistency_scale: float = 1.0,
        reward_scale: float = 1.0,
        continue_scale: float = 1.0,
        probe: bool = True,
    ):
        super().__init__()
        at_least(1, size=size, units=units, frames=frames, horizon=horizon)
        self.scales = {"consistency": consistency_scale, "reward": reward_scale, "termination": continue_scale}
        at_least(0, consistency_scale=consistency_scale, reward_scale=reward_scale, continue_scale=continue_scale)
        if not 0 < decay <= 1 or termination_weight <= 0 or layers < 0:
            raise ValueError(
                "decay must lie in (0, 1], termination_weight above 0 and layers at 0 or more, "
                f"got {decay}, {termination_weight}, {layers}"
            )
        self.quantise = FSQ(levels) if codes == "fsq" else None
        if self.quantise is not None and (residual or size % len(levels)):
            raise ValueError(
                f"codes of {len(levels)} numbers need a size that is a multiple of it, and residual = false; "
                f"got {size}, residual = {str(residual).lower()}"
            )
        self.size, self.frames, self.horizon, self.decay = size, frames, horizon, decay
        self.residual, self.termination_weight = residual, termination_weight
        self.feature_shape, self.actions = (size,), actions
        self.draws = None if self.quantise is None else Categorical(size // len(levels), self.quantise.vocab)
        nets = Nets(depth, units, layers, activation, norm)
        self.encoder = Sight(latent, actions.size, size, frames=frames, nets=nets, orthogonal=orthogonal)
        self.target = Slow(self.encoder, target_rate)
        self.next = nets.mlp(size + actions.size, self.draws.size if self.draws else size)
        self.outcome = nets.mlp(2 * size + actions.size, 2)
        self.probe = Probe(size, latent, nets=nets) if probe else None

    def start(self, latent: Tensor, *, rng: torch.Generator | None = None) -> LatentState:
        """A first observation (B, *obs): before it, the encoder sees the same one, and actions of zero."""
        seen = self.encoder.eye(latent)[:, None]  # (B, 1, E)
        done = seen.new_zeros(len(seen), self.frames - 1, self.actions.size)
        return self._state(seen.expand(-1, self.frames, -1), done)

    def observe(
        self, state: LatentState, action: Tensor, latent: Tensor, *, rng: torch.Generator | None = None
    ) -> LatentState:
        """The observation (B, *obs) that the action (B, A) led to is encoded, with those before it if `frames` > 1."""
        seen = torch.cat([self.encoder.eye(latent)[:, None], state.seen], 1)  # (B, K, E)
        return self._state(seen, torch.cat([action[:, None], state.done], 1)[:, : self.frames - 1])

    def imagine(
        self, state: LatentState, action: Tensor, *, rng: torch.Generator | None = None, temperature: float = 1.0
    ) -> Step:
        """The next encoding: the likeliest one, or with "fsq" a draw of softmax(logits / temperature) with `rng`."""
        z, _ = self._advance(state.z, action, rng, temperature)
        reward, end = self._outcome(state.z, action, z)
        return Step(state._replace(z=z), reward, torch.sigmoid(-end))

    def features(self, state: LatentState) -> Tensor:
        """What controllers see: the encoding (B, Z)."""
        return state.z

    def latent(self, state: LatentState) -> Tensor:
        """The observation as the probe sees it in the encoding, (B, *obs): pictures and grids in 0..1.

        Raises:
            ContractError: if there is no probe.
        """
        if self.probe is None:
            raise ContractError(
                "this latent model has no decoder, so its states have no pictures: train it with dynamics.probe = true"
            )
        shown: Tensor = self.probe(state.z)
        return shown

    def states(self, latent: Tensor, batch: Batch, *, rng: torch.Generator | None = None) -> LatentState:
        """The states (B, T + 1, ...) at all rows: observations (B, T + 1, *obs), eyes open; heeds `batch.first`."""
        index, done = stacks(batch, self.frames)
        seen = pick(self.encoder.eye(latent), index)  # (B, T + 1, K, E)
        return self._state(seen, done)

    def learn(
        self, latent: Tensor, batch: Batch, *, rng: torch.Generator | None = None
    ) -> tuple[Tensor, Metrics, LatentState]:
        """As `loss`, and the states (B, T + 1, ...) at all rows, detached, of the weights before the step."""
        total, metrics = self.loss(latent, batch, rng=rng)
        with torch.no_grad():
            return total, metrics, self.states(latent, batch, rng=rng)

    def loss(self, latent: Tensor, batch: Batch, *, rng: torch.Generator | None = None) -> Loss:
        """How far imagined encodings are from those of the slow copy, and the errors of reward, end and probe.

        Args:
            latent: Observations (B, T + 1, *obs).
            batch: The windows; `first` is heeded.
            rng: In training, codes are drawn with it; in eval mode they are the likeliest.

        Returns:
            The weighted sum of consistency, reward and termination, and the probe; in eval mode without consistency.
            Metrics: `consistency` (2 - 2 cos, or cross entropy in nats per group of codes), `reward` squared error,
            `termination` cross entropy in nats, each a mean over steps with their weights; `probe` (see `Probe.loss`);
            in eval mode also `rank`, how many dimensions the encodings of the slow copy fill, and `spread`, their
            standard deviation.
        """
        if self.training and torch.is_grad_enabled():
            self.target.follow(self.encoder)
        rows, action, alive = self._pieces(batch)
        index, done = stacks(batch, self.frames)
        target = self._bound(self.target(self.encoder, latent, index, done))  # (B, T + 1, Z)
        zs = [self._first(latent, index[:, rows[:, 0]], done[:, rows[:, 0]])]  # (B, P, Z) each
        outs: list[Tensor] = []
        for a in action.unbind(2):
            z, out = self._advance(zs[-1], a, rng if self.training else None)
            zs, outs = [*zs, z], [*outs, out]
        seen = torch.stack(zs, 2)  # (B, P, H + 1, Z)
        steps = torch.arange(action.shape[2], device=action.device)
        weight = alive[..., 1:] * self.decay**steps  # (B, P, H)
        apart = self._apart(torch.stack(outs, 2), target[:, rows[:, 1:]])
        parts = {"consistency": masked_mean(apart, weight), **self._outcomes(seen, action, batch, rows, weight)}
        if self.probe is not None:
            parts["probe"] = self.probe.loss(seen, latent[:, rows], alive)
        scales = {"probe": 1.0} | (self.scales if self.training else {**self.scales, "consistency": 0.0})
        metrics = {name: value.detach() for name, value in parts.items()}
        if not self.training:
            flat, real = target.flatten(0, 1), batch.rows.flatten()
            metrics |= {"rank": effective_rank(flat, real), "spread": spread(flat, real)}
        return torch.stack([scales[name] * value for name, value in parts.items()]).sum(), metrics

    def _pieces(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Windows cut into P pieces of H steps; behind the end of a window or an episode nothing of a piece counts.

        Returns:
            The rows (P, H + 1) of each piece, its actions (B, P, H, A), and which of its rows count (B, P, H + 1).
        """
        steps = batch.action.shape[1]
        length = min(self.horizon, steps)
        count = -(-steps // length)
        spare = count * length - steps
        rows = torch.arange(count, device=batch.mask.device)[:, None] * length
        rows = (rows + torch.arange(length + 1, device=rows.device)).clamp(max=steps)
        action = F.pad(batch.action, (0, 0, 0, spare)).unflatten(1, (count, length))
        alive = F.pad(batch.mask, (0, spare)).unflatten(1, (count, length)).cumprod(-1)
        return rows, action, torch.cat([alive[..., :1], alive], -1)

    def _first(self, latent: Tensor, index: Tensor, done: Tensor) -> Tensor:
        """Encodings (B, P, Z), with gradients, of what is seen at places (B, P, K); no other row is embedded."""
        near = torch.arange(index[0].numel(), device=index.device).view_as(index[0]).expand_as(index)
        return self._bound(self.encoder(pick(latent, index).flatten(1, 2), near, done))

    def _state(self, seen: Tensor, done: Tensor) -> LatentState:
        """Of embeddings (*n, K, E) and actions (*n, K - 1, A), the newest first."""
        return LatentState(self._bound(self.encoder.join(seen, done)), seen[..., : self.frames - 1, :], done)

    def _bound(self, x: Tensor) -> Tensor:
        """What a network gives (*n, Z) -> an encoding: of length sqrt(Z), or of the levels nearest to that."""
        x = F.normalize(x.float(), dim=-1, eps=1e-6) * self.size**0.5
        return x if self.quantise is None else self.quantise(x)

    def _advance(
        self, z: Tensor, action: Tensor, rng: torch.Generator | None, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Encodings (*n, Z) -> the next ones, and what `_apart` compares: the same, or logits of codes (*n, G V)."""
        out = self.next(torch.cat([z, action], -1))
        if self.quantise is None or self.draws is None:
            z = self._bound(z + out if self.residual else out)
            return z, z
        return self.quantise.values(self.draws.sample(out, rng, temperature)), out

    def _apart(self, out: Tensor, target: Tensor) -> Tensor:
        """How far what is imagined is from encodings (*n, Z): 2 - 2 cos, or nats per group (*n,)."""
        if self.quantise is None or self.draws is None:
            return 2 - 2 * (out * target).sum(-1) / self.size
        (log_p,) = self.draws.parts(out)  # (*n, G, V)
        return -log_p.gather(-1, self.quantise.index(target)[..., None]).squeeze(-1).mean(-1)

    def _outcome(self, z: Tensor, action: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """Reward (*n,) and the logit of an end (*n,) of steps from one encoding (*n, Z) to the following one."""
        reward, end = self.outcome(torch.cat([z, action, following], -1)).float().unbind(-1)
        return reward, end

    def _outcomes(self, seen: Tensor, action: Tensor, batch: Batch, rows: Tensor, weight: Tensor) -> Metrics:
        """The losses of reward and end on pieces: encodings (B, P, H + 1, Z), weights (B, P, H)."""
        reward, end = self._outcome(seen[:, :, :-1], action, seen[:, :, 1:])  # (B, P, H)
        at = rows[:, :-1].clamp(max=batch.reward.shape[1] - 1)
        wrong = F.binary_cross_entropy_with_logits(
            end, batch.terminated[:, at], reduction="none", pos_weight=end.new_tensor(self.termination_weight)
        )
        missed = (reward - batch.reward[:, at]).square()
        return {"reward": masked_mean(missed, weight), "termination": masked_mean(wrong, weight)}
