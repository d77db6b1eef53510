"""What every registered representation promises."""

from typing import Any

import pytest
import torch

from wmrl.config import build, resolved
from wmrl.precision import autocast
from wmrl.representations import REPRESENTATIONS
from wmrl.spec import Batch, Space

OBSERVATION = Space((3, 32, 32))


@pytest.fixture(params=sorted(REPRESENTATIONS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def module(kind: str) -> Any:
    torch.manual_seed(0)
    return build(REPRESENTATIONS, {"kind": kind}, "representation", OBSERVATION).eval()


def frames(*lead: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (*lead, 3, 32, 32), dtype=torch.uint8, generator=rng)


@pytest.mark.parametrize("lead", [(3,), (2, 3), (1, 2, 2), (1,)])
def test_leading_axes_pass_through(module: Any, lead: tuple[int, ...]) -> None:
    obs = frames(*lead)
    code = module.encode(obs)
    assert code.shape[: len(lead)] == lead
    latent = module.draw(code, sample=True, rng=torch.Generator().manual_seed(0))
    assert latent.shape == (*lead, *module.latent.shape)
    picture = module.decode(latent)
    assert picture.shape == obs.shape
    assert picture.dtype == torch.float32
    assert picture.min() >= 0 and picture.max() <= 1


def test_encoding_and_the_likeliest_draw_are_deterministic(module: Any) -> None:
    obs = frames(4)
    first, second = module.encode(obs), module.encode(obs)
    assert torch.equal(first, second)
    assert torch.equal(module.draw(first, sample=False), module.draw(second, sample=False))


def test_rows_do_not_mix(module: Any) -> None:
    obs = frames(5)
    torch.testing.assert_close(module.encode(obs)[2], module.encode(obs[2:3])[0], rtol=1e-4, atol=1e-5)


def test_draws_come_from_the_given_generator_alone(module: Any) -> None:
    code = module.encode(frames(2))
    one = module.draw(code, sample=True, rng=torch.Generator().manual_seed(3))
    torch.manual_seed(99)
    other = module.draw(code, sample=True, rng=torch.Generator().manual_seed(3))
    assert torch.equal(one, other)


def test_a_code_survives_half_precision(module: Any) -> None:
    code = module.encode(frames(2))
    if code.dtype.is_floating_point:
        half = module.decode(module.draw(code.half().float(), sample=False))
        torch.testing.assert_close(half, module.decode(module.draw(code, sample=False)), rtol=0, atol=0.02)


def test_memory_layout_does_not_matter(module: Any) -> None:
    obs = frames(4)
    strided = obs.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(module.encode(strided), module.encode(obs), rtol=1e-4, atol=1e-5)


def test_autocast_gives_float32_codes(module: Any) -> None:
    with autocast("bf16", "cpu"):
        code = module.encode(frames(2))
    assert code.dtype in (torch.float32, torch.uint8, torch.int64)


def test_a_loss_if_there_is_one_has_gradients_and_follows_its_generator(module: Any) -> None:
    if not hasattr(module, "loss"):
        assert not list(module.parameters())
        return
    none = torch.zeros(2, 2)
    batch = Batch(frames(2, 3), none[..., None], none, none, none + 1)
    total, metrics = module.train().loss(batch, rng=torch.Generator().manual_seed(0))
    again, _ = module.loss(batch, rng=torch.Generator().manual_seed(0))
    assert total.ndim == 0 and torch.equal(total, again)
    assert all(m.ndim == 0 and not m.requires_grad for m in metrics.values())
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_arguments_are_resolved_in_full(kind: str) -> None:
    table = resolved(REPRESENTATIONS, {"kind": kind}, "representation")
    assert table["kind"] == kind
    build(REPRESENTATIONS, table, "representation", OBSERVATION)


def test_the_registry_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, wmrl.representations; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
