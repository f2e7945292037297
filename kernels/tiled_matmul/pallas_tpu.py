"""The reductions and their gradients on a TPU: tiles live in VMEM, and only rows leave it."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tinker.kernels.dispatch import VMEM_BYTES, check_vmem
from tinker.numerics.errors import UserError


def forward(
    x,
    y,
    bias,
    exclude,
    *,
    kind,
    softcap=None,
    precision=None,
    interpret=False,
    blocks=None,
):
    """Reduces the rows of the product, in a grid of row blocks by column blocks.

    Args:
      x: ``[n, d]``, float32 or bfloat16.
      y: ``[m, d]``, of that dtype.
      bias: ``[m]``, float32; -inf leaves a column out.
      exclude: ``[n]``, int32; the column that a row leaves out, or -1.
      kind: "logsumexp" or "softplus", whose sum it is.
      softcap: As in :func:`tinker.kernels.matmul_logsumexp`.
      precision: Of float32 products: None, "default" or "highest".
      interpret: Whether to interpret rather than compile.
      blocks: Rows and columns of a tile; by default the largest that fit.

    Returns:
      ``[n]``, float32.

    Raises:
      UserError: No blocks of rows this long fit.
    """
    n = len(x)
    rows, columns = blocks or _blocks(x, y)
    x, y, bias, exclude = _padded(x, y, bias, exclude, rows, columns)
    kernel = functools.partial(_forward, kind=kind, softcap=softcap, precision=precision)
    row, column = (lambda i, j: (i, 0)), (lambda i, j: (j, 0))
    out = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((len(x), 1), jnp.float32),
        grid=(len(x) // rows, len(y) // columns),
        in_specs=[
            pl.BlockSpec((rows, x.shape[1]), row),
            pl.BlockSpec((columns, x.shape[1]), column),
            pl.BlockSpec((1, columns), lambda i, j: (0, j)),
            pl.BlockSpec((rows, 1), row),
        ],
        out_specs=pl.BlockSpec((rows, 1), row),
        scratch_shapes=[pltpu.VMEM((rows, 1), jnp.float32)] * 2,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name=f"matmul_{kind}",
    )(x, y, bias, exclude)
    return out[:n, 0]


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
    interpret=False,
    blocks=None,
):
    """The gradients, in two passes over the tiles: one sums along columns, one along rows.

    Args:
      x, y, bias, exclude, kind, softcap, precision, interpret, blocks: As in :func:`forward`.
      result: What it returned, ``[n]``.
      g: The cotangent of that, ``[n]``, float32.
      filter_below: As in :func:`tinker.kernels.matmul_logsumexp`.

    Returns:
      The cotangents of x and y, of their dtype, and of the bias, float32.

    Raises:
      UserError: No blocks of rows this long fit.
    """
    (n, d), m = x.shape, len(y)
    rows, columns = blocks or _blocks(x, y)
    x, y, bias, exclude = _padded(x, y, bias, exclude, rows, columns)
    result, g = (_pad(v[:, None], len(x)) for v in (result, g))
    options = {"kind": kind, "softcap": softcap, "precision": precision}
    options["filter_below"] = filter_below
    width, grid = x.shape[1], (len(x) // rows, len(y) // columns)
    shape = jax.ShapeDtypeStruct

    def call(kernel, name, grid, row, column, out_shape, out_specs, scratch):
        return pl.pallas_call(
            functools.partial(kernel, **options),
            out_shape,
            grid=grid,
            in_specs=[
                pl.BlockSpec((rows, width), row),
                pl.BlockSpec((columns, width), column),
                pl.BlockSpec((1, columns), lambda *at: column(*at)[::-1]),
                *[pl.BlockSpec((rows, 1), row)] * 3,
            ],
            out_specs=out_specs,
            scratch_shapes=scratch,
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
            interpret=interpret,
            name=f"matmul_{kind}_{name}",
        )(x, y, bias, exclude, result, g)

    outer, inner = (lambda a, b: (a, 0)), (lambda a, b: (b, 0))
    dx = call(
        _backward_x,
        "dx",
        grid,
        outer,
        inner,
        shape(x.shape, x.dtype),
        pl.BlockSpec((rows, width), outer),
        [pltpu.VMEM((rows, width), jnp.float32)],
    )
    dy, db = call(
        _backward_y,
        "dy",
        grid[::-1],
        inner,
        outer,
        (shape(y.shape, y.dtype), shape((1, len(y)), jnp.float32)),
        (pl.BlockSpec((columns, width), outer), pl.BlockSpec((1, columns), lambda a, b: (0, a))),
        [pltpu.VMEM((columns, width), jnp.float32), pltpu.VMEM((1, columns), jnp.float32)],
    )
    return dx[:n, :d], dy[:m, :d], db[0, :m]


def _blocks(x, y):
    """The largest tile whose three passes fit in VMEM, and no larger than the product."""
    least = 8 * max(1, 4 // x.dtype.itemsize)
    width, dtype, full = _up(x.shape[1], 128), x.dtype, jnp.float32
    for rows, columns in (512, 512), (256, 512), (256, 256), (128, 256), (128, 128):
        rows, columns = min(rows, _up(len(x), least)), min(columns, _up(len(y), 128))
        side = max(rows, columns)  # of the gradient that a pass sums
        blocks = [((r, width), dtype) for r in (rows, columns, side)]
        blocks += [((rows, 1), full)] * 3 + [((1, columns), full)] * 2
        scratch = [((side, width), full), ((1, columns), full)] + [((rows, columns), full)] * 3
        try:
            check_vmem("matmul_logsumexp", blocks, scratch)
        except ValueError:
            continue
        return rows, columns
    raise UserError(
        f"implementation='pallas': rows of {x.shape[1]} numbers in {dtype} do not fit in the "
        f"{VMEM_BYTES:,} bytes of a TPU's VMEM; it takes None or 'xla'"
    )


def _padded(x, y, bias, exclude, rows, columns):
    """Whole blocks; what is added to y is left out, what is added to x is cut off at the end."""
    n, m, width = _up(len(x), rows), _up(len(y), columns), _up(x.shape[1], 128)
    bias = _pad(bias[None], 1, m, -jnp.inf)
    return _pad(x, n, width), _pad(y, m, width), bias, _pad(exclude[:, None], n)


def _pad(x, rows, columns=None, value=0):
    after = rows - x.shape[0], (columns or x.shape[1]) - x.shape[1]
    return jnp.pad(x, [(0, a) for a in after], constant_values=value) if any(after) else x


def _up(size, multiple):
    return math.ceil(size / multiple) * multiple


def _forward(x, y, bias, exclude, out, peak, total, *, kind, softcap, precision):
    @pl.when(pl.program_id(1) == 0)
    def _():
        peak[...] = jnp.full_like(peak, -jnp.inf)
        total[...] = jnp.zeros_like(total)

    z, _ = _scores(x, y, bias, exclude, pl.program_id(1), softcap, precision)
    if kind == "softplus":
        soft = jnp.maximum(z, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(z)))
        total[...] += soft.sum(1, keepdims=True)
    else:
        new = jnp.maximum(peak[...], z.max(1, keepdims=True))
        base = jnp.where(new == -jnp.inf, 0.0, new)
        part = jnp.exp(z - base).sum(1, keepdims=True)
        total[...] = total[...] * jnp.exp(peak[...] - base) + part
        peak[...] = new

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
        if kind == "softplus":
            out[...] = total[...]
        else:
            base = jnp.where(peak[...] == -jnp.inf, 0.0, peak[...])
            out[...] = base + jnp.log(total[...])


def _backward_x(x, y, bias, exclude, result, g, dx, total, *, precision, **options):
    @pl.when(pl.program_id(1) == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    def add(w):
        total[...] += _product(w.astype(y.dtype), y[...], 1, 0, precision)

    _of_tile(x, y, bias, exclude, result, g, pl.program_id(1), add, precision=precision, **options)

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
        dx[...] = total[...].astype(dx.dtype)


def _backward_y(x, y, bias, exclude, result, g, dy, db, total, total_b, *, precision, **options):
    @pl.when(pl.program_id(1) == 0)
    def _():
        total[...] = jnp.zeros_like(total)
        total_b[...] = jnp.zeros_like(total_b)

    def add(w):
        total[...] += _product(w.astype(x.dtype), x[...], 0, 0, precision)
        total_b[...] += w.sum(0, keepdims=True)

    _of_tile(x, y, bias, exclude, result, g, pl.program_id(0), add, precision=precision, **options)

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
        dy[...] = total[...].astype(dy.dtype)
        db[...] = total_b[...]


def _of_tile(
    x, y, bias, exclude, result, g, column, add, *, kind, softcap, filter_below, precision
):
    """Gives ``add`` the cotangents of a tile's products, unless the filter leaves them out."""
    z, slope = _scores(x, y, bias, exclude, column, softcap, precision)
    if kind == "softplus":
        weight = jax.nn.sigmoid(z)
    else:
        weight = jnp.exp(z - jnp.where(result[...] == -jnp.inf, 0.0, result[...]))
    w = weight * g[...]
    w = w if slope is None else w * slope
    if filter_below is None:
        add(w)
    else:
        seen = jnp.max(jnp.where(g[...] != 0, weight, 0.0)) >= filter_below
        pl.when(seen)(functools.partial(add, w))


def _scores(x, y, bias, exclude, column, softcap, precision):
    """A tile of scores, -inf where a column is left out, and the slope of the softcap there."""
    z, slope = _product(x[...], y[...], 1, 1, precision) + bias[...], None
    if softcap is not None:
        z = softcap * jnp.tanh(z / softcap)
        slope = 1 - (z / softcap) ** 2
    at = column * z.shape[1] + jax.lax.broadcasted_iota(jnp.int32, z.shape, 1)
    return jnp.where((bias[...] > -jnp.inf) & (at != exclude[...]), z, -jnp.inf), slope


def _product(a, b, axis_a, axis_b, precision):
    """Of two matrices, summed along an axis of each."""
    return jax.lax.dot_general(
        a,
        b,
        (((axis_a,), (axis_b,)), ((), ())),
        precision=precision if a.dtype == jnp.float32 else None,  # others are exact as they are
        preferred_element_type=jnp.float32,
    )
