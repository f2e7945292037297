"""Attention as its equation says, with the matrix of scores."""

import jax.numpy as jnp


def attend(
    query,
    key,
    value,
    bias=None,
    mask=None,
    *,
    is_causal=False,
    query_bias=None,
    key_bias=None,
    spans=None,
    ramp=None,
    query_positions=None,
    key_positions=None,
    pattern=None,
    scale=None,
):
    """What :func:`tinker.kernels.flash_attention` computes: ``(outputs, log-sum-exp)``."""
    batch, queries, heads, dim = query.shape
    keys = key.shape[1]
    key, value = (jnp.repeat(x, heads // x.shape[2], 2) for x in (key, value))
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    query, key, value = (x.astype(dtype) for x in (query, key, value))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision="highest")
    scores *= dim**-0.5 if scale is None else scale
    if query_bias is not None or key_bias is not None:
        u = 0.0 if query_bias is None else query_bias[..., :, None]
        v = 0.0 if key_bias is None else key_bias[..., None, :]
        scores += u + v
    if bias is not None:
        scores += bias
    t_q = jnp.arange(queries) if query_positions is None else query_positions
    t_k = jnp.arange(keys) if key_positions is None else key_positions
    t_q, t_k = (jnp.broadcast_to(t, (batch, t.shape[-1])) for t in (t_q, t_k))
    t_q, t_k = t_q[:, None, :, None], t_k[:, None, None, :]
    weights = jnp.ones(())
    if spans is not None:
        weights = jnp.clip((ramp + spans[..., None, :] - (t_q - t_k)) / ramp, 0.0, 1.0)
    if is_causal:
        weights = weights * (t_k <= t_q)
    if pattern is not None:
        weights = weights * pattern(t_q, t_k)
    if mask is not None:
        weights = weights * mask
    weights = jnp.broadcast_to(weights, scores.shape)
    largest = jnp.where(weights > 0, scores, -jnp.inf).max(-1, keepdims=True)
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    kept = jnp.where(weights > 0, scores - largest, -jnp.inf)
    weights = weights * jnp.exp(kept)
    total = weights.sum(-1, keepdims=True)
    none = total == 0
    outputs = jnp.einsum("bhqk,bkhd->bqhd", weights / jnp.where(none, 1.0, total), value)
    lse = jnp.where(none, -jnp.inf, jnp.log(jnp.where(none, 1.0, total)) + largest)
    return outputs, lse[..., 0]
