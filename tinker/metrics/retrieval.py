"""How well embeddings find their own kind."""

import chex
import jax
import jax.numpy as jnp

from tinker.numerics import cosine_similarity, l2_normalize, nearest_neighbors


def _mean_over(values, where):
    return jnp.sum(jnp.where(where, values, 0.0)) / jnp.maximum(where.sum(), 1)


def recall_at_k(embeddings, labels, *, k=1):
    r"""The share of queries with one of their label among the k nearest, over a whole split.

    Every example is a query among all others, by cosine similarity. One that is alone in its label
    is not a query.

    Args:
      embeddings: ``[n, dim]``, of any length.
      labels: ``[n]``, integers.
      k: Neighbours looked at, at most n - 1; static.

    Returns:
      A scalar in [0, 1], float32; 0 where every label is alone.

    Source: Deep Metric Learning via Lifted Structured Feature Embedding, CVPR 2016,
      arXiv:1511.06452, Section 5.
    """
    chex.assert_equal_shape_prefix([embeddings, labels], 1)
    labels = jnp.asarray(labels)
    near = nearest_neighbors(embeddings, embeddings, k, metric="cosine", exclude_self=True)
    hit = jnp.any(labels[near.indices] == labels[:, None], -1)
    ordered = jnp.sort(labels)
    last = jnp.searchsorted(ordered, labels, side="right")
    return _mean_over(hit, last - jnp.searchsorted(ordered, labels, side="left") > 1)


recall_at_k.whole_split = True


def mean_average_precision(
    embeddings,
    labels,
    *,
    chunk=1024,  # mutate: equivalent, it trades memory for time
):
    r"""The mean over queries of average precision, over a whole split.

    .. math:: \mathrm{AP} = \frac{1}{R} \sum_{r} [y_{(r)} = y]\,
              \frac{1}{r} \sum_{s \le r} [y_{(s)} = y]

    where (r) is the r-th of all other examples by cosine similarity and R those of the query's
    label. An example that is alone in its label is not a query.

    Args:
      embeddings: ``[n, dim]``, of any length.
      labels: ``[n]``, integers.
      chunk: How many queries are ranked at once; memory is O(chunk n).

    Returns:
      A scalar in [0, 1], float32; 0 where every label is alone.

    Source: Introduction to Information Retrieval, Cambridge 2008, Eq. 8.8.
    """
    chex.assert_equal_shape_prefix([embeddings, labels], 1)
    embeddings, labels = jnp.asarray(embeddings), jnp.asarray(labels)
    ranks = jnp.arange(1, len(labels) + 1)

    def of_one(query):
        embedding, label, row = query
        similarity = cosine_similarity(embedding[None], embeddings)[0]
        order = jnp.argsort(-similarity.at[row].set(-jnp.inf))
        hit = (labels[order] == label) & (order != row)
        precision = jnp.cumsum(hit) / ranks
        return jnp.sum(hit * precision) / jnp.maximum(hit.sum(), 1), hit.any()

    queries = (embeddings, labels, jnp.arange(len(labels)))
    return _mean_over(*jax.lax.map(of_one, queries, batch_size=chunk))


mean_average_precision.whole_split = True


def matching_recall(
    queries,
    items,
    *,
    k=1,
    chunk=1024,  # mutate: equivalent, it trades memory for time
):
    """The share of queries whose own item is among the k nearest, over a whole split.

    By cosine similarity; items at the same distance, such as images of one caption, come in an
    order drawn at random, over which this is the mean.

    Args:
      queries: ``[n, dim]``, of any length.
      items: ``[n, dim]``; row i is query i's.
      k: Items looked at.
      chunk: How many queries are ranked at once; memory is O(chunk n).

    Returns:
      A scalar in [0, 1], float32.

    Source: Sigmoid Loss for Language Image Pre-Training, ICCV 2023, arXiv:2303.15343 (retrieval,
      from images to texts and back).
    """
    chex.assert_equal_shape([queries, items])
    queries, items = l2_normalize(queries), l2_normalize(items)

    def of_one(query):
        embedding, row = query
        similarity = jnp.sum(embedding * items, -1)
        before, level = similarity > similarity[row], similarity == similarity[row]
        return jnp.clip((k - before.sum()) / level.sum(), 0.0, 1.0)

    rows = jnp.arange(len(items))
    return jnp.mean(jax.lax.map(of_one, (queries, rows), batch_size=chunk))


matching_recall.whole_split = True
