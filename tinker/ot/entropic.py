"""Transport with an entropic penalty, between points."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tinker.kernels import sinkhorn_update


class EntropicTransport(NamedTuple):
    r"""Potentials, of the plan :math:`a_i b_j \exp((f_i + g_j - c_{ij}) / \epsilon)`.

    Attributes:
      potentials: ``(f, g)``, ``[m]`` and ``[n]``, in units of the cost; a constant can move from
        one to the other.
      value: The regularized cost, ``[]``.
      converged: Whether the error came below the tolerance, ``[]``.
      num_iterations: Updates of either potential, ``[]``.
      error: What the plan's marginals miss a and b by, summed, at most, ``[]``.
    """

    potentials: tuple
    value: jax.Array
    converged: jax.Array
    num_iterations: jax.Array
    error: jax.Array


def entropic_transport(
    cost, a, b, *, epsilon, schedule=None, max_iterations=2000, tolerance=1e-3, implementation=None
):
    r"""Entropic transport by Sinkhorn's iteration, in memory O((m + n) d).

    .. math:: \min_{T \ge 0} \langle T, C \rangle
              + \epsilon \sum_{ij} T_{ij} \log \frac{T_{ij}}{a_i b_j}
              \quad \text{subject to} \quad T 1 = a,\; T^\top 1 = b

    The error is that of the row sums before the rows' potentials are updated, which that update
    tells without another look at the costs; the column sums are off by no more after it, and the
    row sums no longer are.

    The value is differentiable in the cost, in a and in b, by the envelope theorem: its slopes are
    the plan, f and, but for a constant, g. No gradient passes through the iterations or into the
    potentials.

    Args:
      cost: ``tinker.kernels.CostFactors`` of m rows and n columns, such as
        ``tinker.kernels.squared_euclidean_factors`` of points; computed in float32 at least.
      a: Mass of the rows, ``[m]``, >= 0, of sum 1.
      b: Mass of the columns, ``[n]``, >= 0, of sum 1.
      epsilon: > 0, in units of the cost.
      schedule: Epsilon of each iteration, a function of its number such as
        ``optax.exponential_decay(1.0, 1, 0.9)``: large ones get the potentials near soon. None and
        wherever it is below ``epsilon``: that. The error is not tested before it came down.
      max_iterations: Of either potential's updates.
      tolerance: Error at which it stops, as a share of the mass.
      implementation: Of ``tinker.kernels.sinkhorn_update``.

    Returns:
      An :class:`EntropicTransport`.

    Raises:
      UserError: An unknown implementation.

    Source: Sinkhorn Distances: Lightspeed Computation of Optimal Transport, NIPS 2013,
      arXiv:1306.0895; the penalty is relative to the product of the marginals, which changes its
      value by their entropies.
    """
    dtype = jnp.promote_types(jnp.result_type(*cost, a, b), jnp.float32)
    cost, a, b = jax.tree.map(lambda x: jnp.asarray(x, dtype), (cost, a, b))
    held, rows, columns = jax.lax.stop_gradient((cost, a, b))
    # r and s are added at the end: they move no mass, and would cost digits
    held = held._replace(r=jnp.zeros_like(rows), s=jnp.zeros_like(columns))
    last = jax.lax.stop_gradient(jnp.asarray(epsilon, dtype))
    options = {"implementation": implementation}

    def going(state):
        *_, error, i = state
        return (error > tolerance) & (i < max_iterations)

    def step(state):
        f, _, _, i = state
        now = last if schedule is None else jnp.maximum(schedule(i), last).astype(dtype)
        g = sinkhorn_update(f, held.T, rows, epsilon=now, **options)
        new = sinkhorn_update(g, held, columns, epsilon=now, **options)
        # a row's sum is a_i exp((f - new) / epsilon)
        missed = jnp.where(rows > 0, rows * jnp.abs(jnp.expm1((f - new) / now)), 0.0).sum()
        return new, g, jnp.where(now > last, jnp.inf, missed), i + 1

    start = jnp.zeros_like(rows), jnp.zeros_like(columns), jnp.asarray(jnp.inf, dtype), 0
    f, g, error, iterations = jax.lax.while_loop(going, step, start)
    # The rows' potentials once more, with slopes. Those in g, which is held, are what the column
    # sums miss.
    reduced = cost._replace(r=held.r, s=held.s)
    raised = sinkhorn_update(g, reduced, b, epsilon=epsilon, **options)
    value = a @ (raised + cost.r) + b @ (g + cost.s)
    potentials = jax.lax.stop_gradient((f + cost.r, g + cost.s))
    return EntropicTransport(potentials, value, error <= tolerance, iterations, error)
