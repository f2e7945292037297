"""Where a loss ends when nothing but the predictions stands between it and its least value."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tinker.numerics import fold_in
from tinker.train.specs import parts


def soft_sets(key, *, sets=64, places=64):
    r"""Sets of whose places some are surely in, some surely not, and some in between.

    .. math:: y = \sigma(2u), \qquad u \sim \mathcal N(m, 1),\; m \sim \mathcal N(0, 1)

    Args:
      key: A jax random key.
      sets: Their number.
      places: Places that each may have.

    Returns:
      A dict of ``targets`` y, ``[sets, places]``; m is a set's own.
    """
    middle, place = jax.random.split(key)
    u = jax.random.normal(place, (sets, places)) + jax.random.normal(middle, (sets, 1))
    return {"targets": jax.nn.sigmoid(2 * u)}


def run(config, key):
    """Minimises a loss over the predictions themselves, by Adam along a cosine.

    Args:
      config: ``world`` (a spec of ``fn(key, **keywords) -> {name: array}``), ``like`` (the array of
        the world whose shape the predictions have), ``link`` (a spec of a function from free
        numbers to predictions), ``loss`` and ``metrics`` (specs whose ``inputs`` name
        ``predictions`` and arrays of the world; a metric's mean is reported), ``learning_rate`` and
        ``steps``.
      key: Of the world, and of where the free numbers start, a standard normal.

    Returns:
      The metrics, and ``loss``, at the end; ``curve``, the loss before steps that are evenly spaced
      by their logarithm, and which those are, ``step``, from 1.
    """
    job = config.to_dict()
    rate = job.pop("learning_rate")
    return jax.device_get(_fit(json.dumps(job, sort_keys=True), rate, key))


@functools.partial(jax.jit, static_argnums=0)
def _fit(job, rate, key):
    """One program for all seeds and rates."""
    job = json.loads(job)
    world, link = _function(job["world"]), _function(job["link"])
    arrays = world(fold_in(key, "world"))
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, job["steps"]))

    def value(spec, free):
        known = {**arrays, "predictions": link(free)}
        return jnp.mean(_function(spec)(*(known[name] for name in spec["inputs"])))

    def step(carry, _):
        free, state = carry
        loss, slope = jax.value_and_grad(lambda free: value(job["loss"], free))(free)
        updates, state = optimizer.update(slope, state)
        return (optax.apply_updates(free, updates), state), loss

    free = jax.random.normal(fold_in(key, "start"), arrays[job["like"]].shape)
    carry = free, optimizer.init(free)
    (free, _), curve = jax.lax.scan(step, carry, None, length=job["steps"])
    found = {name: value(spec, free) for name, spec in job["metrics"].items()}
    shown = np.unique(np.geomspace(1, job["steps"], 100).round().astype(int))
    return {**found, "loss": value(job["loss"], free), "step": shown, "curve": curve[shown - 1]}


def _function(spec):
    fn, _, keywords = parts(spec, "fit")
    return functools.partial(fn, **keywords)
