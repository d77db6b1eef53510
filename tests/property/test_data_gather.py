"""gather from disk equals indexing in memory, for any episodes, shards and windows."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wmrl.data import shards
from wmrl.data.episodes import Episodes
from wmrl.data.shards import Episode

META = {
    "env": {"id": "Toy-v0"},
    "policy": {"policy": "white"},
    "actions": {"size": 2, "discrete": True},
    "seed": 1,
}


def write(folder, lengths, per_shard):
    columns = {}
    rng = np.random.default_rng(len(lengths))
    rows = sum(lengths) + len(lengths)
    columns["obs"] = rng.integers(0, 256, (rows, 2, 3, 4), dtype=np.uint8)
    columns["action"] = rng.normal(size=(rows, 2)).astype(np.float32)
    columns["reward"] = rng.normal(size=rows).astype(np.float32)
    columns["terminated"], columns["truncated"] = rng.random((2, rows)) < 0.5
    start = np.concatenate([[0], np.cumsum(np.array(lengths) + 1)])
    made = [Episode(**{k: v[a:b] for k, v in columns.items()}, seed=int(a)) for a, b in itertools.pairwise(start)]
    for first in range(0, len(made), per_shard):
        shards.write_shard(folder, first, made[first : first + per_shard], META)
    shards.complete(folder)
    return columns


@given(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.integers(1, 3), st.data())
@settings(max_examples=25, deadline=None)
def test_gather_equals_brute_force(tmp_path_factory, lengths, per_shard, data):
    folder = tmp_path_factory.mktemp("gather")
    columns = write(folder, lengths, per_shard)
    total = sum(lengths) + len(lengths)
    length = data.draw(st.integers(1, 40))
    steps = st.lists(st.integers(0, 1) | st.integers(-60, 60), min_size=length - 1, max_size=length - 1)
    lines = data.draw(st.lists(st.tuples(st.integers(0, total - 1), steps), min_size=1, max_size=6))
    rows = np.array([np.clip(np.cumsum([first, *more]), 0, total - 1) for first, more in lines])
    read = Episodes(folder)
    got = read.gather(rows)
    assert got.keys() == columns.keys()
    for name, column in columns.items():
        assert got[name].dtype == column.dtype
        assert np.array_equal(got[name], column[rows]), name
    read.close()
