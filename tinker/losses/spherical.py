"""Losses of a score, the sum of all scores and the sum of their squares: for many classes."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


def spherical_z_loss(logits, labels, *, slope=0.1, shift=10.0, where=None):
    r"""How far the label's score, in deviations from the mean of all, is above a threshold.

    .. math:: \ell = \frac1a \log\big(1 + e^{a (b - z_y)}\big), \qquad
              z_y = \frac{o_y - \mu}{\sigma}, \quad
              \mu = \frac1K \sum_k o_k, \quad \sigma^2 = \frac1K \sum_k o_k^2 - \mu^2

    No shift or scale of the scores changes it. Not the regulariser
    :math:`\log^2 \sum_k e^{o_k}`, which goes by the same name.

    Args:
      logits: Scores o, ``[..., classes]``, any float dtype; computed in float32 at least.
      labels: Class indices, ``[...]``, integers in [0, classes).
      slope: a > 0.
      shift: b, in deviations; :math:`z_y` is at most :math:`\sqrt{K - 1}`, and both are tuned.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per example, ``[...]``, float32. Scores that are all alike have :math:`z_y = 0` and no
      gradient.

    Source: The Z-loss: a shift and scale invariant classification loss belonging to the Spherical
      Family, 2016, arXiv:1604.08859, the definition of the Z-loss.
    """
    chex.assert_equal_shape_prefix([logits, labels], labels.ndim)
    o = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    o = o - o.mean(-1, keepdims=True)
    own = jnp.take_along_axis(o, labels[..., None], -1)[..., 0]
    loss = _softplus_of(own, jnp.square(o).mean(-1), slope, shift)
    return loss if where is None else jnp.where(where, loss, 0.0)


def z_loss_of_sums(own, total, squares, classes, *, slope=0.1, shift=10.0):
    r"""The loss of :func:`spherical_z_loss` where only sums of the scores are known.

    Args:
      own: :math:`o_y`, ``[...]``, float.
      total: :math:`\sum_k o_k`, ``[...]``.
      squares: :math:`\sum_k o_k^2`, ``[...]``.
      classes: K.
      slope: a > 0.
      shift: b, in deviations.

    Returns:
      Loss per example, ``[...]``; less exact where the scores' mean is large against their spread.

    Source: as :func:`spherical_z_loss`.
    """
    mean = total / classes
    return _softplus_of(own - mean, squares / classes - jnp.square(mean), slope, shift)


def taylor_softmax_loss(logits, labels, *, where=None):
    r"""Cross-entropy with the exponential's expansion to second order in its place.

    .. math:: \ell = -\log \frac{1 + o_y + o_y^2 / 2}{\sum_k (1 + o_k + o_k^2 / 2)}

    Args:
      logits: Scores o, ``[..., classes]``, any float dtype; computed in float32 at least.
      labels: Class indices, ``[...]``, integers in [0, classes).
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per example in nats, ``[...]``, float32.

    Source: An Exploration of Softmax Alternatives Belonging to the Spherical Loss Family,
      ICLR 2016, arXiv:1511.05042, the Taylor softmax.
    """
    chex.assert_equal_shape_prefix([logits, labels], labels.ndim)
    o = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    mass = (jnp.square(1 + o) + 1) / 2
    own = jnp.take_along_axis(mass, labels[..., None], -1)[..., 0]
    loss = jnp.log(mass.sum(-1)) - jnp.log(own)
    return loss if where is None else jnp.where(where, loss, 0.0)


class SphericalOutput(NamedTuple):
    r"""A layer of scores :math:`o = W h`, of weights :math:`W = V U + 1 \omega^\top`.

    Attributes:
      rows: V, ``[classes, d]``.
      turn: U, ``[d, d]``.
      inverse: :math:`U^{-1}`, ``[d, d]``.
      offset: :math:`\omega`, ``[d]``.
      gram: :math:`W^\top W`, ``[d, d]``.
      total: :math:`W^\top 1`, ``[d]``.
    """

    rows: jax.Array
    turn: jax.Array
    inverse: jax.Array
    offset: jax.Array
    gram: jax.Array
    total: jax.Array


def spherical_output(weights):
    """Puts the weights of an output layer in the form that :func:`spherical_step` takes.

    Args:
      weights: W, ``[classes, d]``, float.

    Returns:
      A :class:`SphericalOutput`.
    """
    chex.assert_rank(weights, 2)
    turn = jnp.eye(weights.shape[1], dtype=weights.dtype)
    gram = jnp.matmul(weights.T, weights, precision="highest")
    offset = jnp.zeros(weights.shape[1], weights.dtype)
    return SphericalOutput(weights, turn, turn, offset, gram, weights.sum(0))


def spherical_weights(output):
    """The weights of a :class:`SphericalOutput`, ``[classes, d]``."""
    return jnp.matmul(output.rows, output.turn, precision="highest") + output.offset


def spherical_step(output, hidden, label, learning_rate, *, loss=z_loss_of_sums):
    r"""A step of gradient descent on an output layer, in time that no number of classes changes.

    .. math:: W \leftarrow W - \eta \Big( 2 \frac{\partial \ell}{\partial q} W h
              + \frac{\partial \ell}{\partial s} 1
              + \frac{\partial \ell}{\partial o_y} e_y \Big) h^\top

    exactly, for a loss of :math:`o_y`, :math:`s = \sum_k o_k` and :math:`q = \sum_k o_k^2`, in
    :math:`O(d^2)`: the first part turns U, the second moves :math:`\omega`, the last a row of V.
    Rounding adds up in :math:`U^{-1}`: put :func:`spherical_weights` into
    :func:`spherical_output` again every few thousand steps. Under ``jax.jit`` donate the output, or
    it is copied.

    Args:
      output: A :class:`SphericalOutput`.
      hidden: h, what the layer reads, ``[d]``; a batch goes through ``jax.lax.scan``.
      label: y, ``[]``, an integer.
      learning_rate: :math:`\eta`, at which :math:`2 \eta\, \partial \ell / \partial q\, \lVert h
        \rVert^2 \ne 1`.
      loss: ``loss(own, total, squares, classes) -> []``.

    Returns:
      ``(output, loss, slope)``: the output after the step, the loss before it, and the gradient of
      the loss with respect to ``hidden``, ``[d]``.

    Source: Efficient Exact Gradient Update for Training Deep Networks with Very Large Sparse
      Targets, NeurIPS 2015, arXiv:1412.7091; with sums of scores The Z-loss, 2016,
      arXiv:1604.08859, the spherical family.
    """
    chex.assert_equal_shape([hidden, output.total])
    h, classes = hidden, len(output.rows)
    row = _dot(output.rows[label], output.turn) + output.offset
    squares = _dot(output.gram, h)
    sums = _dot(row, h), _dot(output.total, h), _dot(h, squares)
    value, (d_own, d_total, d_squares) = jax.value_and_grad(lambda s: loss(*s, classes))(sums)
    slope = d_own * row + d_total * output.total + 2 * d_squares * squares

    # W becomes W A - 1 u' - e_y v', with A = 1 - shrink h h'.
    shrink = 2 * learning_rate * d_squares
    u, v = learning_rate * d_total * h, learning_rate * d_own * h
    turn = output.turn - shrink * jnp.outer(_dot(output.turn, h), h)
    grow = shrink / (1 - shrink * _dot(h, h))
    inverse = output.inverse + grow * jnp.outer(h, _dot(h, output.inverse))
    offset = output.offset - shrink * _dot(output.offset, h) * h - u
    rows = output.rows.at[label].add(-_dot(v, inverse))

    total = output.total - shrink * _dot(output.total, h) * h
    row = row - shrink * _dot(row, h) * h
    gram = output.gram - shrink * (jnp.outer(squares, h) + jnp.outer(h, squares))
    gram = gram + shrink**2 * sums[2] * jnp.outer(h, h)
    cross = jnp.outer(total, u) + jnp.outer(row, v) - jnp.outer(u, v)
    gram = gram - cross - cross.T + classes * jnp.outer(u, u) + jnp.outer(v, v)
    stepped = SphericalOutput(rows, turn, inverse, offset, gram, total - classes * u - v)
    return stepped, value, slope


def _dot(x, y):
    return jnp.dot(x, y, precision="highest")


def _softplus_of(centred, variance, slope, shift):
    spread = variance > 0
    z = jnp.where(spread, centred * jax.lax.rsqrt(jnp.where(spread, variance, 1.0)), 0.0)
    return jax.nn.softplus(slope * (shift - z)) / slope
