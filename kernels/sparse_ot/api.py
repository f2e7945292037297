"""The semi-dual of transport with few nonzeros in a column, from points."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from tinker.kernels.dispatch import choose, run_pallas
from tinker.kernels.sparse_ot import xla
from tinker.numerics import UserError


class SparseColumns(NamedTuple):
    """The nonzeros of a matrix with at most k in each of its n columns.

    Attributes:
      indices: Their rows, ``[n, k]``, int32, ascending and none twice.
      values: ``[n, k]``; zero where a column has fewer than k.
    """

    indices: jax.Array
    values: jax.Array


def point_semi_dual(alpha, cost, a, b, *, k=None, gamma=1.0, implementation=None):
    r"""The semi-dual of sparsity-constrained or quadratic transport, without the cost of all pairs.

    .. math:: \langle \alpha, a \rangle - \sum_j \Omega_{b_j}^*(\alpha - c_j), \qquad
              \Omega_b^*(z) = \max_{t \in b \triangle,\, \lVert t \rVert_0 \le k}
              \langle z, t \rangle - \frac\gamma2 \lVert t \rVert^2, \qquad
              c_{ij} = r_i + s_j - \langle u_i, v_j \rangle

    What ``tinker.ot.sparse_semi_dual`` computes of a matrix, here from its factors, some columns at
    a time: memory is O((m + n) d). Its slope in alpha is a minus the plan's row sums; in b it is
    the potential of the columns; in the cost, minus the plan. Slopes are made along with the value,
    those that are asked for.

    Args:
      alpha: Potentials of the rows, ``[m]``, any float dtype; computed in float32 at least, and
        products at the highest precision.
      cost: :class:`CostFactors`, such as :func:`squared_euclidean_factors` of points.
      a: Mass of the rows, ``[m]``, >= 0.
      b: Mass of the columns, ``[n]``, >= 0, of the same sum.
      k: Nonzeros in a column, in [1, m], or None for any number, which is quadratic transport;
        static.
      gamma: Weight of the squared norm, > 0, in units of the cost over a mass.
      implementation: None (the fastest measured), "xla" or "pallas"; the last has no form for GPUs.

    Returns:
      The value, ``[]``, float32. Differentiable once in everything but k; where the k-th and the
      next entry of a column tie, that is a subgradient.

    Raises:
      UserError: An unknown implementation; or "pallas", and more than 1024 nonzeros in a column,
        points that do not fit in a TPU's VMEM, or float64.
      ValueError: k is not in [1, m].

    Source: Sparsity-Constrained Optimal Transport, ICLR 2023, arXiv:2209.15466, the semi-dual.
    """
    cost, alpha, a, b = _checked(cost, alpha, a, b)
    chosen, k = _chosen(implementation, alpha, k)
    h, u = (alpha - cost.r) / gamma, cost.u / gamma
    conjugates = gamma * _conjugates(chosen, k, h, u, cost.v, b)
    return alpha @ a + cost.s @ b - conjugates


def point_semi_dual_plan(alpha, cost, b, *, k, gamma=1.0, implementation=None):
    r"""The plan of row potentials, as the nonzeros of its columns.

    .. math:: t_j = \arg\min_{t \in b_j \triangle,\, \lVert t \rVert_0 \le k}
              \lVert t - (\alpha - c_j) / \gamma \rVert^2

    Args:
      alpha: Potentials of the rows, ``[m]``, any float dtype; computed in float32 at least.
      cost: :class:`CostFactors`.
      b: Mass of the columns, ``[n]``, >= 0.
      k: Nonzeros in a column, in [1, m]; static. Where a column of the quadratic plan has no more
        than k, it is this one.
      gamma: Weight of the squared norm, > 0.
      implementation: None (the fastest measured), "xla" or "pallas".

    Returns:
      :class:`SparseColumns`, whose values sum to b; differentiable, as the projection onto the face
      that it lies on.

    Raises:
      UserError: As of :func:`point_semi_dual`.
      ValueError: k is not in [1, m].

    Source: Sparsity-Constrained Optimal Transport, ICLR 2023, arXiv:2209.15466, the plan of the
      semi-dual.
    """
    cost, alpha, b = _checked(cost, alpha, None, b)
    chosen, k = _chosen(implementation, alpha, k)
    h, u = (alpha - cost.r) / gamma, cost.u / gamma
    held = jax.lax.stop_gradient((h, u, cost.v))
    kept = _pallas("supports", k)(*held) if chosen == "pallas" else xla.supports(*held, k=k)
    kept = jnp.sort(kept, 1)
    scores = h[kept] + (u[kept] * cost.v[:, None]).sum(-1)
    # a threshold of the entries over it, through which gradients reach the face
    over = scores > xla.threshold_of(*jax.lax.stop_gradient((scores, b)))[:, None]
    count = jnp.maximum(over.sum(1), 1)
    threshold = (jnp.where(over, scores, 0.0).sum(1) - b) / count
    return SparseColumns(kept, jnp.where(over, scores - threshold[:, None], 0.0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conjugates(chosen, k, h, u, v, b):
    """The sum of the columns' conjugates at gamma 1."""
    return _with_slopes(chosen, k, (False,) * 4, h, u, v, b)[0]


def _forward(chosen, k, *primals):
    wanted = tuple(x.perturbed for x in primals)
    return _with_slopes(chosen, k, wanted, *(x.value for x in primals))


def _backward(chosen, k, slopes, g):
    if isinstance(g, SymbolicZero):
        return (None,) * len(slopes)
    return tuple(None if slope is None else g * slope for slope in slopes)


_conjugates.defvjp(_forward, _backward, symbolic_zeros=True)


def _with_slopes(chosen, k, wanted, h, u, v, b):
    if chosen == "pallas":
        return _pallas("conjugates", k, wanted=wanted)(h, u, v, b)
    return xla.conjugates(h, u, v, b, k=k, wanted=wanted)


def _pallas(name, k, **options):
    from tinker.kernels.sparse_ot import pallas_tpu

    tpu = functools.partial(getattr(pallas_tpu, name), k=k, **options)
    return lambda *arrays: run_pallas(tpu, _no_gpu_form, *arrays)


def _no_gpu_form(*_):
    raise UserError(
        "implementation='pallas': sparse transport has no GPU form; it takes None or 'xla'"
    )


def _checked(cost, alpha, a, b):
    chex.assert_rank([cost.u, cost.v], 2)
    (m, d), n = cost.u.shape, len(cost.v)
    chex.assert_shape([cost.v, cost.r, cost.s], [(n, d), (m,), (n,)])
    vectors = [x for x in (alpha, a, b) if x is not None]
    chex.assert_shape(vectors, [(m,)] * (len(vectors) - 1) + [(n,)])
    dtype = jnp.promote_types(jnp.result_type(*cost, *vectors), jnp.float32)
    wide = functools.partial(jnp.asarray, dtype=dtype)
    return jax.tree.map(wide, cost), *map(wide, vectors)


def _chosen(implementation, alpha, k):
    chosen, m = choose(implementation), len(alpha)
    if chosen == "pallas" and alpha.dtype != jnp.float32:
        raise UserError(f"implementation='pallas' computes in float32, not {alpha.dtype}")
    if k is not None and not 0 < k <= m:
        raise ValueError(f"k={k} nonzeros in a column of {m}")
    return chosen, k or m
