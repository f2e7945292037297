"""Masks: weights that are set to zero."""

import jax
import jax.numpy as jnp

from tinker import nn
from tinker.compress.parametrization import (
    Parametrization,
    leaf_table,
    map_leaves,
    matrices_matching,
)
from tinker.numerics import UserError, fold_in


def keep_largest(scores, keep):
    """Marks the entries with the highest scores.

    Args:
      scores: ``[..., n]``.
      keep: How many to mark in each row, an integer or a traced one; ties go to the lowest index.

    Returns:
      Boolean ``[..., n]`` with exactly ``keep`` True in each row.
    """
    ranks = jnp.argsort(jnp.argsort(-scores, axis=-1, stable=True), axis=-1, stable=True)
    return ranks < keep


def _mask(path, leaf, scores, keep_share):
    """A mask of the leaf's shape, the share kept of each of its matrices alike."""
    rows = nn.as_matrices(path, scores)
    rows = rows.reshape(rows.shape[0], -1)
    keep = jnp.round(keep_share * rows.shape[1]).astype(jnp.int32)
    kept = keep_largest(rows, keep)
    return nn.from_matrices(path, kept.reshape(nn.as_matrices(path, leaf).shape), leaf)


def _masked_weights(trainable, base, *, step, key, train):
    masks = base["masks"]
    return map_leaves(lambda _, w, m: jnp.where(m, w, 0.0), trainable["params"], masks)


def masked(*, sparsity=0.9, score="magnitude", match="."):
    r"""Trains the weights under a mask that is drawn once.

    .. math:: w = m \odot \theta, \qquad m_i = [\,s_i \text{ among the } (1 - S)\,n
              \text{ highest of its matrix}\,]

    Args:
      sparsity: S in [0, 1], the share of each matrix set to zero.
      score: ``"magnitude"`` (:math:`s = |\theta|` at the start) or ``"random"``.
      match: Regular expression searched in the path of a matrix (``model/head/kernel``).

    Returns:
      A :class:`Parametrization`. Biases, scales and unmatched matrices stay dense.

    Source: Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015,
      arXiv:1506.02626, Section 3, at one level and without retraining rounds.
    """
    if score not in ("magnitude", "random"):
        raise UserError(f"score={score!r}: masked takes 'magnitude' or 'random'")
    covers = matrices_matching(match)

    def init(key, params, ctx):
        def one(path, leaf):
            random = score == "random"
            scores = jax.random.uniform(fold_in(key, path), leaf.shape) if random else jnp.abs(leaf)
            return _mask(path, leaf, scores, 1.0 - sparsity)

        masks = {p: one(p, x) for p, x in leaf_table(params).items() if covers(p, x)}
        return {"params": params}, {"masks": masks}

    return Parametrization(init, _masked_weights, covers=covers)


def gradually_pruned(*, sparsity=0.9, begin=0, end=1000, every=100, match="."):
    r"""Magnitude pruning along a cubic schedule; masks are redrawn as training goes on.

    .. math:: S_t = S \left(1 - \left(1 - \frac{t - t_0}{t_1 - t_0}\right)^3\right)

    Args:
      sparsity: S in [0, 1], the share of each matrix that is zero from ``end`` on.
      begin: :math:`t_0`, the step at which pruning starts.
      end: :math:`t_1` > begin, the step at which it ends.
      every: Steps between two masks; those after ``end`` are the last one.
      match: Regular expression searched in the path of a matrix.

    Returns:
      A :class:`Parametrization`. A masked weight keeps its value, untouched by gradients, and may
      come back only through weight decay of the others.

    Source: To prune, or not to prune, 2017, arXiv:1710.01878, Eq. 1 with initial sparsity 0.
    """
    if end <= begin or every < 1:
        raise UserError(f"gradually_pruned needs end > begin and every >= 1: {begin=}, {end=}")
    covers = matrices_matching(match)

    def init(key, params, ctx):
        table = leaf_table(params)
        masks = {p: jnp.ones(x.shape, bool) for p, x in table.items() if covers(p, x)}
        return {"params": params}, {"masks": masks}

    def update(trainable, base, grads, *, step, key):
        progress = jnp.clip((step + 1 - begin) / (end - begin), 0.0, 1.0)
        share = 1.0 - sparsity * (1.0 - (1.0 - progress) ** 3)
        table = leaf_table(trainable["params"])

        def redraw(masks):
            return {p: _mask(p, table[p], jnp.abs(table[p]) * m, share) for p, m in masks.items()}

        due = ((step + 1) % every == 0) & (step + 1 >= begin) & (step + 1 < end + every)
        masks = jax.lax.cond(due, redraw, lambda masks: masks, base["masks"])
        return trainable, {"masks": masks}

    return Parametrization(init, _masked_weights, update, covers=covers)
