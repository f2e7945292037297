"""Distillation: a student learns from a teacher's outputs, or from its own of before."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class SelfDistilled(NamedTuple):
    """Kernel ridge regressions, each fitted to a mix of the truth and of the one before.

    Attributes:
      coefficients: ``[steps, n, …]``: ``kernel(x, data) @ coefficients[t]`` predicts at x.
      fits: Predictions at the data itself, ``[steps, n, …]``.
    """

    coefficients: jax.Array
    fits: jax.Array


def self_distilled_ridge(kernel, targets, *, penalty, weights):
    r"""Kernel ridge regression distilled into itself, step by step, from one decomposition.

    .. math:: f_t = K (K + \lambda I)^{-1} \big(\alpha_t y + (1 - \alpha_t) f_{t-1}\big),
              \qquad f_1 = K (K + \lambda I)^{-1} y

    In the eigenbasis of K every step is a number for each direction. With a constant
    :math:`\alpha > 0` it converges to kernel ridge regression of penalty
    :math:`\lambda / \alpha`; with :math:`\alpha = 0` to nothing.

    Args:
      kernel: K, ``[n, n]``, symmetric and positive semidefinite, float32 or float64.
      targets: y, ``[n]`` or ``[n, outputs]``.
      penalty: :math:`\lambda` > 0.
      weights: :math:`\alpha_t` of the truth in the steps after the first, ``[steps - 1]``.

    Returns:
      :class:`SelfDistilled`.

    Source: Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization Imposed by
      Self-Distillation, NeurIPS 2021, arXiv:2102.13088, the weighted self-distillation of kernel
      ridge regression.
    """
    n = len(kernel)
    chex.assert_shape(kernel, (n, n))
    chex.assert_axis_dimension(targets, 0, n)
    values, vectors = jnp.linalg.eigh(kernel)
    values = jnp.maximum(values, 0.0).reshape(n, *[1] * (targets.ndim - 1))
    truth = jnp.tensordot(vectors.T, targets, 1)
    first = truth / (values + penalty)

    def step(before, weight):
        mixed = weight * truth + (1 - weight) * values * before
        after = mixed / (values + penalty)
        return after, after

    _, later = jax.lax.scan(step, first, jnp.asarray(weights, first.dtype))
    found = jnp.concatenate([first[None], later])
    back = jax.vmap(lambda x: jnp.tensordot(vectors, x, 1))
    return SelfDistilled(back(found), back(values * found))


def best_truth_weight(targets, from_truth, from_teacher, *, where=None):
    r"""How much of the truth a student should be fitted to, by two students' squared error.

    .. math:: \arg\min_{\alpha \in [0, 1]} \sum_i
              \lVert y_i - \alpha h_i - (1 - \alpha) g_i \rVert^2
              = \mathrm{clip}\Big(\frac{\langle y - g, h - g \rangle}{\lVert h - g \rVert^2},
                0, 1\Big)

    A linear method's fit to a mix of targets is the mix of its fits h to the truth and g to the
    teacher, so that no grid need be searched. On held-out examples it is an estimate of the best
    weight; of networks, which are not linear, an approximation.

    Args:
      targets: y, ``[n, …]``, held out.
      from_truth: h, predictions of the student that was fitted to the truth, ``[n, …]``.
      from_teacher: g, of the one fitted to the teacher's predictions, ``[n, …]``.
      where: Optional boolean that broadcasts to the targets; False entries do not count.

    Returns:
      The weight of the truth, ``[]``; 1 where both students predict alike.

    Source: Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization Imposed by
      Self-Distillation, NeurIPS 2021, arXiv:2102.13088, the optimal weighting parameter, which
      there is not confined to [0, 1].
    """
    chex.assert_equal_shape([targets, from_truth, from_teacher])
    counted = 1.0 if where is None else where
    apart = (from_truth - from_teacher) * counted
    square = jnp.square(apart).sum()
    along = ((targets - from_teacher) * apart).sum()
    weight = along / jnp.where(square > 0, square, 1.0)
    return jnp.where(square > 0, jnp.clip(weight, 0.0, 1.0), 1.0)
