"""The projections of columns for TPUs, tile by tile of the scores.

A column's scores lie along the rows of a tile, ``[rows, columns]``, so that what is kept of each
column is a vector along the lanes.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tinker.kernels.dispatch import VMEM_BYTES, check_vmem
from tinker.kernels.sparse_ot import xla
from tinker.numerics import UserError

MOST = 1024  # nonzeros of a column that are kept at hand
COLUMNS, ROWS = 128, 512  # of a tile; fewer rows where more do not fit
PASSES = 26  # over the scores, for a threshold: the bracket's 2^-24 at worst, most are not needed


def conjugates(h, u, v, b, *, k, wanted=(False,) * 4, interpret=False):
    """What :func:`tinker.kernels.sparse_ot.xla.conjugates` computes, in float32.

    Args:
      h, u, v, b, k, wanted: As there.
      interpret: Whether to run without a TPU.

    Returns:
      As there.

    Raises:
      UserError: More than 1024 nonzeros in a column, or points too long for VMEM.
    """
    if k < len(h):
        kept, t, threshold, conjugate = _top(h, u, v, b, k, interpret)
        return conjugate.sum(), xla.slopes(kept, t, threshold, h, u, v, wanted=wanted)
    threshold, conjugate = _threshold(h, u, v, b, interpret)
    slopes = [None, None, None, threshold if wanted[3] else None]
    ones = jnp.ones((len(b), 1), h.dtype)
    # their products are the scores over the threshold
    p = jnp.concatenate([u, h[:, None], jnp.ones_like(h)[:, None]], 1)
    q = jnp.concatenate([v, ones, -threshold[:, None]], 1)
    d = u.shape[1]
    if wanted[0] or wanted[1]:
        sums = _relu_product(p, q, interpret)
        slopes[:2] = sums[:, d] if wanted[0] else None, sums[:, :d] if wanted[1] else None
    if wanted[2]:
        slopes[2] = _relu_product(q, p, interpret)[:, :d]
    return conjugate.sum(), tuple(slopes)


def supports(h, u, v, *, k, interpret=False):
    """Where the k largest scores of each column are, ``[n, k]``, in no order."""
    if k == len(h):
        return jnp.broadcast_to(jnp.arange(k), (len(v), k))
    return _top(h, u, v, jnp.ones(len(v)), k, interpret)[0]


def _top(h, u, v, b, k, interpret):
    """Rows and entries of the plan, ``[n, k]``, thresholds and conjugates, ``[n]``."""
    if k > MOST:
        raise UserError(
            f"implementation='pallas' keeps at most {MOST} nonzeros of a column, not {k}; "
            "None or 'xla' take any number"
        )
    m, n, slots = len(h), len(b), _up(k, 8)
    held = [((slots, COLUMNS), jnp.float32)] * 2 + [((1, COLUMNS), jnp.float32)] * 3
    scratch = [((slots, COLUMNS), jnp.float32)] * 2
    rows = _rows(u, held, scratch, "the largest scores of a column")
    h, u, v, b = _padded(h, u, v, b, rows)
    width, grid = u.shape[1], (v.shape[0] // COLUMNS, u.shape[0] // rows)
    column = pl.BlockSpec((1, COLUMNS), lambda j, i: (0, j))
    slot = pl.BlockSpec((slots, COLUMNS), lambda j, i: (0, j))
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    kept, t, threshold, conjugate = pl.pallas_call(
        functools.partial(_top_kernel, k=k, m=m),
        (
            jax.ShapeDtypeStruct((slots, len(v)), jnp.int32),
            shape((slots, len(v))),
            shape((1, len(v))),
            shape((1, len(v))),
        ),
        grid=grid,
        in_specs=[
            pl.BlockSpec((rows, 1), lambda j, i: (i, 0)),
            pl.BlockSpec((rows, width), lambda j, i: (i, 0)),
            pl.BlockSpec((COLUMNS, width), lambda j, i: (j, 0)),
            column,
        ],
        out_specs=(slot, slot, column, column),
        scratch_shapes=[
            pltpu.VMEM((rows, COLUMNS), jnp.float32),
            pltpu.VMEM((slots, COLUMNS), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="sparse_ot_top",
    )(h, u, v, b)
    return kept.T[:n, :k], t.T[:n, :k], threshold[0, :n], conjugate[0, :n]


def _top_kernel(h, u, v, b, kept, t, threshold, conjugate, z, values, *, k, m):
    rows, slots = z.shape[0], values.shape[0]
    first = pl.program_id(1) * rows
    slot = jax.lax.broadcasted_iota(jnp.int32, values.shape, 0)

    @pl.when(pl.program_id(1) == 0)
    def _():
        values[...] = jnp.where(slot < k, -jnp.inf, jnp.inf)  # those beyond k are never the least
        kept[...] = -1 - slot

    row = jax.lax.broadcasted_iota(jnp.int32, z.shape, 0)
    z[...] = jnp.where(first + row < m, _product(u[...], v[...]) + h[...], -jnp.inf)

    def some_enter():
        enters = z[...].max(0, keepdims=True) > values[...].min(0, keepdims=True)
        return jnp.max(enters.astype(jnp.float32)) > 0

    def exchange(_):
        # the tile's largest score of each column takes the place of the least that was kept: of
        # equal ones the first enters, and the last that came leaves
        peak, least = z[...].max(0, keepdims=True), values[...].min(0, keepdims=True)
        at = _first(z[...] == peak, row, rows)
        worst = values[...] == least
        leaves = worst & (kept[...] == _last(worst, kept[...], slots)) & (peak > least)
        values[...] = jnp.where(leaves, peak, values[...])
        kept[...] = jnp.where(leaves, first + at, kept[...])
        z[...] = jnp.where(row == at, -jnp.inf, z[...])
        return some_enter()

    jax.lax.while_loop(lambda going: going, exchange, some_enter())

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
        largest = jnp.where(slot < k, values[...], -jnp.inf)

        def step(state):
            found, counts, _ = state
            over = largest > found
            excess = jnp.where(over, largest - found, 0.0).sum(0, keepdims=True)
            count = over.astype(jnp.float32).sum(0, keepdims=True)
            found += jnp.maximum(excess - b[...], 0.0) / jnp.maximum(count, 1.0)
            return found, count, jnp.max(jnp.abs(count - counts)) > 0

        start = largest.max(0, keepdims=True) - b[...]
        found, *_ = jax.lax.while_loop(
            lambda state: state[2], step, (start, jnp.full_like(start, -1.0), True)
        )
        shares = jnp.maximum(largest - found, 0.0)
        t[...], threshold[...] = shares, found
        conjugate[...] = found * b[...] + jnp.square(shares).sum(0, keepdims=True) / 2


def _first(chosen, numbers, none):
    return jnp.where(chosen, numbers, none).min(0, keepdims=True)


def _last(chosen, numbers, slots):
    return jnp.where(chosen, numbers, -1 - slots).max(0, keepdims=True)


def _threshold(h, u, v, b, interpret):
    """Thresholds and conjugates of the columns' projections onto their simplices, ``[n]``."""
    m, n = len(h), len(b)
    held = [((1, COLUMNS), jnp.float32)] * 3
    rows = _rows(u, held, [((8, COLUMNS), jnp.float32)] * 2, "a tile")
    h, u, v, b = _padded(h, u, v, b, rows)
    width, grid = u.shape[1], (v.shape[0] // COLUMNS, PASSES, u.shape[0] // rows)
    column = pl.BlockSpec((1, COLUMNS), lambda j, p, i: (0, j))
    out = jax.ShapeDtypeStruct((1, len(v)), jnp.float32)
    threshold, conjugate = pl.pallas_call(
        functools.partial(_threshold_kernel, m=m),
        (out, out),
        grid=grid,
        in_specs=[
            pl.BlockSpec((rows, 1), lambda j, p, i: (i, 0)),
            pl.BlockSpec((rows, width), lambda j, p, i: (i, 0)),
            pl.BlockSpec((COLUMNS, width), lambda j, p, i: (j, 0)),
            column,
        ],
        out_specs=(column, column),
        scratch_shapes=[
            pltpu.VMEM((8, COLUMNS), jnp.float32),
            pltpu.VMEM((8, COLUMNS), jnp.float32),
            pltpu.SMEM((1,), jnp.int32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary")
        ),
        interpret=interpret,
        name="sparse_ot_threshold",
    )(h, u, v, b)
    return threshold[0, :n], conjugate[0, :n]


def _threshold_kernel(h, u, v, b, threshold, conjugate, found, sums, ended, *, m):
    """One pass for the peaks, passes of Newton's steps kept in a bracket, one for the squares.

    ``found`` holds lower ends, upper ends, and how many entries the lower ends are of; ``sums``
    what this pass has added up: excess and count over the lower end, then over the middle.
    """
    at, tile = pl.program_id(1), pl.program_id(2)
    last_tile, last_pass = tile == pl.num_programs(2) - 1, at == PASSES - 1
    low, high, counts = (slice(i, i + 1) for i in range(3))

    @pl.when((at == 0) & (tile == 0))
    def _():
        ended[0] = 0

    @pl.when(tile == 0)
    def _():
        sums[...] = jnp.where(at == 0, jnp.full_like(sums, -jnp.inf), jnp.zeros_like(sums))

    middle = (found[low] + found[high]) / 2

    @pl.when((ended[0] == 0) | last_pass)
    def _():
        row = tile * u.shape[0] + jax.lax.broadcasted_iota(jnp.int32, (u.shape[0], COLUMNS), 0)
        z = jnp.where(row < m, _product(u[...], v[...]) + h[...], -jnp.inf)

        @pl.when(at == 0)
        def _():
            sums[0:1] = jnp.maximum(sums[0:1], z.max(0, keepdims=True))

        @pl.when((at > 0) & ~last_pass)
        def _():
            for place, bound in ((0, found[low]), (2, middle)):
                over = z > bound
                sums[place : place + 1] += jnp.where(over, z - bound, 0.0).sum(0, keepdims=True)
                sums[place + 1 : place + 2] += over.astype(jnp.float32).sum(0, keepdims=True)

        @pl.when(last_pass)
        def _():
            sums[0:1] += jnp.square(jnp.maximum(z - found[low], 0.0)).sum(0, keepdims=True)

    @pl.when(last_tile & (at == 0))
    def _():
        found[low] = sums[0:1] - b[...]
        found[high] = sums[0:1] - b[...] / m
        found[counts] = jnp.zeros_like(found[counts])

    @pl.when(last_tile & (at > 0) & ~last_pass & (ended[0] == 0))
    def _():
        count, count_middle = sums[1:2], sums[3:4]
        ended[0] = (jnp.max(jnp.abs(count - found[counts])) == 0).astype(jnp.int32)
        stepped = found[low] + jnp.maximum(sums[0:1] - b[...], 0.0) / jnp.maximum(count, 1.0)
        below = sums[2:3] >= b[...]
        from_middle = middle + (sums[2:3] - b[...]) / jnp.maximum(count_middle, 1.0)
        further = below & (from_middle > stepped)
        found[low] = jnp.where(further, from_middle, stepped)
        found[counts] = jnp.where(further, count_middle, count)
        found[high] = jnp.where(below, found[high], middle)

    @pl.when(last_tile & last_pass)
    def _():
        threshold[...] = found[low]
        conjugate[...] = found[low] * b[...] + sums[0:1] / 2


def _relu_product(p, q, interpret):
    """``relu(p q^T) q``, ``[len(p), width]``."""
    (n, width), padded = p.shape, _up(p.shape[1], 128)
    held = [((COLUMNS, padded), jnp.float32)] * 2
    rows = _rows(q, held, [], "a tile")
    p, q = _pad(p, _up(n, COLUMNS), padded), _pad(q, _up(len(q), rows), padded)
    block = pl.BlockSpec((COLUMNS, padded), lambda i, j: (i, 0))
    sums = pl.pallas_call(
        _relu_product_kernel,
        jax.ShapeDtypeStruct(p.shape, jnp.float32),
        grid=(len(p) // COLUMNS, len(q) // rows),
        in_specs=[block, pl.BlockSpec((rows, padded), lambda i, j: (j, 0))],
        out_specs=block,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="sparse_ot_slopes",
    )(p, q)
    return sums[:n, :width]


def _relu_product_kernel(p, q, out):
    @pl.when(pl.program_id(1) == 0)
    def _():
        out[...] = jnp.zeros_like(out)

    t = jnp.maximum(_product(p[...], q[...]), 0.0)
    out[...] += _product(t, q[...], axis=0)


def _product(x, y, axis=1):
    """``x y^T``, or with axis 0 ``x y``."""
    return jax.lax.dot_general(
        x,
        y,
        (((1,), (axis,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _rows(u, held, scratch, what):
    """Rows of a tile: the most that fit in VMEM."""
    width, most = _up(u.shape[1], 128), min(ROWS, _up(len(u), 8))
    for size in [most] + [s for s in (256, 128, 64, 32, 16, 8) if s < most]:
        blocks = [((size, width), jnp.float32), ((COLUMNS, width), jnp.float32), *held]
        tiles = [((size, COLUMNS), jnp.float32)] * 3 + scratch
        try:
            check_vmem("sparse_ot", [*blocks, ((size, 1), jnp.float32)], tiles)
        except ValueError:
            continue
        return size
    raise UserError(
        f"implementation='pallas': {what} of points of {u.shape[1]} coordinates does not fit in "
        f"the {VMEM_BYTES:,} bytes of a TPU's VMEM; it takes None or 'xla'"
    )


def _padded(h, u, v, b, rows):
    """Whole blocks; rows that are added are left out in the kernel, columns are cut off."""
    m, n, width = _up(len(h), rows), _up(len(b), COLUMNS), _up(u.shape[1], 128)
    b = jnp.pad(b, (0, n - len(b)))[None]
    return _pad(h[:, None], m, 1), _pad(u, m, width), _pad(v, n, width), b


def _pad(x, rows, width):
    return jnp.pad(x, ((0, rows - x.shape[0]), (0, width - x.shape[1])))


def _up(size, multiple):
    return math.ceil(size / multiple) * multiple
