"""Distances between all pairs of rows, and the nearest of them."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from tinker.numerics.errors import check_choice


def _wide(*arrays):
    """The arrays in their common dtype, float32 at least."""
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return [jnp.asarray(x, dtype) for x in arrays]


def _check_pair(x, y):
    chex.assert_equal_shape_prefix([x, y], x.ndim - 2)
    chex.assert_axis_dimension(y, -1, x.shape[-1])


def l2_normalize(x, *, axis=-1):
    r"""Scales vectors to unit length, :math:`x / \lVert x \rVert`.

    Args:
      x: ``[..., dim]``, any float dtype; computed in float32 at least.
      axis: The axis, or axes, that the norm is taken over.

    Returns:
      Unit vectors, ``[..., dim]``, float32. A vector shorter than 1e-15 gives zero, with zero
      gradient.
    """
    (x,) = _wide(x)
    square = jnp.sum(x * x, axis, keepdims=True)
    alive = square > 1e-30
    return x * jnp.where(alive, jax.lax.rsqrt(jnp.where(alive, square, 1.0)), 0.0)


def squared_euclidean(x, y):
    r"""Squared Euclidean distance of all pairs, by one matrix product.

    .. math:: D_{ij} = \lVert x_i \rVert^2 + \lVert y_j \rVert^2 - 2 \langle x_i, y_j \rangle

    taken about the mean of y, so that a common offset costs no digits, and clipped at zero.

    Args:
      x: ``[..., n, dim]``, any float dtype; computed in float32 at least.
      y: ``[..., m, dim]``.

    Returns:
      Squared distances >= 0, ``[..., n, m]``, float32.
    """
    _check_pair(x, y)
    x, y = _wide(x, y)
    centre = jax.lax.stop_gradient(jnp.mean(y, -2, keepdims=True))
    x, y = x - centre, y - centre
    products = jnp.einsum("...id,...jd->...ij", x, y, precision="highest")
    squares = jnp.sum(x * x, -1)[..., :, None] + jnp.sum(y * y, -1)[..., None, :]
    return jnp.maximum(squares - 2.0 * products, 0.0)


def euclidean(x, y):
    r"""Euclidean distance of all pairs, :math:`D_{ij} = \lVert x_i - y_j \rVert`.

    Args:
      x: ``[..., n, dim]``, any float dtype; computed in float32 at least.
      y: ``[..., m, dim]``.

    Returns:
      Distances, ``[..., n, m]``, float32. Where one is zero, so is its gradient.
    """
    square = squared_euclidean(x, y)
    apart = square > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)


def cosine_similarity(x, y):
    r"""Cosine of the angle of all pairs.

    .. math:: S_{ij} = \frac{\langle x_i, y_j \rangle}{\lVert x_i \rVert \lVert y_j \rVert}

    Args:
      x: ``[..., n, dim]``, any float dtype; computed in float32 at least.
      y: ``[..., m, dim]``.

    Returns:
      Similarities in [-1, 1] up to rounding, ``[..., n, m]``, float32; 0 for a zero vector.
    """
    _check_pair(x, y)
    x, y = l2_normalize(x), l2_normalize(y)
    return jnp.einsum("...id,...jd->...ij", x, y, precision="highest")


def _cosine_distance(x, y):
    return 1.0 - cosine_similarity(x, y)


def _metric(metric):
    if callable(metric):
        return metric
    named = dict(euclidean=euclidean, squared_euclidean=squared_euclidean, cosine=_cosine_distance)
    check_choice("metric", metric, named)
    return named[metric]


class Neighbors(NamedTuple):
    """The nearest points of each query, nearest first."""

    distances: jax.Array
    indices: jax.Array


def nearest_neighbors(
    queries,
    points,
    k,
    *,
    metric="euclidean",
    exclude_self=False,
    chunk=1024,  # mutate: equivalent, it trades memory for time
):
    """The k nearest points of each query, exactly, a chunk of queries at a time.

    Args:
      queries: ``[n, dim]``.
      points: ``[m, dim]``.
      k: How many, at most m; static.
      metric: ``"euclidean"``, ``"squared_euclidean"``, ``"cosine"`` (one minus the cosine), or a
        function of ``[a, dim]`` and ``[b, dim]`` that returns distances ``[a, b]``.
      exclude_self: Whether the queries are the points, and none is its own neighbour.
      chunk: How many queries are compared at once; memory is O(chunk m).

    Returns:
      :class:`Neighbors` of ``distances [n, k]``, float32 and ascending, and ``indices [n, k]``,
      int32; equal distances come in the order of the points.

    Raises:
      UserError: The metric has no such name.
    """
    chex.assert_rank([queries, points], 2)
    _check_pair(queries, points)
    if exclude_self:
        chex.assert_equal_shape([queries, points])
    if not 0 < k <= len(points) - exclude_self:
        raise ValueError(f"k={k} neighbours of {len(points)} points, {exclude_self=}")
    distance = _metric(metric)

    def of_one(query_and_row):
        query, row = query_and_row
        distances = distance(query[None], points)[0]
        if exclude_self:
            distances = distances.at[row].set(jnp.inf)
        nearness, indices = jax.lax.top_k(-distances, k)
        return Neighbors(-nearness, indices)

    rows = jnp.arange(len(queries))
    return jax.lax.map(of_one, (queries, rows), batch_size=chunk)
