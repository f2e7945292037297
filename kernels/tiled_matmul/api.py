"""Log-sum-exp and the sum of softplus over the rows of a product that is never held."""

import chex

from tinker.kernels.dispatch import choose
from tinker.kernels.tiled_matmul import reference


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
      UserError: An unknown implementation.

    Source: Cut Your Losses in Large-Vocabulary Language Models, ICLR 2025, arXiv:2411.09009.
    """
    choose(implementation)
    chex.assert_rank([x, y], 2)
    return reference.logsumexp(
        x, y, bias=bias, softcap=softcap, exclude=exclude, precision=precision
    )


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
      UserError: An unknown implementation.
    """
    choose(implementation)
    chex.assert_rank([x, y], 2)
    return reference.softplus_sum(x, y, bias=bias, precision=precision)
