"""k-means against scikit-learn and its own fixed-point equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from tinker import numerics
from tinker.numerics import clusters

RNG = np.random.default_rng(0)
MEANS = np.array([[0, 0], [10, 0], [0, 10], [10, 10], [30, 30]])
POINTS = (MEANS[np.arange(100) % 5] + RNG.normal(size=(100, 2))).astype(np.float32)
run = functools.partial(jax.jit, static_argnums=2, static_argnames=("num_iterations",))(
    numerics.kmeans
)


def test_separate_clusters_are_found_as_by_sklearn():
    theirs = KMeans(5, n_init=10, random_state=0, tol=0).fit(POINTS)
    ours = [run(jax.random.key(seed), POINTS, 5, tolerance=0.0) for seed in range(5)]
    best = min(ours, key=lambda found: found.inertia)
    np.testing.assert_allclose(best.inertia, theirs.inertia_, rtol=1e-5)
    order = lambda c: np.asarray(c)[np.lexsort(np.round(np.asarray(c)).T)]  # noqa: E731
    np.testing.assert_allclose(order(best.solution), order(theirs.cluster_centers_), atol=1e-4)
    assert best.converged and best.error == 0 and 1 < best.num_iterations < 20
    np.testing.assert_array_equal(np.bincount(best.assignments), 20)
    assert best.assignments.dtype == np.int32


def test_what_is_returned_is_a_fixed_point_with_its_own_assignments():
    points = RNG.normal(size=(80, 3)).astype(np.float32)
    found = run(jax.random.key(0), points, 6, tolerance=0.0)
    assert found.converged
    distances = cdist(points, found.solution, "sqeuclidean")
    np.testing.assert_array_equal(found.assignments, distances.argmin(1))
    np.testing.assert_allclose(found.inertia, distances.min(1).sum(), rtol=1e-5)
    means = [points[found.assignments == j].mean(0) for j in range(6)]
    np.testing.assert_allclose(found.solution, means, rtol=1e-4, atol=1e-6)


def test_one_iteration_is_lloyds_step_and_its_shift_the_error():
    points = RNG.normal(size=(60, 4)).astype(np.float32) * np.array([1, 2, 3, 4], np.float32) + 5
    start = np.asarray(clusters._spread_centers(jax.random.key(3), jnp.asarray(points), 7))
    assert all((points == c).all(1).any() for c in start)
    nearest = cdist(points, start).argmin(1)
    means = np.stack([points[nearest == j].mean(0) for j in range(7)])
    found = run(jax.random.key(3), points, 7, num_iterations=1)
    np.testing.assert_allclose(found.solution, means, rtol=1e-4, atol=1e-6)
    shift = ((means - start) ** 2).sum() / points.var(0).mean()
    np.testing.assert_allclose(found.error, shift, rtol=1e-4)
    assert found.num_iterations == 1 and not found.converged
    again = run(jax.random.key(3), points, 7, num_iterations=1, tolerance=float(shift) * 1.01)
    assert again.converged


def test_the_default_stops_by_tolerance_and_a_loose_one_sooner():
    points = RNG.normal(size=(300, 2)).astype(np.float32)
    default = run(jax.random.key(1), points, 20)
    assert default.converged and 3 < default.num_iterations < 100 and default.error <= 1e-4
    loose = run(jax.random.key(1), points, 20, tolerance=1.0)
    assert loose.num_iterations < default.num_iterations and loose.inertia >= default.inertia


def test_the_start_is_drawn_by_squared_distance():
    """Two points at distances 1 and 2 of a heap: after the heap, drawn as 1 to 4."""
    points = jnp.concatenate([jnp.zeros((98, 1)), jnp.array([[1.0], [-2.0]])])
    keys = jax.random.split(jax.random.key(0), 4000)
    starts = jax.jit(jax.vmap(lambda key: clusters._spread_centers(key, points, 2)[:, 0]))(keys)
    heap = starts[:, 0] == 0
    np.testing.assert_allclose(heap.mean(), 0.98, atol=0.01)
    np.testing.assert_allclose((starts[heap, 1] == -2).mean(), 0.8, atol=0.03)
    assert not (starts[heap, 1] == 0).any()


def test_an_empty_cluster_moves_to_the_farthest_point():
    points = np.array([[0.0], [1], [2], [50], [90]], np.float32)
    centers = np.array([[1.0], [1000], [-1000]], np.float32)
    moved = clusters._means(points, centers)
    np.testing.assert_allclose(moved[:, 0], [143 / 5, 90, 50], rtol=1e-6)


def test_corners():
    same = run(jax.random.key(0), np.ones((4, 2), np.float32), 3)
    np.testing.assert_array_equal(same.solution, 1)
    assert same.converged and same.inertia == 0
    single = run(jax.random.key(0), POINTS, 1)
    np.testing.assert_allclose(single.solution[0], POINTS.mean(0), rtol=1e-5)
    every = run(jax.random.key(0), POINTS[:6], 6)
    np.testing.assert_allclose(every.inertia, 0, atol=1e-5)
    half = run(jax.random.key(0), jnp.asarray(POINTS, jnp.bfloat16), 5)
    assert half.solution.dtype == jnp.float32 and np.isfinite(half.inertia)
    with jax.enable_x64(True):
        assert numerics.kmeans(jax.random.key(0), POINTS, 5).solution.dtype == jnp.float32
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k={k} clusters of 4 points"):
            numerics.kmeans(jax.random.key(0), POINTS[:4], k)
    with pytest.raises(AssertionError):
        numerics.kmeans(jax.random.key(0), POINTS[0], 1)
