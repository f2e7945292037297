"""How alike two partitions are."""

import chex
import jax
import jax.numpy as jnp


def _sizes(*labels):
    """The size of each example's cluster, where those are alike that share all the labels."""
    order = jnp.lexsort(labels)
    change = sum((x[order][1:] != x[order][:-1]) for x in labels) > 0
    ids = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(change, dtype=jnp.int32)])
    counts = jax.ops.segment_sum(jnp.ones(len(order)), ids, len(order))
    return counts[ids][jnp.argsort(order)]


def _three_sizes(labels, predictions):
    chex.assert_rank([labels, predictions], 1)
    chex.assert_equal_shape([labels, predictions])
    labels, predictions = jnp.asarray(labels), jnp.asarray(predictions)
    return _sizes(labels), _sizes(predictions), _sizes(labels, predictions)


def normalized_mutual_information(labels, predictions):
    r"""Mutual information of two partitions over the mean of their entropies, of a whole split.

    .. math:: \mathrm{NMI} = \frac{2\, I(y; \hat y)}{H(y) + H(\hat y)}

    Args:
      labels: y, ``[n]``, any integers.
      predictions: :math:`\hat y`, ``[n]``, any integers; only who is together matters.

    Returns:
      A scalar in [0, 1], float32; 1 where both are one cluster.

    Source: Cluster Ensembles: A Knowledge Reuse Framework, JMLR 2002, Eq. 3, with the arithmetic
      mean of scikit-learn.
    """
    a, b, both = _three_sizes(labels, predictions)
    n = len(a)
    information = jnp.mean(jnp.log(n * both / (a * b)))
    entropies = -jnp.mean(jnp.log(a / n)) - jnp.mean(jnp.log(b / n))
    return jnp.where(entropies > 0, jnp.maximum(2 * information, 0.0) / entropies, 1.0)


normalized_mutual_information.whole_split = True


def adjusted_rand_index(labels, predictions):
    r"""Agreement over pairs of examples, above what chance gives, of a whole split.

    .. math:: \mathrm{ARI} = \frac{S - E}{\tfrac12 (A + B) - E}, \qquad E = A B / \tbinom{n}{2}

    with S the pairs that are together in both partitions, A and B those in either. It is computed
    from the pairs together in both, the one, the other and neither, so that nothing cancels.

    Args:
      labels: ``[n]``, any integers.
      predictions: ``[n]``, any integers; only who is together matters.

    Returns:
      A scalar in [-0.5, 1], float32; 0 is chance, 1 where the partitions agree.

    Source: Comparing partitions, Journal of Classification 1985, Eq. 5.
    """
    a, b, same = _three_sizes(labels, predictions)
    counts = jnp.stack([same - 1, a - same, b - same, len(labels) - a - b + same])
    both, one, other, neither = jnp.mean(counts / len(labels), -1)
    room = (both + one) * (one + neither) + (both + other) * (other + neither)
    return jnp.where(room > 0, 2 * (both * neither - one * other) / room, 1.0)


adjusted_rand_index.whole_split = True
