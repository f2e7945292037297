"""Calibration against a loop over bins, and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import brier_score_loss

from tinker import metrics

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(101, 4)).astype(np.float32) * 2
LABELS = np.where(RNG.uniform(size=101) < 0.5, LOGITS.argmax(1), RNG.integers(0, 4, 101))
reliability = jax.jit(metrics.reliability, static_argnames=("bins", "adaptive"))
ece = jax.jit(metrics.expected_calibration_error, static_argnames=("bins", "adaptive"))


def by_hand(logits, labels, bins, sizes=None):
    """(confidence, accuracy, count) of each bin, one bin after another."""
    p = softmax(logits.astype(np.float64), 1)
    confidence, correct = p.max(1), p.argmax(1) == labels
    if sizes is None:
        edges = np.linspace(0, 1, bins + 1)
        inside = [(lo < confidence) & (confidence <= hi) for lo, hi in zip(edges, edges[1:])]
        parts = [np.flatnonzero(i) for i in inside]
    else:
        parts = np.split(np.argsort(confidence), np.cumsum(sizes)[:-1])
    of = lambda x: [x[part].mean() if len(part) else 0.0 for part in parts]  # noqa: E731
    return np.array([of(confidence), of(correct), [len(part) for part in parts]])


@pytest.mark.parametrize("bins", [15, 4, 1])
@pytest.mark.parametrize("adaptive", [False, True])
def test_bins_are_those_of_a_loop(bins, adaptive):
    found = reliability(LOGITS, LABELS, bins=bins, adaptive=adaptive)
    sizes = None
    if adaptive:  # which of them has one more is left open
        sizes = np.asarray(found.count, int)
        assert sizes.sum() == 101 and np.ptp(sizes) <= 1
    confidence, accuracy, count = by_hand(LOGITS, LABELS, bins, sizes)
    np.testing.assert_array_equal(found.count, count)
    np.testing.assert_allclose(found.confidence, confidence, rtol=1e-5)
    np.testing.assert_allclose(found.accuracy, accuracy, rtol=1e-5)
    gap = (count * abs(accuracy - confidence)).sum() / 101
    np.testing.assert_allclose(ece(LOGITS, LABELS, bins=bins, adaptive=adaptive), gap, rtol=1e-4)


def test_the_default_is_fifteen_equally_wide_bins():
    assert metrics.expected_calibration_error.whole_split
    confidence, accuracy, count = by_hand(LOGITS, LABELS, 15)
    found = reliability(LOGITS, LABELS)
    np.testing.assert_allclose(found, [confidence, accuracy, count], rtol=1e-5)
    expected = (count * abs(accuracy - confidence)).sum() / 101
    np.testing.assert_allclose(ece(LOGITS, LABELS), expected, rtol=1e-4)


def test_an_edge_belongs_to_the_bin_below():
    even = reliability(np.zeros((2, 2), np.float32), np.arange(2), bins=4)
    np.testing.assert_array_equal(even.count, [0, 2, 0, 0])


def test_confident_scores_and_bfloat16_at_the_corners():
    hard = np.array([[1e4, -1e4], [-1e4, 1e4], [1e4, -1e4], [0, 1e4]], np.float32)
    labels = np.array([0, 1, 1, 1])
    for adaptive in (False, True):
        np.testing.assert_allclose(ece(hard, labels, adaptive=adaptive), 0.25, atol=1e-6)
    np.testing.assert_allclose(metrics.brier_score(hard, labels), [0, 0, 2, 0], atol=1e-6)
    one_class = ece(np.zeros((3, 1), np.float32), np.zeros(3, int))
    np.testing.assert_allclose(one_class, 0, atol=1e-6)
    half = jnp.asarray(LOGITS, jnp.bfloat16)
    wide = half.astype(jnp.float32)
    assert ece(half, LABELS).dtype == metrics.brier_score(half, LABELS).dtype == jnp.float32
    np.testing.assert_allclose(metrics.brier_score(half, LABELS), metrics.brier_score(wide, LABELS))
    with pytest.raises(AssertionError):
        metrics.reliability(LOGITS, LABELS[:5])
    with pytest.raises(AssertionError):
        metrics.brier_score(LOGITS, LABELS[:5])


def test_brier_score_is_sklearns():
    p = softmax(LOGITS.astype(np.float64), 1)
    found = jax.jit(metrics.brier_score)(LOGITS, LABELS)
    assert found.shape == (101,)
    expected = brier_score_loss(LABELS, p, labels=range(4), scale_by_half=False)
    np.testing.assert_allclose(found.mean(), expected, rtol=1e-5)
    alone = [brier_score_loss([y], q[None], labels=range(4)) for q, y in zip(p[:5], LABELS)]
    np.testing.assert_allclose(found[:5], np.array(alone) * found[0] / alone[0], rtol=1e-4)
