"""Log-sum-exps over the rows and over the columns of a product, from one pass over its tiles."""

import functools
import math

import jax
import jax.numpy as jnp


@functools.partial(jax.jit, static_argnames=("precision", "tile"))
def forward(x, y, x_bias, y_bias, *, precision, tile):
    """Both log-sum-exps.

    Args:
      x: ``[n, d]``.
      y: ``[m, d]``.
      x_bias: Added to the scores of each row where columns are summed, ``[n]``, or None.
      y_bias: Added to the scores of each column where rows are summed, ``[m]``, or None.
      precision: Of the products.
      tile: Rows, and columns, at a time, at most.

    Returns:
      Those of the rows ``[n]`` and of the columns ``[m]``, float32 at least.
    """
    x_parts, y_parts = _parts(x, x_bias, tile), _parts(y, y_bias, tile)

    def of_rows(columns, own):
        x_r, b_r = own

        def of_tile(row, visited):
            (y_c, b_c), column = visited
            z = _product("nd,md->nm", x_r, y_c, precision)
            row = jnp.logaddexp(row, jax.nn.logsumexp(z + b_c, 1))
            return row, jnp.logaddexp(column, jax.nn.logsumexp(z + b_r[:, None], 0))

        row, columns = jax.lax.scan(of_tile, jnp.full_like(b_r, -jnp.inf), (y_parts, columns))
        return columns, row

    columns, rows = jax.lax.scan(of_rows, jnp.full_like(y_parts[1], -jnp.inf), x_parts)
    return rows.reshape(-1)[: len(x)], columns.reshape(-1)[: len(y)]


@functools.partial(jax.jit, static_argnames=("precision", "tile"))
def backward(x, y, x_bias, y_bias, rows, columns, g, h, *, precision, tile):
    """The gradients, from tiles that are computed again.

    Args:
      x, y, x_bias, y_bias, precision, tile: As in :func:`forward`.
      rows, columns: What it returned; or over more columns and rows than these, of which this then
        is a part of the gradients.
      g: The cotangent of ``rows``, ``[n]``.
      h: The cotangent of ``columns``, ``[m]``.

    Returns:
      The cotangents of x and y, float32 at least.
    """
    common = jnp.result_type(x, y)
    (x_parts, r_biases), (y_parts, c_biases) = _parts(x, x_bias, tile), _parts(y, y_bias, tile)
    # Where nothing was summed there is no gradient either: exp(z - inf) rather than exp(z + inf).
    rows, columns = (jnp.where(s == -jnp.inf, jnp.inf, s) for s in (rows, columns))
    own = x_parts, r_biases, _split(rows, tile), _split(g, tile)
    visited = y_parts, c_biases, _split(columns, tile), _split(h, tile)

    def of_rows(dy, own):
        x_r, b_r, row, g_r = own

        def of_tile(dx_r, visited):
            (y_c, b_c, column, h_c), dy_c = visited
            z = _product("nd,md->nm", x_r, y_c, precision)
            weight = g_r[:, None] * jnp.exp(z + b_c - row[:, None])
            weight += h_c * jnp.exp(z + b_r[:, None] - column)
            weight = weight.astype(common)
            dx_r += _product("nm,md->nd", weight, y_c, precision)
            return dx_r, dy_c + _product("nm,nd->md", weight, x_r, precision)

        dx_r, dy = jax.lax.scan(of_tile, jnp.zeros(x_r.shape, b_r.dtype), (visited, dy))
        return dy, dx_r

    dy, dx = jax.lax.scan(of_rows, jnp.zeros(y_parts.shape, c_biases.dtype), own)
    return dx.reshape(-1, x.shape[1])[: len(x)], dy.reshape(-1, y.shape[1])[: len(y)]


def side_of_tile():
    """Rows, and columns, of a tile: one that stays in a CPU's cache, or that fills an accelerator.

    Only the CPU's was measured.
    """
    return 512 if jax.default_backend() == "cpu" else 4096


def _parts(x, bias, tile):
    """x ``[parts, tile, d]`` and its bias ``[parts, tile]``, in which -inf leaves out padding."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    bias = jnp.zeros(len(x), dtype) if bias is None else bias.astype(dtype)
    return _split(x, tile), _split(bias, tile, -jnp.inf)


def _split(x, tile, fill=0):
    """x ``[parts, <= tile, …]``, padded so that all parts are equal."""
    parts = math.ceil(len(x) / tile)
    size = math.ceil(len(x) / parts)
    padding = [(0, parts * size - len(x))] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, padding, constant_values=fill).reshape(parts, size, *x.shape[1:])


def _product(terms, a, b, precision):
    dtype = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    return jnp.einsum(terms, a, b, precision=precision, preferred_element_type=dtype)
