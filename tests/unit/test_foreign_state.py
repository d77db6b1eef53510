"""A training state goes on with the seed and the settings it was begun with, however it came into the logdir."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from wmrl import pipeline
from wmrl.errors import ContractError
from wmrl.fit import FitResult, fit
from wmrl.log import Log
from wmrl.run import Run
from wmrl.spec import Batch
from wmrl.store import Store

SMALL = ("fit.vae.steps=2", "fit.dynamics.steps=2")


def train(logdir: Path, name: str, *sets: str, noreload: bool = False) -> FitResult:
    """Train one weight in the name of a model of the default pipeline."""
    pipe, module, one = pipeline.load(None, (*SMALL, *sets)), nn.Linear(1, 1, bias=False), torch.ones(1, 1)

    def batches(start: int) -> Iterator[Batch]:
        while True:
            yield Batch(torch.ones(1, 2, 1), one[..., None], one, one, one)

    def loss(batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return module(one).square().sum(), {}

    with closing(Log.quiet(f"train-{name}", logdir)) as log:
        return fit(
            module,
            loss,
            batches,
            lambda: {"loss": loss(Batch(None, one, one, one, one), torch.Generator())[0].item()},
            settings=getattr(pipe.fit, name),
            name=name,
            seed=pipe.seed,
            store=Store(logdir, pipe),
            log=log,
            run=Run(precision="fp32", noreload=noreload),
        )


@pytest.mark.parametrize(
    ("name", "override", "begun"),
    [
        ("vae", "seed=2", "1"),
        ("vae", "fit.vae.learning_rate=0.5", r"0\.001"),
        ("vae", "fit.vae.batch=7", r"\d+"),
        ("vae", "validation=0.3", r"0\.\d+"),
        ("vae", "representation.beta=2.0", r"1\.0"),
        ("dynamics", "seed=2", "1"),
        ("dynamics", "fit.dynamics.clip=7.0", r"1\.0"),
        ("dynamics", "dynamics.mixture='per_dimension'", "'joint'"),
    ],
)
def test_a_state_begun_otherwise_is_refused_and_stays(tmp_path: Path, name: str, override: str, begun: str) -> None:
    train(tmp_path / "other", name)
    (tmp_path / "here").mkdir()
    part = tmp_path / "here" / f"{name}.part.h5"
    shutil.copy(tmp_path / "other" / part.name, part)
    before, (key, _, value) = part.read_bytes(), override.partition("=")
    said = rf"^{key}: .*{name}\.part\.h5 was begun with {begun}, this call says {value}; .* --noreload$"
    with pytest.raises(ContractError, match=said) as error:
        train(tmp_path / "here", name, f"fit.{name}.steps=5", override)
    assert error.value.code == 5 and "\n" not in str(error.value)
    assert part.read_bytes() == before
    assert train(tmp_path / "here", name, override, noreload=True).steps == 2


@pytest.mark.parametrize(
    "override", ["fit.vae.steps=3", "fit.vae.log_every=1", "fit.dynamics.batch=7", "representation.beta=1.0"]
)
def test_more_steps_and_what_changes_no_bit_go_on(tmp_path: Path, override: str) -> None:
    train(tmp_path, "vae")
    assert train(tmp_path, "vae", override, "fit.vae.steps=3").steps == 3
    assert "continuing vae at step 2" in (tmp_path / "logs/train-vae.log").read_text()


def test_a_state_of_an_earlier_wmrl_that_did_not_know_a_setting_goes_on(tmp_path: Path) -> None:
    train(tmp_path, "vae")
    store = Store(tmp_path, pipeline.load(None, SMALL))
    state = store.load_part("vae")
    assert state is not None and state["terms"].pop("fit.vae.beta2") == 0.999
    store.save_part("vae", state)
    assert train(tmp_path, "vae", "fit.vae.steps=3").steps == 3
