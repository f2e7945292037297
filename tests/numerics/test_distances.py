"""Pairwise distances and neighbours against scipy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import distance
from sklearn.neighbors import NearestNeighbors

from tinker import numerics
from tinker.numerics import UserError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 5)).astype(np.float32)
Y = RNG.normal(size=(9, 5)).astype(np.float32) + 1
neighbours = jax.jit(
    numerics.nearest_neighbors,
    static_argnums=2,
    static_argnames=("metric", "exclude_self", "chunk"),
)
PAIRS = {
    "squared_euclidean": (numerics.squared_euclidean, "sqeuclidean"),
    "euclidean": (numerics.euclidean, "euclidean"),
    "cosine": (lambda x, y: 1 - numerics.cosine_similarity(x, y), "cosine"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_scipys_and_batches_are_loops(name):
    ours, theirs = PAIRS[name]
    np.testing.assert_allclose(jax.jit(ours)(X, Y), distance.cdist(X, Y, theirs), rtol=2e-5)
    for many in (ours, jax.vmap(ours)):
        stacked = jax.jit(many)(np.stack([X, 2 * X]), np.stack([Y, Y]))
        np.testing.assert_allclose(stacked[1], distance.cdist(2 * X, Y, theirs), rtol=2e-5)
    rough = jax.jit(ours)(jnp.asarray(X, jnp.bfloat16), jnp.asarray(Y, jnp.bfloat16))
    assert rough.dtype == jnp.float32
    exact = distance.cdist(
        *(np.asarray(jnp.asarray(a, jnp.bfloat16), float) for a in (X, Y)), theirs
    )
    np.testing.assert_allclose(rough, exact, rtol=2e-5)
    with pytest.raises(AssertionError):
        ours(X, Y[:, :4])


@pytest.mark.parametrize("name", PAIRS)
def test_gradient_is_a_central_difference(name):
    fn, _ = PAIRS[name]
    weights, step = RNG.normal(size=(7, 9)), RNG.normal(size=X.shape)
    with jax.enable_x64(True):
        x = jnp.asarray(X, jnp.float64)
        f = jax.jit(lambda x: jnp.vdot(weights, fn(x, Y.astype(np.float64))))
        slope = (f(x + 1e-5 * step) - f(x - 1e-5 * step)) / 2e-5
        np.testing.assert_allclose(jnp.vdot(jax.jit(jax.grad(f))(x), step), slope, rtol=1e-7)


def test_a_common_offset_costs_no_digits():
    x, y = X + np.float32(1e4), Y + np.float32(1e4)
    exact = distance.cdist(x.astype(float), y.astype(float), "sqeuclidean")
    np.testing.assert_allclose(numerics.squared_euclidean(x, y), exact, rtol=1e-4)


@pytest.mark.parametrize("name", PAIRS)
def test_coinciding_and_zero_vectors_are_finite_with_their_gradients(name):
    fn, _ = PAIRS[name]
    x = np.concatenate([np.zeros((2, 3)), np.full((1, 3), 1e4), np.ones((1, 3))]).astype(np.float32)
    value, pull = jax.jit(lambda x: jax.vjp(lambda x: fn(x, x), x))(x)
    (grads,) = pull(np.ones_like(value))
    assert np.isfinite(value).all() and np.isfinite(grads).all() and (value >= -1e-6).all()
    _, pull = jax.vjp(jax.jit(lambda x: fn(x, x)), np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(pull(np.ones((2, 2), np.float32))[0], 0)
    one = jax.jit(fn)(X[:1], X[:1])
    np.testing.assert_allclose(one, 0, atol=1e-6)


def test_cosines_of_zero_and_of_tiny_vectors():
    x = np.array([[0, 0], [1e-8, 0], [0, 3e9]], np.float32)
    np.testing.assert_allclose(numerics.cosine_similarity(x, x), np.diag([0.0, 1, 1]), atol=1e-6)
    np.testing.assert_array_equal(
        jax.grad(lambda x: numerics.cosine_similarity(x, np.ones((1, 2))).sum())(x)[0], 0
    )


def test_l2_normalize_over_any_axis():
    x = RNG.normal(size=(3, 4, 2))
    np.testing.assert_allclose(
        numerics.l2_normalize(x), x / np.linalg.norm(x, axis=-1, keepdims=True), rtol=1e-5
    )
    np.testing.assert_allclose(
        numerics.l2_normalize(x, axis=(0, 1)),
        x / np.sqrt((x**2).sum((0, 1), keepdims=True)),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    "metric, sklearns",
    [
        ("euclidean",) * 2,
        ("squared_euclidean", "sqeuclidean"),
        ("cosine",) * 2,
        (numerics.euclidean, "euclidean"),
    ],
)
def test_neighbours_are_sklearns_whatever_the_chunk(metric, sklearns):
    model = NearestNeighbors(n_neighbors=4, metric=sklearns, algorithm="brute").fit(Y)
    distances, indices = model.kneighbors(X)
    for chunk in (1, 3, 100):
        found = neighbours(X, Y, 4, metric=metric, chunk=chunk)
        np.testing.assert_array_equal(found.indices, indices)
        np.testing.assert_allclose(found.distances, distances, rtol=1e-4)
    _, own = NearestNeighbors(n_neighbors=8, metric=sklearns, algorithm="brute").fit(Y).kneighbors()
    others = neighbours(Y, Y, 8, metric=metric, exclude_self=True, chunk=4)
    np.testing.assert_array_equal(others.indices, own)


def test_neighbours_by_default_jitted_and_at_ties():
    default = neighbours(X, Y, 2)
    exact = np.sort(distance.cdist(X, Y), 1)[:, :2]
    np.testing.assert_allclose(default.distances, exact, rtol=1e-5)
    itself = neighbours(X, X, 1)
    np.testing.assert_array_equal(itself.indices[:, 0], np.arange(7))
    ties = neighbours(np.zeros((1, 2)), np.ones((5, 2)), 5)
    np.testing.assert_array_equal(ties.indices[0], np.arange(5))
    grads = jax.grad(lambda x: neighbours(x, x, 2).distances.sum())(jnp.ones((4, 2)))
    np.testing.assert_array_equal(grads, 0)


def test_neighbours_refuse_a_wrong_metric_name_or_number():
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        numerics.nearest_neighbors(X, Y, 1, metric="cosin")
    for k, own in ((0, False), (8, False), (7, True)):
        with pytest.raises(ValueError, match=f"k={k}"):
            numerics.nearest_neighbors(X, X, k, exclude_self=own)
    with pytest.raises(AssertionError):
        numerics.nearest_neighbors(X, Y, 1, exclude_self=True)
    assert numerics.nearest_neighbors(X, X, 7).indices.shape == (7, 7)
    assert numerics.nearest_neighbors(X, X, 6, exclude_self=True).indices.shape == (7, 6)
