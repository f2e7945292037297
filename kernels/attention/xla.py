"""Attention a block of queries and keys at a time, in memory linear in the length.

Scores have five axes, ``[batch, kv_heads, group, queries, keys]``, so that a head of keys serves
its group of query heads without being repeated. The last block of a length starts early enough to
be whole: nothing is padded, and what it shares with the block before it is not counted twice.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from tinker.kernels.attention.patterns import block_lists, kept_blocks

BLOCK = 256  # queries or keys, about
BLOCK_OF_MANY = 128  # where the batch has more than MANY heads, all of which are in a block
MANY = 64


def forward(query, key, value, *, is_causal, pattern, ramp, scale, **terms):
    """Attends, with the arguments of :func:`tinker.kernels.flash_attention`.

    Returns:
      Outputs ``[batch, queries, heads, dim]`` and log-sum-exps ``[batch, heads, queries]``.
    """
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    terms = _by_group(terms, key.shape[2])
    sizes, table = _blocks(query, key, terms, is_causal, pattern)
    q, k, v = (_heads_first(x, key.shape[2]) for x in (query, key, value))
    k, v = k[:, :, 0], v[:, :, 0]
    score = _scorer(q, k, terms, sizes, is_causal, pattern, ramp, scale)

    def query_step(carry, row):
        i, columns, count = row
        q_i = _cut(q, i, sizes[0])

        def key_step(step, sums):
            largest, total, out = sums
            j = columns[step]
            k_j, v_j = (_cut(x, j, sizes[1]) for x in (k, v))
            scores, faded = score(q_i, k_j, i, j)
            new = jnp.maximum(largest, scores.max(-1, keepdims=True))
            weights = jnp.exp(scores - new)
            weights = weights if faded is None else weights * faded
            shrink = jnp.exp(largest - new)
            total = total * shrink + weights.sum(-1, keepdims=True)
            return new, total, out * shrink + _dot("gqs,sd->gqd", weights, v_j)

        out = jnp.zeros_like(q_i, dtype)
        total = out[..., :1]
        # The lowest number and not -inf, so that -inf can be subtracted from it.
        sums = jnp.full_like(total, jnp.finfo(dtype).min), total, out
        largest, total, out = lax.fori_loop(0, count, key_step, sums)
        none = total == 0
        total = jnp.where(none, 1.0, total)
        lse = jnp.where(none, -jnp.inf, jnp.log(total) + largest)
        outs, lses = carry
        return (_put(outs, (out / total).astype(q.dtype), i), _put(lses, lse, i)), None

    carry = jnp.zeros_like(q), jnp.zeros_like(q[..., :1], dtype)
    # From the last block to the first: what two of them compute is right in the earlier one.
    (out, lse), _ = lax.scan(query_step, carry, table, reverse=True)
    return _heads_last(out), lse.reshape(lse.shape[0], -1, lse.shape[3])


def backward(
    out,
    lse,
    dout,
    dlse,
    wanted,
    *,
    query,
    key,
    value,
    is_causal,
    pattern,
    ramp,
    scale,
    **terms,
):
    r"""Gradients, the weights computed again from the log-sum-exps L.

    .. math:: P_{ij} = m_{ij} e^{s_{ij} - L_i}, \qquad
              \bar s_{ij} = P_{ij} (\bar o_i \cdot v_j - \bar o_i \cdot o_i + \bar L_i), \qquad
              \bar m_{ij} = \bar s_{ij} / m_{ij}, \qquad \bar u_i = \sum_j \bar s_{ij} = \bar L_i

    Args:
      out, lse: What it returned.
      dout, dlse: Their cotangents.
      wanted: Names of the terms whose gradients are wanted.
      query, key, value, is_causal, pattern, ramp, scale, **terms: As there.

    Returns:
      ``{name: gradient}`` of the query, the key, the value, and what is wanted.
    """
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    given = {"query": query, "key": key, "value": value} | terms
    terms = _by_group(terms, key.shape[2])
    sizes, table = _blocks(query, key, terms, is_causal, pattern)
    q, k, v, do = (_heads_first(x, key.shape[2]) for x in (query, key, value, dout))
    k, v = k[:, :, 0], v[:, :, 0]
    score = _scorer(q, k, terms, sizes, is_causal, pattern, ramp, scale, once=True)
    none = jnp.isneginf(lse)  # queries that see no key
    dlse = jnp.where(none, 0.0, dlse)
    delta = jnp.einsum("bqhd,bqhd->bhq", dout, out, preferred_element_type=dtype) - dlse
    lse, delta = (x.reshape(*q.shape[:-1], 1) for x in (jnp.where(none, jnp.inf, lse), delta))

    def query_step(carry, row):
        dq, sums = carry
        i, columns, count = row
        q_i, do_i, lse_i, delta_i = (_cut(x, i, sizes[0]) for x in (q, do, lse, delta))

        def key_step(step, carry):
            dq_i, (dk, dv, dterms) = carry
            j = columns[step]
            k_j, v_j = (_cut(x, j, sizes[1]) for x in (k, v))
            scores, faded = score(q_i, k_j, i, j)
            weights = jnp.exp(scores - lse_i)
            dscores = weights * (_dot("gqd,sd->gqs", do_i, v_j) - delta_i)
            news = {}
            if faded is not None:
                news["spans"] = jnp.where(faded < 1, dscores, 0.0) / ramp
                weights, dscores = weights * faded, dscores * faded
            news["bias"] = news["key_bias"] = dscores
            dk = _put(dk, _cut(dk, j, sizes[1]) + _dot("gqs,gqd->sd", dscores, q_i), j)
            dv = _put(dv, _cut(dv, j, sizes[1]) + _dot("gqs,gqd->sd", weights, do_i), j)
            dterms = {name: _added(x, news[name], i, j, sizes) for name, x in dterms.items()}
            return dq_i + _dot("gqs,sd->gqd", dscores, k_j), (dk, dv, dterms)

        dq_i, sums = lax.fori_loop(0, count, key_step, (jnp.zeros_like(q_i, dtype), sums))
        return (_put(dq, (dq_i * scale).astype(q.dtype), i), sums), None

    summed = [name for name in ("bias", "key_bias", "spans") if name in wanted]
    dterms = {name: jnp.zeros_like(terms[name], dtype) for name in summed}
    sums = jnp.zeros_like(k, dtype), jnp.zeros_like(v, dtype), dterms
    (dq, (dk, dv, dterms)), _ = lax.scan(query_step, (jnp.zeros_like(q), sums), table, reverse=True)
    if "query_bias" in wanted:
        dterms["query_bias"] = _summed(dlse, given["query_bias"].shape)
    dk, dv = (x[:, :, None] for x in (dk * scale, dv))
    gradients = {"query": _heads_last(dq), "key": _heads_last(dk), "value": _heads_last(dv)}
    gradients |= dterms
    return {n: x.reshape(given[n].shape).astype(given[n].dtype) for n, x in gradients.items()}


def _blocks(query, key, terms, is_causal, pattern):
    """Sizes of a block of queries and of keys, and for each of the queries' the list of keys'."""
    batch, _, heads, _ = query.shape
    target = BLOCK if batch * heads <= MANY else BLOCK_OF_MANY
    lengths = query.shape[1], key.shape[1]
    sizes = tuple(_size(length, target) for length in lengths)
    # Where positions are given, what they are is not known yet.
    if "query_positions" in terms or "key_positions" in terms:
        is_causal, pattern = False, None
    kept = kept_blocks(*lengths, *sizes, is_causal=is_causal, pattern=pattern)
    columns, counts = block_lists(kept)
    return sizes, (np.arange(len(counts), dtype=np.int32), columns, counts)


def _size(length, target):
    """The size near the target that cuts a length into even blocks."""
    even = -(-length // -(-length // target))
    return min(length, -(-even // 8) * 8)


def _scorer(q, k, terms, sizes, is_causal, pattern, ramp, scale, once=False):
    """Makes the function of a block's scores.

    Args:
      q, k: All queries ``[…, queries, dim]`` and keys ``[…, keys, dim]``.
      terms: From :func:`_by_group`.
      sizes: Of a block.
      is_causal, pattern, ramp, scale: As in :func:`forward`.
      once: Whether a query that two blocks hold is hidden in the later of them.

    Returns:
      ``score(q_i, k_j, i, j) -> (scores, faded)``: s, -inf where a key is hidden, and m or None.
    """
    lengths = q.shape[-2], k.shape[-2]
    dtype = jnp.promote_types(q.dtype, jnp.float32)

    def score(q_i, k_j, i, j):
        block = {name: _tile(x, i, j, sizes) for name, x in terms.items()}
        scores = _dot("gqd,sd->gqs", q_i, k_j) * scale
        offsets = [block[n].astype(dtype) for n in ("query_bias", "key_bias") if n in block]
        if offsets:
            scores += sum(offsets)
        if "bias" in block:
            scores += block["bias"].astype(dtype)
        row = _start(i, lengths[0], sizes[0]) + jnp.arange(sizes[0])[:, None]
        column = _start(j, lengths[1], sizes[1]) + jnp.arange(sizes[1])
        t_q, t_k = block.get("query_positions", row), block.get("key_positions", column)
        seen = [block["mask"]] if "mask" in block else []
        if once and lengths[0] % sizes[0]:
            seen.append(row >= i * sizes[0])
        if lengths[1] % sizes[1]:
            seen.append(column >= j * sizes[1])
        if is_causal:
            seen.append(t_k <= t_q)
        if pattern is not None:
            seen.append(pattern(t_q, t_k))
        faded = None
        if "spans" in block:
            spans = block["spans"].astype(dtype)
            faded = jnp.clip((ramp + spans - (t_q - t_k)) / ramp, 0.0, 1.0)
            seen.append(faded > 0)
        for some in seen:
            scores = jnp.where(some, scores, -jnp.inf)
        return scores, faded

    return score


def _by_group(terms, kv_heads):
    """The terms that are there, with the five axes of the scores, each whole or 1."""
    grouped = {}
    for name, x in terms.items():
        if x is None:
            continue
        if name.endswith("positions"):
            x = x.reshape(-1, 1, x.shape[-1])
        if x.ndim == 3:
            x = x[..., None] if name.startswith("query") else x[:, :, None]
        batch, heads, *lengths = x.shape
        heads = (1, 1) if heads == 1 else (kv_heads, heads // kv_heads)
        grouped[name] = x.reshape(batch, *heads, *lengths)
    return grouped


def _heads_first(x, kv_heads):
    """``[batch, n, heads, dim]`` as ``[batch, kv_heads, group, n, dim]``."""
    batch, length, _, dim = x.shape
    return x.reshape(batch, length, kv_heads, -1, dim).transpose(0, 2, 3, 1, 4)


def _heads_last(x):
    """Undoes :func:`_heads_first`."""
    batch, _, _, length, dim = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, length, -1, dim)


def _dot(axes, a, b):
    """A product of blocks in the dtype of b, summed in float32 (float64 of such)."""
    a_axes, axes = axes.split(",")
    b_axes, out_axes = axes.split("->")
    dtype = jnp.promote_types(b.dtype, jnp.float32)
    axes = f"bk{a_axes},bk{b_axes}->bk{out_axes}"
    return jnp.einsum(axes, a.astype(b.dtype), b, preferred_element_type=dtype)


def _start(i, length, size):
    return jnp.minimum(i * size, length - size)


def _cut(x, i, size):
    """Block i of the last axis but one."""
    return lax.dynamic_slice_in_dim(x, _start(i, x.shape[-2], size), size, x.ndim - 2)


def _put(x, block, i):
    """Undoes :func:`_cut`."""
    at = _start(i, x.shape[-2], block.shape[-2])
    return lax.dynamic_update_slice_in_dim(x, block, at, x.ndim - 2)


def _corner(x, i, j, sizes):
    """Where the block (i, j) starts in what broadcasts to the scores, and its lengths there."""
    at = zip((i, j), x.shape[-2:], sizes, strict=True)
    zero = np.int32(0)  # of the blocks' dtype, as slices ask, under 64-bit types too
    pairs = [(zero, 1) if n == 1 else (_start(b, n, size), size) for b, n, size in at]
    starts, lengths = zip(*pairs, strict=True)
    return (zero, zero, zero, *starts), (*x.shape[:3], *lengths)


def _tile(x, i, j, sizes):
    return lax.dynamic_slice(x, *_corner(x, i, j, sizes))


def _added(x, block, i, j, sizes):
    """x with a block of scores added, over whose axes it is summed where it has 1."""
    starts, lengths = _corner(x, i, j, sizes)
    total = lax.dynamic_slice(x, starts, lengths) + _summed(block, lengths)
    return lax.dynamic_update_slice(x, total, starts)


def _summed(x, shape):
    """x summed over the axes where the shape has 1."""
    axes = tuple(a for a, n in enumerate(shape) if n == 1 != x.shape[a])
    return x.sum(axes, keepdims=True)
