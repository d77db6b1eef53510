import cv2
import numpy as np
import pytest

from wmrl import curves, interrupts, panels
from wmrl.data.policies import White
from wmrl.errors import ArtifactError, Stopped
from wmrl.log import Log
from wmrl.panels import Dreaming
from wmrl.recording import Episode, Recorder
from wmrl.rollout import Policy, play


class Walk:
    """A world whose state is a number that each step with closed eyes raises by the temperature."""

    controller = None

    def start(self, obs, rng=None):
        return obs.float().mean((1, 2, 3))

    def observe(self, state, action, obs, rng=None):
        return obs.float().mean((1, 2, 3))

    def imagine(self, state, action, rng=None, temperature=1.0):
        cont = (state < 4).float()
        return state + temperature, state * 0 + 2, cont

    def frame(self, state):
        return (state / 255)[:, None, None, None].expand(-1, 3, 2, 2)

    def features(self, state):
        return state[:, None]


def episode_of(*values):
    obs = np.stack([np.full((3, 2, 2), v, np.uint8) for v in values])
    steps = len(values) - 1
    return Episode(obs, np.zeros((steps, 1), np.float32), np.ones(steps, np.float32))


@pytest.mark.parametrize(
    ("every", "expected"), [(0, [10, 11, 12, 13, 14, 15]), (2, [10, 11, 12, 40, 41, 42]), (1, [10, 11, 30, 31, 50, 51])]
)
def test_the_dream_column_begins_again_from_what_happened(every, expected):
    episode = episode_of(10, 20, 30, 40, 50, 60)
    column = panels.dream(Walk(), episode, Dreaming(seed=0), every=every)
    assert [int(frame[0, 0, 0]) for frame in column.frames] == expected
    assert len(column.notes) == len(expected)
    assert column.notes[0] == "awake"
    assert column.notes[1] == "+1 steps, reward 2.0"


class Code:
    """A representation whose code is the frame, and whose samples are brighter by one."""

    def encode(self, obs):
        return obs.float() / 255

    def draw(self, code, *, sample, rng=None):
        return code + sample / 255

    def decode(self, latent):
        return latent


def test_a_reconstruction_is_of_the_posterior_mean():
    column = panels.reconstruction(Code(), episode_of(*range(70)), "cpu")
    assert [int(frame[0, 0, 0]) for frame in column.frames] == list(range(70))


class Still:
    looks_at = "features"

    def initial(self, batch):
        return ()

    def act(self, view, memory, **_):
        return view * 0, memory


def test_a_pure_dream_ends_where_the_world_thinks_it_does():
    dreamt = panels.pure_dream(Walk(), Policy(Still()), np.zeros((3, 2, 2), np.uint8), Dreaming(seed=0), steps=50)
    assert len(dreamt.frames) == 6
    assert dreamt.reward.tolist() == [2.0] * 5
    assert dreamt.cont.tolist() == [1, 1, 1, 1, 0]


def test_both_dreams_have_the_temperature_that_was_asked_for():
    how = Dreaming(seed=0, temperature=3.0)
    column = panels.dream(Walk(), episode_of(10, 20, 30), how, every=0)
    pure = panels.pure_dream(Walk(), Policy(Still()), np.zeros((3, 2, 2), np.uint8), how, steps=50)
    shown = [[int(frame[0, 0, 0]) for frame in frames] for frames in (column.frames, pure.frames)]
    assert shown == [[10, 13, 16], [0, 3, 6, 9]]


@pytest.mark.parametrize("panel", ["reconstruction", "dream", "pure dream"])
def test_asked_to_stop_nothing_more_is_computed(monkeypatch, panel):
    episode, how = episode_of(10, 20, 30), Dreaming(seed=0)
    work = {
        "reconstruction": lambda: panels.reconstruction(Code(), episode, "cpu"),
        "dream": lambda: panels.dream(Walk(), episode, how, every=0),
        "pure dream": lambda: panels.pure_dream(Walk(), Policy(Still()), episode.obs[0], how, steps=3),
    }[panel]
    work()
    monkeypatch.setattr(interrupts, "_pending", 15)
    with pytest.raises(Stopped):
        work()


def test_the_recorder_keeps_the_last_frame_and_the_first_rows_only(toy):
    games, recorder = toy(None, 3, threads=1), Recorder(2)
    played = play(games, White(toy.actions), [3, 1, 2], on_step=recorder)
    episodes = recorder.episodes()
    assert [len(e) for e in episodes] == played.lengths[:2].tolist()
    for episode, total, ended in zip(episodes, played.returns, played.terminated, strict=False):
        assert len(episode.obs) == len(episode) + 1
        assert episode.reward.sum() == pytest.approx(total, rel=1e-5)
        assert episode.terminated == ended


def write_metrics(logdir, stage, values):
    with Log.quiet(stage, logdir) as log:
        for step, value in enumerate(values):
            log.metrics(step, {"losses/nll": value})


def test_curves_of_several_runs(tmp_path):
    write_metrics(tmp_path / "a" / "seed-1", "train-vae", [3, 2, float("nan"), 1])
    write_metrics(tmp_path / "b" / "seed-1", "train-vae", [4, 3])
    found = curves.collect(tmp_path / "a" / "seed-1")
    assert found == {"train-vae: losses/nll": ([0, 1, 3], [3, 2, 1])}
    path = curves.draw([tmp_path / "a" / "seed-1", tmp_path / "b" / "seed-1"], tmp_path / "c.png")
    one = curves.draw([tmp_path / "a" / "seed-1"], tmp_path / "one.png")
    both, alone = cv2.imread(str(path)), cv2.imread(str(one))
    assert both.std() > 10
    assert both.shape == alone.shape
    assert (both != alone).any()


def test_curves_need_metrics(tmp_path):
    with pytest.raises(ArtifactError, match="no metrics"):
        curves.draw([tmp_path], tmp_path / "c.png")


def test_runs_are_named_by_the_shortest_ending_that_tells_them_apart(tmp_path):
    runs = [tmp_path / "a" / "seed-1", tmp_path / "b" / "seed-1", tmp_path / "b" / "seed-2"]
    assert [curves.label(run, runs) for run in runs] == ["a/seed-1", "b/seed-1", "seed-2"]
