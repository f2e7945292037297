"""Sparse transport between two random clouds, beside the linear program and the matrix of costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from tinker import ot
from tinker.kernels import point_semi_dual, point_semi_dual_plan, squared_euclidean_factors
from tinker.numerics import fold_in, squared_euclidean


def run(config, key):
    """Solves one problem: as many points in the plane on either side, all of equal mass.

    Args:
      config: ``points`` on either side; ``shift`` of the target's mean; ``k``, nonzeros in a
        column (0: all); ``gamma``; ``formulation``: the "semi_dual" is solved from the points, the
        "dual" from the matrix of costs; ``max_iterations``; ``tolerance``; ``memory_points`` on
        either side, for which programs are compiled but not run.
      key: Of which the two clouds are drawn.

    Returns:
      ``nonzeros``, the most of a column, and ``over_k``, by how many it passes k; ``cost``, the
      mean squared distance moved, over that of the linear program as ``cost_ratio``; ``error``,
      mass that the plan's marginals miss; ``duality_gap``, of the plan's regularized cost over the
      dual value, as a share of it; ``iterations``; ``support``, nonzeros per column on average;
      ``memory``, bytes that the semi-dual and its slopes take beside their arguments, and
      ``memory_ratio``, what they take with the matrix over that.
    """
    x, y, cost = _clouds(fold_in(key, "clouds"), config.points, config.shift)
    k = config.k or config.points
    mass = np.full(config.points, 1 / config.points, np.float32)
    limits = {"max_iterations": config.max_iterations, "tolerance": config.tolerance}
    options = {"k": k, "gamma": config.gamma, "formulation": config.formulation}
    plan, out = jax.device_get(_solve(x, y, cost, mass, **options, **limits))
    moved = float((plan * cost).sum())
    whole = moved + config.gamma / 2 * float((plan**2).sum())
    nonzeros = (plan > 0).sum(0)
    kernel, matrix = (_memory(config.k, config.memory_points, which) for which in ("points", ""))
    return {
        "nonzeros": nonzeros.max(),
        "over_k": nonzeros.max() - k,
        "support": nonzeros.mean(),
        "cost": moved,
        "cost_ratio": moved / cost[linear_sum_assignment(cost)].mean(),
        "error": out.error,
        "duality_gap": abs(whole - out.value) / out.value,
        "iterations": out.num_iterations,
        "memory": kernel,
        "memory_ratio": matrix / kernel,
    }


@functools.partial(jax.jit, static_argnames=("k", "formulation", "max_iterations", "tolerance"))
def _solve(x, y, cost, mass, *, k, gamma, formulation, **limits):
    """The plan as a matrix, and the solution that it is of."""
    if formulation == "dual":
        options = {"k": k, "gamma": gamma, "formulation": formulation}
        out = ot.sparse_transport(cost, mass, mass, **options, **limits)
        return out.plan, out
    factors = squared_euclidean_factors(x, y)
    some = None if k == len(x) else k
    out = ot.sparse_point_transport(factors, mass, mass, k=some, gamma=gamma, **limits)
    plan = point_semi_dual_plan(out.potentials[0], factors, mass, k=k, gamma=gamma)
    matrix = jnp.zeros((len(y), len(x)), mass.dtype)
    return jnp.put_along_axis(matrix, *plan, 1, inplace=False).T, out


@functools.cache
def _memory(k, points, which):
    """Bytes of temporary memory of the semi-dual of two clouds, with its slopes."""

    def value(alpha, x, y, mass):
        if which == "points":
            cost = squared_euclidean_factors(x, y)
            return point_semi_dual(alpha, cost, mass, mass, k=k or None)
        return ot.sparse_semi_dual(alpha, squared_euclidean(x, y), mass, mass, k=k or points)

    sizes = (points,), (points, 2), (points, 2), (points,)
    shapes = [jax.ShapeDtypeStruct(size, np.float32) for size in sizes]
    compiled = jax.jit(jax.value_and_grad(value, (0, 1, 2))).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def _clouds(key, points, shift):
    """Two normal clouds and their squared distances, of which the largest is 1."""
    x, y = jax.random.normal(key, (2, points, 2)) + jnp.array([0.0, shift])[:, None, None]
    cost = np.asarray(squared_euclidean(x, y), np.float64)
    scale = np.sqrt(cost.max())
    return np.asarray(x / scale), np.asarray(y / scale), cost / cost.max()
