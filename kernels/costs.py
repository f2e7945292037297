"""Costs of all pairs that are never held: what the transport kernels are given."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class CostFactors(NamedTuple):
    r"""The cost of every pair of a row and a column, as a sum and a product of vectors.

    .. math:: c_{ij} = r_i + s_j - \langle u_i, v_j \rangle

    Attributes:
      u: ``[m, d]``, of the rows.
      v: ``[n, d]``, of the columns.
      r: ``[m]``.
      s: ``[n]``.
    """

    u: jax.Array
    v: jax.Array
    r: jax.Array
    s: jax.Array

    @property
    def T(self):  # noqa: N802
        """The cost of every pair of a column and a row."""
        return CostFactors(self.v, self.u, self.s, self.r)


def squared_euclidean_factors(x, y):
    r"""The squared distance of every pair of points, as its factors.

    .. math:: \lVert x_i - y_j \rVert^2 = \lVert x_i' + \delta \rVert^2
              + \lVert y_j' \rVert^2 - 2 \langle \delta, y_j' \rangle - 2 \langle x_i', y_j' \rangle

    where :math:`x' = x - \bar x`, :math:`y' = y - \bar y`, :math:`\delta = \bar x - \bar y`. Where
    the clouds lie thus costs no digits of the product. Nor do ``r`` and ``s`` of a plan, for they
    move no mass.

    Args:
      x: Points of the rows, ``[m, d]``, any float dtype; computed in float32 at least.
      y: Points of the columns, ``[n, d]``.

    Returns:
      :class:`CostFactors`, differentiable in x and y.
    """
    chex.assert_rank([x, y], 2)
    chex.assert_axis_dimension(y, 1, x.shape[1])
    dtype = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
    x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
    # The equation holds for any two centres, so that no gradient is lost with theirs; but only if
    # they are the same numbers wherever they stand: XLA would multiply and subtract at once.
    centres = jax.lax.optimization_barrier(jax.lax.stop_gradient((x.mean(0), y.mean(0))))
    x, y, apart = x - centres[0], y - centres[1], centres[0] - centres[1]
    s = jnp.square(y).sum(1) - 2 * (y * apart).sum(1)
    return CostFactors(2 * x, y, jnp.square(x + apart).sum(1), s)
