"""The variational autoencoder of World Models (Ha & Schmidhuber 2018), which they call V."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from wmrl.nn.conv import after, decoder, encoder, plan
from wmrl.nn.mlp import Norm
from wmrl.spec import Batch, Loss, Space

LOG_STD = (-10.0, 4.0)
"""Where the logarithm of sigma is kept, nats: exp(2 log sigma) stays finite, also in float16."""


class VAE(nn.Module):
    """Encodes a frame as a Gaussian over `latent` numbers: code (2, Z) holds the mean and the log standard deviation.

    At 64 x 64 and latent 32 it is the published network with 4,348,547 parameters.

    Args:
        observation: The space of the frames, (C, size, size) uint8.
        latent: Size of the latent vector. Source: Ha & Schmidhuber 2018, 32 for CarRacing, 64 for Doom.
        beta: Weight of the KL divergence. Source: Higgins et al. 2017; 1 is the plain VAE.
        free_nats: KL divergence of a frame that costs nothing, nats. Source: Ha & Schmidhuber's code has latent / 2,
            ctallec 0.
        flip: Mirror half of the training frames left to right. Source: ctallec. The decoder then also draws tracks that
            the dynamics never sees; leave it off where frames are few of a kind.
        norm: Norm between convolutions and ReLUs, as `rssm` has it: "layer" over a whole map of channels, "rms" over
            the channels of each pixel. Without one, a small thing on a plain ground may never be found.

    Raises:
        ValueError: if no layers fit the size of the frames.
    """

    def __init__(
        self,
        observation: Space,
        *,
        latent: int = 32,
        beta: float = 1.0,
        free_nats: float = 0.0,
        flip: bool = False,
        norm: Norm = "none",
    ):
        super().__init__()
        if latent < 1 or beta < 0 or free_nats < 0:
            raise ValueError(f"latent must be positive, beta and free_nats not negative: {latent}, {beta}, {free_nats}")
        layers = plan(observation.shape)
        channels, features = observation.shape[0], layers.top[0] * layers.top[1] * layers.top[2]
        self.latent = Space((latent,))
        self.beta, self.free_nats, self.flip = beta, free_nats, flip
        self.encoder = encoder(channels, layers.down, after("relu", norm))
        self.mean = nn.Linear(features, latent)
        self.log_std = nn.Linear(features, latent)
        self.decoder = decoder(latent, layers.seed, layers.up, channels, after("relu", norm))

    def encode(self, obs: Tensor) -> Tensor:
        """Frames (*n, C, H, W) uint8 -> code (*n, 2, Z) float32: mean and log standard deviation."""
        lead = obs.shape[:-3]
        return self._code(obs.reshape(-1, *obs.shape[-3:]).float() / 255).unflatten(0, lead)

    def draw(self, code: Tensor, *, sample: bool, rng: torch.Generator | None = None) -> Tensor:
        """Code (*n, 2, Z) -> latent (*n, Z): a draw, or the mean."""
        mean, log_std = code.float().unbind(-2)
        if not sample:
            return mean
        noise = torch.randn(mean.shape, generator=rng, device=mean.device)
        return mean + log_std.exp() * noise

    def decode(self, latent: Tensor) -> Tensor:
        """Latents (*n, Z) -> frames (*n, C, H, W) float32 in 0..1."""
        lead = latent.shape[:-1]
        return self.decoder(latent.reshape(-1, latent.shape[-1])).float().sigmoid().unflatten(0, lead)

    def loss(self, batch: Batch, *, rng: torch.Generator) -> Loss:
        """Squared error summed over a frame's values, plus `beta` * max(KL, `free_nats`), in the mean over frames.

        Args:
            batch: Windows with `obs` (B, T + 1, C, H, W) uint8; frames behind the mask do not count.
            rng: Noise of the latents (and mirroring) comes from here.

        Returns:
            The loss, nats-like units per frame; metrics `reconstruction` and `kl`.
        """
        if batch.obs is None:
            raise ValueError("the loss of a representation needs frames")
        weight = functional.pad(batch.mask, (1, 0), value=1.0).flatten()
        weight = weight / weight.sum()
        frames = self._augment(batch.obs.flatten(0, 1), rng)
        code = self._code(frames)
        pictures = self.decoder(self.draw(code, sample=True, rng=rng)).float().sigmoid()
        error = (pictures - frames).square().sum((1, 2, 3)) @ weight
        kl = divergence(code)
        total = error + self.beta * (kl.clamp(min=self.free_nats) @ weight)
        return total, {"reconstruction": error.detach(), "kl": (kl @ weight).detach()}

    def _augment(self, obs: Tensor, rng: torch.Generator) -> Tensor:
        """Frames uint8 -> float in 0..1, mirrored at random if asked."""
        frames = obs.float() / 255
        if not self.flip:
            return frames
        mirrored = torch.rand(len(frames), 1, 1, 1, generator=rng, device=frames.device) < 0.5
        return torch.where(mirrored, frames.flip(-1), frames)

    def _code(self, frames: Tensor) -> Tensor:
        """Frames (B, C, H, W) in 0..1 -> code (B, 2, Z) float32."""
        seen = self.encoder(frames)
        mean, log_std = self.mean(seen).float(), self.log_std(seen).float()
        # Clamped in value only: the gradient still leads back into the range.
        bounded = log_std + (log_std.clamp(*LOG_STD) - log_std).detach()
        return torch.stack((mean, bounded), -2)


def divergence(code: Tensor) -> Tensor:
    """KL divergence from a unit Gaussian, nats: code (*n, 2, Z) -> (*n,)."""
    mean, log_std = code.unbind(-2)
    return 0.5 * (mean.square() + (2 * log_std).exp() - 2 * log_std - 1).sum(-1)
