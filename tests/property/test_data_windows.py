"""Windows: never across an end unless they shall, uniform over steps, a function of (key, k)."""

import itertools
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wmrl.data.windows import cut, prefetch, windows

lengths_of = st.lists(st.integers(1, 12), min_size=1, max_size=8)


class Memory:
    """Rows that tell where they come from: obs = (episode, step), action = step + 1 but zero in the last row."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths, np.int64)
        self.start = np.concatenate([[0], np.cumsum(self.lengths + 1)])
        number = np.repeat(np.arange(len(lengths)), self.lengths + 1)
        step = np.concatenate([np.arange(n + 1) for n in lengths])
        last = step == self.lengths[number]
        self.columns = {
            "obs": np.stack([number, step], 1).astype(np.uint8),
            "action": np.where(last, 0, step + 1)[:, None].astype(np.float32),
            "reward": np.where(last, 0, step).astype(np.float32),
            "terminated": step == self.lengths[number] - 1,
            "truncated": np.zeros(len(step), bool),
        }

    def gather(self, rows):
        return {name: column[rows] for name, column in self.columns.items()}


@given(lengths_of, st.integers(0, 9), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_windows_never_cross_an_end(lengths, length, key):
    batch = next(windows(Memory(lengths), 32, length, key=("t", key)))
    assert batch.obs.shape == (32, length + 1, 2) and batch.code is None
    for shape, column in {(32, length, 1): batch.action, (32, length): batch.reward}.items():
        assert column.shape == shape and column.dtype == torch.float32
    for i in range(32):
        number, first = batch.obs[i, 0].tolist()
        assert first < lengths[number], "a window begins at a step, not at the last row"
        real = min(length, lengths[number] - first)
        assert batch.mask[i].tolist() == [1.0] * real + [0.0] * (length - real)
        assert (batch.obs[i, :, 0] == number).all()
        assert batch.obs[i, :, 1].tolist() == [min(first + t, lengths[number]) for t in range(length + 1)]
        assert batch.action[i, :, 0].tolist() == [first + t + 1 if t < real else 0 for t in range(length)]
        ends = [float(first + t == lengths[number] - 1) for t in range(length)]
        assert batch.terminated[i].tolist() == ends


def flat(lengths, chosen):
    """The rows (episode, step) of the chosen episodes, laid end to end."""
    return [(e, t) for e in chosen for t in range(lengths[e] + 1)]


@given(lengths_of, st.integers(0, 30), st.integers(0, 1000), st.data())
@settings(max_examples=100, deadline=None)
def test_crossing_windows_are_rows_in_succession_with_their_borders_marked(lengths, length, key, data):
    chosen = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, unique=True))
    rows = flat(lengths, chosen)
    batches = windows(Memory(lengths), 16, length, key=("x", key), episodes=np.array(chosen), crossing=True)
    batch = next(batches)
    assert batch.obs.shape == (16, length + 1, 2) and batch.mask.shape == (16, length)
    for i in range(16):
        at = rows.index(tuple(batch.obs[i, 0].tolist()))
        assert at == 0 or at + length < len(rows), "a window begins where it fits"
        here = rows[at : at + length + 1]
        here += here[-1:] * (length + 1 - len(here))
        assert [tuple(row) for row in batch.obs[i].tolist()] == here
        for t, (e, step) in enumerate(here[:-1]):
            real = at + t + 1 < len(rows)
            plays = step < lengths[e]
            assert batch.mask[i, t] == (real and plays)
            assert batch.first[i, t + 1] == (real and not plays)
            assert batch.action[i, t, 0] == (step + 1 if plays else 0)
            assert batch.reward[i, t] == (step if plays else 0)
            assert batch.terminated[i, t] == (step == lengths[e] - 1)
        assert batch.first[i, 0] == 0


def test_every_row_where_it_fits_is_equally_likely_to_begin_a_crossing_window():
    source, counts = Memory([7, 1, 4, 2]), {}
    for batch in itertools.islice(windows(source, 600, 5, key=("f",), crossing=True), 10):
        for row in batch.obs[:, 0].tolist():
            counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    fits = flat([7, 1, 4, 2], range(4))[:-5]
    assert set(counts) == set(fits)
    expected = 6000 / len(fits)
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 40  # 12 degrees of freedom


def test_windows_that_stay_say_nothing_of_beginnings():
    assert next(windows(Memory([3, 4]), 4, 2, key=("c",))).first is None


@given(lengths_of, st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_every_step_is_equally_likely_to_begin_a_window(lengths, key):
    source = Memory(lengths)
    counts, each = np.zeros((len(lengths), 12)), 60
    draws = each * sum(lengths)
    for batch in itertools.islice(windows(source, draws // 4, 3, key=("u", key)), 4):
        np.add.at(counts, tuple(batch.obs[:, 0].numpy().T), 1)
    steps = np.arange(12) < source.lengths[:, None]
    assert not counts[~steps].any()
    expected = counts.sum() / sum(lengths)
    chi, free = ((counts[steps] - expected) ** 2 / expected).sum(), sum(lengths) - 1
    assert chi < free + 6 * np.sqrt(2 * free) + 12


def test_counts_see_a_bias():
    """The test above fails for windows that never pad, the usual mistake."""
    source = Memory([12, 3])
    counts = np.zeros(12)
    for batch in itertools.islice(windows(source, 1000, 3, key=("b",)), 4):
        first = batch.obs[:, 0]
        np.add.at(counts, first[first[:, 0] == 0][:, 1].numpy(), 1)
    biased = counts.copy()
    biased[10:] = 0
    chi = lambda c: ((c - c.mean()) ** 2 / c.mean()).sum()  # noqa: E731
    assert chi(counts) < 45 < chi(biased)


def test_only_the_chosen_episodes_are_drawn():
    batches = windows(Memory([3, 4, 5, 6]), 50, 2, key=("c",), episodes=np.array([1, 3]))
    assert set(next(batches).obs[:, 0, 0].tolist()) == {1, 3}


def test_nothing_to_draw_from_is_an_error():
    with pytest.raises(ValueError, match="no steps"):
        windows(Memory([3]), 4, 2, key=("c",), episodes=np.array([], int))


@given(st.integers(0, 50), st.integers(0, 3), st.booleans())
@settings(max_examples=20, deadline=None)
def test_batch_k_depends_on_key_and_k_alone(k, key, crossing):
    source = Memory([9, 5, 7])
    straight = next(itertools.islice(windows(source, 8, 4, key=("r", key), crossing=crossing), k, None))
    resumed = next(windows(source, 8, 4, key=("r", key), start=k, crossing=crossing))
    other = next(windows(source, 8, 4, key=("r", key + 1), start=k, crossing=crossing))
    assert torch.equal(straight.obs, resumed.obs) and torch.equal(straight.action, resumed.action)
    assert not torch.equal(straight.obs, other.obs)


def test_codes_take_the_place_of_frames():
    source = Memory([4, 4])
    source.columns["code"] = source.columns.pop("obs").astype(np.float16)
    batch = cut(source, np.array([1]), np.array([2]), 3)
    assert batch.obs is None
    assert batch.code.tolist() == [[[1, 2], [1, 3], [1, 4], [1, 4]]] and batch.mask.tolist() == [[1, 1, 0]]


def test_prefetch_gives_the_same_items_in_order():
    assert list(prefetch(iter(range(50)), depth=3)) == list(range(50))


def test_prefetch_raises_the_error_in_its_place():
    def broken():
        yield 1
        yield 2
        raise OSError("disk")

    items = prefetch(broken())
    assert next(items) == 1 and next(items) == 2
    with pytest.raises(OSError, match="disk"):
        next(items)
    with pytest.raises(StopIteration):
        next(items)


@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_prefetch_ends_its_thread(how):
    before = threading.active_count()
    items = prefetch(itertools.count(), depth=2)
    assert next(items) == 0 and threading.active_count() == before + 1
    if how == "with":
        with items:
            pass
    elif how == "close":
        items.close()
        items.close()
    del items
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.02)
    assert threading.active_count() == before


def test_prefetch_runs_ahead_but_not_away():
    made = []

    def count():
        for i in itertools.count():
            made.append(i)
            yield i

    with prefetch(count(), depth=2) as items:
        next(items)
        time.sleep(0.3)
        assert 3 <= len(made) <= 4
