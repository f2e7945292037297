"""Where a token is, as features or as biases of the scores."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinker.numerics import UserError


def rope(x, positions, *, base=10_000.0):
    r"""Rotary position embedding.

    Features i and i + d/2 form a plane, rotated by an angle that grows with the position:

    .. math:: \begin{pmatrix} y_i \\ y_{i+d/2} \end{pmatrix} =
              \begin{pmatrix} \cos p\theta_i & -\sin p\theta_i \\
                              \sin p\theta_i & \cos p\theta_i \end{pmatrix}
              \begin{pmatrix} x_i \\ x_{i+d/2} \end{pmatrix}, \qquad \theta_i = b^{-2i/d}

    so that the product of a query and a key depends on their distance alone.

    Args:
      x: Queries or keys, ``[..., length, heads, d]``, d even; rotated in float32.
      positions: p, ``[..., length]``.
      base: b; the slowest plane turns once in about 2πb positions.

    Returns:
      y, of x's shape and dtype.

    Raises:
      UserError: d is odd.

    Source: RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021, arXiv:2104.09864,
      Eq. 15. There neighbouring features form a plane; halves, as here, are the same up to a
      permutation of the features and cheaper.
    """
    d = x.shape[-1]
    if d % 2:
        raise UserError(f"rope turns pairs of features, but x has {d} per head: {x.shape}")
    angles = positions[..., None, None] * base ** (-jnp.arange(0, d, 2, dtype=jnp.float32) / d)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def sincos2d(height, width, features, *, base=10_000.0):
    r"""Fixed position embedding of a grid, a quarter of the features each for four waves.

    .. math:: e(y, x) = [\sin x\omega,\; \cos x\omega,\; \sin y\omega,\; \cos y\omega],
              \qquad \omega_i = b^{-4i/d}, \quad i = 0, \dots, d/4 - 1

    Args:
      height: Rows of the grid.
      width: Columns.
      features: d, a multiple of 4.
      base: b.

    Returns:
      ``[height * width, features]``, row by row, float32.

    Raises:
      UserError: d is not a multiple of 4.

    Source: An Empirical Study of Training Self-Supervised Vision Transformers, ICCV 2021,
      arXiv:2104.02057, Section 5, as in the authors' code.
    """
    if features % 4:
        raise UserError(f"sincos2d has four waves, which a width of {features} does not divide by")
    omega = base ** (-jnp.arange(features // 4, dtype=jnp.float32) / (features // 4))
    y, x = jnp.mgrid[:height, :width]
    y, x = y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega
    return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], -1)


def alibi_slopes(heads):
    r"""How much of a score each head of :func:`alibi` takes off per token of distance.

    .. math:: m_h = 2^{-8h/H}, \qquad h = 1, \dots, H

    for a power of two H; else those of the power of two below it, and then every second one of the
    power above.

    Args:
      heads: H.

    Returns:
      m, ``[heads]``, float32.

    Source: Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation,
      ICLR 2022, arXiv:2108.12409, Section 3; other numbers of heads as in the authors' code.
    """
    below = 2 ** (heads.bit_length() - 1)
    exponents = [8 * h / below for h in range(1, below + 1)]
    exponents += [4 * h / below for h in range(1, 2 * (heads - below), 2)]
    return 2.0 ** -jnp.array(exponents, jnp.float32)


def alibi(x, positions, heads):
    r"""Biases that fall linearly with the distance: a ``bias_fn``.

    .. math:: b_{ij} = -m_h (t_i - t_j)

    with the slopes of :func:`alibi_slopes`. They are for causal attention; a key that comes after
    its query would be favoured.

    Args:
      x: Not read.
      positions: t, ``[tokens]``.
      heads: Heads.

    Returns:
      ``query_bias`` and ``key_bias`` of :func:`tinker.kernels.flash_attention`, ``[1, heads,
      tokens]`` each, float32.

    Source: Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation,
      ICLR 2022, arXiv:2108.12409, Section 3.
    """
    key_bias = (alibi_slopes(heads)[:, None] * positions)[None]
    return {"query_bias": -key_bias, "key_bias": key_bias}


def cable_bias(scores):
    r"""Biases that fall with the distance as fast as the tokens on the way say.

    .. math:: b_{ij} = \sum_{k=j+1}^i a_k = c_i - c_j, \qquad a_k = -\mathrm{softplus}(z_k),
              \qquad c_i = \sum_{k \le i} a_k

    for j <= i. A constant a is :func:`alibi`'s slope; log-sigmoid instead of -softplus is the same
    with z negated.

    Args:
      scores: z, ``[batch, tokens, heads]``; summed in float32.

    Returns:
      ``query_bias`` c and ``key_bias`` -c of :func:`tinker.kernels.flash_attention`, ``[batch,
      heads, tokens]`` each, float32. c is as large as the sequence is long, and so is the error of
      a difference: about c times 1e-7.

    Source: Context-aware Biases for Length Extrapolation, 2025, arXiv:2503.08067, as in the
      authors' code.
    """
    c = jnp.cumsum(-jax.nn.softplus(scores.astype(jnp.float32)), 1).swapaxes(1, 2)
    return {"query_bias": c, "key_bias": -c}


def cable(x, positions, heads):
    r"""Context-aware biases: a ``bias_fn``.

    .. math:: z = x W + w

    of which :func:`cable_bias` makes the biases, in place of any other encoding of positions or
    beside one. To be called in a flax module, whose Dense layer ``cable`` W and w become.

    Args:
      x: What attention reads, ``[batch, tokens, width]``.
      positions: Not read.
      heads: Heads.

    Returns:
      See :func:`cable_bias`.

    Source: Context-aware Biases for Length Extrapolation, 2025, arXiv:2503.08067. W starts with a
      standard deviation of 0.02 and w at zero, as in the authors' code. There the scores are not
      divided by the square root of the head's width either: give the attention ``scale=1.0``.
    """
    init = nn.initializers.normal(0.02)
    return cable_bias(nn.Dense(heads, dtype=jnp.float32, kernel_init=init, name="cable")(x))
