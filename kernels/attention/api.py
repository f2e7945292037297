"""Attention in memory linear in the length."""

import chex

from tinker.kernels.attention import reference
from tinker.kernels.dispatch import choose


def flash_attention(
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
    return_lse=False,
    implementation=None,
):
    r"""Softmax attention whose scores are never held, forward or backward.

    .. math:: o_i = \frac{\sum_j w_{ij} v_j}{\sum_j w_{ij}}, \qquad
              w_{ij} = a_{ij} m_{ij} \exp\big(\alpha \, q_i \cdot k_j + (u_i + c_j) + b_{ij}\big),
              \qquad m_{ij} = \mathrm{clip}\Big(\frac{R + e_j - (t_i - t_j)}{R}, 0, 1\Big)

    where a says which keys a query may see. Products and sums are taken in float32. A query that
    sees no key has the output 0, and the log-sum-exp -inf.

    Args:
      query: q, ``[batch, queries, heads, dim]``.
      key: k, ``[batch, keys, kv_heads, dim]``; kv_heads divides heads, and each of them serves that
        many neighbouring query heads.
      value: v, ``[batch, keys, kv_heads, dim]``.
      bias: b, of four axes that broadcast to ``[batch, heads, queries, keys]``. What has a row for
        each query is as large as the scores: prefer ``query_bias`` and ``key_bias``.
      mask: Boolean, of such axes too; False hides a key from a query.
      is_causal: Whether a query sees only keys of its own position and before, as in
        ``jax.nn.dot_product_attention``.
      query_bias: u, ``[batch or 1, heads or 1, queries]``, float.
      key_bias: c, ``[batch or 1, heads or 1, keys]``, float: log-sizes of merged tokens, or with u
        a bias that depends on distance, such as ALiBi's or CABLE's (u = -c).
      spans: e, ``[batch or 1, heads or 1, keys]``, float, in positions: how long a key is seen in
        full; Expire-Span's. None: for ever.
      ramp: R > 0, positions in which it then fades; with ``spans``.
      query_positions: t_i, integers ``[queries]`` or ``[batch, queries]``; 0, 1, … by default.
      key_positions: t_j, ``[keys]`` or ``[batch, keys]``; 0, 1, … by default. A key not there is
        one after all queries, under ``is_causal``.
      pattern: ``pattern(t_i, t_j) -> bool`` of integer arrays that broadcast, made of operators
        alone; hashable, static. Blocks in which it is nowhere true are not computed.
      scale: Of the products; :math:`\mathrm{dim}^{-1/2}` by default.
      return_lse: Whether to return the logarithm of the sums of w too.
      implementation: None (the fastest measured), "xla" or "pallas".

    Returns:
      o, ``[batch, queries, heads, dim]``, of the query's dtype; with ``return_lse`` also
      ``[batch, heads, queries]``, float32. Both are differentiable in all float arguments.

    Raises:
      UserError: An unknown implementation.

    Source: FlashAttention-2, ICLR 2024, arXiv:2307.08691; spans as in Not All Memories are Created
      Equal: Learning to Forget by Expiring, ICML 2021, arXiv:2105.06548.
    """
    choose(implementation)
    chex.assert_rank([query, key, value], 4)
    options = dict(is_causal=is_causal, query_bias=query_bias, key_bias=key_bias, spans=spans)
    options |= dict(ramp=ramp, query_positions=query_positions, key_positions=key_positions)
    out, lse = reference.attend(
        query, key, value, bias, mask, pattern=pattern, scale=scale, **options
    )
    out = out.astype(query.dtype)
    return (out, lse) if return_lse else out
