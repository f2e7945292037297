"""The reductions and their gradients as loops over tiles, for any platform."""

import functools
import math

import jax
import jax.numpy as jnp


@functools.partial(jax.jit, static_argnames=("kind", "softcap", "precision", "tile"))
def forward(x, y, bias, exclude, *, kind, softcap=None, precision=None, tile=None):
    """Reduces the rows of the product.

    Args:
      x: ``[n, d]``.
      y: ``[m, d]``.
      bias: ``[m]`` or None.
      exclude: ``[n]`` integers or None.
      kind: "logsumexp" or "softplus", whose sum it is.
      softcap: As in :func:`tinker.kernels.matmul_logsumexp`.
      precision: Of the products.
      tile: Rows and columns at a time; by default what :func:`tile_of` says.

    Returns:
      ``[n]``, float32 at least.
    """
    rows, columns = tile or tile_of(len(x), len(y))
    dtype = jnp.promote_types(jnp.result_type(x, y), jnp.float32)

    def of_rows(row, start, out):
        x_r, e_r = _part(x, start, rows), _part(exclude, start, rows)

        def of_columns(column, start, carry):
            here = start + jnp.arange(columns), column
            y_c, b_c = _part(y, start, columns), _part(bias, start, columns)
            z, _ = _scores(x_r, y_c, b_c, e_r, here, len(y) % columns, softcap, precision)
            if kind == "softplus":
                return carry + jax.nn.softplus(z).sum(1)
            peak, total = carry
            new = jnp.maximum(peak, z.max(1))
            base = jnp.where(new == -jnp.inf, 0.0, new)
            total = total * jnp.exp(peak - base) + jnp.exp(z - base[:, None]).sum(1)
            return new, total

        zero = jnp.zeros(rows, dtype)
        carry = zero if kind == "softplus" else (zero - jnp.inf, zero)
        result = _loop(len(y), columns, of_columns, carry)
        if kind == "logsumexp":
            peak, total = result
            result = jnp.where(peak == -jnp.inf, 0.0, peak) + jnp.log(total)
        return jax.lax.dynamic_update_slice_in_dim(out, result, start, 0)

    return _loop(len(x), rows, of_rows, jnp.zeros(len(x), dtype))


@functools.partial(
    jax.jit, static_argnames=("kind", "softcap", "filter_below", "precision", "tile")
)
def backward(
    x,
    y,
    bias,
    exclude,
    result,
    g,
    *,
    kind,
    softcap=None,
    filter_below=None,
    precision=None,
    tile=None,
):
    """The gradients, from tiles that are computed again.

    Args:
      x, y, bias, exclude, kind, softcap, precision, tile: As in :func:`forward`.
      result: What it returned, ``[n]``.
      g: The cotangent of that, ``[n]``.
      filter_below: As in :func:`tinker.kernels.matmul_logsumexp`.

    Returns:
      The cotangents of x, y and bias, in their dtypes; of a bias of None, None.
    """
    rows, columns = tile or tile_of(len(x), len(y), filter_below)
    common = jnp.result_type(x, y)
    dtype = jnp.promote_types(common, jnp.float32)
    again = len(x) % rows, len(y) % columns
    product = functools.partial(
        jax.lax.dot_general, precision=precision, preferred_element_type=dtype
    )

    def of_columns(column, start, carry):
        dx, dy, db = carry
        here = start + jnp.arange(columns), column
        y_c, b_c = _part(y, start, columns).astype(common), _part(bias, start, columns)

        def of_rows(row, start, carry):
            dx, dy_c, db_c = carry
            x_r, e_r = _part(x, start, rows).astype(common), _part(exclude, start, rows)
            g_r, l_r = _part(g, start, rows).astype(dtype), _part(result, start, rows)
            if again[0]:
                g_r = jnp.where(start + jnp.arange(rows) < row, 0.0, g_r)
            z, slope = _scores(x_r, y_c, b_c, e_r, here, again[1], softcap, precision)
            if kind == "softplus":
                weight = jax.nn.sigmoid(z)
            else:
                weight = jnp.exp(z - jnp.where(l_r == -jnp.inf, 0.0, l_r)[:, None])

            def gradients():
                w = weight * g_r[:, None]
                w = w if slope is None else w * slope
                db_t = w.sum(0)
                w = w.astype(common)
                return (
                    product(w, y_c, (((1,), (0,)), ((), ()))),
                    product(w, x_r, (((0,), (0,)), ((), ()))),
                    db_t,
                )

            if filter_below is None:
                dx_t, dy_t, db_t = gradients()
            else:
                seen = jnp.where((g_r != 0)[:, None], weight, 0.0).max() >= filter_below
                empty = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradients))
                dx_t, dy_t, db_t = jax.lax.cond(seen, gradients, lambda: empty)
            dx = jax.lax.dynamic_update_slice_in_dim(dx, _part(dx, start, rows) + dx_t, start, 0)
            return dx, dy_c + dy_t, db_c + db_t

        zero = jnp.zeros((columns, y.shape[1]), dtype), jnp.zeros(columns, dtype)
        dx, dy_c, db_c = _loop(len(x), rows, of_rows, (dx, *zero))
        dy_c = dy_c.astype(y.dtype)
        if again[1]:  # what was seen before is zero in this part
            dy_c += jax.lax.bitcast_convert_type(_part(dy, start, columns), y.dtype)
            db_c += _part(db, start, columns)
        dy = jax.lax.dynamic_update_slice_in_dim(dy, as_bits(dy_c), start, 0)
        return dx, dy, jax.lax.dynamic_update_slice_in_dim(db, db_c, start, 0)

    carry = jnp.zeros(x.shape, dtype), as_bits(jnp.zeros_like(y)), jnp.zeros(len(y), dtype)
    dx, dy, db = _loop(len(y), columns, of_columns, carry)
    dy = jax.lax.bitcast_convert_type(dy, y.dtype)
    return dx.astype(x.dtype), dy, None if bias is None else db.astype(bias.dtype)


def tile_of(n, m, filter_below=None):
    """Rows and columns of a tile, by what was measured.

    On a CPU tiles stay in the cache. Elsewhere they are few and have all rows, which stay where
    they are when they are spread over devices. A filter wants small tiles: some hold nothing then.
    """
    if filter_below is not None:
        return min(n, 256), min(m, 512)
    if jax.default_backend() == "cpu":
        rows = min(n, 512)
        return rows, min(m, max(512, 2**18 // rows))
    return n, min(m, max(256, 2**24 // n // 128 * 128))


def _loop(size, chunk, body, carry):
    """``body(i * chunk, start, carry)`` for each chunk i; the last starts early, at size - chunk.

    What it then sees again begins at ``start`` and ends at ``i * chunk``.
    """
    if chunk == size:
        return body(0, 0, carry)

    def step(i, carry):
        return body(i * chunk, jnp.minimum(i * chunk, size - chunk), carry)

    return jax.lax.fori_loop(0, math.ceil(size / chunk), step, carry)


def _part(x, start, size):
    if x is None:
        return None
    part = jax.lax.dynamic_slice_in_dim(as_bits(x), start, size)
    return jax.lax.bitcast_convert_type(part, x.dtype) if x.dtype.itemsize == 2 else part


def as_bits(x):
    """Half-precision numbers as integers, of which a CPU reads and writes a part where it lies.

    Of a bfloat16 array XLA makes one of float32 first, and of the whole of it.
    """
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype.itemsize == 2 else x


def _scores(x, y, bias, exclude, here, again, softcap, precision):
    """A tile of scores, -inf where a column is left out, and the slope of the softcap there."""
    columns, first = here
    dtype = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
    z = jnp.einsum("nd,md->nm", x, y, precision=precision, preferred_element_type=dtype)
    keep, slope = None, None
    if bias is not None:
        z += bias
    if softcap is not None:
        z = softcap * jnp.tanh(z / softcap)
        slope = 1 - (z / softcap) ** 2
        keep = None if bias is None else (bias > -jnp.inf)[None, :]
    if exclude is not None:
        keep = _both(keep, columns != exclude[:, None])
    if again:
        keep = _both(keep, (columns >= first)[None, :])
    return z if keep is None else jnp.where(keep, z, -jnp.inf), slope


def _both(a, b):
    return b if a is None else a & b
