"""Eyes of world models that bring their own: encoders and decoders of pictures, grids and vectors, and likelihoods."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmrl.errors import ContractError
from wmrl.nn.conv import PUBLISHED, ChannelsLast, Layer, Plan, after, decoder, encoder
from wmrl.nn.heads import LOG_STD
from wmrl.nn.mlp import ACTIVATIONS, Activation, Norm, hidden, mlp
from wmrl.nn.twohot import symexp, symlog
from wmrl.spec import Space

Likelihood = Literal["gaussian", "scaled", "bernoulli", "symlog"]
GRID = 16
"""Arrays with a side below this are grids (MinAtar's 10 x 10), which lose nothing to strides; others are pictures."""
CENTRE = 0.5
"""Pictures reach the encoder, and leave the decoder, as 0..1 minus this. Source: Dreamer."""
_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def unit(obs: Tensor) -> Tensor:
    """Observations as float32: bytes in 0..1, booleans 0 or 1, floats as they are."""
    return obs.float() / 255 if obs.dtype == torch.uint8 else obs.float()


def is_grid(space: Space) -> bool:
    """Whether an array (C, H, W) is a grid."""
    return len(space.shape) == 3 and min(space.shape[1:]) < GRID


class Encoder(nn.Module):
    """Observations (*n, *obs) of any dtype -> embeddings (*n, E); E is `size`.

    Pictures go through Dreamer's convolutions of stride 2, grids through three of stride 1 (the published MinAtar
    agent), vectors through an MLP; `dense` all of them.

    Args:
        space: Of the observations.
        depth: Channels after the first convolution. Source: Dreamer, 32; the MinAtar agent, 16.
        embedding: Size of a linear layer behind the convolutions; 0 for none. Source: the MinAtar agent, 200.
        units: Of the MLP.
        layers: Of the MLP.
        activation: Of grids and vectors; pictures have it if they have a norm, else ReLU. Source: Dreamer; DreamerV3.
        norm: Of the MLP and of pictures: "layer" over a whole map of channels, "rms" over the channels of each pixel.
        squash: Whether symlog is taken of vectors. Source: DreamerV3.
        dense: Whether an MLP reads pictures and grids too. Source: the MinAtar agent, `pixel = False`.

    Raises:
        ContractError: if no layers fit the space.
    """

    def __init__(
        self,
        space: Space,
        *,
        depth: int,
        embedding: int,
        units: int,
        layers: int,
        activation: Activation,
        norm: Norm,
        squash: bool = False,
        dense: bool = False,
    ):
        super().__init__()
        _check(space)
        self.axes, self.squash, self.shift = len(space.shape), squash and len(space.shape) == 1, 0.0
        self.dense = dense or self.axes == 1
        self.net: nn.Module
        if self.dense:
            self.net, size = hidden(math.prod(space.shape), units, layers, activation=activation, norm=norm), units
            self.shift = CENTRE if self.axes == 3 and not is_grid(space) else 0.0
        elif is_grid(space):
            self.net, size = _grid_encoder(space.shape, depth, activation)
        else:
            plan = layers_for(space.shape, depth)
            self.net = encoder(space.shape[0], plan.down, after(activation, norm))
            size, self.shift = math.prod(plan.top), CENTRE
        self.size = embedding or size
        self.embed = nn.Linear(size, embedding) if embedding and embedding != size else nn.Identity()

    def forward(self, obs: Tensor) -> Tensor:
        """(*n, *obs) -> (*n, E)."""
        lead, x = obs.shape[: -self.axes], unit(obs).flatten(0, -self.axes - 1) - self.shift
        x = x.flatten(1) if self.dense else x
        embedded: Tensor = self.embed(self.net(symlog(x) if self.squash else x))
        return embedded.unflatten(0, lead)


class Decoder(nn.Module):
    """Features (*n, F) -> what a likelihood says of observations: its loss, and its most likely observation.

    "gaussian" has unit variance, "scaled" a standard deviation for each number from the network, "bernoulli" is for
    planes of booleans, "symlog" is squared error of symlog numbers (DreamerV3).

    Args:
        inputs: F.
        space: Of the observations.
        likelihood: "scaled" and "symlog" are for vectors.
        depth: As `Encoder`.
        units: As `Encoder`.
        layers: As `Encoder`.
        activation: As `Encoder`.
        norm: As `Encoder`.
        dense: As `Encoder`.

    Raises:
        ContractError: if the likelihood does not fit the space.
    """

    def __init__(
        self,
        inputs: int,
        space: Space,
        *,
        likelihood: Likelihood,
        depth: int,
        units: int,
        layers: int,
        activation: Activation,
        norm: Norm,
        dense: bool = False,
    ):
        super().__init__()
        _check(space)
        self.axes, self.likelihood, self.shift = len(space.shape), likelihood, 0.0
        self.shape = space.shape if dense and len(space.shape) == 3 else None  # that an MLP's numbers are given
        if self.axes == 3 and likelihood in ("scaled", "symlog"):
            raise ContractError(f"the likelihood {likelihood!r} is for vectors, and observations are {space.shape}")
        self.net: nn.Module
        if dense or self.axes == 1:
            outputs = math.prod(space.shape) * (2 if likelihood == "scaled" else 1)
            self.net = mlp(inputs, outputs, units=units, layers=layers, activation=activation, norm=norm)
        elif is_grid(space):
            self.net = _grid_decoder(inputs, space.shape, depth, activation)
        else:
            plan = layers_for(space.shape, depth)
            self.net = decoder(inputs, plan.seed, plan.up, space.shape[0], after(activation, norm))
        if self.axes == 3 and not is_grid(space) and likelihood != "bernoulli":
            self.shift = CENTRE

    def forward(self, features: Tensor) -> Tensor:
        """(*n, F) -> (*n, *obs) float32, of the likelihood's parameters; "scaled" has twice as many numbers."""
        lead = features.shape[:-1]
        decoded: Tensor = self.net(features.reshape(-1, features.shape[-1]))
        decoded = decoded if self.shape is None else decoded.unflatten(-1, self.shape)
        return decoded.float().unflatten(0, lead)

    def mean(self, decoded: Tensor) -> Tensor:
        """The expected observation (*n, *obs): pictures and grids in 0..1, vectors in their own units."""
        if self.likelihood == "bernoulli":
            return decoded.sigmoid()
        if self.likelihood == "symlog":
            return symexp(decoded)
        if self.likelihood == "scaled":
            return decoded.chunk(2, -1)[0]
        return decoded if self.axes == 1 else (decoded + self.shift).clamp(0, 1)

    def loss(self, decoded: Tensor, obs: Tensor) -> Tensor:
        """Negative log-likelihood (*n,) in nats, summed over an observation; Gaussian and symlog up to a constant."""
        return self._error(decoded, unit(obs)).flatten(-self.axes).sum(-1)

    def log_prob(self, decoded: Tensor, obs: Tensor) -> Tensor:
        """Log density (*n,) in nats of observations (*n, *obs), constants and all; not for "symlog"."""
        size = math.prod(obs.shape[-self.axes :])
        return -self.loss(decoded, obs) - (_HALF_LOG_TWO_PI * size if self.likelihood == "gaussian" else 0.0)

    def _error(self, decoded: Tensor, target: Tensor) -> Tensor:
        if self.likelihood == "bernoulli":
            return F.binary_cross_entropy_with_logits(decoded, target, reduction="none")
        if self.likelihood == "symlog":
            return (decoded - symlog(target)).square()
        if self.likelihood == "scaled":
            mean, raw = decoded.chunk(2, -1)
            log_std = raw.clamp(*LOG_STD)
            return 0.5 * ((target - mean) * (-log_std).exp()).square() + log_std + _HALF_LOG_TWO_PI
        return 0.5 * (decoded - (target - self.shift)).square()


def _check(space: Space) -> None:
    if space.vocab is not None or len(space.shape) not in (1, 3):
        what = "tokens" if space.vocab is not None else f"arrays of shape {space.shape}"
        raise ContractError(f"an encoder of its own reads vectors (n,) or arrays (C, H, W), and was given {what}")


def layers_for(shape: tuple[int, ...], depth: int) -> Plan:
    """Convolutions for pictures (C, size, size): Dreamer's at 64, else halvings down to a side of 4 to 7.

    Raises:
        ContractError: if the sides are not equal.
    """
    side = shape[1]
    if shape[2] != side:
        raise ContractError(f"pictures must be (channels, size, size) with equal sides, got {tuple(shape)}")
    if side == 64:
        return _scaled(PUBLISHED[64], depth)
    sides = [side]
    while sides[-1] >= 8:
        sides.append(sides[-1] // 2)
    widths = [depth * min(2**i, 8) for i in range(len(sides) - 1)]
    top = (widths[-1], sides[-1], sides[-1])
    down = tuple(Layer(width, 4, padding=1) for width in widths)
    odd = [each % 2 for each in sides[-2::-1]]
    up = tuple(Layer(width, 4, padding=1, extra=e) for width, e in zip([*widths[-2::-1], 0], odd, strict=True))
    return Plan(down, top, top, up)


def _scaled(plan: Plan, depth: int) -> Plan:
    """A published plan with `depth` channels after the first convolution."""

    def width(channels: int) -> int:
        return channels * depth // plan.down[0].channels

    down, up = (
        tuple(layer._replace(channels=width(layer.channels)) for layer in each) for each in (plan.down, plan.up)
    )
    return Plan(down, (width(plan.top[0]), *plan.top[1:]), (width(plan.seed[0]), *plan.seed[1:]), up)


def _grid_widths(shape: tuple[int, ...], depth: int) -> list[int]:
    """Channels after each convolution of 3 x 3: three, or as many as leave a cell."""
    count = min(3, (min(shape[1:]) - 1) // 2)
    if count < 1:
        raise ContractError(f"grids need sides of at least 3 cells, got {tuple(shape)}")
    return [depth * 2**i for i in range(count)]


def _grid_encoder(shape: tuple[int, ...], depth: int, activation: Activation) -> tuple[nn.Module, int]:
    widths = _grid_widths(shape, depth)
    parts: list[nn.Module] = [ChannelsLast()]
    for above, below in zip([shape[0], *widths], widths, strict=False):
        parts += [nn.Conv2d(above, below, 3), ACTIVATIONS[activation]()]
    height, width = (side - 2 * len(widths) for side in shape[1:])
    return nn.Sequential(*parts, nn.Flatten()), widths[-1] * height * width


def _grid_decoder(inputs: int, shape: tuple[int, ...], depth: int, activation: Activation) -> nn.Module:
    widths = _grid_widths(shape, depth)[::-1]
    height, width = (side - 2 * len(widths) for side in shape[1:])
    parts: list[nn.Module] = [nn.Linear(inputs, widths[0] * height * width)]
    parts += [nn.Unflatten(1, (widths[0], height, width)), ChannelsLast()]
    for above, below in zip(widths, [*widths[1:], shape[0]], strict=True):
        parts += [nn.ConvTranspose2d(above, below, 3), ACTIVATIONS[activation]()]
    return nn.Sequential(*parts[:-1])
