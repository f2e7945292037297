"""Retrieval against scikit-learn and a loop over queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn.metrics import average_precision_score, roc_curve
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


def test_map_at_r_is_a_loops():
    expected = []
    for i in QUERIES:
        order = sorted(others(i), key=lambda j, i=i: -SIMILARITY[i, j])
        hits = [LABELS[j] == LABELS[i] for j in order][: np.sum(LABELS == LABELS[i]) - 1]
        expected.append(np.mean([hit * np.mean(hits[: n + 1]) for n, hit in enumerate(hits)]))
    found = metrics.mean_average_precision(X, LABELS, at_r=True)
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-5)
    assert found < precision(X, LABELS)
    kinds = np.repeat(np.eye(3), 4, 0)
    ranked = metrics.mean_average_precision(kinds, np.repeat(np.arange(3), 4), at_r=True)
    np.testing.assert_allclose(ranked, 1)


@jax.jit
def verified(x, labels):
    return {
        "eer": metrics.equal_error_rate(x, labels),
        "one": metrics.true_accept_rate(x, labels),
        "ten": metrics.true_accept_rate(x, labels, false_accept_rate=0.1),
        "same": metrics.class_similarity(x, labels),
        "different": metrics.class_similarity(x, labels, same=False),
    }


@pytest.mark.parametrize("copies", [False, True])
def test_verification_is_sklearns(copies):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 4, 60)
    x = rng.normal(size=(60, 3)) + np.eye(4)[labels, :3] * 1.5
    x = np.round(x) + 0.1 if copies else x  # many pairs at one similarity
    similarity = np.round(cosine_similarity(x), 6 if copies else 12)
    pairs = np.triu_indices(60, 1)
    same, scores = (labels[:, None] == labels)[pairs], similarity[pairs]
    false, true, _ = roc_curve(same, scores, drop_intermediate=False)
    found = verified(x.astype(np.float32), labels)
    eer = brentq(lambda share: share - 1 + np.interp(share, false, true), 0, 1)
    if not copies:  # float32 breaks some of the ties
        np.testing.assert_allclose(found["eer"], eer, rtol=1e-4)
        for name, rate in (("one", 0.01), ("ten", 0.1)):
            np.testing.assert_allclose(found[name], true[false <= rate].max(), rtol=1e-5)
    np.testing.assert_allclose(found["eer"], eer, atol=3e-3)
    np.testing.assert_allclose(found["same"], scores[same].mean(), rtol=1e-4)
    np.testing.assert_allclose(found["different"], scores[~same].mean(), rtol=1e-3)


def test_corners_of_verification():
    labels = np.repeat(np.arange(3), 4)
    kinds = np.repeat(np.eye(3, dtype=np.float32), 4, 0)
    perfect = {"eer": 0, "one": 1, "ten": 1, "same": 1, "different": 0}
    worst = {"eer": 0.5, "one": 0, "ten": 0, "same": 0, "different": 0}  # one score for all
    for x, expected in ((kinds, perfect), (kinds * 0, worst)):
        for name, value in verified(x, labels).items():
            np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)
    for labels in (np.arange(12), np.zeros(12, int)):  # pairs of one kind alone
        found = verified(X, labels)
        assert found["eer"] == found["one"] == found["ten"] == 0
    assert found["same"] != 0 and found["different"] == 0
    views = np.stack([X, X[::-1]], 1)
    both = [metrics.class_similarity(x, LABELS) for x in (X, X[::-1])]
    np.testing.assert_allclose(metrics.class_similarity(views, LABELS), np.mean(both), rtol=1e-5)
    for metric in (metrics.equal_error_rate, metrics.true_accept_rate, metrics.class_similarity):
        assert metric.whole_split
        with pytest.raises(AssertionError):
            metric(X, LABELS[:5])


def test_precision_of_the_first_places_is_a_loops():
    rng = np.random.default_rng(3)
    scores, relevant = rng.normal(size=(6, 9)), rng.random((6, 9)) < 0.4
    relevant[2] = False
    order = np.argsort(-scores, -1)
    for k in (1, 4, 9):
        expected = [np.mean([relevant[i, j] for j in order[i, :k]]) for i in range(6)]
        found = metrics.precision_at_k(scores, relevant, k=k)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(
        metrics.precision_at_k(scores, relevant), metrics.precision_at_k(scores, relevant, k=1)
    )
    counts = relevant.sum(-1)
    expected = [sum(relevant[i, j] for j in order[i, :n]) / max(n, 1) for i, n in enumerate(counts)]
    np.testing.assert_allclose(metrics.r_precision(scores, relevant), expected, rtol=1e-6)
    for metric in (metrics.precision_at_k, metrics.r_precision):
        with pytest.raises(AssertionError):
            metric(scores, relevant[0])


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
