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
    at_r=False,
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
      at_r: Whether only the first R places count, which is MAP@R.
      chunk: How many queries are ranked at once; memory is O(chunk n).

    Returns:
      A scalar in [0, 1], float32; 0 where every label is alone.

    Source: Introduction to Information Retrieval, Cambridge 2008, Eq. 8.8; at R A Metric Learning
      Reality Check, ECCV 2020, arXiv:2003.08505, Section 3.
    """
    chex.assert_equal_shape_prefix([embeddings, labels], 1)
    embeddings, labels = jnp.asarray(embeddings), jnp.asarray(labels)
    ranks = jnp.arange(1, len(labels) + 1)

    def of_one(query):
        embedding, label, row = query
        similarity = cosine_similarity(embedding[None], embeddings)[0]
        order = jnp.argsort(-similarity.at[row].set(-jnp.inf))
        hit = (labels[order] == label) & (order != row)
        precision, found = jnp.cumsum(hit) / ranks, hit.sum()
        hit = hit & (ranks <= found) if at_r else hit
        return jnp.sum(hit * precision) / jnp.maximum(found, 1), found > 0

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


def precision_at_k(scores, relevant, *, k=1):
    """The share of relevant items among the k with the highest scores.

    Args:
      scores: ``[..., items]``.
      relevant: Boolean, ``[..., items]``.
      k: Places that count, at most as many as items; static.

    Returns:
      Per query, ``[...]``, float32; of a query with fewer relevant items it is below 1.

    Source: Introduction to Information Retrieval, Cambridge 2008, Section 8.4.
    """
    chex.assert_equal_shape([scores, relevant])
    first = jax.lax.top_k(scores, k)[1]
    return jnp.take_along_axis(jnp.asarray(relevant, jnp.float32), first, -1).mean(-1)


def r_precision(scores, relevant):
    """The share of relevant items among as many places as there are relevant items.

    Args:
      scores: ``[..., items]``.
      relevant: Boolean, ``[..., items]``.

    Returns:
      Per query, ``[...]``, float32; 0 where nothing is relevant.

    Source: Introduction to Information Retrieval, Cambridge 2008, Section 8.4.
    """
    chex.assert_equal_shape([scores, relevant])
    hit = jnp.take_along_axis(jnp.asarray(relevant), jnp.argsort(-scores, -1), -1)
    count = hit.sum(-1)
    places = jnp.arange(hit.shape[-1]) < count[..., None]
    return jnp.sum(hit & places, -1) / jnp.maximum(count, 1)


def class_similarity(embeddings, labels, *, same=True):
    r"""The mean cosine of pairs of a label, or of pairs of two, over a whole split.

    .. math:: \mathrm{mean}_{i \ne j,\, y_i = y_j}\; \cos(z_i, z_j)

    which for labels that training does not see is a representation's tolerance to their likeness.

    Args:
      embeddings: z, ``[n, dim]``, of any length; or of views ``[n, views, dim]``, of which it is
        the mean over pairs of one view.
      labels: ``[n]``, integers.
      same: Whether the pairs are of one label.

    Returns:
      A scalar in [-1, 1], float32; 0 where there is no such pair.

    Source: Understanding the Behaviour of Contrastive Loss, CVPR 2021, arXiv:2012.09740, its
      tolerance, as a mean over the pairs that count rather than over all.
    """
    if embeddings.ndim == 3:
        views = [class_similarity(z, labels, same=same) for z in embeddings.swapaxes(0, 1)]
        return jnp.mean(jnp.stack(views))
    similarity, alike, pairs = _all_pairs(embeddings, labels)
    return _mean_over(similarity, pairs & (alike == same))


class_similarity.whole_split = True


def equal_error_rate(embeddings, labels):
    r"""The error of telling whether two examples share a label, where both errors are equal.

    Every two examples are a pair, accepted where their cosine similarity is at least a threshold.
    Between the thresholds at hand the share of accepted pairs of two labels, and that of refused
    pairs of one, are taken as linear.

    Args:
      embeddings: ``[n, dim]``, of any length.
      labels: ``[n]``, integers.

    Returns:
      A scalar in [0, 1], float32; 0 where pairs of either kind are missing. Sorts n² pairs.
    """
    false, true = _accepted(embeddings, labels)
    refused = 1 - true
    after = jnp.argmax(false >= refused)  # 1 accept at least: at none all are refused
    gap = false - refused
    along = -gap[after - 1] / jnp.where(after > 0, gap[after] - gap[after - 1], 1.0)
    return jnp.where(after > 0, false[after - 1] + along * (false[after] - false[after - 1]), 0.0)


equal_error_rate.whole_split = True


def true_accept_rate(embeddings, labels, *, false_accept_rate=0.01):
    """The share of pairs of one label that are accepted, at a share of falsely accepted pairs.

    Pairs and thresholds are those of :func:`equal_error_rate`.

    Args:
      embeddings: ``[n, dim]``, of any length.
      labels: ``[n]``, integers.
      false_accept_rate: In (0, 1): the largest share of pairs of two labels that is accepted.

    Returns:
      A scalar in [0, 1], float32; 0 where pairs of either kind are missing. Sorts n² pairs.
    """
    false, true = _accepted(embeddings, labels)
    return jnp.where(false <= false_accept_rate, true, 0.0).max()


true_accept_rate.whole_split = True


def _all_pairs(embeddings, labels):
    """Cosines, whether labels are alike, and where a pair stands: ``[n, n]`` each."""
    chex.assert_equal_shape_prefix([embeddings, labels], 1)
    labels = jnp.asarray(labels)
    pairs = jnp.triu(jnp.ones((len(labels), len(labels)), bool), 1)
    similarity = cosine_similarity(jnp.asarray(embeddings), jnp.asarray(embeddings))
    return similarity, labels == labels[:, None], pairs


def _accepted(embeddings, labels):
    """Shares accepted of pairs of two labels and of one, at falling thresholds, from none on."""
    similarity, alike, pairs = (x.reshape(-1) for x in _all_pairs(embeddings, labels))
    height = jnp.where(pairs, -similarity, jnp.inf)
    height, alike, pairs = jax.lax.sort((height, alike, pairs), num_keys=1)
    true, false = jnp.cumsum(pairs & alike), jnp.cumsum(pairs & ~alike)
    end = jnp.append(height[1:] > height[:-1], True)  # pairs that are level go together
    end = end & (true[-1] > 0) & (false[-1] > 0)

    def share(count):
        count = jax.lax.cummax(jnp.where(end, count, 0))
        return jnp.append(0.0, count / jnp.maximum(count[-1], 1))

    return share(false), share(true)
