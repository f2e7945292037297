"""How good predictions are.

A metric is a function of arrays with one value per example, averaged over a split; a pair
``sums(*arrays, where) -> sums`` and ``finish(sums) -> value``; or a function marked ``whole_split``
that sees the arrays of a whole split at once.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class SplitSums(NamedTuple):
    """A metric by sums over batches: ``sums(*arrays, where=mask)`` and ``finish(total)``."""

    sums: Callable
    finish: Callable


def accuracy(logits, labels):
    """Whether the highest score is the label's.

    Args:
      logits: Scores, ``[..., classes]``.
      labels: Class indices, ``[...]``.

    Returns:
      1.0 or 0.0 per example, ``[...]``, float32; ties go to the lowest index.
    """
    return (jnp.argmax(logits, -1) == labels).astype(jnp.float32)


def nll(logits, labels):
    r"""Negative log-likelihood of the labels, :math:`-\log \mathrm{softmax}(z)_y`.

    Args:
      logits: Scores z, ``[..., classes]``.
      labels: Class indices, ``[...]``.

    Returns:
      Nats per example, ``[...]``, float32.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]


def target_probability(logits, labels):
    r"""Probability given to the label, :math:`\mathrm{softmax}(z)_y`.

    Args:
      logits: Scores z, ``[..., classes]``.
      labels: Class indices, ``[...]``.

    Returns:
      Probability per example, ``[...]``, float32.
    """
    return jnp.exp(-nll(logits, labels))


def bits_per_byte(logits, labels):
    r"""Negative log-likelihood in bits, :math:`-\log_2 \mathrm{softmax}(z)_y`.

    Args:
      logits: Scores z, ``[..., 256]``.
      labels: The bytes, ``[...]``.

    Returns:
      Bits per byte, ``[...]``, float32.
    """
    return nll(logits, labels) / jnp.log(2.0)


def mean_squared_error(predictions, targets):
    r"""Squared error, :math:`(\hat y - y)^2`.

    Args:
      predictions: :math:`\hat y`, ``[...]`` or ``[..., 1]`` for targets ``[...]``.
      targets: y, ``[...]``.

    Returns:
      Squared error per entry, ``[...]``, float32.
    """
    if predictions.ndim == targets.ndim + 1 and predictions.shape[-1] == 1:
        predictions = predictions[..., 0]
    return jnp.square(predictions.astype(jnp.float32) - targets)


def perplexity():
    r"""The exponential of the mean negative log-likelihood over a split.

    Returns:
      A :class:`SplitSums` of ``(logits [..., classes], labels [...])``.
    """

    def sums(logits, labels, where):
        value = nll(logits, labels)
        weight = jnp.broadcast_to(where.reshape(where.shape + (1,) * (value.ndim - 1)), value.shape)
        return jnp.sum(jnp.where(weight, value, 0.0)), weight.sum()

    return SplitSums(sums, lambda total: jnp.exp(total[0] / total[1]))


def r_squared(predictions, targets):
    r"""The share of the targets' variance that is explained, over a whole split.

    .. math:: R^2 = 1 - \frac{\sum_i (\hat y_i - y_i)^2}{\sum_i (y_i - \bar y)^2}

    Args:
      predictions: :math:`\hat y`, ``[n]`` or ``[n, 1]``.
      targets: y, ``[n]``.

    Returns:
      A scalar, at most 1; constant targets give 0 where the predictions equal them, else -inf.
    """
    residual = jnp.sum(mean_squared_error(predictions, targets))
    spread = jnp.sum(jnp.square(targets - jnp.mean(targets)))
    ratio = residual / jnp.where(spread > 0, spread, 1.0)
    return jnp.where(spread > 0, 1.0 - ratio, jnp.where(residual > 0, -jnp.inf, 0.0))


r_squared.whole_split = True
