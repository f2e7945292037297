"""Sparse transport against exhaustive searches, scipy's programs, and POT's figures."""

import functools
import inspect
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment, minimize

from tests.conftest import ROOT
from tests.models.drawing import jit
from tinker import ot
from tinker.kernels import point_semi_dual_plan, squared_euclidean_factors
from tinker.numerics import UserError

GOLDEN = json.loads((ROOT / "tests" / "golden" / "sparse_ot.json").read_text())
RNG = np.random.default_rng(0)
M, N = 5, 3
COST = RNG.uniform(size=(M, N))
A, B = RNG.dirichlet(np.ones(M) * 3), RNG.dirichlet(np.ones(N) * 3)
ALPHA, WEIGHTS = RNG.normal(size=M), RNG.normal(size=(M, N))
solve = jit(
    ot.sparse_transport, static_argnames=("k", "formulation", "max_iterations", "tolerance")
)


def best_column(s, b, k, gamma):
    """The maximum of <s, t> - gamma / 2 |t|^2 over t >= 0 of sum b: every support is tried."""
    best, where = -np.inf, None
    for size in range(1, k + 1):
        for support in map(list, itertools.combinations(range(len(s)), size)):
            t = np.zeros(len(s))
            t[support] = (s[support] - (s[support].sum() - gamma * b) / size) / gamma
            value = s @ t - gamma / 2 * t @ t
            if (t >= -1e-12).all() and value > best:
                best, where = value, t
    return best, where


def cheapest_plan(cost, a, b, gamma, allowed):
    """scipy's quadratic program over the plans that are zero where not allowed; its value."""
    rows = np.repeat(np.eye(len(a)), len(b), 1)
    columns = np.tile(np.eye(len(b)), len(a))
    sums, target = np.concatenate([rows, columns])[:-1], np.concatenate([a, b])[:-1]
    c = cost.ravel()
    found = minimize(
        lambda t: c @ t + gamma / 2 * t @ t,
        np.outer(a, b).ravel() * allowed.ravel(),
        jac=lambda t: c + gamma * t,
        bounds=[(0, x) for x in allowed.ravel().astype(float)],
        constraints={"type": "eq", "fun": lambda t: sums @ t - target, "jac": lambda t: sums},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    met = np.abs(sums @ found.x - target).max() < 1e-7
    return (found.fun if met else np.inf), found.x.reshape(cost.shape)


@pytest.mark.parametrize("k, gamma", [(1, 0.5), (2, 3.0), (5, 3.0)])
def test_semi_dual_is_the_best_of_all_supports(k, gamma):
    @jit
    def everything(alpha):
        options = {"k": k, "gamma": gamma}
        value = functools.partial(ot.sparse_semi_dual, cost=COST, a=A, b=B, **options)
        return *jax.value_and_grad(value)(alpha), ot.sparse_semi_dual_plan(
            alpha, COST, B, **options
        )

    value, grad, plan = everything(ALPHA.astype(np.float32))
    columns = [best_column(ALPHA - COST[:, j], B[j], k, gamma) for j in range(N)]
    expected = np.stack([t for _, t in columns], 1)
    np.testing.assert_allclose(value, ALPHA @ A - sum(v for v, _ in columns), rtol=1e-5)
    np.testing.assert_allclose(plan, expected, atol=1e-6)
    np.testing.assert_allclose(grad, A - expected.sum(1), atol=1e-6)


def test_pots_figures():
    inputs = {name: np.array(x, np.float32) for name, x in GOLDEN["inputs"].items()}
    cost, a, b, alpha, beta = (inputs[n] for n in ("cost", "a", "b", "alpha", "beta"))

    @jit
    def everything():
        found = []
        for case in GOLDEN["cases"]:
            options = {"k": case["k"], "gamma": case["gamma"]}
            semi = jax.value_and_grad(functools.partial(ot.sparse_semi_dual, **options))
            dual = jax.value_and_grad(functools.partial(ot.sparse_dual, **options), (0, 1))
            plan = ot.sparse_semi_dual_plan(alpha, cost, b, **options)
            plans = plan, ot.sparse_dual_plan(alpha, beta, cost, **options)
            found.append((semi(alpha, cost, a, b), dual(alpha, beta, cost, a, b), plans))
        return found

    for case, (semi, dual, plans) in zip(GOLDEN["cases"], everything(), strict=True):
        expected = [case["semi_dual"], case["semi_dual_gradient"], case["dual"]]
        expected += [case["dual_gradient_alpha"], case["dual_gradient_beta"]]
        found = [*semi, dual[0], *dual[1], *plans]
        expected += [case["semi_dual_plan"], case["dual_plan"]]
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.deep
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"k{case['k']}")
def test_pots_solutions(case):
    cost, a, b = (np.array(GOLDEN["inputs"][n], np.float32) for n in ("cost", "a", "b"))
    # where the dual is not smooth both solvers come to an end near its maximum
    slack = 1e-4 if case["k"] == 6 else 5e-3
    for formulation in ("semi_dual", "dual"):
        out = solve(cost, a, b, k=case["k"], gamma=case["gamma"], formulation=formulation)
        np.testing.assert_allclose(out.value, case[f"solved_{formulation}"], atol=slack)
        assert (np.asarray(out.plan) > 0).sum(0).max() <= case["k"]
        if case["k"] == 6:
            np.testing.assert_allclose(out.plan, case["solved_plan"], atol=2e-4)


@jit
def quadratic(cost, a, b, weights):
    """The solution, the slopes of its value, and those of its plan's inner product with weights."""
    transport = functools.partial(ot.sparse_transport, k=M, gamma=2.0, tolerance=1e-6)

    def both(cost, a, b, weights):
        out = transport(cost, a, b)
        return jnp.stack([out.value, (out.plan * weights).sum()]), out

    _, pull, out = jax.vjp(both, cost, a, b, weights, has_aux=True)
    return out, pull(jnp.array([1.0, 0.0])), pull(jnp.array([0.0, 1.0]))


def test_all_rows_allowed_is_scipys_quadratic_program():
    out, slopes, through = quadratic(COST, A, B, WEIGHTS)
    value, plan = cheapest_plan(COST, A, B, 2.0, np.ones((M, N)))
    np.testing.assert_allclose(out.plan, plan, atol=2e-5)
    np.testing.assert_allclose(out.value, value, rtol=1e-5)
    assert out.error < 1e-5 and 0 < out.num_iterations < 100
    alpha, beta = out.potentials
    again = ot.sparse_dual(alpha, beta, COST, A, B, k=M, gamma=2.0)
    np.testing.assert_allclose(again, out.value, rtol=1e-6)
    # what is added to rows and columns moves no mass
    rows, columns = RNG.normal(size=M), RNG.normal(size=N)
    moved = quadratic(COST + rows[:, None] + columns, A, B, WEIGHTS)[0]
    np.testing.assert_allclose(moved.plan, out.plan, atol=1e-5)
    np.testing.assert_allclose(moved.value, out.value + rows @ A + columns @ B, rtol=1e-5)
    # the slopes of the value are the plan and the potentials, and a central difference
    for slope, expected in zip(slopes[:3], (out.plan, alpha, beta), strict=True):
        np.testing.assert_allclose(slope, expected, atol=1e-6)
    step = 1e-2 * RNG.normal(size=(M, N))
    ahead, behind = (quadratic(COST + h * step, A, B, WEIGHTS)[0].value for h in (1, -1))
    np.testing.assert_allclose((slopes[0] * step).sum(), (ahead - behind) / 2, rtol=2e-3)
    # those of the plan are at held potentials: on the face it lies on the projection is linear
    held = functools.partial(ot.sparse_semi_dual_plan, alpha, b=B, k=M, gamma=2.0)
    change = ((held(COST + 1e-3 * step) - held(COST - 1e-3 * step)) * WEIGHTS).sum() / 2e-3
    np.testing.assert_allclose((through[0] * step).sum(), change, rtol=1e-2, atol=1e-5)


@pytest.mark.deep
def test_the_dual_is_scipys_quadratic_program_too():
    out = solve(COST, A, B, k=M, gamma=2.0, formulation="dual", tolerance=1e-6)
    np.testing.assert_allclose(
        out.plan, cheapest_plan(COST, A, B, 2.0, np.ones((M, N)))[1], atol=2e-5
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_value_bounds_the_best_sparse_plan_and_is_it_where_the_marginals_hold(seed):
    """Every choice of two rows for each of three columns is tried, 27 quadratic programs."""
    rng = np.random.default_rng(seed)
    cost, a, b = rng.uniform(size=(3, 3)), rng.dirichlet(np.ones(3) * 5), rng.dirichlet([5, 5, 5])
    supports = list(itertools.combinations(range(3), 2))
    primal = np.inf
    for chosen in itertools.product(supports, repeat=3):
        allowed = np.zeros((3, 3), bool)
        for j, rows in enumerate(chosen):
            allowed[list(rows), j] = True
        primal = min(primal, cheapest_plan(cost, a, b, 0.5, allowed)[0])
    out = solve(cost, a, b, k=2, gamma=0.5)
    assert (np.asarray(out.plan) > 0).sum(0).max() <= 2
    assert out.value <= primal + 1e-5
    np.testing.assert_allclose(out.plan.sum(0), b, rtol=1e-5)
    missed = np.abs(np.asarray(out.plan).sum(1) - a).sum()
    np.testing.assert_allclose(out.error, missed, atol=1e-6)
    assert out.converged == (out.error <= 1e-4)
    if out.converged:
        np.testing.assert_allclose(out.value, primal, atol=1e-4)
        whole = (out.plan * cost).sum() + 0.25 * (out.plan**2).sum()
        np.testing.assert_allclose(whole, primal, atol=1e-4)


@pytest.mark.deep
def test_one_row_a_column_is_the_assignment():
    cost = RNG.uniform(size=(6, 6)).astype(np.float32)
    uniform = np.full(6, 1 / 6, np.float32)
    rows, columns = linear_sum_assignment(cost)
    expected = np.zeros((6, 6))
    expected[rows, columns] = 1 / 6
    out = solve(cost, uniform, uniform, k=1)
    np.testing.assert_allclose(out.plan, expected, atol=1e-6)
    assert out.converged and out.error < 1e-5
    np.testing.assert_allclose(out.value, (cost * expected).sum() + 0.5 / 6, rtol=1e-5)


X, Y = RNG.uniform(size=(30, 2)), RNG.uniform(size=(20, 2)) + 0.2
CLOUDS = [v.astype(np.float32) for v in (X, Y)]
MASSES = [RNG.dirichlet(np.full(n, 5.0)).astype(np.float32) for n in (30, 20)]


@functools.partial(jit, static_argnames="k")
def from_points(x, y, a, b, k, gamma):
    """The solution, a matrix of its plan, and the slopes of its value in the points and masses."""

    def value(x, y, a, b):
        cost = squared_euclidean_factors(x, y)
        out = ot.sparse_point_transport(cost, a, b, k=k, gamma=gamma, tolerance=1e-5)
        return out.value, out

    (_, out), slopes = jax.value_and_grad(value, range(4), has_aux=True)(x, y, a, b)
    cost = squared_euclidean_factors(x, y)
    plan = point_semi_dual_plan(out.potentials[0], cost, b, k=k or len(x), gamma=gamma)
    matrix = jnp.zeros((len(y), len(x)))
    return out, jnp.put_along_axis(matrix, *plan, 1, inplace=False).T, slopes


def test_points_are_transported_as_their_costs_say():
    a, b = MASSES
    cost = np.square(X[:, None] - Y).sum(-1)
    options = {"k": 30, "gamma": 5.0, "tolerance": 1e-5}
    dense = solve(cost.astype(np.float32), a, b, **options)
    out, plan, (dx, dy, da, db) = from_points(*CLOUDS, a, b, None, 5.0)
    assert out.plan is None and out.converged and out.error <= 1e-5
    assert abs(out.num_iterations - dense.num_iterations) <= 10
    np.testing.assert_allclose(plan, dense.plan, atol=1e-5)
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-5)
    np.testing.assert_allclose(out.value, dense.value, rtol=1e-5)
    alpha, beta = map(np.asarray, out.potentials)
    over = np.maximum(alpha[:, None] + beta - cost, 0.0) / 5.0
    np.testing.assert_allclose(over, plan, atol=1e-5)
    gaps = 2 * np.asarray(plan)[..., None] * (X[:, None] - Y)
    np.testing.assert_allclose(dx, gaps.sum(1), atol=1e-5)
    np.testing.assert_allclose(dy, -gaps.sum(0), atol=1e-5)
    np.testing.assert_allclose(da, alpha, atol=1e-6)
    np.testing.assert_allclose(db, beta, atol=1e-5)


def test_points_keep_to_their_number_of_nonzeros():
    a, b = MASSES
    out, plan, _ = from_points(*CLOUDS, a, b, 2, 5.0)
    assert out.plan.indices.shape == (20, 2)
    np.testing.assert_allclose(out.plan.values.sum(1), b, rtol=1e-5)
    for j, (rows, values) in enumerate(zip(*out.plan, strict=True)):
        np.testing.assert_allclose(plan[rows, j], values, atol=1e-7)
    np.testing.assert_allclose(out.error, np.abs(plan.sum(1) - a).sum(), atol=1e-6)
    cost = np.square(X[:, None] - Y).sum(-1).astype(np.float32)
    dense = solve(cost, a, b, k=2, gamma=5.0, tolerance=1e-5)
    # both come to an end near the maximum of what is not smooth
    np.testing.assert_allclose(out.value, dense.value, atol=2e-3)
    again = ot.sparse_semi_dual(out.potentials[0], cost, a, b, k=2, gamma=5.0)
    np.testing.assert_allclose(out.value, again, rtol=1e-5)


def test_routing_fills_experts_and_has_gradients():
    scores = RNG.normal(size=(12, 4)).astype(np.float32)

    @jit
    def everything(scores):
        route = functools.partial(ot.sparse_routing, capacity=3, gamma=10.0)
        weights, pull = jax.vjp(route, scores)
        return weights, pull(scores.astype(weights.dtype))[0]

    weights, grad = everything(scores)
    assert weights.shape == (12, 4) and ((weights > 0).sum(0) <= 3).all()
    np.testing.assert_allclose(weights.sum(0), 1 / 4, rtol=1e-5)
    assert np.isfinite(grad).all() and (grad != 0).any()
    # each expert's three favourites leave tokens out; the router gives them their share
    greedy = ot.sparse_semi_dual_plan(jnp.zeros(12), -scores, np.full(4, 1 / 4), k=3, gamma=10.0)
    missed = [np.abs(np.asarray(w).sum(1) - 1 / 12).sum() for w in (weights, greedy)]
    assert missed[0] < 0.5 * missed[1]


def test_corners():
    """Large costs, and an empty column."""
    empty = np.array([0.6, 0.0, 0.4])
    third = np.full(3, 1 / 3)
    for scale in (1.0, 1e4):
        out = solve(scale * COST[:3], third, empty, k=2, gamma=0.5)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(out))
        np.testing.assert_allclose(out.plan.sum(0), empty, atol=1e-5)
        assert (np.asarray(out.plan) > 0).sum(0).max() <= 2
    half = ot.sparse_semi_dual_plan(jnp.zeros(M), jnp.asarray(COST, jnp.bfloat16), B, k=2)
    assert half.dtype == jnp.float32
    for fn in (ot.sparse_dual, ot.sparse_semi_dual, ot.sparse_dual_plan, ot.sparse_semi_dual_plan):
        assert inspect.signature(fn).parameters["gamma"].default == 1.0
    assert inspect.signature(ot.sparse_transport).parameters["gamma"].default == 1.0
    with pytest.raises(UserError, match="semi_dual"):
        ot.sparse_transport(COST, A, B, k=2, formulation="semidual")
    with pytest.raises(ValueError, match="k=6"):
        ot.sparse_transport(COST, A, B, k=6)
    with pytest.raises(AssertionError):
        ot.sparse_transport(COST, B, A, k=2)
