"""Sinkhorn's update of a potential, from points."""

import chex
import jax.numpy as jnp

from tinker.kernels.tiled_matmul.api import matmul_logsumexp


def sinkhorn_update(potential, cost, weights, *, epsilon, implementation=None):
    r"""The potentials of the rows that are best beside those of the columns.

    .. math:: f_i = -\epsilon \log \sum_j b_j \exp \big( (g_j - c_{ij}) / \epsilon \big), \qquad
              c_{ij} = r_i + s_j - \langle u_i, v_j \rangle

    The sum is :func:`matmul_logsumexp`'s, tile by tile, forward and backward; the cost of all pairs
    is never held. With them the plan :math:`a_i b_j \exp((f_i + g_j - c_{ij}) / \epsilon)` has the
    row sums a. For the columns' potentials give the rows' and ``cost.T``.

    In float32 the digits of a potential are those of r, s and g; about 1e-7 of the largest of them,
    over epsilon, is what the plan's entries are off by, relatively. A solver that leaves r and s
    out until its end, as ``tinker.ot.entropic_transport`` does, loses none to them.

    Args:
      potential: g, of the columns, ``[n]``, any float dtype; computed in float32 at least, and
        products at the highest precision.
      cost: :class:`CostFactors` of m rows and n columns, such as :func:`squared_euclidean_factors`
        of points.
      weights: b, mass of the columns, ``[n]``, >= 0 and not all 0.
      epsilon: > 0, in units of the cost.
      implementation: None (the fastest measured), "xla" or "pallas".

    Returns:
      f, ``[m]``, in units of the cost, float32. Differentiable once in everything; a weight of 0
      gets no gradient.

    Raises:
      UserError: An unknown implementation.

    Source: Sinkhorn Distances: Lightspeed Computation of Optimal Transport, NIPS 2013,
      arXiv:1306.0895, its iteration, in logarithms.
    """
    chex.assert_rank([cost.u, cost.v], 2)
    (m, d), n = cost.u.shape, len(cost.v)
    chex.assert_shape([cost.v, cost.r, cost.s], [(n, d), (m,), (n,)])
    chex.assert_shape([potential, weights], (n,))
    dtype = jnp.promote_types(jnp.result_type(*cost, potential, weights), jnp.float32)
    u, v, r, s, potential, weights = (jnp.asarray(x, dtype) for x in (*cost, potential, weights))
    some = weights > 0
    logs = jnp.where(some, jnp.log(jnp.where(some, weights, 1.0)), -jnp.inf)
    bias = jnp.where(some, (potential - s) / epsilon, 0.0) + logs
    options = {"precision": "highest", "implementation": implementation}
    return r - epsilon * matmul_logsumexp(u / epsilon, v, bias=bias, **options)
