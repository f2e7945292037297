"""Entropic transport against NumPy's logarithms of sums, and the linear program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linear_sum_assignment

from tests.models.drawing import jit
from tinker import ot
from tinker.kernels import squared_euclidean_factors

M, N = 20, 15


def problem(m=M, n=N, d=2, seed=0):
    """Points and masses: x ``[m, d]``, y ``[n, d]``, a, b; float32."""
    rng = np.random.default_rng(seed)
    drawn = rng.uniform(size=(m, d)), rng.uniform(size=(n, d)) + 0.3
    drawn += rng.dirichlet(np.full(m, 3.0)), rng.dirichlet(np.full(n, 3.0))
    return tuple(x.astype(np.float32) for x in drawn)


def distances(x, y):
    return np.square(np.float64(x)[:, None] - np.float64(y)).sum(-1)


def by_hand(cost, a, b, epsilon, iterations=3000):
    """Potentials, plan and value after so many updates, in float64."""
    f, g, a, b = np.zeros(len(a)), np.zeros(len(b)), np.float64(a), np.float64(b)
    for _ in range(iterations):
        f = -epsilon * np.logaddexp.reduce((g - cost) / epsilon + np.log(b), 1)
        g = -epsilon * np.logaddexp.reduce(((f - cost.T) / epsilon + np.log(a)), 1)
    plan = a[:, None] * b * np.exp((f[:, None] + g - cost) / epsilon)
    return f, g, plan, (plan * cost).sum() + epsilon * (plan * np.log(plan / np.outer(a, b))).sum()


@functools.partial(jit, static_argnames="schedule")
def solve(x, y, a, b, epsilon, **options):
    """The solution, and the slopes of its value in x, y, a, b."""

    def value(x, y, a, b):
        cost = squared_euclidean_factors(x, y)
        out = ot.entropic_transport(cost, a, b, epsilon=epsilon, **options)
        return out.value, out

    (_, out), slopes = jax.value_and_grad(value, range(4), has_aux=True)(x, y, a, b)
    return out, slopes


def test_it_is_what_numpy_comes_to():
    x, y, a, b = problem()
    cost = distances(x, y)
    f, g, plan, value = by_hand(cost, a, b, 0.05)
    out, (dx, dy, da, db) = solve(x, y, a, b, 0.05, tolerance=1e-5)
    assert out.converged and 0 < out.error <= 1e-5 and 1 < out.num_iterations < 2000
    np.testing.assert_allclose(out.value, value, rtol=1e-5)
    found_f, found_g = map(np.asarray, out.potentials)
    np.testing.assert_allclose(found_f - found_f.mean(), f - f.mean(), atol=1e-5)
    np.testing.assert_allclose(found_g - found_g.mean(), g - g.mean(), atol=1e-5)
    np.testing.assert_allclose(found_f[0] + found_g[0], f[0] + g[0], atol=1e-5)
    # the slopes are the plan's, and the potentials' but for a constant
    gaps = 2 * plan[..., None] * (np.float64(x)[:, None] - y)
    np.testing.assert_allclose(dx, gaps.sum(1), atol=1e-5)
    np.testing.assert_allclose(dy, -gaps.sum(0), atol=1e-5)
    np.testing.assert_allclose(da - da.mean(), f - f.mean(), atol=1e-5)
    np.testing.assert_allclose(db - db.mean(), g - g.mean(), atol=1e-5)


def test_slopes_are_central_differences():
    with jax.enable_x64(True):
        given = [np.float64(v) for v in problem(8, 6)]
        given[2:] = [v / v.sum() for v in given[2:]]
        rng = np.random.default_rng(1)
        steps = [rng.normal(size=v.shape) for v in given]
        steps[2:] = [v - v.mean() for v in steps[2:]]  # masses stay of sum 1

        def moved(h):
            return [v + h * s for v, s in zip(given, steps, strict=True)]

        run = functools.partial(solve, epsilon=0.1, tolerance=1e-13)
        value, slopes = run(*given)
        along = sum((s * v).sum() for s, v in zip(slopes, steps, strict=True))
        ahead, behind = (run(*moved(h))[0].value for h in (1e-5, -1e-5))
        np.testing.assert_allclose(along, (ahead - behind) / 2e-5, rtol=1e-6)


SCHEDULE = optax.exponential_decay(1.0, 1, 0.8)


def test_a_schedule_comes_to_the_same_sooner():
    """At an epsilon of 5e-4, in float32, far from the origin."""
    x, y, _, _ = problem(30, 30)
    mass, cost = np.full(30, 1 / 30, np.float32), distances(x, y)
    x, y = np.float32(x + 64), np.float32(y - 64)
    exact = distances(x, y)
    epsilon, limits = 5e-4, {"tolerance": 1e-2, "max_iterations": 5000}
    slow, _ = solve(x, y, mass, mass, epsilon, **limits)
    out, slopes = solve(x, y, mass, mass, epsilon, schedule=SCHEDULE, **limits)
    assert out.converged and out.num_iterations > np.log(epsilon) / np.log(0.8)
    assert out.num_iterations < 0.7 * slow.num_iterations
    best = exact[linear_sum_assignment(exact)].mean()
    # the penalty is at most epsilon log 30
    assert best - 1e-2 <= out.value <= best + epsilon * np.log(30) + 1e-2
    # the plan matches the points as the linear program does: rows' slopes point at their partner
    partner = np.asarray(slopes[0]) * 30 / -2 + x
    np.testing.assert_array_equal(
        np.square(partner[:, None] - y).sum(-1).argmin(1), linear_sum_assignment(cost)[1]
    )


def test_the_error_is_what_rows_missed_and_bounds_what_columns_do():
    x, y, a, b = problem()
    cost = distances(x, y)

    def plan(f, g):
        return np.float64(a)[:, None] * b * np.exp((f[:, None] + g - cost) / 0.02)

    for limit in (1, 30):
        before, _ = solve(x, y, a, b, 0.02, tolerance=1e-6, max_iterations=limit)
        out, _ = solve(x, y, a, b, 0.02, tolerance=1e-6, max_iterations=limit + 1)
        f, g = map(np.float64, out.potentials)
        assert not out.converged and out.num_iterations == limit + 1
        missed = np.abs(plan(np.float64(before.potentials[0]), g).sum(1) - a).sum()
        np.testing.assert_allclose(out.error, missed, rtol=1e-3)
        np.testing.assert_allclose(plan(f, g).sum(1), a, rtol=1e-3)
        assert 1e-6 < np.abs(plan(f, g).sum(0) - b).sum() <= out.error < before.error


def test_corners():
    """Rows and columns without mass, bfloat16, one point."""
    x, y, a, b = problem()
    a[[0, 3]], b[5] = 0.0, 0.0
    a, b = a / a.sum(), b / b.sum()
    out, slopes = solve(x, y, a, b, 0.05, tolerance=1e-5)
    some, others = a > 0, b > 0
    *_, value = by_hand(distances(x[some], y[others]), a[some], b[others], 0.05)
    np.testing.assert_allclose(out.value, value, rtol=1e-5)
    assert out.converged and all(np.isfinite(s).all() for s in jax.tree.leaves((out, slopes)))
    half, (dx, *_) = solve(*(jnp.asarray(v, jnp.bfloat16) for v in (x, y, a, b)), 0.05)
    assert half.value.dtype == jnp.float32 and dx.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.value, out.value, rtol=0.02)
    single, _ = solve(x[:1], y[:1], np.ones(1, np.float32), np.ones(1, np.float32), 0.1)
    np.testing.assert_allclose(single.value, np.square(x[0] - y[0]).sum(), rtol=1e-5)


@pytest.mark.deep
def test_a_batch():
    x, y, a, b = problem()
    run = lambda y: ot.entropic_transport(  # noqa: E731
        squared_euclidean_factors(x, y), a, b, epsilon=0.05, tolerance=1e-5
    )
    many = jit(jax.vmap(run))(np.stack([y, 2 * y]))
    for i, scale in enumerate((1, 2)):
        np.testing.assert_allclose(many.value[i], run(scale * y).value, rtol=1e-5)


@pytest.mark.deep
def test_pots_plan_and_value():
    pot = pytest.importorskip("ot")
    x, y, a, b = (np.float64(v) for v in problem())
    a, b, cost = a / a.sum(), b / b.sum(), distances(x, y)
    plan = pot.sinkhorn(a, b, cost, 0.05, method="sinkhorn_log", stopThr=1e-12, numItermax=10_000)
    out, _ = solve(*problem(), 0.05, tolerance=1e-5)
    f, g = out.potentials
    found = a[:, None] * b * np.exp((np.asarray(f)[:, None] + g - cost) / 0.05)
    np.testing.assert_allclose(found, plan, atol=1e-6)
    penalty = 0.05 * (plan * np.log(plan / np.outer(a, b))).sum()
    np.testing.assert_allclose(out.value, (plan * cost).sum() + penalty, rtol=1e-5)
