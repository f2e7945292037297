"""Where a token is, as features."""

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
