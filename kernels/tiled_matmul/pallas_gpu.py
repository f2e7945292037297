"""The reductions and their gradients on Hopper GPUs.

Two warpgroups compute a tile of the product, 64 rows each, of pieces 64 numbers deep that a third
one copies. Forward, the tiles of a row are reduced in registers. Backward, the weights of some
columns at a time are written out, in the 16 bits that they are multiplied in, for XLA's own
products: no sum of rows thousands of numbers long fits in registers, or in shared memory.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from tinker.kernels.hopper import ROWS, WARPGROUPS, check_dtype, product, walk

COLUMNS = 256  # of a tile: the widest wgmma
DEPTH = 64  # of a piece: 128 bytes, a row of the swizzle
BLOCKS = 528  # to start at least, four for each multiprocessor of an H200
WEIGHTS = 2**25  # that are held at most, backward
LOG2_E = math.log2(math.e)
LOWEST = -1e30  # and not -inf, so that -inf can be subtracted from it


def forward(x, y, bias, exclude, *, kind, softcap=None, precision=None, interpret=False):
    """Reduces the rows of the product.

    Args:
      x: ``[n, d]``, bfloat16 or float16.
      y: ``[m, d]``, of that dtype.
      bias: ``[m]``, float32; -inf leaves a column out.
      exclude: ``[n]``, int32; the column that a row leaves out, or -1.
      kind: "logsumexp" or "softplus", whose sum it is.
      softcap: As in :func:`tinker.kernels.matmul_logsumexp`.
      precision: Not used: products of 16 bits are exact in float32.
      interpret: False, or the parameters of the GPU interpreter.

    Returns:
      ``[n]``, float32.

    Raises:
      UserError: Another dtype.
    """
    del precision
    inputs = _padded(x, y, bias, exclude)

    def compute(r, s, at, first, count, products):
        def step(t, sums):
            largest, total = sums
            z, _ = _scores(products(t), s.e[at.part], (first + t) * COLUMNS, softcap)
            if kind == "softplus":
                return largest, total + _softplus(z).sum(1)
            new = jnp.maximum(largest, z.max(1))
            part = jnp.exp2(z * LOG2_E - _along(new * LOG2_E, 0, z)).sum(1)
            return new, total * jnp.exp2((largest - new) * LOG2_E) + part

        column = functools.partial(jnp.full, (ROWS,), dtype=jnp.float32)
        largest, total = lax.fori_loop(0, count, step, (column(LOWEST), column(0.0)))
        if kind == "logsumexp":
            none = total == 0.0
            total = jnp.where(none, -jnp.inf, largest + jnp.log(jnp.where(none, 1.0, total)))
        r.out[at.split, _rows(at)] = total

    out = _over_tiles(
        f"matmul_{kind}",
        compute,
        inputs,
        lambda splits, rows, _: dict(out=((splits, rows), jnp.float32)),
        interpret=interpret,
    )[:, : len(x)]
    return out.sum(0) if kind == "softplus" else jax.nn.logsumexp(out, 0)


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
):
    """The gradients, for some columns of the product at a time.

    Args:
      x, y, bias, exclude, kind, softcap, precision, interpret: As in :func:`forward`.
      result: What it returned, ``[n]``.
      g: The cotangent of that, ``[n]``, float32.
      filter_below: Not used: nothing is left out, which here would save nothing.

    Returns:
      The cotangents of x and y, of their dtype, and of the bias, float32.

    Raises:
      UserError: Another dtype.
    """
    del filter_below, precision
    (n, d), m = x.shape, len(y)
    # Rather than their products, which float16 might not hold, weights are of cotangents up to 1.
    largest = jnp.max(jnp.abs(g), initial=0.0)
    largest = jnp.where(largest > 0, largest, 1.0)
    result = jnp.where(jnp.isneginf(result), jnp.inf, result * LOG2_E)  # there, weights are 0
    held = min(max(1, WEIGHTS // n // COLUMNS), -(-m // COLUMNS)) * COLUMNS
    whole = _padded(x, y, bias, exclude, held)
    x, rows = whole["x"], len(whole["x"])
    whole |= dict(r=jnp.pad(result, (0, rows - n)), g=jnp.pad(g / largest, (0, rows - n)))
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def step(dx, some):
        first, y, bias = some
        here = whole | dict(y=y, c=bias, e=whole["e"] - first)
        w = _weights(here, kind, softcap, interpret)
        dy = dot("nm,nd->md", w, x) * largest
        return dx + dot("nm,md->nd", w, y), (dy.astype(y.dtype), w.sum(0, dtype=jnp.float32))

    y = whole["y"].reshape(-1, held, x.shape[1])
    some = jnp.arange(len(y), dtype=jnp.int32) * held, y, whole["c"].reshape(-1, held)
    dx, (dy, db) = lax.scan(step, jnp.zeros(x.shape, jnp.float32), some)
    dx, dy = (dx * largest).astype(x.dtype), dy.reshape(-1, x.shape[1])
    return dx[:n, :d], dy[:m, :d], db.reshape(-1)[:m] * largest


def _weights(inputs, kind, softcap, interpret):
    """The cotangents of the products, ``[n, m]``, in the dtype of x."""
    dtype = inputs["x"].dtype

    def compute(r, s, at, first, count, products):
        def step(t, _):
            z, slope = _scores(products(t), s.e[at.part], (first + t) * COLUMNS, softcap)
            if kind == "softplus":
                weights = 1.0 / (1.0 + jnp.exp2(z * -LOG2_E))
            else:
                weights = jnp.exp2(z * LOG2_E - _along(s.r[at.part], 0, z))
            weights *= _along(s.g[at.part], 0, z)
            weights = weights if slope is None else weights * slope
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            s.w[at.part] = weights.astype(dtype)
            plgpu.commit_smem()
            columns = pl.ds((first + t) * COLUMNS, COLUMNS)
            plgpu.copy_smem_to_gmem(s.w.at[at.part], r.w.at[_rows(at), columns])

        lax.fori_loop(0, count, step, None)
        plgpu.wait_smem_to_gmem(0)

    return _over_tiles(
        f"matmul_{kind}_weights",
        compute,
        inputs,
        lambda _, rows, columns: dict(w=((rows, columns), dtype)),
        scratch=dict(w=((ROWS, COLUMNS), dtype)),
        interpret=interpret,
    )


def _over_tiles(name, compute, inputs, output, *, scratch=(), interpret):
    """Calls a kernel that takes some tiles of a row of them.

    Args:
      name: Its name.
      compute: ``f(r, s, at, first, count, products)``, with the first of the tiles, how many there
        are, and a function of t that gives the t-th one's products; the rest as for ``walk``.
      inputs: x and y, with their bias c and what is excluded e, in whole tiles; and more vectors
        like e.
      output: ``f(splits, rows, columns)``, for ``walk``: one output.
      scratch: For ``walk``.
      interpret: False, or the parameters of the interpreter.
    """
    (rows, depth), columns = inputs["x"].shape, len(inputs["y"])
    tiles, pieces = rows // (ROWS * WARPGROUPS), depth // DEPTH
    each = -(-columns // COLUMNS // -(-BLOCKS // tiles))
    splits = -(-columns // COLUMNS // each)
    vectors = [n for n in inputs if n not in "xyc"]

    def of_block(at):
        first = at.split * each
        return first, jnp.minimum(each, columns // COLUMNS - first)

    def compute_tiles(r, s, at):
        s.stand(0, **{n: getattr(r, n).at[_rows(at)] for n in vectors})

        def piece(step, z):
            slot = s.await_full(0, step)
            x = s.x.at[slot, pl.ds(at.part * ROWS, ROWS)]
            z = product(x, s.y.at[slot], z, transposed=True, interpret=interpret)
            return slot, z

        def products(t):
            def add(step, z):
                slot, z = piece(step, z)
                s.release(0, slot)
                return z

            last = (t + 1) * pieces - 1
            z = jnp.zeros((ROWS, COLUMNS), jnp.float32)
            slot, z = piece(last, lax.fori_loop(t * pieces, last, add, z))
            z += _along(s.c[slot], 1, z)
            s.release(0, slot)
            return z

        compute(r, s, at, *of_block(at), products)

    def load(r, s, at):
        first, count = of_block(at)

        def tiles(step):
            mine = pl.ds((first + lax.div(step, pieces)) * COLUMNS, COLUMNS)
            deep = pl.ds(lax.rem(step, pieces) * DEPTH, DEPTH)
            height = ROWS * WARPGROUPS
            x = r.x.at[pl.ds(at.tile * height, height), deep]
            return dict(x=x, y=r.y.at[mine, deep], c=r.c.at[mine])

        s.fill(0, count * pieces, tiles)
        s.drain(count * pieces)

    (out,) = walk(
        name,
        compute_tiles,
        load,
        grid=dict(split=splits, tile=tiles),
        inputs=inputs,
        outputs=output(splits, rows, columns),
        standing=[dict.fromkeys(vectors, (ROWS,))],
        passing=[dict(x=(ROWS * WARPGROUPS, DEPTH), y=(COLUMNS, DEPTH), c=(COLUMNS,))],
        scratch=scratch,
        interpret=interpret,
    )
    return out


def _scores(z, excluded, first, softcap):
    """The scores of products, -inf where a column is left out, and the slope of the softcap."""
    slope = None
    if softcap is not None:
        # Not jnp.tanh, which the GPU takes as right to three digits.
        tanh = 1.0 - 2.0 / (1.0 + jnp.exp2(z * (2.0 * LOG2_E / softcap)))
        z, slope = jnp.where(z == -jnp.inf, z, softcap * tanh), 1.0 - tanh * tanh
    columns = first + lax.broadcasted_iota(jnp.int32, z.shape, 1)
    return jnp.where(columns == _along(excluded, 0, z), -jnp.inf, z), slope


def _softplus(z):
    x = jnp.exp2(jnp.abs(z) * -LOG2_E)
    log1p = jnp.where(x < 0.01, x * (1.0 - x * (0.5 - x * (1 / 3))), jnp.log(1.0 + x))
    return jnp.maximum(z, 0.0) + log1p


def _rows(at):
    return pl.ds((at.tile * WARPGROUPS + at.part) * ROWS, ROWS)


def _along(vector, axis, tile):
    return lax.broadcast_in_dim(vector, tile.shape, (axis,))


def _padded(x, y, bias, exclude, columns=COLUMNS):
    """Inputs by name in whole tiles; what is added to y is left out, to x is cut off at the end."""
    check_dtype(x=x, y=y)
    (n, d), m = x.shape, len(y)
    rows, columns, depth = -n % (ROWS * WARPGROUPS), -m % columns, -d % DEPTH
    x, y = jnp.pad(x, ((0, rows), (0, depth))), jnp.pad(y, ((0, columns), (0, depth)))
    bias = jnp.pad(bias, (0, columns), constant_values=-jnp.inf)
    return dict(x=x, y=y, c=bias, e=jnp.pad(exclude, (0, rows)))
