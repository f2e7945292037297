"""Losses of the margin of a binary classifier."""

import chex
import jax
import jax.numpy as jnp


def calibrated_slopes(margins, draws, *, power=0.0, where=None):
    r"""Slopes that some convex and calibrated loss has at these margins, one for each draw.

    .. math:: \phi'(m_{(i)}) = -\min(u_{(i)}, 1) \cdot \begin{cases} 1 / m_{(i)} & m_{(i)} > 1 \\
              1 & \text{else} \end{cases} \; - 10^{-6}, \qquad
              u = \begin{cases} e^{\varepsilon} & \lambda = 0 \\
              \max(1 + \lambda \varepsilon, 0)^{1 / \lambda} & \text{else} \end{cases}

    with u in falling order where margins rise, so that the slopes, all in [-1 - 1e-6, -1e-6], rise
    with the margin: what convexity and calibration ask of a loss. The tail of 1 / m lets it fall
    without end.

    Args:
      margins: m, ``[n]``, float: positive where the classifier is right.
      draws: :math:`\varepsilon`, ``[n]``, float.
      power: :math:`\lambda` of the inverse Box-Cox transformation, a Python number; the authors'
        experiments have 0.
      where: Optional boolean ``[n]``; False rows and their draws are left out.

    Returns:
      Slopes, ``[n]``, float32; 0 where ``where`` is False.

    Source: EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in
      Classification, ICML 2025, arXiv:2409.00908, the inverse Box-Cox transformation and the
      algorithm; the cap at 1, the tail and 1e-6 are those of the authors' code.
    """
    chex.assert_rank([margins, draws], 1)
    chex.assert_equal_shape([margins, draws])
    if power == 0:
        sizes = jnp.exp(draws)
    else:
        sizes = jnp.maximum(1 + power * draws, 0.0) ** (1 / power)  # perhaps infinite, and then cut
    slopes = -jnp.minimum(sizes, 1.0)
    where = jnp.ones(margins.shape, bool) if where is None else where
    order = jnp.argsort(jnp.where(where, margins, jnp.inf))
    slopes = jnp.sort(jnp.where(where, slopes, jnp.inf))
    slopes = jnp.zeros_like(slopes).at[order].set(slopes)
    slopes = slopes / jnp.maximum(margins, 1.0) - 1e-6
    return jnp.where(where, slopes, 0.0)


def random_calibrated_loss(key, logits, labels, *, power=0.0, where=None):
    r"""A loss drawn anew at each call among those that are convex and calibrated.

    .. math:: \ell_i = \phi'(m_i)\, m_i, \qquad m = (2 y - 1) f

    with no gradient through the slopes of :func:`calibrated_slopes`, of normal draws. Only its
    gradient means anything.

    Args:
      key: A jax random key; a program's is called ``"key"``.
      logits: Scores f of class 1, ``[batch]`` or ``[batch, 1]``, or of both classes,
        ``[batch, 2]``, whose difference f is; any float dtype, computed in float32 at least.
      labels: y, 0 or 1, ``[batch]``.
      power: :math:`\lambda` of :func:`calibrated_slopes`.
      where: Optional boolean ``[batch]``; False rows return 0.

    Returns:
      Loss per example, ``[batch]``, float32. Couples the batch.

    Source: EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in
      Classification, ICML 2025, arXiv:2409.00908, the algorithm; as in the authors' code, whose
      ``power`` stays where it is while only the draws change.
    """
    logits = jnp.asarray(logits)
    scores = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if scores.ndim == 2:
        chex.assert_axis_dimension_lteq(logits, 1, 2)
        scores = scores[:, -1] - (scores[:, 0] if scores.shape[1] == 2 else 0.0)
    chex.assert_equal_shape([scores, labels])
    margins = (2 * labels - 1) * scores
    draws = jax.random.normal(key, margins.shape, margins.dtype)
    slopes = calibrated_slopes(jax.lax.stop_gradient(margins), draws, power=power, where=where)
    return slopes * margins


random_calibrated_loss.batch_coupled = True
