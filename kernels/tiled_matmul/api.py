"""Log-sum-exp and the sum of softplus over the rows of a product that is never held."""

import functools

import chex
import jax
import jax.numpy as jnp

from tinker.kernels.dispatch import choose, run_pallas
from tinker.kernels.tiled_matmul import xla
from tinker.numerics.errors import UserError


def matmul_logsumexp(
    x,
    y,
    *,
    bias=None,
    softcap=None,
    exclude=None,
    filter_below=None,
    precision=None,
    implementation=None,
):
    r"""Log-sum-exp of each row of a product, tile by tile, forward and backward.

    .. math:: \ell_i = \log \sum_{j \ne e_i} \exp f(x_i \cdot y_j + b_j), \qquad
              f(z) = c \tanh(z / c)

    Only the n log-sum-exps are kept for the backward pass, which computes each tile again.

    Args:
      x: ``[n, d]``, any float dtype; products are summed in float32 at least.
      y: ``[m, d]``.
      bias: b, ``[m]``, or None; a column of -inf is left out.
      softcap: c > 0, or None for the identity; static.
      exclude: e, ``[n]`` integers: the column that a row leaves out; outside [0, m), none.
      filter_below: Backward, tiles whose softmax is everywhere below this are left out: an
        approximation; static. None: nothing is.
      precision: Of the products, as in ``jax.lax.dot``; static.
      implementation: None (the fastest measured), "xla" or "pallas".

    Returns:
      ``[n]``, float32 at least; -inf where nothing is left. Differentiable in x, y and bias.

    Raises:
      UserError: An unknown implementation, or "pallas" and a dtype or precision it has not.

    Source: Cut Your Losses in Large-Vocabulary Language Models, ICLR 2025, arXiv:2411.09009.
    """
    chosen = check_operands(x, y, bias, exclude, precision, implementation)
    return _reduce(x, y, bias, exclude, "logsumexp", softcap, filter_below, precision, chosen)


def matmul_softplus_sum(x, y, *, bias=None, precision=None, implementation=None):
    r"""Sum of the softplus of each row of a product, tile by tile, forward and backward.

    .. math:: \ell_i = \sum_j \log\big(1 + \exp(x_i \cdot y_j + b_j)\big)

    Args:
      x: ``[n, d]``, any float dtype; products are summed in float32 at least.
      y: ``[m, d]``.
      bias: b, ``[m]`` or ``[]``, or None.
      precision: Of the products, as in ``jax.lax.dot``; static.
      implementation: None (the fastest measured), "xla" or "pallas".

    Returns:
      ``[n]``, float32 at least. Differentiable in x, y and bias.

    Raises:
      UserError: An unknown implementation, or "pallas" and a dtype or precision it has not.
    """
    bias = None if bias is None else jnp.broadcast_to(bias, (len(y),))
    chosen = check_operands(x, y, bias, None, precision, implementation)
    return _reduce(x, y, bias, None, "softplus", None, None, precision, chosen)


def check_operands(x, y, bias, exclude, precision, implementation):
    """Checks shapes, and that the implementation takes them; returns which it is."""
    chex.assert_rank([x, y], 2)
    chex.assert_axis_dimension(y, 1, x.shape[1])
    chex.assert_shape([b for b in (bias,) if b is not None], (len(y),))
    chex.assert_shape([e for e in (exclude,) if e is not None], (len(x),))
    chosen = choose(implementation)
    if chosen == "pallas":
        dtype, highest = jnp.result_type(x, y), jax.lax.Precision.HIGHEST
        if dtype not in (jnp.float32, jnp.bfloat16):
            raise UserError(f"implementation='pallas' takes float32 and bfloat16, not {dtype}")
        if precision not in (None, "default", jax.lax.Precision.DEFAULT, "highest", highest):
            raise UserError(f"implementation='pallas' has no precision={precision!r} but 'highest'")
    return chosen


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7, 8))
def _reduce(x, y, bias, exclude, kind, softcap, filter_below, precision, implementation):
    options = {"kind": kind, "softcap": softcap, "precision": precision}
    return reduce_rows(x, y, bias, exclude, implementation=implementation, **options)


def _forward(x, y, bias, exclude, *static):
    result = _reduce(x, y, bias, exclude, *static)
    return result, (x, y, bias, exclude, result)


def _backward(kind, softcap, filter_below, precision, implementation, saved, g):
    options = {"kind": kind, "softcap": softcap, "precision": precision}
    options |= {"filter_below": filter_below, "implementation": implementation}
    return *reduce_rows_gradients(*saved, g, **options), None


_reduce.defvjp(_forward, _backward)


def reduce_rows(x, y, bias, exclude, *, implementation, **options):
    """The reduction of a chosen implementation, for ops that differentiate it themselves.

    Args:
      x, y, bias, exclude: As in :func:`matmul_logsumexp`.
      implementation: "xla" or "pallas".
      **options: ``kind`` ("logsumexp" or "softplus"), ``softcap`` and ``precision``.

    Returns:
      ``[n]``.
    """
    if implementation == "xla":
        return xla.forward(x, y, bias, exclude, **options)
    return _pallas("forward", *_plain(x, y, bias, exclude), **options)


def reduce_rows_gradients(x, y, bias, exclude, result, g, *, implementation, **options):
    r"""The sums over tiles of what each product contributes.

    .. math:: \sum_{j \ne e_i} g_i w_{ij} f'(z_{ij}) y_j, \qquad
              w_{ij} = \exp(f(z_{ij}) - r_i) \text{ or } \sigma(z_{ij})

    for x, and likewise for y and the bias.

    Args:
      x, y, bias, exclude, implementation: As in :func:`reduce_rows`.
      result: r, ``[n]``: what that returned, or another offset that is no smaller.
      g: ``[n]``.
      **options: Its own, and ``filter_below``.

    Returns:
      Cotangents of x, y and bias, of their dtypes; of a bias of None, None.
    """
    if implementation == "xla":
        return xla.backward(x, y, bias, exclude, result, g, **options)
    dx, dy, db = _pallas("backward", *_plain(x, y, bias, exclude), result, g, **options)
    db = None if bias is None else db.astype(bias.dtype)
    return dx.astype(x.dtype), dy.astype(y.dtype), db


def _plain(x, y, bias, exclude):
    """Operands of one dtype, and a bias and an excluded column (or -1) for all."""
    dtype = jnp.result_type(x, y)
    bias = jnp.zeros(len(y)) if bias is None else bias
    exclude = jnp.full(len(x), -1) if exclude is None else exclude
    return x.astype(dtype), y.astype(dtype), bias.astype(jnp.float32), exclude.astype(jnp.int32)


def _pallas(name, *arrays, **options):
    from tinker.kernels.tiled_matmul import pallas_tpu

    def gpu(*arrays):
        from tinker.kernels.tiled_matmul import pallas_gpu

        return getattr(pallas_gpu, name)(*arrays, **options)

    return run_pallas(functools.partial(getattr(pallas_tpu, name), **options), gpu, *arrays)
