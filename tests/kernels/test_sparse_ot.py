"""Sparse transport from points against every support, scipy, and the whole matrix in float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from tests.kernels.checks import as_shapes, lowered_for, temporary_bytes
from tests.models.drawing import jit
from tinker import kernels, ot
from tinker.kernels.sparse_ot import pallas_tpu, reference, xla
from tinker.numerics import UserError


def clouds(m, n, d=3, seed=0):
    """Potentials, points and masses: alpha ``[m]``, x ``[m, d]``, y ``[n, d]``, a, b; float32."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=m), rng.normal(size=(m, d)), rng.normal(size=(n, d)) + 1
    drawn += rng.dirichlet(np.full(m, 3.0)), rng.dirichlet(np.full(n, 3.0))
    return tuple(x.astype(np.float32) for x in drawn)


def distances(x, y):
    """Squared, by a loop, in float64."""
    x, y = np.float64(x), np.float64(y)
    return np.array([[np.square(p - q).sum() for q in y] for p in x])


def best_column(z, b, k, gamma):
    """The t >= 0 of sum b and k nonzeros that maximizes <z, t> - gamma / 2 |t|^2, of all supports.

    On a support the best t of that sum has one Lagrange multiplier for all entries.
    """
    best, where = -np.inf, None
    for size in range(1, k + 1):
        for support in map(list, itertools.combinations(range(len(z)), size)):
            t = np.zeros(len(z))
            t[support] = b / size + (z[support] - z[support].mean()) / gamma
            value = z @ t - gamma / 2 * t @ t
            if (t >= -1e-12).all() and value > best:
                best, where = value, t
    return best, where


def dense(plan, m):
    """The matrix ``[m, n]`` of a SparseColumns; none of its rows comes twice."""
    indices, values = map(np.asarray, plan)
    assert (np.diff(indices, axis=1) > 0).all()
    found = np.zeros((len(indices), m))
    np.put_along_axis(found, indices, values, 1)
    return found.T


@functools.partial(jit, static_argnames=("k", "implementation"))
def semi_dual(alpha, x, y, a, b, gamma, k, implementation=None):
    """The value, its slopes in all of the arguments, and (where k is one) the plan."""
    options = {"k": k, "implementation": implementation}

    def value(alpha, x, y, a, b, gamma):
        cost = kernels.squared_euclidean_factors(x, y)
        return kernels.point_semi_dual(alpha, cost, a, b, gamma=gamma, **options)

    found, slopes = jax.value_and_grad(value, range(6))(alpha, x, y, a, b, gamma)
    if k is None:
        return found, slopes, None
    cost = kernels.squared_euclidean_factors(x, y)
    return found, slopes, kernels.point_semi_dual_plan(alpha, cost, b, gamma=gamma, **options)


@functools.partial(jit, static_argnames="k")
def whole(alpha, x, y, a, b, gamma, k):
    """The same of the reference, the plan as a matrix."""

    def value(alpha, x, y, a, b, gamma):
        cost = kernels.squared_euclidean_factors(x, y)
        return reference.semi_dual(alpha, cost, a, b, k=k, gamma=gamma)

    found, slopes = jax.value_and_grad(value, range(6))(alpha, x, y, a, b, gamma)
    cost = kernels.squared_euclidean_factors(x, y)
    return found, slopes, reference.plan(alpha, cost, b, k=k, gamma=gamma)


def test_factors_are_distances_wherever_the_points_lie():
    _, x, y, *_ = clouds(7, 5)
    weights = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)

    @jit
    def everything(x, y):
        cost = kernels.squared_euclidean_factors
        total = lambda x, y: (reference.cost_matrix(cost(x, y)) * weights).sum()  # noqa: E731
        both = reference.cost_matrix(cost(x, y)), reference.cost_matrix(cost(x, y).T)
        return *both, *jax.grad(total, (0, 1))(x, y)

    for moved in (0.0, 300.0):
        far = x + np.float32(moved), y + np.float32(moved)  # whose own digits are lost
        found, turned, dx, dy = everything(*far)
        np.testing.assert_allclose(found, distances(*far), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(turned, found.T, rtol=1e-6)
        gaps = 2 * weights[..., None] * (far[0][:, None] - far[1])
        np.testing.assert_allclose(dx, gaps.sum(1), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(dy, -gaps.sum(0), rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        kernels.squared_euclidean_factors(x, y[:, :2])


@pytest.mark.parametrize(
    "m, n, k, gammas", [(6, 5, 2, (0.5, 30.0)), (6, 5, 6, (1.0, 30.0)), (1, 5, 1, (2.0,))]
)
def test_the_best_of_all_supports(m, n, k, gammas):
    alpha, x, y, a, b = clouds(m, n)
    z = np.float64(alpha)[:, None] - distances(x, y)
    for gamma in gammas:
        columns = [best_column(z[:, j], np.float64(b[j]), k, gamma) for j in range(n)]
        expected = np.stack([t for _, t in columns], 1)
        value, slopes, plan = semi_dual(alpha, x, y, a, b, gamma, k)
        np.testing.assert_allclose(value, alpha @ a - sum(v for v, _ in columns), rtol=1e-5)
        np.testing.assert_allclose(slopes[0], a - expected.sum(1), atol=2e-6)
        np.testing.assert_allclose(dense(plan, m), expected, atol=2e-6)
        # the points follow their mass: d/dx sum_ij t_ij |x_i - y_j|^2, by a loop
        dx = np.zeros_like(x)
        for i, j in np.ndindex(m, n):
            dx[i] += 2 * expected[i, j] * (x[i] - y[j])
        np.testing.assert_allclose(slopes[1], dx, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "m, n, k, gamma",
    [
        (
            600,
            1000,
            5,
            900.0,
        ),  # more than a chunk of columns, and groups of rows that do not divide
        (600, 1000, None, 900.0),
        pytest.param(300, 20, 200, 1e5, marks=pytest.mark.deep),
        pytest.param(9, 1, 4, 100.0, marks=pytest.mark.deep),
    ],
)
def test_the_whole_matrix_in_float64(m, n, k, gamma):
    args = clouds(m, n)
    value, slopes, plan = semi_dual(*args, gamma, k)
    with jax.enable_x64(True):
        expected, exact, matrix = whole(*(np.float64(x) for x in args), gamma, k)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=2e-6)
    for found, slope in zip(slopes, exact, strict=True):
        np.testing.assert_allclose(found, slope, atol=2e-5 * np.abs(slope).max() + 1e-8, rtol=1e-4)
    if k is not None:
        found = dense(plan, m)
        np.testing.assert_allclose(found, matrix, atol=2e-6)
        np.testing.assert_allclose(found.sum(0), args[-1], rtol=1e-5)
        assert (found > 0).sum(0).max() == k


def test_the_dense_functions_of_transport():
    """A second opinion, whose thresholds and costs are come by another way."""
    args, gamma = clouds(600, 1000), 900.0
    alpha, x, y, a, b = args
    cost = distances(x, y).astype(np.float32)
    options = {"k": 5, "gamma": gamma}
    value, slopes, plan = semi_dual(*args, gamma, 5)

    @jit
    def theirs(alpha, cost):
        given = ot.sparse_semi_dual_plan(alpha, cost, b, **options)
        return ot.sparse_semi_dual(alpha, cost, a, b, **options), given

    expected, matrix = theirs(alpha, cost)
    found = dense(plan, 600)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(found, matrix, atol=2e-6)
    # the slope in b is the columns' potential: the plan is what of alpha + beta - c is positive
    over = np.maximum(alpha[:, None] + np.asarray(slopes[4]) - cost, 0) / gamma
    np.testing.assert_allclose(np.where(found > 0, over, 0), found, atol=2e-6)


@pytest.mark.parametrize(
    "k", [5, None, *(pytest.param(k, marks=pytest.mark.deep) for k in (1, 13))]
)
def test_the_tiles_of_a_tpu_interpreted(k, monkeypatch):
    monkeypatch.setattr(pallas_tpu, "ROWS", 16)
    alpha, x, y, a, b = clouds(70, 150)
    b[[0, 140]] = 0.0
    expected = semi_dual(alpha, x, y, a, b, 40.0, k)
    found = semi_dual(alpha, x, y, a, b, 40.0, k, "pallas")
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", [None, "pallas"])
def test_of_equal_entries_the_first_is_kept(implementation, monkeypatch):
    """Points on a small grid: most of a column's entries are equal, to the last digit."""
    monkeypatch.setattr(pallas_tpu, "ROWS", 16)
    rng = np.random.default_rng(0)
    x, y = np.float32(rng.integers(0, 2, (120, 2))), np.float32(rng.integers(0, 3, (30, 2)))
    cost = kernels.CostFactors(2 * x, y, np.square(x).sum(1), np.square(y).sum(1))
    b = rng.dirichlet(np.ones(30)).astype(np.float32)
    alpha = rng.integers(0, 2, 120).astype(np.float32)
    alpha[101] += 9  # what comes late and is more must not bring its neighbours in
    run = jit(kernels.point_semi_dual_plan, static_argnames=("k", "implementation"))
    found = run(alpha, cost, b, k=3, gamma=200.0, implementation=implementation)
    found = dense(found, 120)
    for column, mass, j in zip(found.T, b, range(30), strict=True):
        scores = alpha - np.square(x - y[j]).sum(1)
        best, expected = np.argsort(-scores, kind="stable")[:3], np.zeros(120)
        expected[best] = best_column(scores[best], mass, 3, 200.0)[1]
        np.testing.assert_allclose(column, expected, atol=1e-6)


def test_thresholds_are_those_of_sorted_entries():
    rng = np.random.default_rng(0)
    find = jit(xla.threshold_of)
    for size in (1, 50, 700):
        z = rng.normal(size=(30, size)) * np.logspace(-2, 4, 30)[:, None]
        z[3] = 1.0  # all equal
        b = 10 ** rng.uniform(-3, 5, 30)
        found = find(np.float32(z), np.float32(b))
        for row, mass, threshold in zip(z, b, found, strict=True):
            counts, high = np.arange(1, size + 1), -np.sort(-row)
            expected = ((np.cumsum(high) - mass) / counts).max()
            digits = 1e-6 * max(mass, np.abs(row).max())
            np.testing.assert_allclose(threshold, expected, rtol=1e-6, atol=digits)


def test_corners():
    """Empty columns and far points; bfloat16; a batch of problems."""
    alpha, x, y, a, b = clouds(70, 150)
    b[[0, 140]] = 0.0
    for k in (5, None):
        for scale in (1, 1e4):
            value, slopes, plan = semi_dual(scale * alpha, scale * x, y / scale, a, b, 40.0, k)
            assert np.isfinite(value) and all(np.isfinite(s).all() for s in slopes)
            # a column's mass comes from what its scores differ by, of which few digits are left
            lost = 1e-4 if scale == 1 else 1.0
            np.testing.assert_allclose(a.sum() - slopes[0].sum(), b.sum(), rtol=lost)
            assert plan is None or not np.asarray(plan.values)[[0, 140]].any()
    half = [v.astype(jnp.bfloat16) for v in (alpha, x, y, a, b)]
    found, slopes, _ = semi_dual(*half, 40.0, 5)
    expected, exact, _ = semi_dual(*(v.astype(jnp.float32) for v in half), 40.0, 5)
    assert found.dtype == jnp.float32 and slopes[1].dtype == jnp.bfloat16
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(np.float32(slopes[1]), exact[1], rtol=1e-2, atol=1e-3)
    batch = jit(jax.vmap(lambda alpha, y: semi_dual.__wrapped__(alpha, x, y, a, b, 40.0, 5)))
    many = batch(np.stack([alpha, -alpha]), np.stack([y, 2 * y]))
    for i, args in enumerate([(alpha, x, y), (-alpha, x, 2 * y)]):
        one = semi_dual(*args, a, b, 40.0, 5)
        for found, expected in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-5)


def test_slopes_of_the_plan_are_central_differences():
    with jax.enable_x64(True):
        alpha, x, y, _, b = (np.float64(v) for v in clouds(30, 8))
        rng = np.random.default_rng(1)
        weights, step = rng.normal(size=(8, 4)), rng.normal(size=x.shape)

        @jit
        def along(h):
            def value(h):
                cost = kernels.squared_euclidean_factors(x + h * step, y)
                plan = kernels.point_semi_dual_plan(alpha, cost, b, k=4, gamma=20.0)
                return (plan.values * weights).sum()

            return value(h), jax.jvp(value, (h,), (1.0,))[1], jax.grad(value)(h)

        slope = (along(1e-6)[0] - along(-1e-6)[0]) / 2e-6
        np.testing.assert_allclose(along(0.0)[1:], [slope, slope], rtol=1e-6)


@pytest.mark.deep
def test_one_nonzero_reaches_the_linear_program():
    """At the potentials of an assignment the value is its cost, and each column has its row."""
    _, x, y, *_ = clouds(30, 30)
    cost = distances(x, y)
    rows, columns = linear_sum_assignment(cost)
    # the potentials: the shortest ways through what an exchange of two columns would cost
    detours, alpha = cost[:, columns] - cost[rows, columns], np.zeros(30)
    for _ in range(30):
        alpha = (alpha + detours).min(1)
    mass = np.full(30, 1 / 30, np.float32)
    value, _, plan = semi_dual(np.float32(alpha), x, y, mass, mass, 1e-3, 1)
    best = cost[rows, columns].mean() + 1e-3 / 2 / 30
    np.testing.assert_allclose(value, best, rtol=1e-5)
    assert (np.asarray(plan.indices)[columns, 0] == rows).mean() > 0.3  # a way's edges tie


SHAPES = as_shapes(*(np.zeros(s, np.float32) for s in (8192, (8192, 8), (8192, 8), 8192, 8192, ())))


@pytest.mark.parametrize("k", [8, None])
def test_it_lowers_for_a_tpu(k):
    run = functools.partial(semi_dual.__wrapped__, k=k, implementation="pallas")
    text = lowered_for("tpu", run, *SHAPES)
    names = ["sparse_ot_top"] * 2 if k else ["sparse_ot_threshold"] + ["sparse_ot_slopes"] * 2
    assert text.count("tpu_custom_call") >= len(names) and all(name in text for name in names)
    # what was not measured is not chosen, and for GPUs there is no form
    plain = functools.partial(semi_dual.__wrapped__, k=k)
    assert "tpu_custom_call" not in lowered_for("tpu", plain, *SHAPES)
    lowered_for("cuda", plain, *SHAPES)
    with pytest.raises(UserError, match="has no GPU form"):
        lowered_for("cuda", run, *SHAPES)


@pytest.mark.parametrize("k", [8, None])
def test_it_needs_a_tenth_of_the_matrix(k):
    ours, all_pairs = (
        temporary_bytes(functools.partial(fn.__wrapped__, k=k), *SHAPES)
        for fn in (semi_dual, whole)
    )
    assert ours < 12e6 and all_pairs > 10 * ours


def test_errors():
    alpha, x, y, a, b = clouds(6, 5)
    cost = kernels.squared_euclidean_factors(x, y)
    for k in (0, 7):
        with pytest.raises(ValueError, match=f"k={k} nonzeros"):
            kernels.point_semi_dual(alpha, cost, a, b, k=k)
        with pytest.raises(ValueError, match=f"k={k} nonzeros"):
            kernels.point_semi_dual_plan(alpha, cost, b, k=k)
    with pytest.raises(UserError, match="pallas"):
        kernels.point_semi_dual(alpha, cost, a, b, implementation="palas")
    with pytest.raises(AssertionError):
        kernels.point_semi_dual(alpha, cost, b, a)
    with pytest.raises(AssertionError):
        kernels.point_semi_dual(alpha, cost.T, a, b)
    pallas = functools.partial(kernels.point_semi_dual, implementation="pallas")
    for m, d, k, match in ((1100, 2, 1025, "at most 1024"), (8, 50_000, None, "VMEM")):
        shapes = as_shapes(*(np.zeros(s, np.float32) for s in (m, (m, d), (5, d), m, 5, m, 5)))
        with pytest.raises(UserError, match=match):
            jax.eval_shape(
                lambda alpha, u, v, r, s, a, b, k=k: pallas(
                    alpha, kernels.CostFactors(u, v, r, s), a, b, k=k
                ),
                *shapes,
            )
    with jax.enable_x64(True), pytest.raises(UserError, match="float32"):
        pallas(np.float64(alpha), cost, a, b)
