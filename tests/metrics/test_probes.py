"""Probes against scikit-learn's classifiers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from tinker import metrics

RNG = np.random.default_rng(0)
IMAGES, DIGITS = load_digits(return_X_y=True)
IMAGES = (IMAGES + RNG.normal(size=IMAGES.shape) * 8).astype(np.float32) / 16
TRAIN, TEST = slice(0, 300), slice(300, 900)
SPLITS = IMAGES[TRAIN], DIGITS[TRAIN], IMAGES[TEST], DIGITS[TEST]


@pytest.mark.parametrize("hyper", [{}, dict(k=5), dict(temperature=1.0), dict(k=1), dict(k=300)])
def test_knn_is_sklearns_with_the_votes_weighted(hyper):
    k, temperature = hyper.get("k", 20), hyper.get("temperature", 0.07)
    train_x, train_y, test_x, test_y = SPLITS
    model = KNeighborsClassifier(
        k, metric="cosine", weights=lambda d: np.exp((1 - d) / temperature), algorithm="brute"
    )
    expected = model.fit(train_x, train_y).score(test_x, test_y)
    found = jax.jit(functools.partial(metrics.knn_accuracy, **hyper))(*SPLITS)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_knn_elects_the_class_of_several_over_the_nearest_alone():
    angles = np.deg2rad([5, 20, 21, 200])
    x = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    y, here = np.array([3, 8, 8, 8]), np.array([[2.0, 0]], np.float32)
    for temperature, elected in ((1.0, 8), (1e-3, 3), (1e-9, 3)):
        vote = metrics.knn_accuracy(x, y, here, np.array([elected]), k=3, temperature=temperature)
        assert vote == 1
    with pytest.raises(AssertionError):
        metrics.knn_accuracy(x, y[:2], here, y[:1])
    with pytest.raises(AssertionError):
        metrics.knn_accuracy(x, y, here, y)


@pytest.mark.parametrize("l2, offset", [(1e-3, 0.0), (0.1, 100.0)])
def test_linear_probe_is_sklearns_regression(l2, offset):
    train_x, train_y, test_x, test_y = SPLITS
    theirs = LogisticRegression(C=1 / (l2 * len(train_y)), max_iter=10_000, tol=1e-8)
    theirs.fit(train_x.astype(np.float64), train_y)
    found = metrics.linear_probe(
        train_x + offset, train_y, test_x + offset, test_y, l2=l2, tolerance=1e-5
    )
    assert found.converged and found.error <= 1e-5 and 5 < found.num_iterations < 300
    np.testing.assert_allclose(found.solution["kernel"], theirs.coef_.T, atol=0.02)
    scores = test_x[:50] @ found.solution["kernel"] + found.solution["bias"]
    scores = scores + offset * found.solution["kernel"].sum(0)
    expected = theirs.decision_function(test_x[:50])
    np.testing.assert_allclose(
        scores - scores.mean(1, keepdims=True),
        expected - expected.mean(1, keepdims=True),
        atol=0.05,
    )
    np.testing.assert_allclose(found.accuracy, theirs.score(test_x, test_y), atol=2 / 600)


def test_linear_probe_by_default_and_what_it_says_when_it_stops_early():
    default = metrics.linear_probe(*SPLITS)
    assert default.converged and default.error <= 1e-4
    theirs = LogisticRegression(C=1 / 0.3, max_iter=10_000).fit(*SPLITS[:2])
    np.testing.assert_allclose(default.accuracy, theirs.score(*SPLITS[2:]), atol=2 / 600)
    early = metrics.linear_probe(*SPLITS, max_iterations=3)
    assert not early.converged and early.num_iterations == 3 and early.error > 1e-4
    # the error is the gradient's largest entry, of the objective written out
    x, y = SPLITS[0].astype(np.float64), np.eye(10)[SPLITS[1]]
    kernel = np.asarray(early.solution["kernel"], np.float64)
    p = np.exp(x @ kernel + np.asarray(early.solution["bias"]))
    gap = (p / p.sum(1, keepdims=True) - y) / len(x)
    slopes = (x - x.mean(0)).T @ gap + 1e-3 * kernel
    np.testing.assert_allclose(
        early.error, max(abs(slopes).max(), abs(gap.sum(0)).max()), rtol=1e-3
    )


def test_linear_probe_is_jittable_and_finite_at_the_corners():
    probe = jax.jit(functools.partial(metrics.linear_probe, classes=10))
    inside = probe(*SPLITS)
    assert inside.solution["kernel"].shape == (64, 10) and inside.converged
    half = metrics.linear_probe(jnp.asarray(SPLITS[0], jnp.bfloat16), *SPLITS[1:])
    assert half.solution["kernel"].dtype == jnp.float32
    np.testing.assert_allclose(half.accuracy, inside.accuracy, atol=0.02)
    one = metrics.linear_probe(
        np.ones((3, 2), np.float32), np.zeros(3, int), np.ones((1, 2)), np.zeros(1, int)
    )
    assert one.accuracy == 1 and one.converged and one.solution["kernel"].shape == (2, 1)
    apart = metrics.linear_probe(
        np.array([[-1e4], [1e4]], np.float32),
        np.arange(2),
        np.array([[-1.0], [1.0]]),
        np.arange(2),
        l2=0.0,
    )
    assert apart.accuracy == 1 and np.isfinite(apart.solution["kernel"]).all()
    with pytest.raises(AssertionError):
        metrics.linear_probe(SPLITS[0], SPLITS[1][:5], *SPLITS[2:])
    with pytest.raises(AssertionError):
        metrics.linear_probe(*SPLITS[:2], SPLITS[2][:, :5], SPLITS[3])


def test_of_views_draws_each_and_asks_for_the_output():
    x = np.arange(6, dtype=np.float32).reshape(3, 2)

    def apply(*views, train):
        assert not train
        return {"embeddings": jnp.stack(views, 1), "twice": 2 * jnp.stack(views, 1)}

    def augment(key, x):
        return x + jax.random.normal(key, x.shape)

    def spread(z):  # [batch, views, dim]
        return jnp.abs(z - z[:, :1]).sum((1, 2))

    options = {"metric": spread, "augment": augment}
    found = metrics.of_views(apply, jax.random.key(0), x, **options)
    assert found.shape == (3,) and (found > 0).all()
    doubled = metrics.of_views(apply, jax.random.key(0), x, **options, output="twice")
    np.testing.assert_allclose(doubled, 2 * found, rtol=1e-6)
    three = metrics.of_views(apply, jax.random.key(0), x, **options | {"views": 3})
    assert (three != found).all()
    mean = {"metric": lambda z: z.mean((1, 2)), "augment": lambda key, x: x}
    np.testing.assert_allclose(
        metrics.of_views(apply, jax.random.key(0), x, **mean), x.mean(1), rtol=1e-6
    )
