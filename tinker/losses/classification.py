"""Losses of scores against labels."""

import chex
import jax
import jax.numpy as jnp


def _log_p_y(logits, labels):
    chex.assert_equal_shape_prefix([logits, labels], labels.ndim)
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    return log_p, jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]


def cross_entropy(logits, labels, *, label_smoothing=0.0, where=None):
    r"""Softmax cross-entropy, with smoothed labels where asked.

    .. math:: \ell = -(1 - \epsilon) \log p_y - \frac{\epsilon}{K} \sum_k \log p_k,
              \qquad p = \mathrm{softmax}(z)

    Args:
      logits: Scores z, ``[..., classes]``, any float dtype; computed in float32 at least.
      labels: Class indices, ``[...]``, integers in [0, classes).
      label_smoothing: :math:`\epsilon` in [0, 1], the mass spread over all K classes.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per example in nats, ``[...]``, float32.

    Source: Rethinking the Inception Architecture for Computer Vision, CVPR 2016,
      arXiv:1512.00567, Section 7.
    """
    log_p, log_p_y = _log_p_y(logits, labels)
    loss = -(1.0 - label_smoothing) * log_p_y - label_smoothing * log_p.mean(-1)
    return loss if where is None else jnp.where(where, loss, 0.0)


def focal(logits, labels, *, gamma=2.0, where=None):
    r"""Cross-entropy that discounts what is already classified well.

    .. math:: \ell = -(1 - p_y)^\gamma \log p_y, \qquad p = \mathrm{softmax}(z)

    Args:
      logits: Scores z, ``[..., classes]``, any float dtype; computed in float32 at least.
      labels: Class indices, ``[...]``, integers in [0, classes).
      gamma: Focusing exponent, >= 0; 0 is cross-entropy. Below 1 the slope of the discount is
        unbounded where p_y = 1, and is held at the value of 1 - p_y = 1e-12.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per example in nats, ``[...]``, float32.

    Source: Focal Loss for Dense Object Detection, ICCV 2017, arXiv:1708.02002, Eq. 4, in its
      softmax form.
    """
    _, log_p_y = _log_p_y(logits, labels)
    miss = jnp.maximum(-jnp.expm1(log_p_y), 1e-12)
    loss = -(miss**gamma) * log_p_y
    return loss if where is None else jnp.where(where, loss, 0.0)


def squared_error(predictions, targets, *, where=None):
    r"""Half the squared error, summed over the last axis where the target has none.

    .. math:: \ell = \tfrac12 \lVert \hat y - y \rVert^2

    Args:
      predictions: :math:`\hat y`, ``[...]``, or ``[..., 1]`` for targets ``[...]``.
      targets: y, ``[...]``, of any float dtype.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per entry, ``[...]``, in squared units of the target, float32.
    """
    if predictions.ndim == targets.ndim + 1 and predictions.shape[-1] == 1:
        predictions = predictions[..., 0]
    chex.assert_equal_shape([predictions, targets])
    dtype = jnp.promote_types(predictions.dtype, jnp.float32)
    loss = 0.5 * jnp.square(predictions.astype(dtype) - targets.astype(dtype))
    return loss if where is None else jnp.where(where, loss, 0.0)
