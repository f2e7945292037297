"""Metrics against scikit-learn."""

import numpy as np
import sklearn.metrics
from scipy.special import softmax

from tinker import metrics

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(40, 5)).astype(np.float32)
LABELS = RNG.integers(0, 5, 40)


def test_accuracy_and_likelihood():
    expected = sklearn.metrics.accuracy_score(LABELS, LOGITS.argmax(1))
    np.testing.assert_allclose(metrics.accuracy(LOGITS, LABELS).mean(), expected, rtol=1e-6)
    p = softmax(LOGITS.astype(float), axis=1)
    expected = sklearn.metrics.log_loss(LABELS, p, labels=range(5))
    np.testing.assert_allclose(metrics.nll(LOGITS, LABELS).mean(), expected, rtol=1e-5)
    given = metrics.target_probability(LOGITS, LABELS)
    np.testing.assert_allclose(given, p[np.arange(40), LABELS], rtol=1e-5)
    bits = metrics.bits_per_byte(LOGITS, LABELS).mean()
    np.testing.assert_allclose(bits, expected / np.log(2), rtol=1e-5)


def test_perplexity_adds_up_over_ragged_batches():
    metric = metrics.perplexity()
    where = np.arange(40) % 4 > 0
    parts = [
        metric.sums(LOGITS[s], LABELS[s], where=where[s]) for s in (slice(0, 16), slice(16, 40))
    ]
    total = [a + b for a, b in zip(*parts, strict=True)]
    expected = np.exp(metrics.nll(LOGITS, LABELS)[where].mean())
    np.testing.assert_allclose(metric.finish(total), expected, rtol=1e-5)
    tokens, targets = LOGITS.reshape(8, 5, 5), LABELS.reshape(8, 5)
    total = metric.sums(tokens, targets, where=np.arange(8) < 6)
    expected = np.exp(metrics.nll(tokens, targets)[:6].mean())
    np.testing.assert_allclose(metric.finish(total), expected, rtol=1e-5)


def test_regression():
    y, x = RNG.normal(size=30).astype(np.float32), RNG.normal(size=30).astype(np.float32)
    expected = sklearn.metrics.mean_squared_error(y, x)
    np.testing.assert_allclose(
        metrics.mean_squared_error(x[:, None], y).mean(), expected, rtol=1e-5
    )
    np.testing.assert_allclose(metrics.r_squared(x, y), sklearn.metrics.r2_score(y, x), rtol=1e-5)
    assert metrics.r_squared(y * 0 + 1, y * 0) == -np.inf
    assert metrics.r_squared(y * 0, y * 0) == 0
