"""Smooth forms of sorting and selecting."""

import jax
import jax.numpy as jnp

BISECTIONS = 40


def soft_top_k(x, k, *, alpha=1.0, log=False):
    r"""A share in [0, 1] for every entry that sums to k and tends to the indicator of the top k.

    .. math:: \zeta_j = \sigma\big(\alpha (x_j + t)\big), \qquad \sum_j \zeta_j = k

    with t by bisection, and differentiated as the implicit function that it is: with
    :math:`v_j = \alpha \zeta_j (1 - \zeta_j)` the Jacobian is
    :math:`\mathrm{diag}(v) - v v^\top / \sum_j v_j`.

    Args:
      x: ``[..., n]``, any float dtype; computed in float32 at least.
      k: 0 < k < n, a number or ``[...]``.
      alpha: :math:`\alpha` > 0; the larger, the closer to the indicator.
      log: Whether to return :math:`\log \zeta`, of entries far from the top too.

    Returns:
      :math:`\zeta`, or its logarithm, ``[..., n]``, float32.

    Source: Dual-Encoders for Extreme Multi-Label Classification, ICLR 2024, arXiv:2310.10636,
      SoftTop-k. The authors' bracket holds for n up to some 20,000 k, this one for any.
    """
    x = jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))
    k = jnp.asarray(k, x.dtype)[..., None]
    fixed, alpha = jax.lax.stop_gradient(x), jnp.asarray(alpha, x.dtype)
    # Were all entries the largest or the smallest, each would have to be k / n.
    level = (jnp.log(k) - jnp.log(x.shape[-1] - k)) / alpha
    low = level - fixed.max(-1, keepdims=True)
    high = level - fixed.min(-1, keepdims=True)

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        few = jax.nn.sigmoid(alpha * (fixed + middle)).sum(-1, keepdims=True) < k
        return jnp.where(few, middle, low), jnp.where(few, high, middle)

    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (low, high))
    t = (low + high) / 2
    share = jax.nn.sigmoid(alpha * (fixed + t))
    slope = jnp.sum(alpha * share * (1 - share), -1, keepdims=True)
    # One step of Newton's method, of which only the derivative is taken.
    excess = jax.nn.sigmoid(alpha * (x + t)).sum(-1, keepdims=True)
    steep = slope > 1e-30  # else the top is cut so sharply that t moves nothing
    step = (excess - jax.lax.stop_gradient(excess)) / jnp.where(steep, slope, 1.0)
    scores = alpha * (x + t - jnp.where(steep, step, 0.0))
    return jax.nn.log_sigmoid(scores) if log else jax.nn.sigmoid(scores)
