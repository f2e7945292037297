"""Evaluation: metrics of whole splits, the padding of the last batch left out exactly."""

import jax
import jax.numpy as jnp
import numpy as np

from tinker import data
from tinker.data.batching import length_of
from tinker.numerics import UserError
from tinker.train import feeding, sharding
from tinker.train.composition import lookup


def evaluate(program, state, config, *, splits=None, mesh=None):
    """Evaluates a state on whole splits.

    Args:
      program: A :class:`tinker.train.Program`.
      state: Its state.
      config: The config it was built from; its data, metrics and ``eval_splits`` are used.
      splits: Names of splits, by default ``config.eval_splits``.
      mesh: Where the state lives, by default the one device it is on.

    Returns:
      ``{"test/accuracy": value, …}``; a float, or an array where a metric gives one.
    """
    from tinker.train.building import build_metrics, load_streams

    mesh = _mesh_of(state) if mesh is None else mesh
    splits = tuple(config.eval_splits if splits is None else splits)
    metrics = build_metrics(config)
    measure, results = make_measure(program, metrics, mesh), {}
    for split in splits:
        stream = load_streams(config, split, training=False)[0]
        results |= evaluate_split(measure, metrics, state, split, stream, Batches(stream, mesh))
    return results


def _mesh_of(state):
    spread = getattr(state.step.sharding, "mesh", None)
    return sharding.make_mesh({"data": 1}, [jax.devices()[0]]) if spread is None else spread


def make_measure(program, metrics, mesh):
    """Compiles the metrics' part of a batch.

    Returns:
      A jitted ``measure(state, batch, names) -> (sums, arrays)``, replicated on the mesh: a
      metric's sums, or for one of a whole split the arrays that it reads. ``names`` is a static
      tuple of metrics.
    """

    def measure(state, batch, names):
        ctx = program.context(state, batch)
        sums, arrays = {}, {}
        for name in names:
            metric = metrics[name]
            inputs = [lookup(ctx, n) for n in metric.inputs]
            if is_whole(metric):
                arrays[name] = inputs
            elif hasattr(metric.fn, "sums"):
                sums[name] = metric.fn.sums(*inputs, where=batch["mask"])
            else:
                sums[name] = _masked_sums(name, metric.fn(*inputs), batch["mask"])
        return sums, arrays

    return jax.jit(measure, static_argnums=2, out_shardings=sharding.replicated(mesh))


def is_whole(metric):
    """Whether a metric is a function of a whole split's arrays."""
    return bool(getattr(metric.fn, "whole_split", False))


def _masked_sums(name, values, mask):
    if not jnp.ndim(values) or values.shape[0] != mask.shape[0]:
        raise UserError(
            f"metric {name!r} gives shape {jnp.shape(values)} for a batch of {mask.shape[0]}: it "
            "must give a value per example, or be marked whole_split = True"
        )
    weight = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (values.ndim - 1)), values.shape)
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return jnp.where(weight, values, 0).sum(), weight.sum()


class Batches:
    """A split's padded batches in order, on the devices; held there where they are small."""

    def __init__(self, stream, mesh):
        sharding.check_batch_size(stream.batch_size, mesh, "the batch size of evaluation")
        self.stream, self.mesh, self.held = stream, mesh, None
        source = stream.dataset.source
        small = data.in_memory(stream.dataset)
        small = small and sum(v.nbytes for v in source.values()) <= feeding.RESIDENT_BYTES
        if small and jax.process_count() == 1:
            self.held = list(self._read())

    def __iter__(self):
        return iter(self._read() if self.held is None else self.held)

    def _read(self):
        size = self.stream.batch_size
        places = sharding.local_rows(self.mesh, size)
        batches = data.batches(
            self.stream.dataset,
            size,
            shuffle=False,
            epochs=1,
            places=places,
        )
        for batch in batches:
            batch.setdefault("mask", np.ones(len(places), bool))
            yield {k: sharding.to_global(self.mesh, v, size) for k, v in batch.items()}


def evaluate_split(measure, metrics, state, split, stream, batches):
    """The metrics of one split, ``{"split/metric": value}``.

    Sums are taken in float32 within a batch and in float64 over batches.
    """
    names = tuple(n for n, m in metrics.items() if m.splits is None or split in m.splits)
    if not names:
        return {}
    totals, arrays, ahead = None, {n: [] for n in names if is_whole(metrics[n])}, None
    for batch in batches:
        ahead, done = measure(state, batch, names), ahead
        if done is not None:  # a batch behind, so that the device has work meanwhile
            totals = _add(totals, arrays, jax.device_get(done))
    totals = _add(totals, arrays, jax.device_get(ahead))
    length, results = length_of(stream.dataset), {}
    for name in names:
        metric = metrics[name]
        if name in arrays:
            whole = [np.concatenate(parts)[:length] for parts in zip(*arrays[name])]
            value = metric.fn(*whole)
        elif hasattr(metric.fn, "sums"):
            value = metric.fn.finish(totals[name])
        else:
            value = totals[name][0] / totals[name][1]
        value = np.asarray(value)
        results[f"{split}/{name}"] = float(value) if value.ndim == 0 else value
    return results


def _add(totals, arrays, measured):
    sums, parts = measured
    for name, inputs in parts.items():
        arrays[name].append(inputs)
    wide = jax.tree.map(_widest, sums)
    return wide if totals is None else jax.tree.map(np.add, totals, wide)


def _widest(x):
    x = np.asarray(x)
    if x.dtype.kind in "iub":
        return x.astype(np.int64)
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)
