"""Retrieval against scikit-learn and a loop over queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from tinker import metrics

RNG = np.random.default_rng(0)
LABELS = np.array([0, 0, 0, 1, 1, 7, 7, 7, 7, 7, 2, -1])  # 2 and -1 are alone
X = (RNG.normal(size=(12, 3)) + LABELS[:, None] % 3).astype(np.float32)
QUERIES = range(10)
SIMILARITY = cosine_similarity(X.astype(np.float64))
recall = jax.jit(metrics.recall_at_k, static_argnames="k")
precision = jax.jit(metrics.mean_average_precision, static_argnames="chunk")


def others(i):
    return np.delete(np.arange(12), i)


@pytest.mark.parametrize("k", [1, 2, 5, 11])
def test_recall_is_a_loops(k):
    near = [sorted(others(i), key=lambda j, i=i: -SIMILARITY[i, j])[:k] for i in QUERIES]
    hits = [(LABELS[j] == LABELS[i]).any() for i, j in zip(QUERIES, near)]
    np.testing.assert_allclose(recall(X, LABELS, k=k), np.mean(hits), rtol=1e-6)
    np.testing.assert_allclose(recall(9 * X, LABELS, k=k), np.mean(hits), rtol=1e-6)


def test_the_default_is_the_nearest_and_both_are_of_whole_splits():
    assert recall(X, LABELS) == recall(X, LABELS, k=1) < recall(X, LABELS, k=5)
    assert metrics.recall_at_k.whole_split and metrics.mean_average_precision.whole_split


def test_mean_average_precision_is_sklearns():
    expected = [
        average_precision_score(LABELS[others(i)] == LABELS[i], SIMILARITY[i, others(i)])
        for i in QUERIES
    ]
    for chunk in (5, 1024):
        np.testing.assert_allclose(precision(X, LABELS, chunk=chunk), np.mean(expected), rtol=1e-5)
    np.testing.assert_allclose(precision(X, LABELS), np.mean(expected), rtol=1e-5)
    with pytest.raises(AssertionError):
        metrics.mean_average_precision(X, LABELS[:5])


@pytest.mark.parametrize("metric", [recall, precision])
def test_corners(metric):
    kinds = np.repeat(np.eye(3, dtype=np.float32), 4, 0)
    np.testing.assert_allclose(metric(kinds, np.repeat(np.arange(3), 4)), 1)
    assert metric(kinds, np.arange(12)) == 0
    assert np.isfinite(metric(np.zeros((12, 3), np.float32), LABELS))
    np.testing.assert_allclose(
        metric(jnp.asarray(kinds, jnp.bfloat16), np.repeat(np.arange(3), 4)), 1
    )
    np.testing.assert_allclose(metric(X[:2], np.zeros(2, int)), 1)


def test_the_query_itself_is_never_found():
    """Not even where it is no nearer than others: equal rows, one other of its kind far away."""
    x = np.array([[1, 0], [1, 0], [1, 0], [-1, 0]], np.float32)
    labels = np.array([0, 1, 1, 0])
    np.testing.assert_allclose(recall(x, labels), (0 + 0 + 0 + 1) / 4)
    np.testing.assert_allclose(precision(x, labels), (1 / 3 + 1 / 2 + 1 / 2 + 1) / 4, rtol=1e-6)
    with pytest.raises(AssertionError):
        metrics.recall_at_k(x, labels[:3])


def test_matching_recall_is_the_mean_over_random_orders_of_ties():
    queries, items = (RNG.normal(size=(10, 3)).astype(np.float32) for _ in "qi")
    queries = queries + 2 * items
    items[[3, 5, 8]] = items[3]  # three of one caption
    similarity = cosine_similarity(queries.astype(np.float64), items.astype(np.float64))
    similarity[:, [5, 8]] = similarity[:, [3]]
    matching = jax.jit(metrics.matching_recall, static_argnames=("k", "chunk"))
    for k in (1, 2, 10):
        hits = []
        for _ in range(4000):
            order = RNG.permutation(10)
            ranked = order[np.argsort(-similarity[:, order], 1, kind="stable")]
            hits.append([i in ranked[i, :k] for i in range(10)])
        found = matching(queries * 7, items, k=k, chunk=4)
        np.testing.assert_allclose(found, np.mean(hits), atol=0.01)
    np.testing.assert_allclose(matching(queries, np.ones_like(items), k=3), 0.3, rtol=1e-6)
    assert metrics.matching_recall.whole_split
