"""Projections onto sparse sets; the convex ones are ``optax.projections``'."""

import jax
import jax.numpy as jnp
import optax


def _check_k(x, k):
    if not 0 < k <= x.shape[-1]:
        raise ValueError(f"k={k} entries of a last axis of {x.shape[-1]}, in {x.shape}")


def sparse_projection(x, k):
    r"""The nearest vector with at most k nonzeros: the k entries of largest magnitude are kept.

    .. math:: \arg\min_{\lVert p \rVert_0 \le k} \lVert p - x \rVert^2

    Args:
      x: ``[..., n]``, of any dtype.
      k: In [1, n]; static.

    Returns:
      ``[..., n]``, like x; of equal magnitudes the first are kept. The gradient is 1 where an
      entry was kept and 0 elsewhere.
    """
    _check_k(x, k)
    _, kept = jax.lax.top_k(jnp.abs(x), k)
    values = jnp.take_along_axis(x, kept, -1)
    return jnp.put_along_axis(jnp.zeros_like(x), kept, values, -1, inplace=False)


def sparse_simplex_projection(x, k, *, scale=1.0):
    r"""The nearest point of a simplex with at most k nonzeros.

    .. math:: \arg\min_p \lVert p - x \rVert^2 \quad \text{subject to} \quad p \ge 0,\;
              p^\top 1 = b,\; \lVert p \rVert_0 \le k

    which is the projection of the k largest entries onto the simplex, and zeros elsewhere; with
    k = n it is ``optax.projections.projection_simplex``. For ``[..., n]`` and in float32.

    Args:
      x: ``[..., n]``, any float dtype; computed in float32 at least.
      k: In [1, n]; static.
      scale: b >= 0, ``[...]`` or a scalar.

    Returns:
      ``[..., n]``, float32; of equal entries the first are kept. Its gradient is that of the
      projection onto the face that it lies on.

    Source: Sparse projections onto the simplex, ICML 2013, arXiv:1206.1529, Algorithm 1.
    """
    _check_k(x, k)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scale = jnp.broadcast_to(jnp.asarray(scale).astype(x.dtype), x.shape[:-1])
    values, kept = jax.lax.top_k(x, k)
    values = values - values[..., :1]  # changes nothing but the digits left at large entries
    project = jnp.vectorize(optax.projections.projection_simplex, signature="(k),()->(k)")
    some = scale > 0
    values = jnp.where(some[..., None], project(values, jnp.where(some, scale, 1.0)), 0.0)
    return jnp.put_along_axis(jnp.zeros_like(x), kept, values, -1, inplace=False)
