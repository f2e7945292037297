"""Attention as TPU kernels: one forward, and backward one for the queries and one for the keys.

For each block of one side, which stands, a kernel walks a list of the other side's blocks, which
pass: those of which causality or the pattern leaves anything. The keys' one holds its scores
transposed, ``[keys, queries]``. So in all three what belongs to the side that stands is a column,
made once of a row, and what belongs to the side that passes stays a row.
"""

import functools
import types

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tinker.kernels.attention.patterns import block_lists, kept_blocks
from tinker.kernels.dispatch import check_vmem

LANES = 128


def forward(
    query,
    key,
    value,
    query_bias,
    key_bias,
    spans,
    *,
    ramp,
    is_causal,
    pattern,
    scale,
    interpret=False,
    block=None,
):
    """Attends.

    Args:
      query, key, value, query_bias, key_bias, spans, ramp, is_causal, pattern, scale: As in
        :func:`tinker.kernels.flash_attention`, none of them by default.
      interpret: Whether to interpret rather than compile.
      block: At most so many queries and keys are in a block, a multiple of 128.

    Returns:
      Outputs ``[batch, queries, heads, dim]`` and log-sum-exps ``[batch, heads, queries]``,
      float32.

    Raises:
      ValueError: The heads are so wide that no block fits in VMEM.
    """
    (batch, queries, heads, dim), keys = query.shape, key.shape[1]
    sizes = _sizes(queries, keys, dim, block)
    kept = kept_blocks(queries, keys, *sizes, is_causal=is_causal, pattern=pattern)
    static = dict(keys=keys, ramp=ramp, is_causal=is_causal, pattern=pattern, scale=scale)
    q = _tiles(query, sizes[0])
    out, lse = _walk(
        functools.partial(_forward, score=functools.partial(_scores, **static)),
        "attention_forward",
        kept,
        (batch, heads, heads),
        sizes,
        standing=dict(q=q, u=_rows(query_bias, sizes[0])),
        passing=_of_keys(key, value, key_bias, spans, sizes[1]),
        outputs=dict(out=(q.shape, q.dtype), lse=((batch, heads, 1, q.shape[2]), jnp.float32)),
        scratch=dict(out_sum=dim, largest=1, total=1, u_column=1),
        interpret=interpret,
    )
    return out[:, :, :queries].swapaxes(1, 2), lse[:, :, 0, :queries]


def backward(
    query,
    key,
    value,
    query_bias,
    key_bias,
    spans,
    out,
    lse,
    dout,
    dlse,
    *,
    ramp,
    is_causal,
    pattern,
    scale,
    interpret=False,
    block=None,
):
    """Gradients.

    Args:
      query, key, value, query_bias, key_bias, spans, ramp, is_causal, pattern, scale, interpret,
        block: As in :func:`forward`.
      out, lse: What it returned.
      dout, dlse: Their cotangents.

    Returns:
      Those of query, key, value, query_bias, key_bias and spans, of their shapes and dtypes; None
      for what is None.

    Raises:
      ValueError: The heads are so wide that no block fits in VMEM.
    """
    (batch, queries, heads, dim), (_, keys, kv_heads, _) = query.shape, key.shape
    sizes = _sizes(queries, keys, dim, block)
    kept = kept_blocks(queries, keys, *sizes, is_causal=is_causal, pattern=pattern)
    static = dict(keys=keys, ramp=ramp, is_causal=is_causal, pattern=pattern, scale=scale)
    score = functools.partial(_scores, **static)
    none = jnp.isneginf(lse)  # queries that see no key
    dlse = jnp.where(none, 0.0, dlse)
    delta = jnp.einsum("bqhd,bqhd->bhq", dout, out, preferred_element_type=jnp.float32) - dlse
    of_queries = dict(
        q=_tiles(query, sizes[0]),
        do=_tiles(dout, sizes[0]),
        u=_rows(query_bias, sizes[0]),
        lse=_rows(jnp.where(none, jnp.inf, lse), sizes[0], jnp.inf),  # there weights are 0
        delta=_rows(delta, sizes[0]),
    )
    of_keys = _of_keys(key, value, key_bias, spans, sizes[1])
    q, k, v = of_queries["q"], of_keys["k"], of_keys["v"]
    (dq,) = _walk(
        functools.partial(_backward_queries, score=score, scale=scale),
        "attention_backward_queries",
        kept,
        (batch, heads, heads),
        sizes,
        standing=of_queries,
        passing=of_keys,
        outputs=dict(dq=(q.shape, q.dtype)),
        scratch=dict(dq_sum=dim, lse_column=1, delta_column=1, u_column=1),
        interpret=interpret,
    )
    row = (batch, heads, 1, k.shape[2]), jnp.float32
    outputs = dict(dk=(k.shape, k.dtype), dv=(v.shape, v.dtype), dc=row, de=row)
    outputs = {n: x for n, x in outputs.items() if n[1] in "kv" or of_keys[n[1]] is not None}
    results = _walk(
        functools.partial(_backward_keys, score=score, scale=scale, ramp=ramp),
        "attention_backward_keys",
        kept.T,
        (batch, kv_heads, heads),
        sizes[::-1],
        standing=of_keys,
        passing=of_queries,
        outputs=outputs,
        scratch=dict(dk_sum=dim, dv_sum=dim, c_column=1, e_column=1, dc_sum=1, de_sum=1),
        interpret=interpret,
    )
    of = dict(zip(outputs, results, strict=True))
    dq, dk, dv = (
        x[:, :, :n].swapaxes(1, 2) for x, n in ((dq, queries), (of["dk"], keys), (of["dv"], keys))
    )
    dc, de = (of[n][:, :, 0, :keys] if n in of else None for n in ("dc", "de"))
    terms = zip((query_bias, key_bias, spans), (dlse, dc, de), strict=True)
    return dq, dk, dv, *(None if x is None else _summed(dx, x) for x, dx in terms)


def _forward(r, at, *, score):
    @pl.when(at.first)
    def _():
        # The lowest number and not -inf, so that -inf can be subtracted from it.
        r.largest[...] = jnp.full(r.largest.shape, jnp.finfo(jnp.float32).min)
        r.total[...] = jnp.zeros(r.total.shape, jnp.float32)
        r.out_sum[...] = jnp.zeros(r.out_sum.shape, jnp.float32)
        _stand(r, "u")

    @pl.when(at.kept)
    def _():
        scores, faded = score(r.q, r.k, _column(r, "u"), r.c, r.e, at.standing, at.passing)
        new = jnp.maximum(r.largest[...], scores.max(1, keepdims=True))
        weights = jnp.exp(scores - new)
        weights = weights if faded is None else weights * faded
        shrink = jnp.exp(r.largest[...] - new)
        r.largest[...] = new
        r.total[...] = r.total[...] * shrink + weights.sum(1, keepdims=True)
        r.out_sum[...] = r.out_sum[...] * shrink + _dot(weights, r.v[...], 0)

    @pl.when(at.last)
    def _():
        none = r.total[...] == 0
        total = jnp.where(none, 1.0, r.total[...])
        r.out[...] = (r.out_sum[...] / total).astype(r.out.dtype)
        r.lse[...] = _row(jnp.where(none, -jnp.inf, jnp.log(total) + r.largest[...]))


def _backward_queries(r, at, *, score, scale):
    @pl.when(at.first)
    def _():
        r.dq_sum[...] = jnp.zeros(r.dq_sum.shape, jnp.float32)
        _stand(r, "u", "lse", "delta")

    @pl.when(at.kept)
    def _():
        scores, faded = score(r.q, r.k, _column(r, "u"), r.c, r.e, at.standing, at.passing)
        dscores = _dot(r.do[...], r.v[...], 1) - r.delta_column[...]
        dscores *= jnp.exp(scores - r.lse_column[...])
        dscores = dscores if faded is None else dscores * faded
        r.dq_sum[...] += _dot(dscores, r.k[...], 0)

    @pl.when(at.last)
    def _():
        r.dq[...] = (r.dq_sum[...] * scale).astype(r.dq.dtype)


def _backward_keys(r, at, *, score, scale, ramp):
    @pl.when(at.first_of_group)
    def _():
        r.dk_sum[...] = jnp.zeros(r.dk_sum.shape, jnp.float32)
        r.dv_sum[...] = jnp.zeros(r.dv_sum.shape, jnp.float32)

    @pl.when(at.first)
    def _():
        r.dc_sum[...] = jnp.zeros(r.dc_sum.shape, jnp.float32)
        r.de_sum[...] = jnp.zeros(r.de_sum.shape, jnp.float32)
        _stand(r, "c", "e")

    @pl.when(at.kept)
    def _():
        c, e = _column(r, "c"), _column(r, "e")
        scores, faded = score(r.q, r.k, r.u, c, e, at.passing, at.standing, transposed=True)
        weights = jnp.exp(scores - r.lse[...])
        dscores = weights * (_dot(r.v[...], r.do[...], 1) - r.delta[...])
        if faded is not None:
            on_ramp = jnp.where(faded < 1, dscores, 0.0)
            r.de_sum[...] += on_ramp.sum(1, keepdims=True) / ramp
            weights, dscores = weights * faded, dscores * faded
        if r.c is not None:
            r.dc_sum[...] += dscores.sum(1, keepdims=True)
        r.dk_sum[...] += _dot(dscores, r.q[...], 0)
        r.dv_sum[...] += _dot(weights, r.do[...], 0)

    @pl.when(at.last)
    def _():
        if r.c is not None:
            r.dc[...] = _row(r.dc_sum[...])
        if r.e is not None:
            r.de[...] = _row(r.de_sum[...])

    @pl.when(at.last_of_group)
    def _():
        r.dk[...] = (r.dk_sum[...] * scale).astype(r.dk.dtype)
        r.dv[...] = r.dv_sum[...].astype(r.dv.dtype)


def _scores(q, k, u, c, e, i, j, *, keys, ramp, is_causal, pattern, scale, transposed=False):
    """Scores of the blocks i and j, -inf where a key is hidden, and what they fade by, or None.

    ``[queries, keys]``; u is then a column, and c and e are rows. ``[keys, queries]`` if
    transposed, and the other way round.
    """
    (q_size, _), (k_size, _) = q.shape, k.shape
    scores = _dot(k[...], q[...], 1) if transposed else _dot(q[...], k[...], 1)
    scores *= scale
    offsets = [x[...] for x in (u, c) if x is not None]
    scores = scores + sum(offsets) if offsets else scores
    t_q = i * q_size + lax.broadcasted_iota(jnp.int32, scores.shape, int(transposed))
    t_k = j * k_size + lax.broadcasted_iota(jnp.int32, scores.shape, int(not transposed))
    seen = [t_k < keys] if keys % k_size else []
    if is_causal:
        seen.append(t_k <= t_q)
    if pattern is not None:
        seen.append(pattern(t_q, t_k))
    faded = None
    if e is not None:
        distance = (t_q - t_k).astype(jnp.float32)
        faded = jnp.clip((ramp + e[...] - distance) / ramp, 0.0, 1.0)
        seen.append(faded > 0)
    if seen:
        scores = jnp.where(functools.reduce(jnp.logical_and, seen), scores, -jnp.inf)
    return scores, faded


def _walk(kernel, name, kept, heads, sizes, *, standing, passing, outputs, scratch, interpret):
    """Calls ``kernel(refs, at)`` for each block that stands and each that passes it.

    Args:
      kernel: The kernel; in ``refs`` are the blocks by name, None for what is None.
      name: Its name.
      kept: Boolean NumPy array ``[blocks that stand, blocks that pass]``.
      heads: The batch, the heads that stand apart, and all heads.
      sizes: Of a block that stands, and of one that passes.
      standing, passing: Arrays by name, or None: ``[…, length, dim]``, or rows ``[…, 1, length]``.
      outputs: Shapes and dtypes by name of what is written for the blocks that stand.
      scratch: Widths by name of float32 columns for a block that stands.
      interpret: Whether to interpret.

    Returns:
      The outputs.
    """
    (batch, outer, heads), group = heads, heads[2] // heads[1]
    columns, counts = block_lists(kept)
    steps = columns.shape[1]

    def spec(shape, size, stands):
        row = shape[2] == 1

        def index(b, h, i, g, step, columns, counts):
            place = i if stands else columns[i * steps + step]
            first = lax.div(b * shape[0], batch), lax.div((h * group + g) * shape[1], heads)
            return (*first, 0, place) if row else (*first, place, 0)

        return pl.BlockSpec((None, None, 1, size) if row else (None, None, size, shape[3]), index)

    inputs = [(n, x, sizes[0], True) for n, x in standing.items() if x is not None]
    inputs += [(n, x, sizes[1], False) for n, x in passing.items() if x is not None]
    in_specs = [spec(x.shape, size, stands) for _, x, size, stands in inputs]
    out_specs = [spec(shape, sizes[0], True) for shape, _ in outputs.values()]
    rooms = [((sizes[0], width), jnp.float32) for width in scratch.values()]
    names = [n for n, *_ in inputs] + [*outputs, *scratch]
    dtypes = [x.dtype for _, x, *_ in inputs] + [dtype for _, dtype in outputs.values()]
    shapes = [s.block_shape[2:] for s in in_specs + out_specs]
    temporary = [(sizes, jnp.float32)] * 5  # scores, and what is made of them, of their size
    check_vmem(name, list(zip(shapes, dtypes, strict=True)), rooms + temporary)

    def body(columns, counts, *refs):
        i, g, step = (pl.program_id(axis) for axis in (2, 3, 4))
        first, last = step == 0, step == steps - 1
        at = types.SimpleNamespace(
            standing=i,
            passing=columns[i * steps + step],
            kept=step < counts[i],
            first=first,
            last=last,
            first_of_group=first & (g == 0),
            last_of_group=last & (g == group - 1),
        )
        absent = dict.fromkeys([*standing, *passing])
        kernel(types.SimpleNamespace(**absent | dict(zip(names, refs, strict=True))), at)

    return pl.pallas_call(
        body,
        [jax.ShapeDtypeStruct(*x) for x in outputs.values()],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, outer, len(kept), group, steps),
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=[pltpu.VMEM(*x) for x in rooms],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 3 + ("arbitrary",) * 2
        ),
        interpret=interpret,
        name=name,
    )(columns.reshape(-1), counts, *(x for _, x, *_ in inputs))


def _sizes(queries, keys, dim, block):
    """Sizes of the blocks of queries and of keys, whole tiles that cut the lengths evenly."""
    block = block or (512 if dim <= 128 else 256 if dim <= 512 else 128)
    even = (-(-n // -(-n // block)) for n in (queries, keys))
    return tuple(-(-n // LANES) * LANES for n in even)


def _of_keys(key, value, key_bias, spans, size):
    rows = _rows(key_bias, size), _rows(spans, size)
    return dict(zip("kvce", (_tiles(key, size), _tiles(value, size), *rows), strict=True))


def _tiles(x, size):
    """``[batch, n, heads, dim]`` as ``[batch, heads, n, dim]``, n filled with 0 to whole blocks."""
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % size), (0, 0)))


def _rows(x, size, fill=0.0):
    """``[…, n]`` as rows ``[…, 1, n]`` in float32, n filled to whole blocks."""
    if x is None:
        return None
    rows = x[:, :, None].astype(jnp.float32)
    pad = ((0, 0), (0, 0), (0, 0), (0, -x.shape[2] % size))
    return jnp.pad(rows, pad, constant_values=fill)


def _stand(r, *names):
    """Writes rows as columns."""
    for name in names:
        row = getattr(r, name)
        if row is not None:
            column = jnp.broadcast_to(row[...], (LANES, row.shape[1])).T[:, :1]
            getattr(r, f"{name}_column")[...] = column


def _column(r, name):
    return None if getattr(r, name) is None else getattr(r, f"{name}_column")


def _row(column):
    return jnp.broadcast_to(column, (column.shape[0], LANES)).T[:1]


def _dot(a, b, axis):
    """A product over a's second axis and an axis of b, in b's dtype, summed in float32."""
    contract = ((1,), (axis,)), ((), ())
    return lax.dot_general(a.astype(b.dtype), b, contract, preferred_element_type=jnp.float32)


def _summed(gradient, x):
    """A gradient ``[batch, heads, n]`` in x's shape, which has 1 where it is summed, and dtype."""
    axes = tuple(a for a in (0, 1) if x.shape[a] == 1)
    return gradient.sum(axes, keepdims=True).astype(x.dtype)
