import numpy as np
import pytest
from scipy.stats import norm, trim_mean

from wmrl import stats
from wmrl.stats import interval, iqm, mean, summary, told


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 99, 100])
def test_iqm_is_scipys_trimmed_mean(size):
    scores = np.random.default_rng(size).normal(size=(size, 1))
    assert iqm(scores) == pytest.approx(trim_mean(scores, 0.25, axis=None))


def test_iqm_ignores_both_tails():
    assert iqm(np.array([[-1e9], [1.0], [2.0], [1e9]])) == pytest.approx(1.5)


def test_statistics_work_on_a_stack_of_tables():
    tables = np.random.default_rng(0).normal(size=(6, 10, 3))
    np.testing.assert_allclose(mean(tables), [t.mean() for t in tables])
    np.testing.assert_allclose(iqm(tables), [trim_mean(t, 0.25, axis=None) for t in tables])


@pytest.mark.parametrize("name", ["mean", "iqm"])
@pytest.mark.parametrize("tasks", [1, 4])
def test_point_and_interval_agree_with_rliable(name, tasks):
    rly = pytest.importorskip("rliable.library")
    metrics = pytest.importorskip("rliable.metrics")
    scores = np.random.default_rng(1).gamma(2, 100, size=(40, tasks)) + 300 * np.arange(tasks)
    theirs = {"mean": metrics.aggregate_mean, "iqm": metrics.aggregate_iqm}[name]
    points, intervals = rly.get_interval_estimates(
        {"a": scores}, lambda x: np.array([theirs(x)]), reps=4000, random_state=np.random.RandomState(0)
    )
    ours = getattr(stats, name)
    low, high = interval(scores, ours)
    width = high - low
    assert ours(scores) == pytest.approx(points["a"][0])
    assert low == pytest.approx(intervals["a"][0, 0], abs=0.05 * width)
    assert high == pytest.approx(intervals["a"][1, 0], abs=0.05 * width)


def test_interval_of_the_mean_has_its_closed_form():
    scores = np.random.default_rng(2).normal(800, 90, size=400)
    low, high = interval(scores)
    half = norm.ppf(0.975) * scores.std() / np.sqrt(len(scores))
    assert (low, high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.04 * half)


def test_confidence_narrows_the_interval():
    scores = np.random.default_rng(3).normal(size=50)
    wide, narrow = interval(scores), interval(scores, confidence=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_runs_are_resampled_within_tasks():
    """Tasks of different difficulty and no noise within: a stratified interval has no width, a pooled one would."""
    low, high = interval(np.tile([0.0, 100.0, 1000.0], (5, 1)))
    assert low == high == pytest.approx(1100 / 3)


def test_the_interval_is_a_function_of_its_words():
    scores = np.random.default_rng(4).normal(size=30)
    assert interval(scores) == interval(scores)
    assert interval(scores) != interval(scores, key=("other",))


def test_blocks_do_not_change_the_number_of_resamples(monkeypatch):
    counted = []

    def count(tables):
        counted.append(len(tables))
        return mean(tables)

    monkeypatch.setattr(stats, "BLOCK", 1000)
    interval(np.arange(30.0), count, resamples=500)
    assert sum(counted) == 500
    assert len(counted) > 1


def test_summary_of_known_numbers():
    s = summary(np.array([1.0, 2.0, 3.0, 10.0]))
    assert (s.episodes, s.mean, s.iqm, s.least, s.most) == (4, 4.0, 2.5, 1.0, 10.0)
    assert s.std == pytest.approx(np.sqrt(12.5))
    assert s.low < s.mean < s.high
    assert s.record()["mean"] == 4.0


def test_one_return_has_no_spread():
    s = summary(np.array([7.0]))
    assert (s.mean, s.std, s.iqm, s.low, s.high) == (7, 0, 7, 7, 7)


def test_no_returns_are_an_error():
    with pytest.raises(ValueError, match="no scores"):
        summary(np.array([]))


def test_a_return_is_told_in_the_digits_that_it_needs():
    assert [told(x) for x in (737.71, -10.04, 9.996, 0.036, -0.5)] == ["737.7", "-10.0", "10.00", "0.04", "-0.50"]
    assert told(0.5, beside=-12.0) == "0.5"
