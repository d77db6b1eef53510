"""Encoders that see the last few observations at once, and a decoder that shows what an encoding still tells."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmrl.nn.heads import masked_mean
from wmrl.nn.mlp import Activation, Norm, mlp
from wmrl.nn.observation import Decoder, Encoder, is_grid
from wmrl.spec import Batch, Space


@dataclass(frozen=True)
class Nets:
    """The sizes that all networks of a model share.

    Args:
        depth: Channels after the first convolution.
        units: Units of hidden layers.
        layers: Hidden layers.
        activation: Behind each.
        norm: Before each activation.
    """

    depth: int
    units: int
    layers: int
    activation: Activation
    norm: Norm

    def mlp(self, inputs: int, outputs: int, layers: int | None = None) -> nn.Sequential:
        """Hidden layers and a linear one: (*n, inputs) -> (*n, outputs)."""
        layers = self.layers if layers is None else layers
        how = {"activation": self.activation, "norm": self.norm}
        return mlp(inputs, outputs, units=self.units, layers=layers, **how)  # type: ignore[arg-type]


class Sight(nn.Module):
    """Embeds observations, and makes an encoding of the last K of them and of the actions between them.

    Args:
        observation: See `Encoder`.
        actions: A, size of an action.
        size: Z, numbers of an encoding.
        frames: K; where it is more than 1, a hidden layer brings them together.
        nets: Sizes.
        orthogonal: Begin with orthogonal weights, and biases of zero.

    Raises:
        ContractError: if no encoder fits the observation.
    """

    def __init__(self, observation: Space, actions: int, size: int, *, frames: int, nets: Nets, orthogonal: bool):
        super().__init__()
        self.frames = frames
        how = {"units": nets.units, "layers": nets.layers, "activation": nets.activation, "norm": nets.norm}
        self.eye = Encoder(observation, depth=nets.depth, embedding=0, **how)  # type: ignore[arg-type]
        self.trunk = nets.mlp(frames * self.eye.size + (frames - 1) * actions, size, layers=int(frames > 1))
        for part in self.modules() if orthogonal else ():
            if isinstance(part, nn.Linear | nn.Conv2d):
                nn.init.orthogonal_(part.weight)
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]

    def join(self, seen: Tensor, done: Tensor) -> Tensor:
        """Embeddings (*n, K, E), newest first, and actions (*n, K - 1, A), which led to all but the last -> (*n, Z)."""
        encoding: Tensor = self.trunk(torch.cat([seen.flatten(-2), done.flatten(-2)], -1))
        return encoding

    def forward(self, obs: Tensor, index: Tensor, done: Tensor) -> Tensor:
        """Encodings (B, M, Z) of M places in windows.

        Args:
            obs: (B, R, *obs).
            index: (B, M, K) the rows of `obs` that each place sees, the newest first.
            done: (B, M, K - 1, A).
        """
        return self.join(pick(self.eye(obs), index), done)


class Probe(nn.Module):
    """Shows what an encoding still tells of its observation; nothing learns from it.

    Args:
        size: Z, numbers of an encoding.
        observation: What it shows; see `Decoder`.
        nets: Sizes.
    """

    def __init__(self, size: int, observation: Space, *, nets: Nets):
        super().__init__()
        how = {"units": nets.units, "layers": nets.layers, "activation": nets.activation, "norm": nets.norm}
        kind = "bernoulli" if is_grid(observation) else "gaussian"
        self.values = torch.Size(observation.shape).numel()
        self.decoder = Decoder(size, observation, likelihood=kind, depth=nets.depth, **how)  # type: ignore[arg-type]

    def forward(self, z: Tensor) -> Tensor:
        """Encodings (*n, Z) -> observations (*n, *obs) float: pictures and grids in 0..1, vectors as they are."""
        return self.decoder.mean(self.decoder(z))

    def loss(self, z: Tensor, obs: Tensor, weight: Tensor) -> Tensor:
        """The loss of the decoder per value, in the mean over observations (*n, *obs) where `weight` (*n,) is 1.

        Half the squared error of vectors, and of pictures in 0..1; cross entropy in nats of grids.
        """
        return masked_mean(self.decoder.loss(self.decoder(z.detach()), obs), weight) / self.values


def stacks(batch: Batch, frames: int) -> tuple[Tensor, Tensor]:
    """What each row of a batch sees: rows (B, T + 1, K), newest first, and the actions (B, T + 1, K - 1, A) to them.

    Before the first row of a window or of an episode there is nothing: the first row is repeated, with actions of zero.
    """
    b, t = batch.action.shape[:2]
    row = torch.arange(t + 1, device=batch.action.device).expand(b, -1)  # (B, T + 1)
    begin = torch.zeros_like(row) if batch.first is None else (row * batch.first.long()).cummax(1).values
    index = row[..., None] - torch.arange(frames, device=row.device)  # (B, T + 1, K)
    led = F.pad(batch.action, (0, 0, 1, 0))  # (B, T + 1, A) the action that led to each row
    there = (index > begin[..., None])[..., :-1, None]
    index = torch.maximum(index, begin[..., None])
    return index, pick(led, index[..., :-1]) * there


def pick(rows: Tensor, index: Tensor) -> Tensor:
    """Rows (B, R, *x) at places (B, *m) -> (B, *m, *x)."""
    batch = torch.arange(len(rows), device=rows.device).view(-1, *[1] * (index.ndim - 1))
    picked: Tensor = rows[batch, index]
    return picked


def effective_rank(x: Tensor, weight: Tensor) -> Tensor:
    """How many dimensions vectors (N, Z) fill, where `weight` (N,) is 1: exp(entropy of their singular values).

    The values are those of the centred vectors, normalised to sum to 1; 1 where all vectors are the same.
    Source: Roy & Vetterli 2007.
    """
    centred = (x.double() - _mean(x.double(), weight)) * weight[:, None].double()
    gram = centred.T @ centred if x.shape[1] < len(x) else centred @ centred.T
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    p = values / values.sum().clamp(min=1e-12)
    return torch.special.entr(p).sum().exp().float()


def spread(x: Tensor, weight: Tensor) -> Tensor:
    """The standard deviation of each number of vectors (N, Z) where `weight` (N,) is 1, in the mean over numbers."""
    away = (x.float() - _mean(x.float(), weight)).square()
    return _mean(away, weight).sqrt().mean()


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight[:, None]).sum(0) / weight.sum().clamp(min=1)
