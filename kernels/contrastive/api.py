"""Contrastive losses of matching rows, whose scores are never held; on one device or in a ring."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from tinker.kernels.contrastive import reference, xla
from tinker.kernels.dispatch import mesh_with
from tinker.kernels.tiled_matmul.api import check_operands, reduce_rows, reduce_rows_gradients


def contrastive_softmax(
    x,
    y,
    *,
    symmetric=False,
    where=None,
    axis=None,
    precision=None,
    implementation=None,
):
    r"""InfoNCE of matching rows: cross-entropy of finding y_i among all y by its score with x_i.

    .. math:: \ell_i = \log \sum_j \exp(x_i \cdot y_j) - x_i \cdot y_i

    or, symmetric, the mean of that and of the same with x and y exchanged, of which one pass over
    the scores computes both. A temperature is multiplied into x beforehand.

    Only the log-sum-exps are kept for the backward pass, which computes each tile of scores again.
    Over a mesh axis the rows of y go around the devices of that axis, with what of their loss or
    gradient is known so far, each device keeping its rows of x; no device ever holds all rows.

    Args:
      x: ``[n, d]``, any float dtype; products are summed in float32 at least.
      y: ``[n, d]``.
      symmetric: Whether both directions count; static.
      where: Boolean ``[n]`` or None: rows of x and y that are left out return 0, and nobody's sum
        has them.
      axis: None, or the name of the axis (or axes) of the mesh over which n is split, the mesh
        being that of ``jax.set_mesh``; static.
      precision: Of the products, as in ``jax.lax.dot``; static.
      implementation: None (the fastest measured), "xla" or "pallas". None holds the scores where
        they are no more than a tile, and is then differentiable in forward mode, too.

    Returns:
      ``[n]``, float32 at least. Differentiable in x and y.

    Raises:
      UserError: An unknown implementation, no mesh with the axis, or an n that it does not divide.

    Source: Breaking the Memory Barrier: Near Infinite Batch Size Scaling for Contrastive Loss,
      2024, arXiv:2410.17243, Section 3. There the directions are two passes.
    """
    _check(x, y, where)
    if _fits_a_tile(len(x), axis, implementation):
        return reference.softmax(x, y, symmetric=symmetric, where=where, precision=precision)
    kind = "both" if symmetric else "logsumexp"
    plan = _plan(kind, x, y, axis, precision, implementation)
    bias = None if where is None else jnp.where(where, 0.0, -jnp.inf)
    rows, columns = _reduce(x, y, bias, plan)
    loss = ((rows + columns) / 2 if symmetric else rows) - _matching(x, y, precision)
    return loss if where is None else jnp.where(where, loss, 0.0)


def contrastive_sigmoid(
    x,
    y,
    bias,
    *,
    where=None,
    axis=None,
    precision=None,
    implementation=None,
):
    r"""Logistic regression of whether rows match, over all pairs.

    .. math:: \ell_i = -\sum_j \log \sigma\big(s_{ij} (x_i \cdot y_j + b)\big),
              \qquad s_{ij} = 1 \text{ where } i = j, \text{ else } -1

    A temperature is multiplied into x beforehand. Memory and rings are as for
    :func:`contrastive_softmax`; no log-sum-exp is needed.

    Args:
      x: ``[n, d]``, any float dtype; products are summed in float32 at least.
      y: ``[n, d]``.
      bias: b, ``[]``, or ``[n]`` with one for each row of y.
      where: Boolean ``[n]`` or None: rows of x and y that are left out return 0, and are in no
        pair.
      axis: As for :func:`contrastive_softmax`.
      precision: Of the products, as in ``jax.lax.dot``; static.
      implementation: As for :func:`contrastive_softmax`.

    Returns:
      ``[n]``, float32 at least. Differentiable in x, y and bias.

    Raises:
      UserError: An unknown implementation, no mesh with the axis, or an n that it does not divide.

    Source: Sigmoid Loss for Language Image Pre-Training, ICCV 2023, arXiv:2303.15343, Algorithm 1
      and Section 3.3.
    """
    _check(x, y, where)
    if _fits_a_tile(len(x), axis, implementation):
        return reference.sigmoid(x, y, bias, where=where, precision=precision)
    plan = _plan("softplus", x, y, axis, precision, implementation)
    bias = jnp.broadcast_to(bias, (len(x),)).astype(jnp.promote_types(x.dtype, jnp.float32))
    kept = bias if where is None else jnp.where(where, bias, -jnp.inf)
    total, _ = _reduce(x, y, kept, plan)
    loss = total - (_matching(x, y, precision) + bias)  # softplus(z) - z = softplus(-z)
    return loss if where is None else jnp.where(where, loss, 0.0)


class _Plan(NamedTuple):
    """What is static: ``kind`` is "logsumexp" or "softplus" of rows, or "both" log-sum-exps."""

    kind: str
    axis: Any
    mesh: Any
    size: int  # devices in the ring
    precision: Any
    tile: int  # of kind "both"
    implementation: str


def _plan(kind, x, y, axis, precision, implementation):
    implementation = check_operands(x, y, None, None, precision, implementation)
    if axis is None:
        return _Plan(kind, None, None, 1, precision, xla.side_of_tile(), implementation)
    axes = (axis,) if isinstance(axis, str) else tuple(axis)
    mesh, size = mesh_with("axis", axis, len(x), "rows")
    return _Plan(kind, axes, mesh, size, precision, xla.side_of_tile(), implementation)


def _fits_a_tile(n, axis, implementation):
    """Whether all scores are no more than what a tile holds: then none is computed twice."""
    return axis is None and implementation is None and n <= xla.side_of_tile()


def _check(x, y, where):
    chex.assert_rank([x, y], 2)
    chex.assert_equal_shape([x, y])
    if where is not None:
        chex.assert_shape(where, (len(x),))


def _matching(x, y, precision):
    """The scores of matching rows, ``[n]``."""
    dtype = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
    return jnp.einsum("nd,nd->n", x, y, precision=precision, preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _reduce(x, y, bias, plan):
    """Sums over the rows ``[n]`` and, of kind "both", over the columns ``[n]``, else None.

    ``bias`` is added to the scores by column where a row is summed, and by row where a column is.
    """
    return _on_devices(_forward, plan, x, y, bias)


def _reduce_fwd(x, y, bias, plan):
    rows, columns = _on_devices(_forward, plan, x, y, bias)
    return (rows, columns), (x, y, bias, rows, columns)


def _reduce_bwd(plan, kept, cotangents):
    return _on_devices(_backward, plan, *kept, *cotangents)


_reduce.defvjp(_reduce_fwd, _reduce_bwd)


def _on_devices(local, plan, *arrays):
    """``local`` of the arrays, or of each device's rows of them."""
    local = functools.partial(local, plan)
    if plan.axis is None:
        return local(*arrays)
    rows = PartitionSpec(plan.axis)
    return jax.shard_map(local, mesh=plan.mesh, in_specs=rows, out_specs=rows, check_vma=False)(
        *arrays
    )


def _around(plan, visit, carry, visitor):
    """``carry, visitor = visit(carry, visitor)`` with every device's visitor, until all are home.

    What of a visitor is not changed can be on its way to the next device while it is worked with.
    """
    if plan.size == 1:
        return visit(carry, visitor)
    onwards = [(i, (i + 1) % plan.size) for i in range(plan.size)]

    def step(_, state):
        carry, visitor = visit(*state)
        return carry, jax.lax.ppermute(visitor, plan.axis, onwards)

    return jax.lax.fori_loop(0, plan.size, step, (carry, visitor))


def _forward(plan, x, y, bias):
    dtype = jnp.promote_types(jnp.result_type(x, y), jnp.float32)

    def visit(rows, visitor):
        y, y_bias, columns = visitor
        if plan.kind == "both":
            own, visited = _sums_both_ways(plan, x, y, bias, y_bias)
            return jnp.logaddexp(rows, own), (y, y_bias, jnp.logaddexp(columns, visited))
        own = reduce_rows(x, y, y_bias, None, **_one_way(plan))
        add = jnp.add if plan.kind == "softplus" else jnp.logaddexp
        return add(rows, own), (y, y_bias, columns)

    empty = jnp.full(len(x), 0.0 if plan.kind == "softplus" else -jnp.inf, dtype)
    columns = empty if plan.kind == "both" else None
    rows, (_, _, columns) = _around(plan, visit, empty, (y, bias, columns))
    return rows, columns


def _backward(plan, x, y, bias, rows, columns, g, h):
    def visit(dx, visitor):
        (y, y_bias, columns, h), (dy, db) = visitor
        if plan.kind == "both":
            sums = rows, columns, g, h
            own, visited = _gradients_both_ways(plan, x, y, bias, y_bias, *sums)
        else:
            own, visited, slope = reduce_rows_gradients(
                x, y, y_bias, None, rows, g, **_one_way(plan)
            )
            db = None if db is None else db + slope
        return dx + own, ((y, y_bias, columns, h), (dy + visited, db))

    zeros = jnp.zeros(x.shape, rows.dtype), jax.tree.map(jnp.zeros_like, bias)
    dx, (_, (dy, db)) = _around(plan, visit, zeros[0], ((y, bias, columns, h), zeros))
    return dx.astype(x.dtype), dy.astype(y.dtype), db


def _one_way(plan):
    kind = "logsumexp" if plan.kind == "both" else plan.kind
    return {"kind": kind, "precision": plan.precision, "implementation": plan.implementation}


def _sums_both_ways(plan, x, y, x_bias, y_bias):
    if plan.implementation == "xla":
        return xla.forward(x, y, x_bias, y_bias, precision=plan.precision, tile=plan.tile)
    options = _one_way(plan)
    return reduce_rows(x, y, y_bias, None, **options), reduce_rows(y, x, x_bias, None, **options)


def _gradients_both_ways(plan, x, y, x_bias, y_bias, rows, columns, g, h):
    if plan.implementation == "xla":
        sums, options = (rows, columns, g, h), {"precision": plan.precision, "tile": plan.tile}
        return xla.backward(x, y, x_bias, y_bias, *sums, **options)
    dx, dy, _ = reduce_rows_gradients(x, y, y_bias, None, rows, g, **_one_way(plan))
    dy_back, dx_back, _ = reduce_rows_gradients(y, x, x_bias, None, columns, h, **_one_way(plan))
    return dx + dx_back, dy + dy_back
