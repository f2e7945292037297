"""Sparse projections against an exhaustive search over supports."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

from tinker import numerics

simplex = jax.jit(numerics.sparse_simplex_projection, static_argnums=1)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 5)).astype(np.float32)


def on_the_simplex(x, scale):
    """scipy's quadratic program."""
    sums = {"type": "eq", "fun": lambda p: p.sum() - scale}
    start = np.full(len(x), scale / len(x))
    found = minimize(
        lambda p: 0.5 * ((p - x) ** 2).sum(),
        start,
        jac=lambda p: p - x,
        bounds=[(0, None)] * len(x),
        constraints=sums,
        tol=1e-12,
    )
    return found.x


def nearest_on_a_face(x, k, scale):
    best = None
    for support in map(list, itertools.combinations(range(len(x)), k)):
        p = np.zeros(len(x))
        p[support] = on_the_simplex(x[support].astype(float), scale)
        if best is None or ((p - x) ** 2).sum() < ((best - x) ** 2).sum():
            best = p
    return best


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_sparse_simplex_projection_is_the_best_of_all_supports(k, scale):
    found = simplex(X, k, scale=scale)
    expected = [nearest_on_a_face(x, k, scale) for x in X]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert ((found > 0).sum(-1) <= k).all()


def test_the_default_is_the_probability_simplex_and_scales_differ_by_row():
    full = jax.jit(jax.vmap(optax.projections.projection_simplex))(X)
    np.testing.assert_allclose(simplex(X, 5), full, atol=1e-6)
    scale = np.array([0.0, 1.0, 5.0], np.float32)
    rows = simplex(X, 2, scale=scale)
    np.testing.assert_allclose(rows.sum(-1), scale, rtol=1e-6)
    np.testing.assert_allclose(rows[1], nearest_on_a_face(X[1], 2, 1.0), atol=1e-5)
    np.testing.assert_array_equal(rows[0], 0)
    np.testing.assert_array_equal(simplex(np.zeros(3, np.float32), 1), [1, 0, 0])


def test_large_entries_keep_their_digits_and_gradients_are_finite():
    large = X * np.float32(0.1) + np.float32(1e4)
    expected = simplex(large - np.float32(1e4), 3, scale=1.0)
    np.testing.assert_allclose(simplex(large, 3, scale=1.0), expected, atol=1e-6)
    f = lambda x, s: (numerics.sparse_simplex_projection(x, 3, scale=s) ** 2).sum()  # noqa: E731
    grads = jax.jit(jax.grad(f, (0, 1)))
    for x in (large, np.zeros_like(X), np.full_like(X, -1e4)):
        for scale in (1.0, 0.0):
            assert all(np.isfinite(g).all() for g in grads(x, scale))
    half = simplex(jnp.asarray(X, jnp.bfloat16), 3)
    assert half.dtype == jnp.float32


@pytest.mark.parametrize("fn", [numerics.sparse_simplex_projection, numerics.sparse_projection])
def test_gradient_is_a_central_difference(fn):
    weights, step = RNG.normal(size=X.shape), RNG.normal(size=X.shape)
    with jax.enable_x64(True):
        x, f = jnp.asarray(X, jnp.float64), jax.jit(lambda x: jnp.vdot(weights, fn(x, 3)))
        slope = (f(x + 1e-6 * step) - f(x - 1e-6 * step)) / 2e-6
        np.testing.assert_allclose(jnp.vdot(jax.jit(jax.grad(f))(x), step), slope, rtol=1e-7)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_sparse_projection_is_the_best_of_all_supports(k):
    found = jax.jit(lambda x: numerics.sparse_projection(x, k))(X)
    for x, p in zip(X, found):
        choices = [np.isin(np.arange(5), s) * x for s in itertools.combinations(range(5), k)]
        best = min(choices, key=lambda c: ((c - x) ** 2).sum())
        np.testing.assert_array_equal(p, best)
    ties = numerics.sparse_projection(np.array([1, -2, 2, -2]), 2)
    np.testing.assert_array_equal(ties, [0, -2, 2, 0])
    half = numerics.sparse_projection(jnp.asarray(X, jnp.bfloat16), k)
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("fn", [numerics.sparse_simplex_projection, numerics.sparse_projection])
@pytest.mark.parametrize("k", [0, 6])
def test_k_is_of_the_last_axis(fn, k):
    with pytest.raises(ValueError, match=f"k={k} entries of a last axis of 5"):
        fn(X, k)
