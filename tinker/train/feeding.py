"""Feeding: batches where the step wants them, from data on the device or ahead of it.

Batch number t of every stream belongs to step t, whoever reads it and however many processes there
are; so the place in the data is one number.
"""

import queue
import threading
import time
import zlib

import jax
import numpy as np

from tinker import data
from tinker.data.batching import length_of
from tinker.train import sharding

RESIDENT_BYTES = 2**30


def open_feed(streams, mesh, seed):
    """Chooses how the streams reach the devices: held there whole, or read ahead.

    Args:
      streams: What :func:`tinker.train.load_streams` gives.
      mesh: The mesh.
      seed: Of which every stream's order is drawn.

    Returns:
      A :class:`Resident` for one process's in-memory data of at most 1 GiB, else a :class:`Ahead`.
    """
    check_batches(streams, mesh)
    if jax.process_count() == 1 and all(data.in_memory(s.dataset) for s in streams):
        size = sum(v.nbytes for s in streams for v in s.dataset.source.values())
        if size <= RESIDENT_BYTES:
            return Resident(streams, mesh, seed)
    return Ahead(streams, mesh, seed)


def check_batches(streams, mesh):
    """Raises a UserError for a batch that the mesh cannot split evenly."""
    for stream in streams:
        name = f"config.data.streams.{stream.prefix[:-1]}." if stream.prefix else "config."
        sharding.check_batch_size(stream.batch_size, mesh, f"{name}batch_size")


def batch_spec(streams):
    """The abstract batch that the streams make together, ``{name: jax.ShapeDtypeStruct}``."""
    batch = {}
    for stream in streams:
        fields = dict(data.spec(stream.dataset, stream.batch_size))
        if is_padded(stream):
            fields["mask"] = jax.ShapeDtypeStruct((stream.batch_size,), bool)
        batch |= {stream.prefix + k: v for k, v in fields.items()}
    return batch


def is_padded(stream):
    """Whether an epoch of the stream ends in a batch with padding."""
    return length_of(stream.dataset) % stream.batch_size != 0 and not stream.drop_remainder


def stream_seed(seed, prefix):
    """A stream's own seed; the main one, of empty prefix, has the run's."""
    return int(seed) ^ zlib.crc32(prefix.encode())


class Resident:
    """Data that lies on the devices; a step is told which rows to gather."""

    resident = True
    idle_seconds = 0.0

    def __init__(self, streams, mesh, seed):
        self.streams, self.seed = streams, seed
        self.arrays = jax.device_put(
            {s.prefix: dict(s.dataset.source) for s in streams}, sharding.replicated(mesh)
        )

    def seek(self, step):
        """Nothing to do: rows are a function of the step."""

    def rows(self, step, count=1, capacity=None):
        """The rows of ``count`` steps from ``step`` on, ``{prefix: (rows, mask or None)}``.

        ``[batch]`` each, or with a capacity ``[capacity, batch]``, zeros beyond count.
        """
        index = {}
        for s in self.streams:
            seed, length = stream_seed(self.seed, s.prefix), length_of(s.dataset)
            shape = (capacity or 1, s.batch_size)
            rows, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
            for i in range(count):
                rows[i], mask[i] = data.batch_indices(
                    length, s.batch_size, step + i, seed=seed, drop_remainder=s.drop_remainder
                )
            if capacity is None:
                rows, mask = rows[0], mask[0]
            index[s.prefix] = (rows, mask if is_padded(s) else None)
        return index

    def first(self):
        """Batch number 0, for what is initialised from data."""
        return jax.jit(gather)(self.arrays, self.rows(0))

    def close(self):
        """Nothing runs in the background."""


def gather(arrays, index, mesh=None):
    """Takes a batch out of resident arrays, inside a jitted step."""
    batch = {}
    for prefix, (rows, mask) in index.items():
        fields = {k: v[rows] for k, v in arrays[prefix].items()}
        if mask is not None:
            fields["mask"] = mask
        batch |= {prefix + k: v for k, v in fields.items()}
    if mesh is not None:
        batch = jax.lax.with_sharding_constraint(batch, sharding.batch_sharding(mesh))
    return batch


class Ahead:
    """Data that is read and put on the devices a batch ahead, by a thread."""

    resident = False

    def __init__(self, streams, mesh, seed):
        self.streams, self.seed, self.mesh = streams, seed, mesh
        self.idle_seconds = 0.0
        self._thread, self._start = None, 0

    def seek(self, step):
        """Makes batch number ``step`` the next one."""
        self.close()
        self._start = step

    def first(self):
        """Batch number 0, for what is initialised from data."""
        return self._read([self._open(s, 0) for s in self.streams])

    def next(self, is_idle=lambda: False):
        """The next batch; time spent waiting while ``is_idle()`` counts into ``idle_seconds``."""
        if self._thread is None:
            self._ready, self._stop = queue.Queue(maxsize=1), threading.Event()
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        start = time.perf_counter()
        batch = self._ready.get()
        if isinstance(batch, BaseException):
            raise batch
        if is_idle():
            self.idle_seconds += time.perf_counter() - start
        return batch

    def close(self):
        """Stops the thread."""
        if self._thread is not None:
            self._stop.set()
            while self._thread.is_alive():
                try:
                    self._ready.get(timeout=0.05)
                except queue.Empty:
                    pass
            self._thread = None

    def _open(self, stream, step):
        batches = data.batches(
            stream.dataset,
            stream.batch_size,
            seed=stream_seed(self.seed, stream.prefix),
            drop_remainder=stream.drop_remainder,
            places=sharding.local_rows(self.mesh, stream.batch_size),
        )
        batches.set_state({"batch": step})
        return batches

    def _read(self, iterators):
        batch = {}
        for stream, iterator in zip(self.streams, iterators):
            for key, rows in next(iterator).items():
                rows = sharding.to_global(self.mesh, rows, stream.batch_size)
                batch[stream.prefix + key] = rows
        return batch

    def _work(self):
        try:
            iterators = [self._open(s, self._start) for s in self.streams]
            while not self._stop.is_set():
                self._ready.put(self._read(iterators))
        except BaseException as error:  # raised where the batch is asked for
            self._ready.put(error)


def place_in_data(streams, step):
    """What a checkpoint says of the data: where the streams are, and that they are the same.

    Returns:
      ``{stream: {"fingerprint": …, "state": {"batch": step}}}``; the main stream is ``"data"``.
    """
    return {
        s.prefix[:-1] or "data": {
            "fingerprint": data.fingerprint(s.dataset),
            "state": {"batch": int(step)},
        }
        for s in streams
    }
