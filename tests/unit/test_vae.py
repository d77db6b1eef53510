"""The VAE: published sizes, its loss against closed forms, and frames of any size that fits."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from wmrl.nn.conv import Deconv, plan
from wmrl.representations.vae import LOG_STD, VAE, divergence
from wmrl.spec import Batch, Space


def batch_of(obs: torch.Tensor, mask: torch.Tensor | None = None) -> Batch:
    b, t = obs.shape[0], obs.shape[1] - 1
    none = torch.zeros(b, t)
    return Batch(obs, none[..., None], none, none, none + 1 if mask is None else mask)


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)


@pytest.mark.parametrize(
    ("size", "latent", "expected"), [(64, 32, 4_348_547), (64, 64, 4_446_915), (96, 32, 6_264_067)]
)
def test_the_published_networks_have_their_published_sizes(size: int, latent: int, expected: int) -> None:
    vae = VAE(Space((3, size, size)), latent=latent)
    assert sum(p.numel() for p in vae.parameters()) == expected


def test_the_published_encoder_and_decoder_have_their_parts() -> None:
    vae = VAE(Space((3, 64, 64)))
    assert (
        sum(p.numel() for p in [*vae.encoder.parameters(), *vae.mean.parameters(), *vae.log_std.parameters()])
        == 755_744
    )
    assert sum(p.numel() for p in vae.decoder.parameters()) == 3_592_803


@pytest.mark.parametrize("size", [32, 48, 64, 80, 96, 112, 128, 160])
@pytest.mark.parametrize("channels", [1, 4])
def test_frames_of_other_sizes_and_channels(size: int, channels: int) -> None:
    vae = VAE(Space((channels, size, size)), latent=5)
    obs = frames(2, channels, size, size)
    code = vae.encode(obs)
    assert code.shape == (2, 2, 5)
    assert vae.decode(vae.draw(code, sample=False)).shape == obs.shape


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((3, 70, 70), "64 and 80"),
        ((3, 63, 63), "48 and 64"),
        ((3, 84, 84), "80 and 96"),
        ((3, 24, 24), "work: 32"),
        ((3, 10, 10), "work: 32"),
        ((3, 144, 144), "128 and 160"),
        ((3, 64, 96), "equal sides"),
        ((17,), "must be"),
    ],
)
def test_other_frames_are_refused_with_sizes_that_work(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        VAE(Space(shape))
    assert "\n" not in str(error.value)
    for word in said.replace("work: ", "").split(" and "):
        if word.isdigit():
            plan((3, int(word), int(word)))


@pytest.mark.parametrize("bad", [{"latent": 0}, {"beta": -1.0}, {"free_nats": -1.0}])
def test_senseless_arguments_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        VAE(Space((3, 32, 32)), **bad)


def test_the_divergence_is_the_closed_form_and_the_mean_of_samples() -> None:
    code = torch.randn(6, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.7
    posterior, prior = Normal(code[:, 0], code[:, 1].exp()), Normal(0.0, 1.0)
    torch.testing.assert_close(divergence(code), kl_divergence(posterior, prior).sum(-1))
    torch.manual_seed(0)
    z = posterior.sample((40_000,))
    sampled = (posterior.log_prob(z) - prior.log_prob(z)).sum(-1).mean(0)
    torch.testing.assert_close(divergence(code), sampled, rtol=0.03, atol=0.05)


def test_the_loss_is_the_sum_over_pixels_and_the_divergence_in_the_mean_over_frames() -> None:
    vae = VAE(Space((3, 32, 32)), latent=4, beta=2.0)
    obs = frames(3, 2, 3, 32, 32)
    total, metrics = vae.loss(batch_of(obs), rng=torch.Generator().manual_seed(5))
    flat = obs.flatten(0, 1)
    code = vae.encode(flat)
    noise = torch.randn(6, 4, generator=torch.Generator().manual_seed(5))
    seen = vae.decode(code[:, 0] + code[:, 1].exp() * noise)
    error = sum(functional.mse_loss(a, b / 255, reduction="sum") for a, b in zip(seen, flat, strict=True)) / 6
    torch.testing.assert_close(metrics["reconstruction"], error, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(metrics["kl"], divergence(code).mean())
    torch.testing.assert_close(total, error + 2 * divergence(code).mean(), rtol=1e-4, atol=1e-3)
    assert not any(m.requires_grad for m in metrics.values())


def test_padding_does_not_count() -> None:
    vae = VAE(Space((3, 32, 32)), latent=4)
    obs = frames(1, 3, 3, 32, 32)
    short, _ = vae.loss(batch_of(obs[:, :2]), rng=torch.Generator().manual_seed(0))
    other = obs.clone()
    other[:, 2] = 0
    mask = torch.tensor([[1.0, 0.0]])
    # draws are made row by row, so the noise of the first two frames is the same
    padded, _ = vae.loss(batch_of(other, mask), rng=torch.Generator().manual_seed(0))
    torch.testing.assert_close(padded, short, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("free", [0.0, 3.0, 1000.0])
def test_free_nats_cost_nothing_for_each_frame(free: float) -> None:
    torch.manual_seed(0)
    vae = VAE(Space((3, 32, 32)), latent=4, free_nats=free)
    vae.mean.weight.data.mul_(250)  # frames then differ in their divergence, on both sides of 3 nats
    obs = torch.cat([frames(4, 1, 3, 32, 32), torch.zeros(4, 1, 3, 32, 32, dtype=torch.uint8)])
    total, metrics = vae.loss(batch_of(obs), rng=torch.Generator().manual_seed(0))
    kl = divergence(vae.encode(obs[:, 0]))
    torch.testing.assert_close(total - metrics["reconstruction"], kl.clamp(min=free).mean(), rtol=1e-3, atol=1e-2)
    if free == 3.0:
        assert kl.min() < 3 < kl.max()
    total.backward()
    assert vae.log_std.bias.grad is not None


def test_the_log_std_is_bounded_in_value_but_not_in_gradient() -> None:
    vae = VAE(Space((1, 32, 32)), latent=2)
    vae.log_std.bias.data.copy_(torch.tensor([1000.0, -1000.0]))
    obs = frames(2, 1, 1, 32, 32)
    code = vae.encode(obs[:, 0])
    assert code[:, 1].amax().item() == pytest.approx(LOG_STD[1])
    assert code[:, 1].amin().item() == pytest.approx(LOG_STD[0])
    total, _ = vae.loss(batch_of(obs), rng=torch.Generator().manual_seed(0))
    assert math.isfinite(total.item())
    divergence(vae.encode(obs[:, 0])).sum().backward()
    grad = vae.log_std.bias.grad
    assert grad is not None
    assert grad[0] > 0 > grad[1]  # a step of descent leads back into the range


def test_a_draw_is_a_sample_of_the_code_and_the_mean_is_its_centre() -> None:
    vae = VAE(Space((1, 32, 32)), latent=2)
    code = torch.tensor([[1.0, -2.0], [math.log(0.5), math.log(2.0)]]).expand(20_000, 2, 2)
    assert torch.equal(vae.draw(code, sample=False), code[:, 0])
    drawn = vae.draw(code, sample=True, rng=torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn.mean(0), torch.tensor([1.0, -2.0]), rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.std(0), torch.tensor([0.5, 2.0]), rtol=0.03, atol=0)
    again = vae.draw(code, sample=True, rng=torch.Generator().manual_seed(3))
    assert torch.equal(drawn, again)


def test_flip_mirrors_half_of_the_training_frames_and_no_others() -> None:
    vae = VAE(Space((1, 32, 32)), latent=2, flip=True)
    obs = frames(64, 1, 32, 32)
    seen = (vae._augment(obs, torch.Generator().manual_seed(0)) * 255).round().byte()
    mirrored = [bool(torch.equal(a, b.flip(-1))) for a, b in zip(seen, obs, strict=True)]
    plain = [bool(torch.equal(a, b)) for a, b in zip(seen, obs, strict=True)]
    assert all(m != p for m, p in zip(mirrored, plain, strict=True))
    assert 16 <= sum(mirrored) <= 48
    still = VAE(Space((1, 32, 32)), latent=2)
    assert torch.equal((still._augment(obs, torch.Generator()) * 255).round().byte(), obs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("out", [3, 16])
@pytest.mark.parametrize(("kernel", "side"), [(5, 1), (4, 1), (5, 5), (6, 3), (4, 4), (3, 2)])
def test_the_faster_transposed_convolution_computes_the_same(
    kernel: int, side: int, out: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    layer = Deconv(7, out, kernel, 2)
    if dtype != torch.bfloat16:
        layer = layer.to(dtype)
    x = torch.randn(4, 7, side, side + (side > 1), dtype=dtype, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    grads = []
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        mine = layer(x)
        expected = functional.conv_transpose2d(other, layer.weight, layer.bias, stride=2)
    near = {"rtol": 0.05, "atol": 0.1} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(mine, expected, **near)
    for result in (mine, expected):
        layer.zero_grad()
        result.float().sin().sum().backward()
        assert layer.weight.grad is not None and layer.bias is not None
        grads.append((layer.weight.grad, layer.bias.grad))
    torch.testing.assert_close(x.grad, other.grad, **near)
    torch.testing.assert_close(grads[0], grads[1], **{key: 3 * value for key, value in near.items()})


def test_it_learns_to_tell_frames_apart() -> None:
    torch.manual_seed(0)
    vae = VAE(Space((1, 32, 32)), latent=4)
    grey = torch.arange(8, dtype=torch.uint8) * 36
    obs = grey.view(8, 1, 1, 1, 1).expand(8, 1, 1, 32, 32)
    without_latents = (grey / 255).var(unbiased=False).item() * 32 * 32
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3)
    for _ in range(80):
        total, _metrics = vae.loss(batch_of(obs), rng=rng)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert total.item() < without_latents / 3
