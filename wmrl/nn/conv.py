"""Convolutional encoders and decoders of frames, described by tables of layers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from wmrl.nn.mlp import ACTIVATIONS, Activation, Norm


class Layer(NamedTuple):
    """One convolution, or one transposed convolution: channels out, kernel, stride, padding, output padding."""

    channels: int
    kernel: int
    stride: int = 2
    padding: int = 0
    extra: int = 0


class Plan(NamedTuple):
    """An encoder and a decoder that fit one frame size.

    Args:
        down: Convolutions of the encoder.
        top: Shape (C, H, W) of what the encoder ends with.
        seed: Shape (C, H, W) of what the decoder begins with.
        up: Transposed convolutions of the decoder; the last one gives the image's channels (written 0 here).
    """

    down: tuple[Layer, ...]
    top: tuple[int, int, int]
    seed: tuple[int, int, int]
    up: tuple[Layer, ...]


class Deconv(nn.ConvTranspose2d):
    """A transposed convolution, computed in another way where the library is slow: the same numbers up to rounding.

    On a CPU, an input of one pixel needs but a matrix product (a fifth of the time), and odd kernels and few output
    channels are faster as an ordinary convolution for each of the four phases of a stride of 2 (half the time).
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        plain = self.padding == (0, 0) and self.output_padding == (0, 0) and self.stride == (2, 2)
        if not plain or self.bias is None or input.device.type != "cpu":
            return super().forward(input, output_size)
        if input.shape[-2:] == (1, 1):
            product = input.flatten(1) @ self.weight.flatten(1)
            return product.view(-1, *self.weight.shape[1:]) + self.bias.to(product.dtype).view(-1, 1, 1)
        if self.kernel_size[0] % 2 == 0 and self.out_channels > FEW:
            return super().forward(input, output_size)
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        with torch.autocast("cpu", enabled=False):
            return _Phases.apply(input, weight, bias)


FEW = 8
"""Output channels up to which phases are faster."""


class _Phases(torch.autograd.Function):
    """A transposed convolution of stride 2: one convolution gives the four phases of the output, then interleaved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Input (B, C, H, W), weight (C, C', K, K), bias (C',) -> (B, C', 2H - 2 + K, 2W - 2 + K)."""
        ctx.save_for_backward(x, weight)
        (count, out, kernel), half = weight.shape[:3], (weight.shape[2] + 1) // 2
        if kernel % 2:
            weight = functional.pad(weight, (0, 1, 0, 1))
        taps = weight.reshape(count, out, half, 2, half, 2).flip(2, 4).permute(1, 3, 5, 0, 2, 4)
        phases = functional.conv2d(
            x, taps.reshape(4 * out, count, half, half), bias.repeat_interleave(4), padding=half - 1
        )
        whole = functional.pixel_shuffle(phases, 2)
        return whole[:, :, : 2 * x.shape[2] - 2 + kernel, : 2 * x.shape[3] - 2 + kernel]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the library does it."""
        x, weight = ctx.saved_tensors
        none, one = [0, 0], [1, 1]
        return torch.ops.aten.convolution_backward(
            grads[0], x, weight, [weight.shape[1]], [2, 2], none, one, True, none, 1, [True, True, True]
        )


class ChannelsLast(nn.Module):
    """Reorders a batch of images in memory, as convolutions on CPUs and tensor cores want it; the values stay."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return x.contiguous(memory_format=torch.channels_last)


After = Callable[[int], list[nn.Module]]
"""Channels of a convolution -> what comes behind it: a norm, if there is one, and an activation."""


def _relu(channels: int) -> list[nn.Module]:
    return [nn.ReLU()]


class PixelNorm(nn.Module):
    """Divides the channels of each pixel by their root mean square. Source: DreamerV3."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.RMSNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        out: Tensor = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        return out


def after(activation: Activation, norm: Norm) -> After:
    """What comes behind a convolution of pictures; without a norm, ReLU. Source: Ha & Schmidhuber 2018; DreamerV3."""
    if norm == "none":
        return _relu
    kind = {"layer": lambda channels: nn.GroupNorm(1, channels), "rms": PixelNorm}[norm]
    return lambda channels: [kind(channels), ACTIVATIONS[activation]()]


def encoder(channels: int, layers: Sequence[Layer], behind: After = _relu) -> nn.Sequential:
    """Convolutions with a ReLU, or what `behind` makes, behind each: (B, channels, H, W) -> (B, F)."""
    parts: list[nn.Module] = [ChannelsLast()]
    for layer in layers:
        parts.append(nn.Conv2d(channels, layer.channels, layer.kernel, layer.stride, layer.padding))
        parts += behind(layer.channels)
        channels = layer.channels
    return nn.Sequential(*parts, nn.Flatten())


def decoder(
    size: int, seed: tuple[int, int, int], layers: Sequence[Layer], channels: int, behind: After = _relu
) -> nn.Sequential:
    """A linear layer, then transposed convolutions, ReLU between, no activation at the end.

    Args:
        size: Size of the vector that is decoded.
        seed: Shape (C, H, W) that the linear layer's output is given.
        layers: The transposed convolutions; the last one's channels are replaced by `channels`.
        channels: Channels of the image.
        behind: What comes between in the place of ReLU.
    """
    count, height, width = seed
    parts: list[nn.Module] = [nn.Linear(size, count * height * width), nn.Unflatten(1, seed), *behind(count)]
    for i, layer in enumerate(layers):
        last = i == len(layers) - 1
        out = channels if last else layer.channels
        parts.append(Deconv(count, out, layer.kernel, layer.stride, layer.padding, layer.extra))
        parts += [] if last else behind(out)
        count = out
    return nn.Sequential(*parts)


PUBLISHED = {
    64: Plan(
        down=(Layer(32, 4), Layer(64, 4), Layer(128, 4), Layer(256, 4)),
        top=(256, 2, 2),
        seed=(1024, 1, 1),
        up=(Layer(128, 5), Layer(64, 5), Layer(32, 6), Layer(0, 6)),
    ),
    96: Plan(
        down=(Layer(32, 4), Layer(64, 4), Layer(128, 4), Layer(256, 4), Layer(256, 3, stride=1)),
        top=(256, 2, 2),
        seed=(1024, 1, 1),
        up=(Layer(256, 4), Layer(128, 4), Layer(64, 4), Layer(32, 4, extra=1), Layer(0, 4)),
    ),
}
"""Frame side -> the network that was published for it. Source: 64, Ha & Schmidhuber 2018; 96, tbwm."""

SMALLEST = 32


def plan(shape: tuple[int, ...]) -> Plan:
    """The layers for frames of shape (C, size, size): the published ones, else halvings down to a side of 2 to 7.

    Raises:
        ValueError: if no layers fit; the message says which sizes near by work.
    """
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ValueError(f"frames must be (channels, size, size) with equal sides, got {tuple(shape)}")
    size = shape[1]
    if size in PUBLISHED:
        return PUBLISHED[size]
    if not _fits(size):
        near = sorted(_near(size), key=lambda side: abs(side - size))[:2]
        raise ValueError(
            f"frames of {size} x {size} cannot be halved evenly by the layers; sizes near that work: "
            + " and ".join(str(side) for side in sorted(near))
        )
    return _halvings(size)


def _depth(size: int) -> int:
    """Number of halvings: four, or as many as leave a side below 8."""
    depth = 4
    while size / 2**depth >= 8:
        depth += 1
    return depth


def _fits(size: int) -> bool:
    return size in PUBLISHED or (size >= SMALLEST and size % 2 ** _depth(size) == 0)


def _near(size: int) -> list[int]:
    below = next((side for side in range(size, SMALLEST - 1, -1) if _fits(side)), None)
    above = next(side for side in range(max(size, SMALLEST), 2 * max(size, SMALLEST) + 1) if _fits(side))
    return [side for side in (below, above) if side is not None]


def _halvings(size: int) -> Plan:
    depth = _depth(size)
    widths = [min(32 * 2**i, 256) for i in range(depth)]
    side = size // 2**depth
    top = (widths[-1], side, side)
    down = tuple(Layer(width, 4, padding=1) for width in widths)
    up = tuple(Layer(width, 4, padding=1) for width in [*widths[-2::-1], 0])
    return Plan(down, top, top, up)
