import itertools
import json

import numpy as np
import pytest

from tinker import data
from tinker.numerics import UserError


class Slow:
    """A source that is read example by example, as a file would be."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return {"x": np.full((2,), index, np.float32), "label": np.int32(index % 3)}


def in_arrays(length):
    rows = np.arange(length)
    x = np.repeat(rows[:, None], 2, 1).astype(np.float32)
    return data.Dataset({"x": x, "label": (rows % 3).astype(np.int32)}, {"name": "rows"})


def in_files(length):
    return data.Dataset(Slow(length), {"name": "rows"})


def rows_of(batch):
    return batch["x"][:, 0].astype(int)


@pytest.mark.parametrize(
    "length,batch_size", [(12, 4), (13, 4), (15, 4), (3, 4), (1, 4), (7, 1), (5, 5), (4, 11)]
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_example_once_per_epoch(length, batch_size, shuffle):
    steps = data.steps_per_epoch(length, batch_size)
    assert steps == -(-length // batch_size)
    epochs = []
    for epoch in range(3):
        kept, first = [], None
        for step in range(steps):
            rows, mask = data.batch_indices(
                length, batch_size, epoch * steps + step, seed=5, shuffle=shuffle
            )
            assert rows.shape == mask.shape == (batch_size,)
            assert rows.dtype == np.int64 and mask.dtype == bool
            kept += list(rows[mask])
            first = rows if first is None else first
        padding = rows[~mask]
        whole = np.resize(kept, steps * batch_size)[length:]  # the epoch's own start, cyclically
        np.testing.assert_array_equal(padding, whole)
        assert mask.all() or step == steps - 1
        assert sorted(kept) == list(range(length))
        epochs.append(kept)
    if shuffle and length > 6:
        assert epochs[0] != epochs[1] != epochs[2]
    if not shuffle:
        assert epochs == [list(range(length))] * 3


def test_order_depends_on_seed_alone_and_is_uniform():
    def first(seed):
        return data.batch_indices(6, 6, 0, seed=seed)[0]

    np.testing.assert_array_equal(first(3), first(3))
    places = np.stack([first(seed) for seed in range(600)])
    counts = np.stack([np.bincount(column, minlength=6) for column in places.T])
    assert np.abs(counts - 100).max() < 45  # five standard deviations of a binomial


def test_drop_remainder():
    seen = []
    for index in range(3):
        rows, mask = data.batch_indices(14, 4, index, seed=0, drop_remainder=True)
        assert mask.all()
        seen += list(rows)
    assert len(set(seen)) == 12
    assert data.steps_per_epoch(14, 4, drop_remainder=True) == 3
    np.testing.assert_array_equal(
        data.batch_indices(14, 4, 3, seed=0, drop_remainder=True)[0],
        data.batch_indices(14, 14, 1, seed=0)[0][:4],
    )
    with pytest.raises(UserError, match="no whole batch of 4"):
        data.steps_per_epoch(3, 4, drop_remainder=True)
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        data.steps_per_epoch(3, 0)


@pytest.mark.parametrize("make", [in_arrays, in_files])
@pytest.mark.parametrize(
    "length,drop,masked", [(12, False, False), (13, False, True), (13, True, False)]
)
def test_batches_follow_batch_indices(make, length, drop, masked):
    ds = make(length)
    it = data.batches(ds, 4, seed=2, epochs=2, drop_remainder=drop)
    found = list(it)
    assert len(found) == 2 * data.steps_per_epoch(length, 4, drop)
    for index, batch in enumerate(found):
        rows, mask = data.batch_indices(length, 4, index, seed=2, drop_remainder=drop)
        np.testing.assert_array_equal(rows_of(batch), rows)
        np.testing.assert_array_equal(batch["label"], rows % 3)
        assert ("mask" in batch) == masked
        if masked:
            np.testing.assert_array_equal(batch["mask"], mask)
    shapes = {k: (s.shape, s.dtype) for k, s in data.spec(ds, 4).items()}
    assert shapes == {k: (v.shape, v.dtype) for k, v in found[0].items() if k != "mask"}


@pytest.mark.parametrize("make", [in_arrays, in_files])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_concatenated_are_one(make, processes):
    whole = data.batches(make(13), 8, seed=1, epochs=2)
    parts = [
        data.batches(make(13), 8, seed=1, epochs=2, places=places)
        for places in np.split(np.arange(8), processes)
    ]
    for batch, *shares in zip(whole, *parts, strict=True):
        for key, value in batch.items():
            np.testing.assert_array_equal(value, np.concatenate([s[key] for s in shares]))
    picked = data.batches(make(13), 8, seed=1, epochs=2, places=np.array([6, 1]))
    for batch, part in zip(data.batches(make(13), 8, seed=1, epochs=2), picked, strict=True):
        for key, value in batch.items():
            np.testing.assert_array_equal(part[key], value[[6, 1]])


@pytest.mark.parametrize("make", [in_arrays, in_files])
def test_state_restores_exactly(make):
    it = data.batches(make(11), 4, seed=9)
    ahead = [next(it) for _ in range(8)]
    for place in (0, 1, 3, 5):
        first = data.batches(make(11), 4, seed=9)
        for _ in range(place):
            next(first)
        state = json.loads(json.dumps(first.get_state()))
        fresh = data.batches(make(11), 4, seed=9)
        next(fresh)
        fresh.set_state(state)
        assert fresh.get_state() == state
        for want, got in zip(ahead[place:], itertools.islice(fresh, 8 - place), strict=True):
            assert want.keys() == got.keys()
            for key in want:
                np.testing.assert_array_equal(want[key], got[key])


@pytest.mark.parametrize("make", [in_arrays, in_files])
def test_state_at_the_end_of_finite_epochs(make):
    it = data.batches(make(5), 2, epochs=1)
    assert len(list(it)) == 3
    other = data.batches(make(5), 2, epochs=1)
    other.set_state(it.get_state())
    assert list(other) == []


def test_reading_overlaps_with_use():
    """While one batch waits to be used, others are read; and reading runs in several threads."""
    import threading
    import time

    names, spans = set(), []

    class Waits(Slow):
        def __getitem__(self, index):
            start = time.perf_counter()
            time.sleep(0.01)
            names.add(threading.current_thread().name)
            spans.append((start, time.perf_counter()))
            return super().__getitem__(index)

    it = data.batches(data.Dataset(Waits(64), {}), 4, epochs=1, threads=8)
    names.clear()  # batches looked at one example's shapes
    assert len(list(it)) == 16
    assert threading.current_thread().name not in names and len(names) > 1
    overlaps = sum(a < d and c < b for (a, b), (c, d) in itertools.combinations(spans, 2))
    assert overlaps > 64


def test_an_error_while_reading_reaches_the_user():
    class Broken(Slow):
        def __getitem__(self, index):
            if index == 5:
                raise OSError("disk gone")
            return super().__getitem__(index)

    with pytest.raises(OSError, match="disk gone"):
        list(data.batches(data.Dataset(Broken(8), {}), 2, epochs=1))


@pytest.mark.parametrize("make", [in_arrays, in_files])
def test_fingerprint_tells_data_apart(make):
    assert data.fingerprint(make(9)) == data.fingerprint(make(9))
    assert data.fingerprint(make(9)) != data.fingerprint(make(10))
    int(data.fingerprint(make(9)), 16)


def test_fingerprint_sees_every_value_dtype_key_and_shape():
    source = in_arrays(6).source
    variants = [
        source,
        {**source, "x": source["x"] + np.eye(6, 2, -3, dtype=np.float32)},
        {**source, "label": source["label"].astype(np.uint32)},
        {"y": source["x"], "label": source["label"]},
        {**source, "x": source["x"].reshape(6, 2, 1)},
        {"x": source["x"]},
    ]
    prints = {data.fingerprint(data.Dataset(s, {})) for s in variants}
    assert len(prints) == len(variants)
    reordered = dict(reversed(source.items()))
    assert data.fingerprint(data.Dataset(reordered, {})) in prints


def test_text_is_refused():
    ds = data.Dataset({"label": np.zeros(3, np.int32), "id": np.array(["a", "b", "c"])}, {})
    with pytest.raises(UserError, match="'id' has dtype <U1; batches take numbers alone"):
        data.batches(ds, 2)
