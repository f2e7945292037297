"""Attention in memory linear in the length."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from tinker.kernels.attention import xla
from tinker.kernels.dispatch import choose, run_pallas
from tinker.numerics.errors import UserError

PALLAS = ("query", "key", "value", "query_bias", "key_bias", "spans")  # arrays its forms take


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

    where a says which keys a query may see. Sums are in float32; products of float32 are as
    ``jax.default_matmul_precision`` says. A query that sees no key has the output 0, and the
    log-sum-exp -inf. There is no second derivative.

    Args:
      query: q, ``[batch, queries, heads, dim]``.
      key: k, ``[batch, keys, kv_heads, dim]``; kv_heads divides heads, and each of them serves that
        many neighbouring query heads.
      value: v, ``[batch, keys, kv_heads, dim]``.
      bias: b, of four axes that broadcast to ``[batch, heads, queries, keys]``. What has a row for
        each query is as large as the scores: prefer ``query_bias`` and ``key_bias``. One row for
        all queries is the same as the latter.
      mask: Boolean, of such axes too; False hides a key from a query.
      is_causal: Whether a query sees only keys of its own position and before, as in
        ``jax.nn.dot_product_attention``.
      query_bias: u, ``[batch or 1, heads or 1, queries]``, float.
      key_bias: c, ``[batch or 1, heads or 1, keys]``, float: log-sizes of merged tokens, or with u
        a bias that depends on distance, such as ALiBi's or CABLE's (u = -c).
      spans: e, ``[batch or 1, heads or 1, keys]``, float, in positions: how long a key is seen in
        full; Expire-Span's. None: for ever.
      ramp: R > 0, a number of positions, over which it then fades; with ``spans``, whose
        gradient is 0 but where 0 < m < 1.
      query_positions: t_i, integers ``[queries]`` or ``[batch, queries]``; 0, 1, … by default.
      key_positions: t_j, ``[keys]`` or ``[batch, keys]``; 0, 1, … by default. A key not there is
        one after all queries, under ``is_causal``.
      pattern: ``pattern(t_i, t_j) -> bool`` of integer arrays that broadcast, made of operators
        alone; hashable, static. Blocks in which it is nowhere true are not computed.
      scale: α, a number; :math:`\mathrm{dim}^{-1/2}` by default.
      return_lse: Whether to return the logarithm of the sums of w too.
      implementation: None (the fastest measured), "xla" or "pallas".

    Returns:
      o, ``[batch, queries, heads, dim]``, of the query's dtype; with ``return_lse`` also
      ``[batch, heads, queries]``, float32. Both are differentiable in all float arguments.

    Raises:
      UserError: An unknown implementation, spans without a ramp, or what Pallas forms lack, with
        "pallas": ``bias``, ``mask`` and positions.

    Source: FlashAttention-2, ICLR 2024, arXiv:2307.08691; spans as in Not All Memories are Created
      Equal: Learning to Forget by Expiring, ICML 2021, arXiv:2105.06548.
    """
    implementation = choose(implementation)
    if bias is not None and bias.shape[2:] == (1, key.shape[1]):
        bias, row = None, bias[:, :, 0].astype(jnp.promote_types(bias.dtype, jnp.float32))
        key_bias = row if key_bias is None else key_bias + row
    arrays = dict(query=query, key=key, value=value, bias=bias, mask=mask, query_bias=query_bias)
    arrays |= dict(key_bias=key_bias, spans=spans)
    arrays |= dict(query_positions=query_positions, key_positions=key_positions)
    _check(**arrays)
    lacking = [name for name, x in arrays.items() if x is not None and name not in PALLAS]
    if implementation == "pallas" and lacking:
        raise UserError(f"implementation='pallas' takes no {lacking[0]}; None and 'xla' do")
    if (spans is None) != (ramp is None) or (ramp is not None and not ramp > 0):
        raise UserError(f"ramp={ramp}: spans take a positive one, and without spans there is none")
    static = _Static(
        bool(is_causal),
        pattern,
        type(pattern),
        None if ramp is None else float(ramp),
        query.shape[-1] ** -0.5 if scale is None else float(scale),
        implementation,
    )
    out, lse = _jitted(static, _varying_alike(arrays))
    return (out, lse) if return_lse else out


def _check(query, key, value, **terms):
    chex.assert_rank([query, key], 4)
    (batch, queries, heads, dim), (_, keys, kv_heads, _) = query.shape, key.shape
    chex.assert_is_divisible(heads, kv_heads)
    scores = tuple({1, n} for n in (batch, heads, queries, keys))
    shapes = dict(query=query.shape, key=(batch, keys, kv_heads, dim), bias=scores, mask=scores)
    shapes |= dict(value=shapes["key"])
    for name, x in dict(query=query, key=key, value=value, **terms).items():
        if x is None:
            continue
        length = queries if name.startswith("query") else keys
        if name.endswith("positions"):
            expected, dtype = ({1, batch}, length)[-x.ndim :], int
        else:
            expected = shapes.get(name, (*scores[:2], length))
            dtype = bool if name == "mask" else query.dtype if name in ("key", "value") else float
        chex.assert_shape(x, expected, custom_message=name)
        chex.assert_type(x, dtype, custom_message=name)


def _varying_alike(arrays):
    """Within a shard_map, all vary over the axes that any does, as loops over them must."""
    axes = {
        name: jax.typeof(x).manual_axis_type.varying for name, x in arrays.items() if x is not None
    }
    union = frozenset().union(*axes.values())
    missing = {name: tuple(union - own) for name, own in axes.items() if union - own}
    return arrays | {
        name: lax.pcast(arrays[name], over, to="varying") for name, over in missing.items()
    }


class _Static(NamedTuple):
    is_causal: bool
    pattern: Any
    kind: type  # the pattern's: named tuples of two kinds can be equal
    ramp: float | None
    scale: float
    implementation: str


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static, arrays):
    if static.implementation == "pallas":
        return _pallas("forward", static, *(arrays[name] for name in PALLAS))
    return xla.forward(**arrays, **_options(static))


def _forward(static, primals):
    arrays = {name: None if x is None else x.value for name, x in primals.items()}
    # A structure without leaves, which a residual may be.
    wanted = {name: () for name, x in primals.items() if x is not None and x.perturbed}
    results = _attend(static, arrays)
    return results, (arrays, results, wanted)


def _backward(static, residuals, cotangents):
    arrays, results, wanted = residuals
    cotangents = tuple(
        jnp.zeros(x.shape, x.dtype) if isinstance(x, SymbolicZero) else x for x in cotangents
    )
    if static.implementation == "pallas":
        given = (arrays[name] for name in PALLAS)
        gradients = _pallas("backward", static, *given, *results, *cotangents)
        gradients = dict(zip(PALLAS, gradients, strict=True))
    else:
        gradients = xla.backward(*results, *cotangents, wanted, **arrays, **_options(static))
    return ({name: gradients.get(name) for name in arrays},)


_attend.defvjp(_forward, _backward, symbolic_zeros=True)
_jitted = jax.jit(_attend, static_argnums=0)


def _options(static):
    return {name: getattr(static, name) for name in ("is_causal", "pattern", "ramp", "scale")}


def _pallas(which, static, *arrays):
    from tinker.kernels.attention import pallas_tpu

    def gpu(*arrays):
        from tinker.kernels.attention import pallas_gpu

        return getattr(pallas_gpu, which)(*arrays, **_options(static))

    tpu = functools.partial(getattr(pallas_tpu, which), **_options(static))
    return run_pallas(tpu, gpu, *arrays)
