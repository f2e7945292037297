"""The semi-dual as its equation says, with the cost of every pair."""

import jax
import jax.numpy as jnp


def cost_matrix(cost):
    """The cost of every pair, ``[m, n]``."""
    products = jnp.einsum("md,nd->mn", cost.u, cost.v, precision="highest")
    return cost.r[:, None] + cost.s - products


def semi_dual(alpha, cost, a, b, *, k=None, gamma=1.0):
    """What :func:`tinker.kernels.point_semi_dual` computes."""
    values, thresholds, _ = _columns(alpha, cost, b, k, gamma)
    excess = jnp.square(jax.nn.relu(values - thresholds[:, None])).sum(1)
    # sum_i s_i t_i - gamma / 2 t_i^2, with t_i = max(s_i - tau, 0) / gamma of sum b
    return alpha @ a - (thresholds * b + excess / (2 * gamma)).sum()


def plan(alpha, cost, b, *, k=None, gamma=1.0):
    """Its plan, ``[m, n]``."""
    values, thresholds, kept = _columns(alpha, cost, b, k, gamma)
    columns = jnp.zeros((len(b), len(alpha)), values.dtype)
    shares = jax.nn.relu(values - thresholds[:, None]) / gamma
    return jnp.put_along_axis(columns, kept, shares, 1, inplace=False).T


def _columns(alpha, cost, b, k, gamma):
    """The k largest entries of each column, ``[n, k]``, their threshold, and where they are."""
    values, kept = jax.lax.top_k((alpha[:, None] - cost_matrix(cost)).T, k or len(alpha))
    # of the thresholds of the 1, 2, ... k largest entries the largest is the projection's
    counts = jnp.arange(1, values.shape[1] + 1)
    thresholds = (jnp.cumsum(values, 1) - gamma * b[:, None]) / counts
    return values, thresholds.max(1), kept
