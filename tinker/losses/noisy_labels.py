"""Losses that wrong labels mislead less."""

import math

import chex
import jax
import jax.numpy as jnp


def ldr(logits, labels, *, temperature=1.0, margin=0.1, where=None):
    r"""The worst case over labels near the even distribution: cross-entropy, SVM and in between.

    .. math:: \ell = \max_{p \in \Delta} \langle p, d \rangle - \lambda\, \mathrm{KL}(p \,\|\, 1/K)
              = \lambda \log \frac1K \sum_k e^{d_k / \lambda}, \qquad
              d_k = z_k - z_y + c\,[k \ne y]

    Without a margin c it is, at :math:`\lambda = 1`, cross-entropy less log K; towards 0 it is the
    largest :math:`d_k`, which is Crammer and Singer's loss; towards infinity their mean, whose sum
    over labels is constant, so that evenly wrong labels change nothing but its scale.

    Args:
      logits: Scores z, ``[..., classes]``, any float dtype; computed in float32 at least. The
        authors normalise them, see :func:`unit_mean_scores`.
      labels: Class indices, ``[...]``, integers in [0, classes).
      temperature: :math:`\lambda` > 0, in units of a score.
      margin: c >= 0, in units of a score.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per example, ``[...]``, in units of a score, float32.

    Source: Label Distributionally Robust Losses for Multi-class Classification: Consistency,
      Robustness and Adaptivity, ICML 2023, arXiv:2112.14869, the LDR-KL loss.
    """
    d = _margins(logits, labels, margin)
    loss = _log_mean_exp(d, jnp.asarray(temperature, d.dtype))
    return loss if where is None else jnp.where(where, loss, 0.0)


def adaptive_ldr(
    logits, labels, *, temperature=1.0, alpha=2.0, margin=0.1, num_iterations=10, where=None
):
    r"""The worst case over labels, at a temperature that each example finds for itself.

    .. math:: \ell = \max_{p \in \Delta,\, \lambda} \langle p, d \rangle
              - \lambda\, \mathrm{KL}(p \,\|\, 1/K)
              - \frac{\alpha \log K}{2 \lambda_0} (\lambda - \lambda_0)^2, \qquad
              d_k = z_k - z_y + c\,[k \ne y]

    By turns :math:`p = \mathrm{softmax}(d / \lambda)` and
    :math:`\lambda = \lambda_0 (1 - \mathrm{KL}(p \,\|\, 1/K) / (\alpha \log K))`, which falls from
    :math:`\lambda_0` to the largest fixed point. An example whose scores are uncertain keeps a
    high temperature, at which its label counts for less. No gradient passes through
    :math:`\lambda`, of which there is none at the maximum.

    The authors' code takes one turn at each visit from the temperature of the example's last one,
    which it keeps, and leaves the margin out of p there.

    Args:
      logits: Scores z, ``[..., classes]``, any float dtype; computed in float32 at least. The
        authors normalise them, see :func:`unit_mean_scores`.
      labels: Class indices, ``[...]``, integers in [0, classes).
      temperature: :math:`\lambda_0` > 0, in units of a score.
      alpha: Pull towards :math:`\lambda_0`, a number > 1, so that :math:`\lambda > 0`; the authors'
        experiments start at 2. Towards infinity the loss is :func:`ldr`.
      margin: c >= 0, in units of a score.
      num_iterations: Turns, static.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per example, ``[...]``, in units of a score, float32.

    Source: Label Distributionally Robust Losses for Multi-class Classification: Consistency,
      Robustness and Adaptivity, ICML 2023, arXiv:2112.14869, the ALDR-KL loss; its weight of the
      quadratic is that of the authors' code.
    """
    d = _margins(logits, labels, margin)
    log_k = math.log(max(d.shape[-1], 2))  # of one class there is nothing to lose
    fixed = jax.lax.stop_gradient(d)

    def turn(_, found):
        log_p = jax.nn.log_softmax(fixed / found[..., None])
        divergence = jnp.sum(jnp.exp(log_p) * log_p, -1) + math.log(d.shape[-1])
        return temperature * (1 - divergence / (alpha * log_k))

    start = jnp.full(d.shape[:-1], temperature, d.dtype)
    found = jax.lax.fori_loop(0, num_iterations, turn, start)
    penalty = alpha * log_k / (2 * temperature) * jnp.square(found - temperature)
    loss = _log_mean_exp(d, found) - penalty
    return loss if where is None else jnp.where(where, loss, 0.0)


def unit_mean_scores(logits, labels, *, loss, where=None):
    r"""A loss of scores whose mean size is 1, which no scale of the logits can lower.

    .. math:: \ell\Big(\frac{z}{\frac1K \sum_k |z_k|}, y\Big)

    Args:
      logits: Scores z, ``[..., classes]``, any float dtype; computed in float32 at least.
      labels: Class indices, ``[...]``, integers in [0, classes).
      loss: ``loss(logits, labels, where=where)`` giving ``[...]``; in a config a partial spec.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per example, ``[...]``. Scores of which all are 0 stay so, with no gradient.

    Source: Label Distributionally Robust Losses for Multi-class Classification: Consistency,
      Robustness and Adaptivity, ICML 2023, arXiv:2112.14869, as in the authors' code for ALDR-KL.
    """
    z = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    size = jnp.abs(z).mean(-1, keepdims=True)
    return loss(jnp.where(size > 0, z / jnp.where(size > 0, size, 1.0), 0.0), labels, where=where)


def normalized_loss(logits, labels, *, loss, where=None):
    r"""A loss over its sum for all labels, which evenly wrong labels do not mislead.

    .. math:: \frac{\ell(z, y)}{\sum_{k=1}^K \ell(z, k)}

    Its sum over labels is 1 whatever the scores, so that labels which are wrong evenly and at a
    rate below (K - 1) / K leave the minimiser where it is. With
    :func:`tinker.losses.cross_entropy` it is NCE, with :func:`tinker.losses.focal` NFL, with
    :func:`tinker.losses.comp_sum` NGCE. The paper adds it, an active loss, to a passive one
    such as the absolute error (``comp_sum`` of ``tau=2``) or :func:`reverse_cross_entropy`; in a
    config that is a list of two losses, of scales 1 and 1 on CIFAR-10, of 1 and 10 on MNIST.

    Args:
      logits: Scores z, ``[..., classes]``, any float dtype.
      labels: Class indices, ``[...]``, integers in [0, classes).
      loss: ``loss(logits, labels)`` giving ``[...]``, not negative; in a config a partial spec. The
        authors' code passes no gradient through focal's discount, this does.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      In [0, 1] per example, ``[...]``, float32; 0 where the loss is 0 for all labels.

    Source: Normalized Loss Functions for Deep Learning with Noisy Labels, ICML 2020,
      arXiv:2006.13554, the normalized losses and Active Passive Loss.
    """
    chex.assert_equal_shape_prefix([logits, labels], labels.ndim)
    classes = jnp.arange(logits.shape[-1])
    each = jax.vmap(lambda k: loss(logits, jnp.full(labels.shape, k)), out_axes=-1)(classes)
    own = jnp.take_along_axis(each, labels[..., None], -1)[..., 0]
    total = each.sum(-1)
    value = jnp.where(total > 0, own / jnp.where(total > 0, total, 1.0), 0.0)
    return value if where is None else jnp.where(where, value, 0.0)


def reverse_cross_entropy(logits, labels, *, log_zero=-4.0, where=None):
    r"""Cross-entropy with label and prediction exchanged: the absolute error, times a constant.

    .. math:: \ell = -\sum_k p_k \log q_k = -A (1 - p_y), \qquad
              q_k = [k = y],\; \log 0 := A

    Added to cross-entropy it is the symmetric cross-entropy, to :func:`normalized_loss` of
    cross-entropy NCE+RCE.

    Args:
      logits: Scores z, ``[..., classes]``, with :math:`p = \mathrm{softmax}(z)`, any float dtype;
        computed in float32 at least.
      labels: Class indices, ``[...]``, integers in [0, classes).
      log_zero: A < 0. The code of Active Passive Loss takes log 1e-4, -9.21.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per example in nats, in [0, -A], ``[...]``, float32.

    Source: Symmetric Cross Entropy for Robust Learning with Noisy Labels, ICCV 2019,
      arXiv:1908.06112, the reverse cross-entropy.
    """
    chex.assert_equal_shape_prefix([logits, labels], labels.ndim)
    p = jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    others = jnp.arange(p.shape[-1]) != labels[..., None]
    loss = -log_zero * jnp.sum(p, -1, where=others)
    return loss if where is None else jnp.where(where, loss, 0.0)


def _margins(logits, labels, margin):
    """d, ``[..., classes]``."""
    chex.assert_equal_shape_prefix([logits, labels], labels.ndim)
    z = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    own = jnp.take_along_axis(z, labels[..., None], -1)
    return z - own + margin * (jnp.arange(z.shape[-1]) != labels[..., None])


def _log_mean_exp(d, temperature):
    scaled = d / temperature[..., None]
    return temperature * (jax.nn.logsumexp(scaled, -1) - math.log(d.shape[-1]))
