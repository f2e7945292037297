"""Transport plans with at most k nonzeros in each column."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from tinker.kernels import point_semi_dual, point_semi_dual_plan
from tinker.numerics import check_choice, sparse_projection, sparse_simplex_projection

FORMULATIONS = ("semi_dual", "dual")
PATIENCE = 20  # iterations without a larger value or a smaller error: the solver's end


class SparseTransport(NamedTuple):
    """A sparse plan and the potentials that it comes from.

    Attributes:
      plan: ``[m, n]``, non-negative, at most k nonzeros in a column; of
        :func:`sparse_point_transport` a ``tinker.kernels.SparseColumns``, or None where k is. It is
        not made to fit the marginals: ``error`` says by how much it misses them.
      potentials: ``(alpha, beta)``, ``[m]`` and ``[n]``.
      value: The dual objective there, ``[]``, a lower bound of the primal one.
      converged: Whether the error came below the tolerance, ``[]``.
      num_iterations: Iterations of L-BFGS, ``[]``.
      error: What the plan's row and column sums miss a and b by, summed, ``[]``.
    """

    plan: jax.Array | tuple | None
    potentials: tuple
    value: jax.Array
    converged: jax.Array
    num_iterations: jax.Array
    error: jax.Array


def sparse_dual(alpha, beta, cost, a, b, *, k, gamma=1.0):
    r"""The dual of sparsity-constrained transport, which is to be made large.

    .. math:: \langle \alpha, a \rangle + \langle \beta, b \rangle
              - \sum_j \Omega^*(\alpha + \beta_j 1 - c_j), \qquad
              \Omega^*(s) = \frac{1}{2\gamma} \sum_{i \in \mathrm{top}_k(s)} \max(s_i, 0)^2

    Concave, and smooth but where the k-th and the next entry of a column tie; its gradient there is
    a subgradient. It is a minus the row sums of :func:`sparse_dual_plan`, and b minus its column
    sums.

    Args:
      alpha: Potentials of the rows, ``[m]``.
      beta: Potentials of the columns, ``[n]``.
      cost: C, ``[m, n]``, any float dtype; computed in float32 at least.
      a: Mass of the rows, ``[m]``, >= 0.
      b: Mass of the columns, ``[n]``, >= 0, of the same sum.
      k: Nonzeros in a column, in [1, m]; static. With k = m this is quadratic transport.
      gamma: Weight of the squared norm, > 0, in units of the cost over a mass.

    Returns:
      The value, ``[]``, float32; never above the cost ``<T, C> + gamma / 2 |T|^2`` of a plan T that
      has both marginals and k nonzeros in a column.

    Source: Sparsity-Constrained Optimal Transport, ICLR 2023, arXiv:2209.15466, the dual.
    """
    cost, a, b = _checked(cost, a, b, k)
    values, _ = jax.lax.top_k((alpha[:, None] + beta - cost).T, k)
    conjugates = jnp.square(jax.nn.relu(values)).sum(-1) / (2 * gamma)
    return alpha @ a + beta @ b - conjugates.sum()


def sparse_semi_dual(alpha, cost, a, b, *, k, gamma=1.0):
    r"""The semi-dual of sparsity-constrained transport: the dual at its best beta.

    .. math:: \langle \alpha, a \rangle - \sum_j \Omega_{b_j}^*(\alpha - c_j), \qquad
              \Omega_b^*(s) = \max_{t \in b \triangle,\, \lVert t \rVert_0 \le k}
              \langle s, t \rangle - \frac\gamma2 \lVert t \rVert^2

    where :math:`b \triangle` is the simplex of mass b. Its gradient is a minus the row sums of
    :func:`sparse_semi_dual_plan`.

    Args:
      alpha: Potentials of the rows, ``[m]``.
      cost: C, ``[m, n]``, any float dtype; computed in float32 at least.
      a: Mass of the rows, ``[m]``, >= 0.
      b: Mass of the columns, ``[n]``, >= 0, of the same sum.
      k: Nonzeros in a column, in [1, m]; static. With k = 1 it is the semi-dual of unregularized
        transport, but for a constant.
      gamma: Weight of the squared norm, > 0.

    Returns:
      The value, ``[]``, float32.

    Source: Sparsity-Constrained Optimal Transport, ICLR 2023, arXiv:2209.15466, the semi-dual.
    """
    beta = _best_beta(alpha, cost, b, k, gamma)
    # its slope is 0 at the best beta (the envelope theorem)
    beta = jax.lax.stop_gradient(beta)  # mutate: equivalent, all that is saved is time
    return sparse_dual(alpha, beta, cost, a, b, k=k, gamma=gamma)


def sparse_dual_plan(alpha, beta, cost, *, k, gamma=1.0):
    r"""The plan of a pair of potentials, the k largest of each column of a rectified matrix.

    .. math:: t_j = \frac1\gamma \mathrm{top}_k \big( \max(\alpha + \beta_j 1 - c_j, 0) \big)

    Args:
      alpha: Potentials of the rows, ``[m]``.
      beta: Potentials of the columns, ``[n]``.
      cost: C, ``[m, n]``, any float dtype; computed in float32 at least.
      k: Nonzeros in a column, in [1, m]; static.
      gamma: Weight of the squared norm, > 0.

    Returns:
      ``[m, n]``, float32. Of equal entries the first are kept.

    Source: Sparsity-Constrained Optimal Transport, ICLR 2023, arXiv:2209.15466, the plan of the
      dual.
    """
    cost = jnp.asarray(cost, jnp.promote_types(jnp.result_type(cost), jnp.float32))
    scores = jax.nn.relu(alpha[:, None] + beta - cost)
    return sparse_projection(scores.T, k).T / gamma


def sparse_semi_dual_plan(alpha, cost, b, *, k, gamma=1.0):
    r"""The plan of row potentials, whose columns are sparse projections onto simplices.

    .. math:: t_j = \arg\min_{t \in b_j \triangle,\, \lVert t \rVert_0 \le k}
              \lVert t - (\alpha - c_j) / \gamma \rVert^2

    Args:
      alpha: Potentials of the rows, ``[m]``.
      cost: C, ``[m, n]``, any float dtype; computed in float32 at least.
      b: Mass of the columns, ``[n]``, >= 0.
      k: Nonzeros in a column, in [1, m]; static.
      gamma: Weight of the squared norm, > 0.

    Returns:
      ``[m, n]``, float32, whose column sums are b.

    Source: Sparsity-Constrained Optimal Transport, ICLR 2023, arXiv:2209.15466, the plan of the
      semi-dual.
    """
    cost = jnp.asarray(cost, jnp.promote_types(jnp.result_type(cost), jnp.float32))
    return sparse_simplex_projection((alpha[:, None] - cost).T / gamma, k, scale=b).T


def _best_beta(alpha, cost, b, k, gamma):
    """The beta at which the dual's columns sum to b: minus the threshold of their projections."""
    scores, _ = jax.lax.top_k((alpha[:, None] - cost).T, k)
    largest = scores[:, :1]  # taken off for the digits
    count = jnp.arange(1, k + 1)
    # of all supports of the 1, 2, … k largest entries the one that holds has the largest threshold
    thresholds = (jnp.cumsum(scores - largest, 1) - gamma * b[:, None]) / count
    return -(thresholds.max(1) + largest[:, 0])


def sparse_transport(
    cost, a, b, *, k, gamma=1.0, formulation="semi_dual", max_iterations=1000, tolerance=1e-4
):
    r"""Transport with a quadratic penalty and at most k nonzeros in a column.

    .. math:: \min_{T \ge 0} \langle T, C \rangle + \frac\gamma2 \lVert T \rVert^2 \quad
              \text{subject to} \quad T 1 = a,\; T^\top 1 = b,\; \lVert t_j \rVert_0 \le k

    through its dual or semi-dual, by L-BFGS. That relaxation is tight where the plan found has both
    marginals. It need not have: the number of nonzeros holds exactly, the marginals as ``error``
    says. A small k makes the dual less smooth, which takes more iterations, and the solver may come
    to its end with an error above the tolerance. Of all iterates the one of the smallest error is
    returned: what it misses is a subgradient of the dual.

    The value is differentiable in cost, a and b, its slopes being plan, alpha and beta. The plan is
    so with the potentials held; no gradient passes through the iterations.

    Args:
      cost: C, ``[m, n]``, any float dtype; computed in float32 at least.
      a: Mass of the rows, ``[m]``, >= 0.
      b: Mass of the columns, ``[n]``, >= 0, of the same sum.
      k: Nonzeros in a column, in [1, m]; static. With k = m this is quadratic transport; a smaller
        k comes nearer to the unregularized one.
      gamma: Weight of the squared norm, > 0.
      formulation: "semi_dual", whose plan has the column sums b exactly, or "dual", whose columns
        are cheaper; static.
      max_iterations: Of L-BFGS; static.
      tolerance: Error at which it stops, in units of mass.

    Returns:
      A :class:`SparseTransport`.

    Raises:
      UserError: The formulation is unknown.

    Source: Sparsity-Constrained Optimal Transport, ICLR 2023, arXiv:2209.15466. The paper solves it
      by L-BFGS or Adam; the stop after 20 iterations without a larger value or a smaller error is
      ours.
    """
    check_choice("formulation", formulation, FORMULATIONS)
    cost, a, b = _checked(cost, a, b, k)
    m, n = cost.shape
    held = jax.lax.stop_gradient({"cost": cost, "a": a, "b": b, "gamma": gamma})
    both = formulation == "dual"

    def negative(x):
        if both:
            return -sparse_dual(x[:m], x[m:], **held, k=k)
        return -sparse_semi_dual(x, **held, k=k)

    x = jnp.zeros(m + n if both else m, cost.dtype)
    x, iterations = _ascend(negative, x, max_iterations, tolerance)
    if both:
        alpha, beta = x[:m], x[m:]
        plan = sparse_dual_plan(alpha, beta, cost, k=k, gamma=gamma)
    else:
        alpha, beta = x, _best_beta(x, held["cost"], held["b"], k, held["gamma"])
        plan = sparse_semi_dual_plan(alpha, cost, b, k=k, gamma=gamma)
    value = sparse_dual(alpha, beta, cost, a, b, k=k, gamma=gamma)
    error = jnp.abs(plan.sum(1) - a).sum() + jnp.abs(plan.sum(0) - b).sum()
    return SparseTransport(plan, (alpha, beta), value, error <= tolerance, iterations, error)


def sparse_point_transport(
    cost,
    a,
    b,
    *,
    k=None,
    gamma=1.0,
    max_iterations=1000,
    tolerance=1e-4,
    implementation=None,
):
    r"""What :func:`sparse_transport` computes by the semi-dual, without the cost of all pairs.

    The cost is computed from its factors wherever it is needed, in memory O((m + n) (d + k)).

    Args:
      cost: ``tinker.kernels.CostFactors`` of m rows and n columns, such as
        ``tinker.kernels.squared_euclidean_factors`` of points; computed in float32 at least.
      a: Mass of the rows, ``[m]``, >= 0.
      b: Mass of the columns, ``[n]``, >= 0, of the same sum.
      k: Nonzeros in a column, in [1, m], or None for any number, which is quadratic transport;
        static.
      gamma: Weight of the squared norm, > 0.
      max_iterations: Of L-BFGS; static.
      tolerance: Error at which it stops, in units of mass.
      implementation: Of ``tinker.kernels.point_semi_dual``.

    Returns:
      A :class:`SparseTransport` whose plan is a ``tinker.kernels.SparseColumns``; for k=None it has
      none, but ``tinker.kernels.point_semi_dual_plan`` of the potentials finds the k largest
      entries of its columns, which are all if there are no more. The value is differentiable in
      cost, a and b, the plan with the potentials held.

    Raises:
      UserError: An unknown implementation.

    Source: Sparsity-Constrained Optimal Transport, ICLR 2023, arXiv:2209.15466.
    """
    dtype = jnp.promote_types(jnp.result_type(*cost, a, b), jnp.float32)
    cost, a, b = jax.tree.map(lambda x: jnp.asarray(x, dtype), (cost, a, b))
    held, rows, columns, weight = jax.lax.stop_gradient((cost, a, b, gamma))
    # r and s move no mass, and would cost digits: they are taken off the potentials
    reduced = held._replace(r=jnp.zeros_like(rows), s=jnp.zeros_like(columns))
    semi_dual = functools.partial(point_semi_dual, k=k, implementation=implementation)

    def negative(alpha):
        return -semi_dual(alpha, reduced, rows, columns, gamma=weight)

    alpha, iterations = _ascend(negative, -held.r, max_iterations, tolerance)
    missed, beta = jax.grad(semi_dual, (0, 3))(alpha, reduced, rows, columns, gamma=weight)
    error = jnp.abs(missed).sum()  # of the rows: the columns' sums are met
    alpha, beta = alpha + held.r, beta + held.s
    plan = None
    if k is not None:
        options = {"k": k, "gamma": gamma, "implementation": implementation}
        plan = point_semi_dual_plan(alpha, cost, b, **options)
    value = semi_dual(alpha, cost, a, b, gamma=gamma)
    return SparseTransport(plan, (alpha, beta), value, error <= tolerance, iterations, error)


def _ascend(negative, x, max_iterations, tolerance):
    """Of the iterates of L-BFGS the one with the smallest slope, and how many there were."""
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(negative)

    def going(carry):
        *_, error, since, i = carry
        return (i < max_iterations) & (error > tolerance) & (since < PATIENCE)

    def step(carry):
        x, state, best, least, error, since, i = carry
        value, grad = value_and_grad(x, state=state)
        missed = jnp.abs(grad).sum()
        nearer, since = missed < error, jnp.where((missed < error) | (value < least), 0, since + 1)
        best, error = jnp.where(nearer, x, best), jnp.where(nearer, missed, error)
        given = {"value": value, "grad": grad, "value_fn": negative}
        updates, state = solver.update(grad, state, x, **given)
        return x + updates, state, best, jnp.minimum(value, least), error, since, i + 1

    start = x, solver.init(x), x, jnp.inf, jnp.inf, 0, 0
    _, _, x, _, _, _, iterations = jax.lax.while_loop(going, step, start)
    return x, iterations


def sparse_routing(scores, *, capacity, gamma=1.0, max_iterations=50):
    r"""Weights by which experts read tokens, each expert at most ``capacity`` of them.

    The plan of :func:`sparse_transport` from tokens of mass 1 / tokens to experts of mass
    1 / experts at the cost -scores: as far as it can, it gives every token the same weight.

    Args:
      scores: Affinities, ``[tokens, experts]``, any float dtype; computed in float32 at least.
      capacity: k, the tokens that an expert may read, in [1, tokens]; static.
      gamma: Weight of the squared norm, > 0; a larger one evens out an expert's tokens.
      max_iterations: Of L-BFGS; static. A router need not converge.

    Returns:
      ``[tokens, experts]``, float32, whose columns sum to 1 / experts and have at most ``capacity``
      nonzeros. Gradients reach the scores through the plan at held potentials.

    Source: Sparsity-Constrained Optimal Transport, ICLR 2023, arXiv:2209.15466, its sparse mixtures
      of experts.
    """
    tokens, experts = scores.shape
    a, b = jnp.full(tokens, 1 / tokens), jnp.full(experts, 1 / experts)
    options = {"k": capacity, "gamma": gamma, "max_iterations": max_iterations}
    return sparse_transport(-scores, a, b, **options).plan


def _checked(cost, a, b, k):
    chex.assert_rank(cost, 2)
    chex.assert_shape([a, b], [cost.shape[:1], cost.shape[1:]])
    if not 0 < k <= cost.shape[0]:
        raise ValueError(f"k={k} nonzeros in a column of {cost.shape[0]}, in {cost.shape}")
    dtype = jnp.promote_types(jnp.result_type(cost), jnp.float32)
    return tuple(jnp.asarray(x, dtype) for x in (cost, a, b))
