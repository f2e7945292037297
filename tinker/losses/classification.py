"""Losses of scores against labels."""

import chex
import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import xlog1py

from tinker.numerics import UserError


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


def comp_sum(logits, labels, *, tau=1.0, where=None):
    r"""The family of losses of p_y from the exponential over cross-entropy to the absolute error.

    .. math:: \ell = \frac{(1 + u)^{1 - \tau} - 1}{1 - \tau}, \qquad
              u = \sum_{k \ne y} e^{z_k - z_y} = \frac{1}{p_y} - 1

    which is :math:`u` for :math:`\tau = 0`, cross-entropy for 1, the generalized cross-entropy
    :math:`(1 - p_y^q) / q` for :math:`\tau = 1 + q`, and for 2 the mean absolute error
    :math:`1 - p_y` (without its factor of 2).

    Args:
      logits: Scores z, ``[..., classes]``, any float dtype; computed in float32 at least.
      labels: Class indices, ``[...]``, integers in [0, classes).
      tau: :math:`\tau \ge 0`. Below 1 the loss is a power of 1 / p_y: above e⁶⁰ it goes on as a
        line, so as to stay finite.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per example, ``[...]``, float32.

    Source: Cross-Entropy Loss Functions: Theoretical Analysis and Applications, ICML 2023,
      arXiv:2304.07288, the comp-sum losses; between 1 and 2 Generalized Cross Entropy Loss for
      Training Deep Neural Networks with Noisy Labels, NeurIPS 2018, arXiv:1805.07836.
    """
    _, log_p_y = _log_p_y(logits, labels)
    power = jnp.asarray(1.0 - tau, log_p_y.dtype)
    exponent = -power * log_p_y
    inside = jnp.minimum(exponent, 60.0)
    value = jnp.expm1(inside) + jnp.exp(inside) * (exponent - inside)
    loss = jnp.where(power == 0, -log_p_y, value / jnp.where(power == 0, 1.0, power))
    return loss if where is None else jnp.where(where, loss, 0.0)


def least_comp_sum_regret(zero_one_regret, *, tau=1.0, classes=2):
    r"""What being wrong by that much costs at least in a comp-sum loss, over all distributions.

    .. math:: T_\tau(\beta) = \begin{cases}
        \frac{2^{1 - \tau}}{1 - \tau} (1 - m) & 0 \le \tau < 1 \\
        \frac{1 + \beta}{2} \log (1 + \beta) + \frac{1 - \beta}{2} \log (1 - \beta) & \tau = 1 \\
        \frac{1}{(\tau - 1) K^{\tau - 1}} (m - 1) & 1 < \tau < 2 \\
        \beta / K & \tau = 2 \end{cases} \qquad
        m = \Big( \frac{(1 + \beta)^{1 / (2 - \tau)} + (1 - \beta)^{1 / (2 - \tau)}}{2}
            \Big)^{2 - \tau}

    The regret is what is expected above the least possible. Tight up to :math:`\tau = 1`; above it
    the bound weakens with the number of classes.

    Args:
      zero_one_regret: :math:`\beta` in [0, 1], ``[...]``: of the top class, the probability that it
        is right below that of the best.
      tau: :math:`\tau` in [0, 2], of :func:`comp_sum`, a Python number.
      classes: K, at least 2.

    Returns:
      The least regret of the loss, ``[...]``, float32; convex and increasing in :math:`\beta`.

    Raises:
      UserError: tau is outside [0, 2].

    Source: Cross-Entropy Loss Functions: Theoretical Analysis and Applications, ICML 2023,
      arXiv:2304.07288, the H-consistency bounds of comp-sum losses.
    """
    if not 0 <= tau <= 2:
        raise UserError(f"tau={tau} must be in [0, 2]")
    beta = jnp.asarray(zero_one_regret, float)
    if tau == 1:
        return (xlog1py(1 + beta, beta) + xlog1py(1 - beta, -beta)) / 2
    if tau == 2:
        return beta / classes
    power = 1 / (2 - tau)
    mean = (((1 + beta) ** power + (1 - beta) ** power) / 2) ** (2 - tau)
    return (mean - 1) / (tau - 1) * (2 ** (1 - tau) if tau < 1 else classes ** (1 - tau))


def greatest_zero_one_regret(regret, *, tau=1.0, classes=2):
    r"""How wrong a classifier may be whose comp-sum loss is that far above the least.

    .. math:: \Gamma_\tau = T_\tau^{-1}

    of :func:`least_comp_sum_regret`, by bisection: the bound on the zero-one risk that a small loss
    guarantees, where the best score function is in reach. About :math:`\sqrt{2 x}` for
    cross-entropy and small x.

    Args:
      regret: The expected loss above the least possible, ``[...]``, not negative.
      tau: :math:`\tau` in [0, 2], of :func:`comp_sum`, a Python number.
      classes: K, at least 2.

    Returns:
      Probability in [0, 1], ``[...]``, float32; 1 where the regret bounds nothing.

    Raises:
      UserError: tau is outside [0, 2].

    Source: as :func:`least_comp_sum_regret`.
    """
    regret = jnp.asarray(regret, float)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        below = least_comp_sum_regret(middle, tau=tau, classes=classes) <= regret
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    ends = jnp.zeros_like(regret), jnp.ones_like(regret)
    return jax.lax.fori_loop(0, 50, halve, ends)[1]


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
