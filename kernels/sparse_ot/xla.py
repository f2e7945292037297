"""The projections of columns a chunk of them at a time, for any platform."""

import math

import jax
import jax.numpy as jnp


def conjugates(h, u, v, b, *, k, wanted=(False,) * 4):
    r"""The sum of all columns' conjugates, and its slopes.

    .. math:: \sum_j \max_{t \in b_j \triangle,\, \lVert t \rVert_0 \le k}
              \langle h + U v_j, t \rangle - \tfrac12 \lVert t \rVert^2

    Args:
      h: ``[m]``, float32 at least, as all are.
      u: ``[m, d]``.
      v: ``[n, d]``.
      b: ``[n]``.
      k: In [1, m].
      wanted: Which of the slopes in h, u, v and b.

    Returns:
      The sum, ``[]``, and its slopes, None where it was not asked for.
    """

    def of_chunk(carry, v, b):
        total, rows = carry
        threshold, t, kept = _plan_of(h, u, v, b, k)
        total += (threshold * b).sum() + jnp.square(t).sum() / 2
        rows, columns = _add_slopes(rows, t, kept, u, v, wanted)
        return (total, rows), (columns, threshold if wanted[3] else None)

    carry = jnp.zeros((), h.dtype), _no_slopes(h, u, wanted)
    (total, rows), (dv, db) = _over_chunks(of_chunk, carry, len(h), v, b)
    return total, (*rows, dv, db)


def slopes(kept, t, threshold, h, u, v, *, wanted):
    """The same slopes, of columns whose nonzeros are known.

    Args:
      kept: Their rows, ``[n, k]``.
      t: ``[n, k]``.
      threshold: ``[n]``, each column's threshold.
      h, u, v, wanted: As in :func:`conjugates`.

    Returns:
      As there.
    """

    def of_chunk(rows, v, t, kept):
        return _add_slopes(rows, t, kept, u, v, wanted)

    work = kept.shape[1] * u.shape[1]
    rows, dv = _over_chunks(of_chunk, _no_slopes(h, u, wanted), work, v, t, kept)
    return *rows, dv, threshold if wanted[3] else None


def _no_slopes(h, u, wanted):
    return tuple(jnp.zeros_like(x) if w else None for x, w in zip((h, u), wanted[:2], strict=True))


def _add_slopes(rows, t, kept, u, v, wanted):
    """Adds to the slopes in h and u those of a chunk of columns, and finds those in its v."""
    dh, du = rows
    if kept is None:
        dh = None if dh is None else dh + t.sum(0)
        du = None if du is None else du + _product("nm,nd->md", t, v)
        return (dh, du), _product("nm,md->nd", t, u) if wanted[2] else None
    dh = None if dh is None else dh.at[kept].add(t)
    du = None if du is None else du.at[kept].add(t[..., None] * v[:, None])
    return (dh, du), (t[..., None] * u[kept]).sum(1) if wanted[2] else None


def supports(h, u, v, *, k):
    """Where the k largest scores of each column are, ``[n, k]``, the largest first."""
    return _over_chunks(lambda _, v: ((), _largest(_scores(h, u, v), k)[1]), (), len(h), v)[1]


def threshold_of(z, b):
    r"""The :math:`\tau` at which :math:`\sum_i \max(z_{ji} - \tau, 0) = b_j`.

    Newton's steps on that convex function, from below: each finds the threshold of the entries that
    were over the one before, so that it ends, exactly, when no entry falls out. It begins with the
    threshold of a few of the entries, which is never above that of all.

    Args:
      z: ``[n, m]``.
      b: ``[n]``, >= 0.

    Returns:
      ``[n]``.
    """
    size = _group(z.shape[1], 1)
    start = _newton(z, b, z.max(1) - b) if size == 1 else threshold_of(_peaks(z, size), b)
    return start if size == 1 else _newton(z, b, start)


def _newton(z, b, start):
    def step(state):
        threshold, counts, _ = state
        excess = z - threshold[:, None]
        over = excess > 0
        # both sums in one pass over the scores
        total, count = jax.lax.reduce(
            (jnp.where(over, excess, 0.0), over.astype(z.dtype)),
            (jnp.zeros((), z.dtype),) * 2,
            lambda x, y: (x[0] + y[0], x[1] + y[1]),
            (1,),
        )
        threshold += jnp.maximum(total - b, 0.0) / jnp.maximum(count, 1.0)
        return threshold, count, (count != counts).any()

    state = start, jnp.full_like(start, -1.0), True
    return jax.lax.while_loop(lambda state: state[2], step, state)[0]


def _plan_of(h, u, v, b, k):
    """Thresholds, entries of the plan, and their rows (None: all) of a chunk of columns."""
    scores = _scores(h, u, v)
    if k == len(h):
        values, kept, threshold = scores, None, threshold_of(scores, b)
    else:
        # held together: XLA would fold the slice below into its own of a sort, and then sort all
        values, kept = jax.lax.optimization_barrier(_largest(scores, k))
        # of the thresholds of the 1, 2, ... k largest entries the largest is the projection's
        largest = values[:, :1]  # taken off for the digits
        sums = jnp.cumsum(values - largest, 1) - b[:, None]
        threshold = (sums / jnp.arange(1, k + 1)).max(1) + largest[:, 0]
    return threshold, jax.nn.relu(values - threshold[:, None]), kept


def _scores(h, u, v):
    return _product("nd,md->nm", v, u) + h


def _product(subscripts, x, y):
    return jnp.einsum(subscripts, x, y, precision="highest")


def _largest(z, k):
    """The k largest of each row, and where: of the groups with the k largest peaks, in order."""
    size = _group(z.shape[1], k)
    if size == 1:
        return jax.lax.top_k(z, k)
    grouped = _grouped(z, size)
    _, groups = jax.lax.top_k(grouped.max(2), k)
    groups = jnp.sort(groups, 1)  # so that of equal entries the first is kept
    candidates = jnp.take_along_axis(grouped, groups[..., None], 1).reshape(len(z), -1)
    values, places = jax.lax.top_k(candidates, k)
    return values, jnp.take_along_axis(groups, places // size, 1) * size + places % size


def _group(m, k):
    """Entries of a group: a power of two, 1 where groups do not pay."""
    size = 2 ** round(math.log2(math.sqrt(m / k)))
    return size if size >= 4 and m >= 4 * k * size else 1


def _grouped(z, size):
    pad = -z.shape[1] % size
    return jnp.pad(z, ((0, 0), (0, pad)), constant_values=-jnp.inf).reshape(len(z), -1, size)


def _peaks(z, size):
    return _grouped(z, size).max(2)


def _over_chunks(of_chunk, carry, work, *columns):
    """``of_chunk(carry, *columns) -> carry, results`` chunk by chunk; ``work``, a column's entries.

    On a CPU a chunk's entries stay in a core's cache: larger ones took up to three times as long.
    """
    n = len(columns[0])
    entries = 2**18 if jax.default_backend() == "cpu" else 2**24
    size = min(n, max(8, entries // work))
    chunks, rest = divmod(n, size)
    whole = chunks * size
    parts = [x[:whole].reshape(chunks, size, *x.shape[1:]) for x in columns]
    carry, results = jax.lax.scan(lambda carry, x: of_chunk(carry, *x), carry, parts)
    results = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), results)
    if rest:
        carry, last = of_chunk(carry, *(x[whole:] for x in columns))
        results = jax.tree.map(lambda *x: jnp.concatenate(x), results, last)
    return carry, results
