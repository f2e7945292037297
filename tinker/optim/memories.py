"""Memories: slow state that losses read and no gradient touches.

A memory is a pair ``init(key, ctx) -> memory`` and ``update(memory, ctx) -> memory``, called after
the optimizer's step; ``ctx`` then holds the new ``params`` beside the batch and its outputs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Memory(NamedTuple):
    """The pair (init, update)."""

    init: Callable
    update: Callable


class Averaged(NamedTuple):
    """What :func:`parameter_average` remembers."""

    ema: dict


def parameter_average(*, decay=0.999, warmup=True):
    r"""An exponential moving average of the parameters, read as ``memory/ema``.

    .. math:: \bar w_{t} = d_t\, \bar w_{t-1} + (1 - d_t)\, w_t, \qquad
              d_t = \min\bigl(d, \tfrac{1 + t}{10 + t}\bigr)

    A loss evaluates the teacher by ``apply(x, params=memory.ema)``.

    Args:
      decay: d in [0, 1), or a schedule of the step.
      warmup: Whether the decay starts low, as in the second equation; else :math:`d_t = d`.

    Returns:
      A :class:`Memory` whose state has one field, ``ema``.

    Source: Mean teachers are better role models, NeurIPS 2017, arXiv:1703.01780, Eq. 2; the warm-up
      is that of TensorFlow's ExponentialMovingAverage.
    """

    def init(key, ctx):
        return Averaged(jax.tree.map(jnp.asarray, ctx["params"]))

    def update(memory, ctx):
        step = ctx["step"]
        d = decay(step) if callable(decay) else decay
        d = jnp.minimum(d, (1 + step) / (10 + step)) if warmup else d
        return Averaged(optax.incremental_update(ctx["params"], memory.ema, 1 - d))

    return Memory(init, update)


class Queue(NamedTuple):
    """What :func:`output_queue` remembers: the rows, and how many of them were written."""

    rows: jax.Array
    filled: jax.Array


def output_queue(*, output="embeddings", size=1024):
    """A first-in first-out queue of an output's rows, the negatives of later batches.

    Args:
      output: Name of an output ``[batch, …]``.
      size: Rows kept; the newest stand first.

    Returns:
      A :class:`Memory` whose state has ``rows [size, …]`` float32, zeros at first, and
      ``filled []``, how many of them have been written.

    Source: Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020,
      arXiv:1911.05722, Section 3.1.
    """

    def init(key, ctx):
        shape = (size, *ctx[output].shape[1:])
        return Queue(jnp.zeros(shape, jnp.float32), jnp.zeros((), jnp.int32))

    def update(memory, ctx):
        new = jax.lax.stop_gradient(ctx[output]).astype(jnp.float32)[:size]
        rows = jnp.concatenate([new, memory.rows])[:size]
        return Queue(rows, jnp.minimum(memory.filled + len(new), size))

    return Memory(init, update)
