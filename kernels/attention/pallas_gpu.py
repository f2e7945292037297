"""Attention as Hopper kernels: one forward, and backward one for the queries and one for the keys.

In each, two warpgroups compute, each with 64 rows of what stands (queries, or in the last kernel
keys), while a third one copies what passes into rings of buffers, by TMA, as far ahead as the rings
are long. Barriers tell when a buffer is full and when it is empty again. Sums stay in registers,
and so do the weights, the left operand of the product after them. The keys' kernel holds its scores
transposed, ``[keys, queries]``, so that there, too, nothing in registers must be transposed.

Which tiles pass is read from a table: first those of which everything is seen, for which no
position is compared, then those of which something is.
"""

import functools
import math
import types

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from tinker.kernels.attention.patterns import kept_blocks
from tinker.kernels.hopper import ROWS, WARPGROUPS, check_dtype, product, walk
from tinker.numerics.errors import UserError

WIDTHS = 64, 128, 256  # of heads; others are filled with 0
LOG2_E = math.log2(math.e)
LOWEST = -1e30  # and not -inf, so that -inf can be subtracted from it


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
):
    """Attends.

    Args:
      query, key, value, query_bias, key_bias, spans, ramp, is_causal, pattern, scale: As in
        :func:`tinker.kernels.flash_attention`, none of them by default.
      interpret: False, or the parameters of the GPU interpreter.

    Returns:
      Outputs ``[batch, queries, heads, dim]`` and log-sum-exps ``[batch, heads, queries]``,
      float32.

    Raises:
      UserError: Numbers of other than 16 bits, or heads wider than 256.
    """
    (batch, queries, heads, dim), dtype, width = query.shape, query.dtype, _width(query)
    sizes = ROWS * WARPGROUPS, 128 if width <= 128 else 64
    arrays = query, key, value, query_bias, key_bias, spans
    static = dict(ramp=ramp, is_causal=is_causal, pattern=pattern, scale=scale)
    inputs, rule, seen = _prepared(arrays, sizes, **static)
    padded = inputs["q"].shape[1]
    dot = functools.partial(product, interpret=interpret)

    def compute(r, s, at):
        first = at.tile * sizes[0] + at.part * ROWS
        rows = pl.ds(first, ROWS)
        bias = _vector(r.u, at.batch, at.head, rows)
        s.stand(0, q=r.q.at[at.batch, rows, at.head], u=bias)
        q, u = s.q.at[at.part], _read(s.u, at.part)
        table = functools.partial(_entry, r.table, at.batch, at.head, at.tile)
        # They take turns: one has the tensor cores while the other one exponentiates.
        pl.when(at.warpgroup == 1)(s.meet)

        def step(t, sums, masked):
            total_out, largest, total = sums
            slot = s.await_full(0, t)
            dots = dot(q, s.k.at[slot], transposed=True, meanwhile=s.meet)
            c, e = _read(s.c, slot), _read(s.e, slot)
            s.release(0, slot)
            j = table(2 + t) * sizes[1] if masked else None
            scores, faded, _ = _scores(dots, u, c, e, first, j, rule)
            new = jnp.maximum(largest, scores.max(1))
            weights = jnp.exp2(scores * rule.unit - _along(new * rule.unit, 0, scores))
            weights = weights if faded is None else weights * faded
            shrink = jnp.exp2((largest - new) * rule.unit)
            total = total * shrink + weights.sum(1)
            total_out *= _along(shrink, 0, total_out)
            s.await_full(1, t)
            s.meet()
            total_out = dot(weights.astype(dtype), s.v.at[slot], total_out)
            s.release(1, slot)
            return total_out, new, total

        column = functools.partial(jnp.full, (ROWS,), dtype=jnp.float32)
        sums = jnp.zeros((ROWS, width), jnp.float32), column(LOWEST), column(0.0)
        total_out, largest, total = _over_tiles(step, table, sums, rule)
        pl.when(at.warpgroup == 0)(s.meet)
        none = total == 0.0
        total = jnp.where(none, 1.0, total)
        logs = largest * (rule.unit / LOG2_E) + jnp.log(total)
        r.lse[at.batch, at.head, rows] = jnp.where(none, -jnp.inf, logs)
        q[...] = (total_out * _along(1.0 / total, 0, total_out)).astype(dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(q, r.out.at[at.batch, rows, at.head])
        plgpu.wait_smem_to_gmem(0)

    out, lse = walk(
        "attention_forward",
        compute,
        functools.partial(_load_keys, group=heads // key.shape[2], size=sizes[1]),
        grid=dict(batch=batch, head=heads, tile=padded // sizes[0]),
        inputs=inputs | dict(table=_table(*seen)),
        outputs=dict(out=(inputs["q"].shape, dtype), lse=((batch, heads, padded), jnp.float32)),
        standing=[dict(q=(ROWS, width), u=(ROWS,))],
        passing=[dict(k=(sizes[1], width), c=sizes[1:], e=sizes[1:]), dict(v=(sizes[1], width))],
        reverse=("tile",) if rule.is_causal else (),  # the longest first
        interpret=interpret,
    )
    return out[:, :queries, :, :dim], lse[:, :, :queries]


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
):
    """Gradients.

    Args:
      query, key, value, query_bias, key_bias, spans, ramp, is_causal, pattern, scale, interpret:
        As in :func:`forward`.
      out, lse: What it returned.
      dout, dlse: Their cotangents.

    Returns:
      Those of query, key, value, query_bias, key_bias and spans, of their shapes and dtypes; None
      for what is None.

    Raises:
      UserError: Numbers of other than 16 bits, or heads wider than 256.
    """
    none = jnp.isneginf(lse)  # queries that see no key
    dlse = jnp.where(none, 0.0, dlse)
    delta = jnp.einsum("bqhd,bqhd->bhq", dout, out, preferred_element_type=jnp.float32) - dlse
    lse = jnp.where(none, jnp.inf, lse * LOG2_E)  # where it is inf, weights are 0
    arrays = query, key, value, query_bias, key_bias, spans
    given = arrays, dict(lse=lse, delta=delta, do=dout.astype(query.dtype))
    static = dict(ramp=ramp, is_causal=is_causal, pattern=pattern, scale=scale)
    dq = _backward_queries(*given, static, interpret)
    dk, dv, dc, de = _backward_keys(*given, static, interpret)
    # All scores of a query raised alike change its log-sum-exp alone.
    terms = zip(arrays[3:], (dlse, dc, de), strict=True)
    return dq, dk, dv, *(None if x is None else _summed(dx, x) for x, dx in terms)


def _backward_queries(arrays, given, static, interpret):
    query, key, *_ = arrays
    (batch, queries, heads, dim), dtype, width = query.shape, query.dtype, _width(query)
    sizes = ROWS * WARPGROUPS, 64
    inputs, rule, seen = _prepared(arrays, sizes, **given, **static)
    dot = functools.partial(product, interpret=interpret)

    def compute(r, s, at):
        first = at.tile * sizes[0] + at.part * ROWS
        rows = pl.ds(first, ROWS)
        where = at.batch, at.head, rows
        vectors = {name: _vector(getattr(r, name), *where) for name in ("u", "lse", "delta")}
        matrices = {name: getattr(r, name).at[at.batch, rows, at.head] for name in ("q", "do")}
        s.stand(0, **vectors, **matrices)
        q, do = s.q.at[at.part], s.do.at[at.part]
        u, lse, delta = (_read(x, at.part) for x in (s.u, s.lse, s.delta))
        table = functools.partial(_entry, r.table, at.batch, at.head, at.tile)

        def step(t, dq, masked):
            slot = s.await_full(0, t)
            dots = dot(q, s.k.at[slot], transposed=True)
            j = table(2 + t) * sizes[1] if masked else None
            c, e = _read(s.c, slot), _read(s.e, slot)
            scores, faded, _ = _scores(dots, u, c, e, first, j, rule)
            weights = jnp.exp2(scores * rule.unit - _along(lse, 0, scores))
            weights = weights if faded is None else weights * faded
            s.await_full(1, t)
            dscores = dot(do, s.v.at[slot], transposed=True)
            s.release(1, slot)
            dscores = weights * (dscores - _along(delta, 0, scores))
            dq = dot(dscores.astype(dtype), s.k.at[slot], dq)
            s.release(0, slot)
            return dq

        dq = _over_tiles(step, table, jnp.zeros((ROWS, width), jnp.float32), rule)
        q[...] = (dq * static["scale"]).astype(dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(q, r.dq.at[at.batch, rows, at.head])
        plgpu.wait_smem_to_gmem(0)

    of_query = (ROWS, width)
    (dq,) = walk(
        "attention_backward_queries",
        compute,
        functools.partial(_load_keys, group=heads // key.shape[2], size=sizes[1]),
        grid=dict(batch=batch, head=heads, tile=inputs["q"].shape[1] // sizes[0]),
        inputs=inputs | dict(table=_table(*seen)),
        outputs=dict(dq=(inputs["q"].shape, dtype)),
        standing=[dict(q=of_query, do=of_query, u=(ROWS,), lse=(ROWS,), delta=(ROWS,))],
        passing=[dict(k=(sizes[1], width), c=sizes[1:], e=sizes[1:]), dict(v=(sizes[1], width))],
        reverse=("tile",) if rule.is_causal else (),  # the longest first
        interpret=interpret,
    )
    return dq[:, :queries, :, :dim]


def _backward_keys(arrays, given, static, interpret):
    query, key, *_ = arrays
    (batch, keys, kv_heads, dim), dtype, width = key.shape, key.dtype, _width(query)
    heads, group = query.shape[2], query.shape[2] // kv_heads
    # Two sums of 64 rows by 256 are more than the registers hold. Of heads so wide, each warpgroup
    # sums one half, for the same keys.
    halves = max(1, width // 128)
    span = width // halves
    sizes = 64, ROWS * WARPGROUPS // halves
    inputs, rule, (kept, whole) = _prepared(arrays, sizes, **given, **static)
    dot = functools.partial(product, interpret=interpret)

    def compute(r, s, at):
        first = at.tile * sizes[1] + at.part * ROWS
        rows = pl.ds(first, ROWS)
        s.stand(0, **{name: getattr(r, name).at[at.batch, rows, at.head] for name in "kv"})

        def dots(standing, passing, slot):
            a, b = (
                [x.at[i, n] for n in range(halves)]
                for x, i in ((standing, at.part), (passing, slot))
            )
            return dot(a, b, transposed=True)

        def of_head(member, sums):
            *sums, done = sums
            head = at.head * group + member
            table = functools.partial(_entry, r.table, at.batch, head, at.tile)
            s.stand(1, **{n: _vector(getattr(r, n), at.batch, head, rows) for n in "ce"})
            c, e = _read(s.c, at.part), _read(s.e, at.part)

            def step(t, sums, masked):
                dk, dv, dc, de = sums
                slot = s.await_full(0, done + t)
                i = table(2 + t) * sizes[0] if masked else None
                terms = _read(s.u, slot), c, e, i, first
                scores, faded, fading = _scores(dots(s.k, s.q, slot), *terms, rule, queries=1)
                weights = jnp.exp2(scores * rule.unit - _along(s.lse[slot], 1, scores))
                s.await_full(1, done + t)
                dscores = dots(s.v, s.do, slot) - _along(s.delta[slot], 1, scores)
                dscores *= weights
                if faded is not None:
                    de += jnp.where(fading, dscores, 0.0).sum(1)
                    weights, dscores = weights * faded, dscores * faded
                if c is not None:
                    dc += dscores.sum(1)
                dv = dot(weights.astype(dtype), s.do.at[slot, at.half], dv)
                s.release(1, slot)
                dk = dot(dscores.astype(dtype), s.q.at[slot, at.half], dk)
                s.release(0, slot)
                return dk, dv, dc, de

            zeros = jnp.zeros(ROWS, jnp.float32)
            dk, dv, dc, de = _over_tiles(step, table, (*sums, zeros, zeros), rule)

            @pl.when(at.half == 0)
            def _():
                if c is not None:
                    r.dc[at.batch, head, rows] = dc
                if e is not None:
                    r.de[at.batch, head, rows] = de * (1.0 / rule.ramp)

            return dk, dv, done + table(1)

        zeros = jnp.zeros((ROWS, span), jnp.float32)
        dk, dv, _ = lax.fori_loop(0, group, of_head, (zeros, zeros, jnp.int32(0)))
        s.meet()  # before what the other warpgroup may still read is written over
        s.k[at.part, at.half] = (dk * static["scale"]).astype(dtype)
        s.v[at.part, at.half] = dv.astype(dtype)
        plgpu.commit_smem()
        for name in "kv":
            to = getattr(r, f"d{name}").at[at.batch, rows, at.head, pl.ds(at.half * span, span)]
            plgpu.copy_smem_to_gmem(getattr(s, name).at[at.part, at.half], to)
        plgpu.wait_smem_to_gmem(0)

    def load(r, s, at):
        def of_head(member, done):
            head = at.head * group + member
            table = functools.partial(_entry, r.table, at.batch, head, at.tile)

            def tiles(t):
                rows = pl.ds(table(2 + t) * sizes[0], sizes[0])
                found = {n: getattr(r, n).at[at.batch, rows, head] for n in ("q", "do")}
                vectors = "u", "lse", "delta"
                return found | {n: _vector(getattr(r, n), at.batch, head, rows) for n in vectors}

            s.fill(done, table(1), tiles)
            return done + table(1)

        s.drain(lax.fori_loop(0, group, of_head, jnp.int32(0)))

    of_pass = (halves, sizes[0], span)
    row = (batch, heads, inputs["k"].shape[1]), jnp.float32
    outputs = dict(dk=(inputs["k"].shape, dtype), dv=(inputs["k"].shape, dtype))
    outputs |= {f"d{n}": row for n in "ce" if inputs[n] is not None}
    results = walk(
        "attention_backward_keys",
        compute,
        load,
        grid=dict(batch=batch, head=kv_heads, tile=inputs["k"].shape[1] // sizes[1]),
        inputs=inputs | dict(table=_table(kept.swapaxes(2, 3), whole.swapaxes(2, 3))),
        outputs=outputs,
        standing=[dict(k=(halves, ROWS, span), v=(halves, ROWS, span)), dict(c=(ROWS,), e=(ROWS,))],
        passing=[dict(q=of_pass, u=sizes[:1], lse=sizes[:1]), dict(do=of_pass, delta=sizes[:1])],
        halves=halves,
        interpret=interpret,
    )
    of = dict(zip(outputs, results, strict=True))
    dk, dv = (of[n][:, :keys, :, :dim] for n in ("dk", "dv"))
    return dk, dv, *(of[n][:, :, :keys] if n in of else None for n in ("dc", "de"))


def _load_keys(r, s, at, *, group, size):
    """Copies the tiles of keys that pass queries."""
    table = functools.partial(_entry, r.table, at.batch, at.head, at.tile)

    def tiles(t):
        rows = pl.ds(table(2 + t) * size, size)
        found = {n: getattr(r, n).at[at.batch, rows, lax.div(at.head, group)] for n in "kv"}
        return found | {n: _vector(getattr(r, n), at.batch, at.head, rows) for n in "ce"}

    s.fill(0, table(1), tiles)
    s.drain(table(1))


def _scores(dots, u, c, e, i, j, rule, queries=0):
    """Scores of a tile in units of ``rule.unit / log2(e)``, -inf where a key is hidden.

    Args:
      dots: The products, queries along axis 0, or 1 if ``queries`` is.
      u, c, e: Vectors of the queries and, twice, keys, or None.
      i, j: Of the first query and key; of a tile of which everything is seen, one of them is None.
      rule: From :func:`_prepared`.

    Returns:
      The scores; the fading m or None; and whether it is between 0 and 1.
    """
    keys = 1 - queries
    offsets = [_along(x, a, dots) for x, a in ((u, queries), (c, keys)) if x is not None]
    scores = dots if rule.scale is None else dots * rule.scale
    scores = scores + sum(offsets[1:], offsets[0]) if offsets else scores
    if i is None or j is None:
        return scores, None, None
    t_q, t_k = (
        first + lax.broadcasted_iota(jnp.int32, dots.shape, axis)
        for first, axis in ((i, queries), (j, keys))
    )
    seen, faded, fading = [], None, None
    if e is not None:
        left = _along(e + rule.ramp, keys, dots) - (t_q - t_k).astype(jnp.float32)
        faded = jnp.minimum(jnp.maximum(left * (1.0 / rule.ramp), 0.0), 1.0)
        fading = (left > 0.0) & (left < rule.ramp)
        seen.append(left > 0.0)
    if rule.keys is not None:
        seen.append(t_k < rule.keys)
    if rule.is_causal:
        seen.append(t_k <= t_q)
    if rule.pattern is not None:
        seen.append(rule.pattern(t_q, t_k))
    return jnp.where(functools.reduce(jnp.logical_and, seen), scores, -jnp.inf), faded, fading


def _prepared(arrays, sizes, *, ramp, is_causal, pattern, scale, lse=None, delta=None, do=None):
    """Inputs by name, in whole tiles; what is static about scores; and :func:`_seen`.

    Without biases, products are scaled where they are exponentiated, and the rule's scale is None.
    """
    query, key, value, query_bias, key_bias, spans = arrays
    (_, queries, _, _), keys, width = query.shape, key.shape[1], _width(query)
    inputs = {n: _tiles(x, sizes[0], width) for n, x in dict(q=query, do=do).items()}
    inputs |= {n: _tiles(x, sizes[1], width) for n, x in dict(k=key, v=value).items()}
    inputs |= dict(u=_vectors(query_bias, sizes[0]), delta=_vectors(delta, sizes[0]))
    inputs |= dict(lse=_vectors(lse, sizes[0], jnp.inf))
    inputs |= dict(c=_vectors(key_bias, sizes[1]), e=_vectors(spans, sizes[1]))
    later = query_bias is None and key_bias is None and scale > 0
    ragged = keys if keys % sizes[1] else None
    rule = types.SimpleNamespace(
        scale=None if later else scale,
        unit=scale * LOG2_E if later else LOG2_E,
        ramp=ramp,
        is_causal=is_causal,
        pattern=pattern,
        keys=ragged,
        has_whole=spans is None,
        has_parts=is_causal or pattern is not None or spans is not None or ragged is not None,
    )
    return inputs, rule, _seen(queries, keys, sizes, is_causal, pattern, spans, ramp)


def _over_tiles(step, table, sums, rule):
    """Sums ``step(t, sums, masked)`` over the tiles of a row of the table."""
    if rule.has_whole:
        sums = lax.fori_loop(0, table(0), functools.partial(step, masked=False), sums)
    if rule.has_parts:
        sums = lax.fori_loop(table(0), table(1), functools.partial(step, masked=True), sums)
    return sums


def _seen(queries, keys, sizes, is_causal, pattern, spans, ramp):
    """Of which tiles something is seen, and everything: ``[1 or batch, 1 or heads, i, j]``."""
    kept = kept_blocks(queries, keys, *sizes, is_causal=is_causal, pattern=pattern)[None, None]
    if spans is None:
        whole = _whole_blocks(queries, keys, *sizes, is_causal, pattern, type(pattern))
        return kept, whole[None, None]
    last = spans.astype(jnp.float32) + ramp + jnp.arange(keys)  # the last that sees a key
    pad = ((0, 0), (0, 0), (0, -keys % sizes[1]))
    last = jnp.pad(last, pad, constant_values=-jnp.inf)
    last = last.reshape(*last.shape[:2], 1, -1, sizes[1]).max(-1)
    first = np.arange(kept.shape[2])[:, None] * sizes[0]
    kept = kept & (first <= last + 1)  # 1 for what is rounded
    return kept, jnp.zeros_like(kept)


@functools.lru_cache(maxsize=128)
def _whole_blocks(queries, keys, rows, columns, is_causal, pattern, _):
    """Of which blocks everything is seen; the type is there as patterns of two can be equal."""
    first_queries, first_keys = np.arange(0, queries, rows), np.arange(0, keys, columns)
    whole = np.ones((len(first_queries), len(first_keys)), bool)
    whole[:, -1] = keys % columns == 0
    if is_causal:
        whole &= first_keys + columns - 1 <= first_queries[:, None]
    if pattern is not None:
        for row, first in zip(whole, first_queries, strict=True):
            i = np.arange(first, min(first + rows, queries), dtype=np.int32)[:, None]
            j = np.arange(keys, dtype=np.int32)[None]
            seen = np.broadcast_to(pattern(i, j), (len(i), keys))
            row &= np.logical_and.reduceat(seen.all(0), first_keys)
    return whole


def _table(kept, whole):
    """For a loop over tiles: how many are whole, how many kept, and the whole, the kept, others."""
    xp = np if isinstance(kept, np.ndarray) else jnp
    kept, whole = kept.astype(np.int32), (kept & whole).astype(np.int32)
    columns = kept.shape[-1]
    order = xp.argsort((2 - kept - whole) * columns + np.arange(columns, dtype=np.int32), axis=-1)
    counts = xp.stack([whole.sum(-1), kept.sum(-1)], -1)
    return xp.concatenate([counts, order], -1).astype(np.int32)


def _entry(table, batch, head, row, column):
    at = (i if n > 1 else 0 for i, n in zip((batch, head), table.shape[:2], strict=True))
    return table[(*at, row, column)]


def _vector(x, batch, head, rows):
    """Some of a vector of a head, where there is one for all or one for each; or None."""
    if x is None:
        return None
    return x.at[batch if x.shape[0] > 1 else 0, head if x.shape[1] > 1 else 0, rows]


def _read(x, slot):
    return None if x is None else x[slot]


def _along(vector, axis, tile):
    return lax.broadcast_in_dim(vector, tile.shape, (axis,))


def _tiles(x, size, width):
    """``[batch, n, heads, dim]``, filled with 0 to whole tiles."""
    if x is None:
        return None
    after = -x.shape[1] % size, width - x.shape[3]
    return jnp.pad(x, ((0, 0), (0, after[0]), (0, 0), (0, after[1]))) if any(after) else x


def _vectors(x, size, fill=0.0):
    """``[…, n]`` in float32, filled to whole tiles."""
    if x is None:
        return None
    pad = ((0, 0), (0, 0), (0, -x.shape[2] % size))
    return jnp.pad(x.astype(jnp.float32), pad, constant_values=fill)


def _width(query):
    """Of the buffers for heads."""
    check_dtype(query=query)
    for width in WIDTHS:
        if query.shape[3] <= width:
            return width
    raise UserError(
        f"implementation='pallas' on a GPU: heads of {query.shape[3]} numbers; it takes "
        f"{WIDTHS[-1]} at most, and None and 'xla' take any"
    )


def _summed(gradient, x):
    """A gradient ``[batch, heads, n]`` in x's shape, which has 1 where it is summed, and dtype."""
    axes = tuple(a for a in (0, 1) if x.shape[a] == 1)
    return gradient.sum(axes, keepdims=True).astype(x.dtype)
