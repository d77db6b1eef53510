"""Encoders, decoders and likelihoods of observations."""

import pytest
import torch
from torch.distributions import Bernoulli, Normal

from wmrl.errors import ContractError
from wmrl.nn.observation import Decoder, Encoder, layers_for, unit
from wmrl.spec import Space

HOW = {"units": 16, "layers": 2, "activation": "elu", "norm": "none", "depth": 4}
SHAPES = [(1, 16, 16), (3, 31, 31), (3, 48, 48), (3, 64, 64), (3, 84, 84), (3, 96, 96), (4, 10, 10), (3, 7, 9), (5,)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_size_comes_back_as_it_went_in(shape):
    space, obs = Space(shape), torch.rand(2, 3, *shape)
    encoder, decoder = Encoder(space, embedding=0, **HOW), Decoder(7, space, likelihood="gaussian", **HOW)
    assert encoder(obs).shape == (2, 3, encoder.size)
    decoded = decoder(torch.randn(2, 3, 7))
    assert decoded.shape == decoder.mean(decoded).shape == obs.shape
    assert decoder.loss(decoded, obs).shape == (2, 3)


@pytest.mark.parametrize("shape", [(4, 10, 10), (3, 64, 64), (3, 32, 48)], ids=str)
def test_dense_eyes_read_and_draw_arrays_of_any_size(shape):
    how = {**HOW, "dense": True}
    encoder = Encoder(Space(shape), embedding=8, **how)
    decoder = Decoder(7, Space(shape), likelihood="bernoulli", **how)
    assert not any(part.ndim == 4 for net in (encoder, decoder) for part in net.parameters())
    obs, features = torch.rand(2, 3, *shape), torch.randn(2, 3, 7)
    shift = 0.0 if shape[1] == 10 else 0.5
    torch.testing.assert_close(encoder(obs), encoder.embed(encoder.net(obs.flatten(2) - shift)))
    assert encoder.size == encoder(obs).shape[-1] == 8 and decoder(features).shape == obs.shape
    torch.testing.assert_close(decoder(features).flatten(2), decoder.net(features))
    assert Decoder(7, Space(shape), likelihood="gaussian", **how).shift == shift


def test_at_64_the_layers_are_dreamers():
    assert (
        sum(p.numel() for p in Encoder(Space((3, 64, 64)), embedding=0, **{**HOW, "depth": 32}).parameters()) == 690_144
    )
    assert layers_for((3, 64, 64), 48).seed == (1536, 1, 1)


def test_bytes_booleans_and_floats_are_one():
    grid = torch.rand(2, 4, 10, 10) < 0.3
    encoder = Encoder(Space((4, 10, 10)), embedding=8, **HOW)
    torch.testing.assert_close(encoder(grid), encoder(grid.float()))
    torch.testing.assert_close(unit(grid.to(torch.uint8) * 255), grid.float())


def test_a_picture_is_expected_in_0_to_1():
    decoder = Decoder(7, Space((3, 16, 16)), likelihood="gaussian", **HOW)
    obs = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    assert decoder.loss(unit(obs) - 0.5, obs).abs().max() == 0
    torch.testing.assert_close(decoder.mean(unit(obs) - 0.5), unit(obs))
    assert decoder.mean(torch.full((1, 3, 16, 16), 9.0)).max() == 1


def test_likelihoods_are_those_of_torch_distributions():
    space, x = Space((5,)), torch.randn(3, 5)
    for kind in ("gaussian", "scaled"):
        decoder = Decoder(7, space, likelihood=kind, **HOW)
        out = decoder(torch.randn(3, 7))
        mean, std = (out, 1.0) if kind == "gaussian" else (out[:, :5], out[:, 5:].exp())
        torch.testing.assert_close(decoder.log_prob(out, x), Normal(mean, std).log_prob(x).sum(-1))
    decoder, grid = Decoder(7, Space((4, 10, 10)), likelihood="bernoulli", **HOW), torch.rand(3, 4, 10, 10) < 0.3
    out = decoder(torch.randn(3, 7))
    torch.testing.assert_close(-decoder.loss(out, grid), Bernoulli(logits=out).log_prob(grid.float()).sum((1, 2, 3)))


def test_symlog_numbers_come_back_in_their_own_units():
    decoder = Decoder(7, Space((2,)), likelihood="symlog", **HOW)
    target = torch.tensor([[1000.0, -3.0]])
    out = target.sign() * target.abs().log1p()
    torch.testing.assert_close(decoder.mean(out), target)
    assert float(decoder.loss(out, target)) == pytest.approx(0, abs=1e-9)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ContractError, match="for vectors"):
        Decoder(7, Space((3, 16, 16)), likelihood="scaled", **HOW)
    with pytest.raises(ContractError, match="equal sides"):
        Encoder(Space((3, 32, 48)), embedding=0, **HOW)
    with pytest.raises(ContractError, match="tokens"):
        Encoder(Space((16,), 512), embedding=0, **HOW)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_norm_reaches_the_convolutions_of_pictures(norm):
    how = {**HOW, "norm": norm}
    encoder = Encoder(Space((3, 32, 32)), embedding=0, **how)
    decoder = Decoder(7, Space((3, 32, 32)), likelihood="gaussian", **how)
    obs, features = torch.rand(2, 3, 32, 32), torch.randn(2, 7)
    before = encoder(obs), decoder(features)
    with torch.no_grad():
        for part in (*encoder.net[1].parameters(), *decoder.net[0].parameters()):
            part.mul_(10)  # what a norm takes back
    for x, y in zip((encoder(obs), decoder(features)), before, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-2, atol=1e-2)
