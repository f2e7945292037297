"""Batches: one order for data in memory and data that is read, restored exactly from one number."""

import functools
import hashlib
import json
import sys

import jax
import numpy as np

from tinker.numerics.errors import UserError


def in_memory(dataset):
    """Whether a Dataset's source is a dict of arrays."""
    return isinstance(dataset.source, dict)


def length_of(dataset):
    """The number of examples of a Dataset."""
    if in_memory(dataset):
        return len(next(iter(dataset.source.values())))
    return len(dataset.source)


def spec(dataset, batch_size=None):
    """Shapes and dtypes of a batch, without ``mask``; touches no device.

    Args:
      dataset: A Dataset.
      batch_size: The leading size; None is 1.

    Returns:
      A dict of ``jax.ShapeDtypeStruct``.

    Raises:
      UserError: If an array holds anything but numbers and booleans.
    """
    first = {k: v[:1] for k, v in dataset.source.items()} if in_memory(dataset) else None
    first = first or {k: np.asarray(v)[None] for k, v in dataset.source[0].items()}
    for key, value in first.items():
        if value.dtype.kind not in "fiub":
            raise UserError(f"{key!r} has dtype {value.dtype}; batches take numbers alone")
    size = (batch_size or 1,)
    return {k: jax.ShapeDtypeStruct(size + v.shape[1:], v.dtype) for k, v in first.items()}


def fingerprint(dataset):
    """A hash that tells whether a checkpoint's place in the data still means the same examples.

    Args:
      dataset: A Dataset. In memory every value counts; otherwise name, split, version, length, and
        the first and the last example.

    Returns:
      32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)

    def update(arrays):
        for key in sorted(arrays):
            value = np.ascontiguousarray(arrays[key])
            digest.update(f"{key} {value.dtype.str} {value.shape};".encode())
            digest.update(value.reshape(-1).view(np.uint8))

    if in_memory(dataset):
        update(dataset.source)
    else:
        named = {key: dataset.info.get(key) for key in ("name", "split", "version")}
        digest.update(json.dumps([named, len(dataset.source)]).encode())
        update(dataset.source[0])
        update(dataset.source[len(dataset.source) - 1])
    return digest.hexdigest()


def steps_per_epoch(length, batch_size, drop_remainder=False):
    """Number of batches in an epoch.

    Args:
      length: Number of examples.
      batch_size: Examples per batch.
      drop_remainder: Whether the incomplete last batch is left out, or else padded.

    Returns:
      A positive integer.

    Raises:
      UserError: If there would be none.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    steps = length // batch_size if drop_remainder else -(-length // batch_size)
    if steps == 0:
        raise UserError(
            f"{length} examples make no whole batch of {batch_size}: lower batch_size or keep the "
            "remainder"
        )
    return steps


@functools.lru_cache(maxsize=4)
def _permutation(length, seed, epoch):
    bits = np.random.Philox(np.random.SeedSequence((seed, epoch)))
    order = np.random.Generator(bits).permutation(length)
    order.setflags(write=False)
    return order


def batch_indices(length, batch_size, index, *, seed, shuffle=True, drop_remainder=False):
    """The rows of one batch, counted over all epochs.

    Every epoch is a permutation drawn from (seed, epoch). Where the batch size does not divide the
    length, the last batch of each epoch is padded with rows from that epoch's start.

    Args:
      length: Number of examples.
      batch_size: Examples per batch.
      index: Which batch, from 0; epoch ``index // steps_per_epoch``.
      seed: A non-negative integer.
      shuffle: Whether to permute; otherwise every epoch is in order.
      drop_remainder: Whether the incomplete last batch is left out, or else padded.

    Returns:
      ``(rows, mask)``: int64 ``[batch_size]``, and bool ``[batch_size]``, False where padded.
    """
    epoch, step = divmod(index, steps_per_epoch(length, batch_size, drop_remainder))
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    wrapped = places % length
    rows = _permutation(length, seed, epoch)[wrapped] if shuffle else wrapped
    return rows, places < length


def batches(
    dataset,
    batch_size,
    *,
    seed=0,
    shuffle=True,
    epochs=None,
    drop_remainder=False,
    places=None,
    threads=16,
):
    """Iterates over batches in the order of ``batch_indices``.

    Data in memory is indexed a batch at a time; other sources are read and decoded by grain's
    threads ahead of use, a batch per thread.

    Args:
      dataset: A Dataset.
      batch_size: Examples per batch, over all processes.
      seed: A non-negative integer, of which the order is drawn.
      shuffle: Whether to permute each epoch.
      epochs: Number of passes; None never ends.
      drop_remainder: Whether the incomplete last batch is left out, or else padded.
      places: Which places of every batch to read, where this process needs a part of it alone; an
        array of integers in [0, batch_size). None reads all.
      threads: Batches that are read at a time, for a source that is not in memory.

    Returns:
      An iterator over dicts of arrays ``[places, …]``, with ``mask`` (bool,
      False at padding) if and only if an epoch has padding. ``get_state()`` is a dict for JSON;
      ``set_state(state)`` continues there exactly.

    Raises:
      UserError: If the sizes do not fit, or the data is not all numbers.
    """
    length = length_of(dataset)
    steps = steps_per_epoch(length, batch_size, drop_remainder)
    mine = slice(None) if places is None else places
    padded = length % batch_size != 0 and not drop_remainder
    source = dataset.source
    spec(dataset)  # refuses text before the first batch

    def read(index):
        rows, mask = batch_indices(
            length, batch_size, index, seed=seed, shuffle=shuffle, drop_remainder=drop_remainder
        )
        rows, mask = rows[mine], mask[mine]
        if in_memory(dataset):
            batch = {key: value[rows] for key, value in source.items()}
        else:
            examples = [source[int(row)] for row in rows]
            batch = {key: np.stack([e[key] for e in examples]) for key in examples[0]}
        return {**batch, "mask": mask} if padded else batch

    # A range of batch numbers is as long as grain allows when the epochs have no end.
    stop = sys.maxsize if epochs is None else epochs * steps
    return Batches(read, stop, 0 if in_memory(dataset) else threads)


class Batches:
    """An iterator over ``read(0), read(1), …`` whose state is the next number."""

    def __init__(self, read, stop, threads):
        self._read, self._stop, self._threads = read, stop, threads
        self.set_state({"batch": 0})

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self._batches)
        self._next += 1
        return batch

    def get_state(self):
        """The place: a dict that JSON takes."""
        return {"batch": self._next}

    def set_state(self, state):
        """Continues from a place that ``get_state`` gave."""
        self._next = int(state["batch"])
        if not self._threads:
            self._batches = map(self._read, range(self._next, self._stop))
            return
        import grain

        pipeline = grain.MapDataset.range(self._next, max(self._next, self._stop)).map(self._read)
        options = grain.ReadOptions(self._threads, prefetch_buffer_size=self._threads)
        self._batches = iter(pipeline.to_iter_dataset(options))
