"""Losses of scores against labels."""

import chex
import jax
import jax.numpy as jnp
import optax


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


def poly1_cross_entropy(logits, labels, *, epsilon=2.0, where=None):
    r"""Cross-entropy plus its first polynomial correction.

    .. math:: \ell = -\log p_y + \epsilon\,(1 - p_y), \qquad p = \mathrm{softmax}(z)

    Cross-entropy is :math:`\sum_{j \ge 1} (1 - p_y)^j / j`; this raises the weight of its first
    term from 1 to 1 + epsilon.

    Args:
      logits: Scores z, ``[..., classes]``, any float dtype; computed in float32 at least.
      labels: Class indices, ``[...]``, integers in [0, classes).
      epsilon: Weight of the first polynomial term; 0 is cross-entropy, must be >= -1 for the loss
        to stay decreasing in p_y.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per example in nats, ``[...]``, float32.

    Source: PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions,
      ICLR 2022, arXiv:2204.12511, the formulation called Poly-1.
    """
    _, log_p_y = _log_p_y(logits, labels)
    loss = -log_p_y - epsilon * jnp.expm1(log_p_y)
    return loss if where is None else jnp.where(where, loss, 0.0)


def poly1_focal(logits, labels, *, epsilon=-1.0, gamma=2.0, alpha=None, where=None):
    r"""Sigmoid focal loss plus its first polynomial correction.

    .. math:: \ell = -\alpha_t\,(1 - p_t)^\gamma \log p_t + \epsilon\,(1 - p_t)^{\gamma + 1},
              \qquad p_t = \sigma(z) \text{ if } y = 1 \text{ else } 1 - \sigma(z)

    As in the authors' description, the class weight does not scale the correction.

    Args:
      logits: Scores z, one per class or anchor, ``[...]``, any float dtype; computed in float32 at
        least.
      labels: Targets y in [0, 1], ``[...]``.
      epsilon: Weight of the correction; 0 is the focal loss, the paper's detectors use -1.
      gamma: Focusing exponent, >= 0.
      alpha: Weight of y = 1 in [0, 1], that of y = 0 being 1 - alpha; None is no weight.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per entry in nats, ``[...]``, float32.

    Source: PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions,
      ICLR 2022, arXiv:2204.12511, Poly-1 of the focal loss.
    """
    chex.assert_equal_shape([logits, labels])
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    p = jax.nn.sigmoid(logits)
    miss = jnp.maximum(labels * (1 - p) + (1 - labels) * p, 1e-12)
    loss = optax.sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    loss = loss + epsilon * miss ** (gamma + 1)
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
