"""Frames are encoded once: cached, keyed by what they were made of, resumed, and read back as they were."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wmrl import interrupts
from wmrl.data import codes
from wmrl.data.episodes import Episodes
from wmrl.data.shards import Episode, complete, write_shard
from wmrl.data.windows import windows
from wmrl.errors import Stopped
from wmrl.log import Log
from wmrl.run import Run
from wmrl.spec import Space
from wmrl.world import WorldModel

RUN = Run()
SHAPE = (3, 8, 8)


class Toy(nn.Module):
    """Code (2, 2): mean and log-std of a frame; counts the frames it has seen."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.latent, self.scale, self.seen = Space((2,)), scale, 0

    def encode(self, obs: Tensor) -> Tensor:
        self.seen += len(obs.flatten(0, -4))
        x = obs.float().mean((-1, -2)) / 255 * self.scale  # (*n, 3)
        return torch.stack([x[..., :2], x[..., 1:] - 3], -2)

    def draw(self, code: Tensor, *, sample: bool, rng: torch.Generator | None = None) -> Tensor:
        mean, log_std = code.unbind(-2)
        return mean + log_std.exp() * torch.randn(mean.shape, generator=rng) if sample else mean

    def decode(self, latent: Tensor) -> Tensor:
        return latent


class Same(Toy):
    def encode(self, obs: Tensor) -> Tensor:
        return obs


class Tokens(Toy):
    def __init__(self, vocab: int):
        super().__init__()
        self.latent = Space((4,), vocab)

    def encode(self, obs: Tensor) -> Tensor:
        return obs.flatten(-3)[..., :4].long() + 255


def episode(number: int, steps: int) -> Episode:
    rng = np.random.default_rng(number)
    rows = steps + 1
    end = np.arange(rows) == steps - 1
    action, reward = rng.uniform(-1, 1, (rows, 2)).astype(np.float32), rng.normal(size=rows).astype(np.float32)
    action[-1], reward[-1] = 0, 0
    obs = rng.integers(0, 256, (rows, *SHAPE), dtype=np.uint8)
    return Episode(obs, action, reward, end & (number % 2 == 0), end & (number % 2 == 1), seed=number)


@pytest.fixture
def episodes(tmp_path) -> Episodes:
    meta = {
        "env": {"id": "toy", "size": 8},
        "policy": {"policy": "white"},
        "observation": {"shape": SHAPE, "vocab": None, "dtype": "uint8"},
        "actions": {"size": 2, "discrete": False},
    }
    folder, first = tmp_path / "data", 0
    for lengths in ((5, 3), (7,), (2, 4, 6)):
        write_shard(folder, first, [episode(first + i, n) for i, n in enumerate(lengths)], meta)
        first += len(lengths)
    complete(folder)
    return Episodes(folder)


@pytest.fixture
def log(tmp_path):
    with Log.quiet("train-dynamics", tmp_path / "log") as log:
        yield log


def said(log: Log) -> str:
    return (log.logdir / "logs" / "train-dynamics.log").read_text()


def test_codes_are_the_encoded_frames_and_the_other_columns(episodes, log, tmp_path):
    toy = Toy()
    made = codes.source(episodes, toy, "v1", tmp_path / "codes", log=log, run=RUN)
    assert isinstance(made, codes.Codes) and len(made) == 6
    rows = np.arange(int(episodes.start[-1]))
    raw, kept = episodes.read(0, len(rows)), made.gather(rows[None])
    expected = toy.encode(torch.from_numpy(raw["obs"])).half().numpy()
    np.testing.assert_array_equal(kept["code"][0], expected)
    assert kept["code"].dtype == np.float16 and "obs" not in kept
    for name in ("action", "reward", "terminated"):
        np.testing.assert_array_equal(kept[name][0], raw[name])


def test_windows_of_codes_are_windows_of_episodes(episodes, log, tmp_path):
    toy = Toy()
    made = codes.source(episodes, toy, "v1", tmp_path / "codes", log=log, run=RUN)
    for a, b, _ in zip(windows(made, 5, 4, key=("k",)), windows(episodes, 5, 4, key=("k",)), range(4), strict=False):
        assert a.obs is None and b.code is None
        for name in ("action", "reward", "terminated", "mask"):
            assert getattr(a, name).equal(getattr(b, name))
        torch.testing.assert_close(a.code.float(), toy.encode(b.obs), atol=2e-3, rtol=0)


def test_each_frame_is_encoded_once_and_never_again(episodes, log, tmp_path):
    toy, total = Toy(), int(episodes.start[-1])
    first = codes.source(episodes, toy, "v1", tmp_path / "codes", log=log, run=RUN)
    assert toy.seen == total + 1  # one to learn the code's size
    again = Toy()
    second = codes.source(episodes, again, "v1", tmp_path / "codes", log=log, run=RUN)
    assert again.seen == 1
    for name in codes.COLUMNS:
        np.testing.assert_array_equal(first.columns[name], second.columns[name])


def test_what_another_run_has_encoded_is_linked(episodes, log, tmp_path):
    first = codes.source(episodes, Toy(), "v1", tmp_path / "theirs", log=log, run=RUN)
    sorted((tmp_path / "theirs").glob("*.h5"))[0].unlink()
    ours = Toy()
    second = codes.source(episodes, ours, "v1", tmp_path / "codes", log=log, run=RUN, near=tmp_path / "theirs")
    assert 1 < ours.seen < int(episodes.start[-1]), "only what they lack is encoded"
    np.testing.assert_array_equal(first.columns["code"], second.columns["code"])
    assert all(path.stat().st_nlink == 2 for path in (tmp_path / "theirs").glob("*.h5"))
    other = Toy(0.5)
    codes.source(episodes, other, "v2", tmp_path / "others", log=log, run=RUN, near=tmp_path / "theirs")
    assert other.seen == int(episodes.start[-1]) + 1, "of another representation"


def test_another_representation_is_encoded_anew_and_said(episodes, log, tmp_path):
    codes.source(episodes, Toy(), "v1", tmp_path / "codes", log=log, run=RUN)
    other = Toy(0.5)
    made = codes.source(episodes, other, "v2", tmp_path / "codes", log=log, run=RUN)
    assert other.seen == int(episodes.start[-1]) + 1
    assert said(log).count("another representation") == 1
    frame = torch.from_numpy(episodes.read(0, 1)["obs"])
    np.testing.assert_array_equal(made.columns["code"][:1], other.encode(frame).half().numpy())


def test_the_precision_that_was_measured_is_kept(episodes, log, tmp_path, monkeypatch):
    """The choice is made once: a rerun continues in it, another one that is asked for begins anew."""
    monkeypatch.setattr(codes, "WORTH_MEASURING", 1)
    monkeypatch.setattr(codes.precision, "choose", lambda work, device: ("bf16", "measured"))
    codes.source(episodes, Toy(), "v1", tmp_path / "codes", log=log, run=RUN)
    assert "in bf16 (measured)" in said(log)
    sorted((tmp_path / "codes").glob("*.h5"))[0].unlink()
    monkeypatch.setattr(codes.precision, "choose", None)
    again, anew = Toy(), Toy()
    codes.source(episodes, again, "v1", tmp_path / "codes", log=log, run=RUN)
    assert 1 < again.seen < int(episodes.start[-1])
    codes.source(episodes, anew, "v1", tmp_path / "codes", log=log, run=Run(precision="fp32"))
    assert anew.seen == int(episodes.start[-1]) + 1 and "in fp32, into" in said(log)


def test_a_damaged_file_is_made_again(episodes, log, tmp_path):
    good = codes.source(episodes, Toy(), "v1", tmp_path / "codes", log=log, run=RUN)
    path = sorted((tmp_path / "codes").glob("*.h5"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    sorted((tmp_path / "codes").glob("*.h5"))[1].write_bytes(b"short")
    again = codes.source(episodes, Toy(), "v1", tmp_path / "codes", log=log, run=RUN)
    np.testing.assert_array_equal(again.columns["code"], good.columns["code"])
    assert "damaged" in said(log)


def test_a_stop_keeps_finished_shards(episodes, log, tmp_path, monkeypatch):
    toy = Toy()
    plain, asked = toy.encode, []

    def encode(obs: Tensor) -> Tensor:
        asked.append(len(obs))
        if len(asked) == 3:  # the size, the first shard, the second
            monkeypatch.setattr(interrupts, "_pending", 15)
        return plain(obs)

    toy.encode = encode
    with pytest.raises(Stopped):
        codes.source(episodes, toy, "v1", tmp_path / "codes", log=log, run=RUN)
    monkeypatch.setattr(interrupts, "_pending", None)
    kept = len(list((tmp_path / "codes").glob("*.h5")))
    assert kept >= 1
    again = Toy()
    codes.source(episodes, again, "v1", tmp_path / "codes", log=log, run=RUN)
    assert again.seen < int(episodes.start[-1])


def test_equal_shards_are_encoded_once_and_old_ones_removed(episodes, log, tmp_path):
    folder = tmp_path / "codes"
    codes.source(episodes, Toy(), "v1", folder, log=log, run=RUN)
    (folder / "0123.h5").write_bytes(b"of a shard that is gone")
    codes.source(episodes, Toy(), "v1", folder, log=log, run=RUN)
    assert len(list(folder.glob("*.h5"))) == len(set(episodes.shards)) == 3


def test_codes_as_large_as_frames_are_not_cached(episodes, log, tmp_path):
    assert codes.source(episodes, Same(), "v1", tmp_path / "codes", log=log, run=RUN) is episodes
    assert not (tmp_path / "codes").exists()


def test_codes_too_large_for_memory_are_not_cached(episodes, log, tmp_path, monkeypatch):
    monkeypatch.setattr(codes, "MEMORY", 100)
    assert codes.source(episodes, Toy(), "v1", tmp_path / "codes", log=log, run=RUN) is episodes
    assert "slow" in said(log)


@pytest.mark.parametrize(("vocab", "dtype"), [(512, np.int16), (1 << 16, np.int32)])
def test_tokens_keep_their_numbers(episodes, log, tmp_path, vocab, dtype):
    tokens = Tokens(vocab)
    made = codes.source(episodes, tokens, "v1", tmp_path / "codes", log=log, run=RUN)
    kept = made.columns["code"]
    assert kept.dtype == dtype
    raw = torch.from_numpy(episodes.read(0, len(kept))["obs"])
    np.testing.assert_array_equal(kept, tokens.encode(raw).numpy())


class Echo(nn.Module):
    """A dynamics model that returns the latents it was trained on."""

    def loss(self, latent, batch, *, rng=None):
        return latent, {}


def test_the_world_draws_latents_anew_for_each_batch(episodes, log, tmp_path):
    made = codes.source(episodes, Toy(), "v1", tmp_path / "codes", log=log, run=RUN)
    world, batch = WorldModel(Toy(), Echo()), next(windows(made, 3, 4, key=("k",)))

    def draw(seed: int) -> Tensor:
        return world.loss(batch, torch.Generator().manual_seed(seed))[0]

    assert draw(1).equal(draw(1)) and not draw(1).equal(draw(2))
    assert draw(1).dtype == torch.float32 and draw(1).shape == (3, 5, 2)
    mean, log_std = batch.code.float().unbind(-2)
    assert ((draw(1) - mean).abs() < 6 * log_std.exp()).all()
