"""How far confidence is from accuracy."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class Reliability(NamedTuple):
    """What :func:`reliability` returns, a value for each bin."""

    confidence: jax.Array
    accuracy: jax.Array
    count: jax.Array


def reliability(logits, labels, *, bins=15, adaptive=False):
    r"""Mean confidence and accuracy by bin of confidence, :math:`\hat p = \max_k p_k`.

    Args:
      logits: Scores z, ``[n, classes]``, with :math:`p = \mathrm{softmax}(z)`; of probabilities,
        pass the logarithm.
      labels: Class indices, ``[n]``.
      bins: M, static.
      adaptive: Whether the bins hold equally many examples, in order of confidence; else bin m is
        :math:`(\frac{m-1}{M}, \frac{m}{M}]`.

    Returns:
      :class:`Reliability` of ``confidence [bins]``, ``accuracy [bins]`` and ``count [bins]``,
      float32; an empty bin has zeros.

    Source: On Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599, Section 2; the
      adaptive bins are those of Measuring Calibration in Deep Learning, 2019, arXiv:1904.01685.
    """
    chex.assert_rank([logits, labels], [2, 1])
    chex.assert_equal_shape_prefix([logits, labels], 1)
    p = jax.nn.softmax(logits.astype(jnp.float32), -1)
    confidence, correct = jnp.max(p, -1), jnp.argmax(p, -1) == labels
    if adaptive:
        rank = jnp.argsort(jnp.argsort(confidence))
        edges = jnp.arange(1, bins) * len(labels) / bins
        of_bin = jnp.searchsorted(edges, rank, side="right")
    else:
        of_bin = jnp.searchsorted(jnp.arange(1, bins) / bins, confidence, side="left")
    member = jax.nn.one_hot(of_bin, bins)
    count = member.sum(0)
    share = jnp.maximum(count, 1.0)
    sums = jnp.stack([confidence, correct.astype(jnp.float32)])
    means = jnp.dot(sums, member, precision="highest") / share
    return Reliability(*means, count)


def expected_calibration_error(logits, labels, *, bins=15, adaptive=False):
    r"""The mean gap between confidence and accuracy, over a whole split.

    .. math:: \mathrm{ECE} = \sum_m \frac{|B_m|}{n}
              \left| \mathrm{acc}(B_m) - \mathrm{conf}(B_m) \right|

    Args:
      logits: Scores, ``[n, classes]``.
      labels: Class indices, ``[n]``.
      bins: M, static.
      adaptive: Whether the bins hold equally many examples; else they are equally wide.

    Returns:
      A scalar in [0, 1], float32. It is biased upwards, the more so the fewer examples a bin has.

    Source: On Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599, Eq. 3.
    """
    confidence, accuracy, count = reliability(logits, labels, bins=bins, adaptive=adaptive)
    return jnp.sum(count * jnp.abs(accuracy - confidence)) / len(labels)


expected_calibration_error.whole_split = True


def brier_score(logits, labels):
    r"""Squared distance of the probabilities from the label.

    .. math:: \sum_k (p_k - [k = y])^2, \qquad p = \mathrm{softmax}(z)

    Args:
      logits: Scores z, ``[..., classes]``.
      labels: Class indices, ``[...]``.

    Returns:
      In [0, 2] per example, ``[...]``, float32; of two classes it is twice the score of one.

    Source: Verification of forecasts expressed in terms of probability, Monthly Weather Review
      1950, Eq. 2.
    """
    chex.assert_equal_shape_prefix([logits, labels], labels.ndim)
    p = jax.nn.softmax(logits.astype(jnp.float32), -1)
    return jnp.sum(jnp.square(p - jax.nn.one_hot(labels, p.shape[-1])), -1)
