"""Sinkhorn's update against a loop over pairs, and the whole matrix in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.checks import as_shapes, lowered_for, temporary_bytes
from tests.models.drawing import jit
from tinker import kernels
from tinker.kernels.sinkhorn import reference
from tinker.numerics import UserError


def problem(m, n, d=3, seed=0):
    """Potentials of the columns, points of rows and columns, masses and weights of the rows."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=n), rng.normal(size=(m, d)), rng.normal(size=(n, d)) + 1
    drawn += rng.dirichlet(np.full(n, 3.0)), rng.normal(size=m)
    return tuple(x.astype(np.float32) for x in drawn)


def loop(g, x, y, b, epsilon):
    """Pair by pair, in float64, a sum of exponentials that is kept as its logarithm."""
    f = np.zeros(len(x))
    for i in range(len(x)):
        total = -np.inf
        for j in range(len(y)):
            if b[j] > 0:
                cost = np.square(np.float64(x[i]) - y[j]).sum()
                total = np.logaddexp(total, np.log(np.float64(b[j])) + (g[j] - cost) / epsilon)
        f[i] = -epsilon * total
    return f


def everything(update, g, x, y, b, weights, epsilon):
    """The potentials, and the slopes of their weighted sum in all that is no weight."""

    def total(g, x, y, b, epsilon):
        f = update(g, kernels.squared_euclidean_factors(x, y), b, epsilon=epsilon)
        return f @ weights.astype(f.dtype), f

    (_, f), slopes = jax.value_and_grad(total, range(5), has_aux=True)(g, x, y, b, epsilon)
    return f, slopes


ours = jit(functools.partial(everything, kernels.sinkhorn_update))
pallas = jit(
    functools.partial(
        everything, functools.partial(kernels.sinkhorn_update, implementation="pallas")
    )
)
whole = jit(functools.partial(everything, reference.update))


@pytest.mark.parametrize("m, n", [(7, 5), (1, 4), (6, 1)])
def test_each_pair_by_a_loop(m, n):
    g, x, y, b, weights = problem(m, n)
    for epsilon in (5.0, 0.1, 1e-3):
        f, _ = ours(g, x, y, b, weights, epsilon)
        np.testing.assert_allclose(f, loop(g, x, y, b, epsilon), rtol=2e-6, atol=5e-6)


@pytest.mark.parametrize("m, n", [(600, 530)])
def test_the_whole_matrix_in_float64(m, n):
    args = problem(m, n)
    for epsilon in (1.0, 0.01):
        f, slopes = ours(*args, epsilon)
        with jax.enable_x64(True):
            expected, exact = whole(*(np.float64(v) for v in args), epsilon)
        assert f.dtype == jnp.float32
        np.testing.assert_allclose(f, expected, rtol=1e-6, atol=5e-6)
        # a weight of the softmax is off by the digits of the cost over epsilon
        scores = np.abs(expected).max() / epsilon
        for found, slope in zip(slopes[:4], exact, strict=False):
            bound = (1e-6 * scores + 1e-5) * np.abs(slope).max()
            np.testing.assert_allclose(found, slope, atol=bound)
        # the slope in epsilon is what is left of sums of the scores
        bound = 1e-6 * scores * np.abs(args[-1]).sum()
        np.testing.assert_allclose(slopes[4], exact[4], atol=bound)


def test_the_plan_has_the_row_sums():
    g, x, y, b, _ = problem(40, 30)
    a = np.random.default_rng(1).dirichlet(np.ones(40))
    f, _ = ours(g, x, y, b, a.astype(np.float32), 0.3)
    cost = np.square(np.float64(x)[:, None] - y).sum(-1)
    plan = a[:, None] * b * np.exp((np.asarray(f)[:, None] + g - cost) / 0.3)
    np.testing.assert_allclose(plan.sum(1), a, rtol=1e-4)
    # and for the columns, with the cost turned over
    other = lambda f, x, y: kernels.sinkhorn_update(  # noqa: E731
        f, kernels.squared_euclidean_factors(x, y).T, a, epsilon=0.3
    )
    h = jit(other)(f, x, y)
    plan = a[:, None] * b * np.exp((np.asarray(f)[:, None] + h - cost) / 0.3)
    np.testing.assert_allclose(plan.sum(0), b, rtol=1e-4)


def test_a_small_epsilon_far_from_the_origin():
    """Clouds a thousand apart: that is all in r and s, without which no digits are lost to it."""
    g, x, y, b, _ = problem(40, 30)

    @jit
    def update(x, y):
        cost = kernels.squared_euclidean_factors(x, y)
        cost = cost._replace(r=0 * cost.r, s=0 * cost.s)
        return cost, kernels.sinkhorn_update(g, cost, b, epsilon=1e-3)

    cost, f = update(np.float32(x + 512), np.float32(y - 512))
    scores = (g + np.float64(cost.u) @ np.float64(cost.v).T) / 1e-3 + np.log(np.float64(b))
    np.testing.assert_allclose(f, -1e-3 * np.logaddexp.reduce(scores, 1), atol=5e-6)


def test_the_tiles_of_a_tpu_interpreted():
    args = problem(20, 150)
    for found, expected in zip(
        *(jax.tree.leaves(run(*args, 0.5)) for run in (pallas, ours)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_corners():
    """Weights of zero, far points, bfloat16, and a batch."""
    g, x, y, b, weights = problem(7, 5)
    b[2] = 0.0
    for scale in (1.0, 1e4):
        f, slopes = ours(scale * g, x, scale * y, b, weights, 0.1)
        expected = loop(np.float32(scale * g), x, np.float32(scale * y), b, 0.1)
        np.testing.assert_allclose(f, expected, rtol=1e-5, atol=1e-5)
        assert all(np.isfinite(s).all() for s in slopes)
        assert slopes[0][2] == slopes[3][2] == 0 and not slopes[2][2].any()
    half = [v.astype(jnp.bfloat16) for v in (g, x, y, b)]
    wide = [v.astype(jnp.float32) for v in half]
    f, slopes = ours(*half, weights, 0.1)
    assert f.dtype == jnp.float32 and slopes[1].dtype == jnp.bfloat16
    np.testing.assert_allclose(f, ours(*wide, weights, 0.1)[0], rtol=1e-5, atol=1e-5)
    cost = kernels.squared_euclidean_factors(x, y)
    update = functools.partial(kernels.sinkhorn_update, cost=cost, weights=b, epsilon=0.1)
    many = jit(jax.vmap(update))(np.stack([g, -g]))
    np.testing.assert_allclose(many[1], loop(-g, x, y, b, 0.1), rtol=1e-5, atol=1e-5)


SHAPES = as_shapes(*(np.zeros(s, np.float32) for s in (8192, (8192, 8), (8192, 8), 8192, 8192, ())))


def test_it_lowers_for_a_tpu():
    text = lowered_for("tpu", pallas.__wrapped__, *SHAPES)
    assert text.count("tpu_custom_call") >= 3  # the sums, and the slopes of either side
    for platform in ("tpu", "cuda"):
        assert "tpu_custom_call" not in lowered_for(platform, ours.__wrapped__, *SHAPES)


def test_it_needs_a_tenth_of_the_matrix():
    tiled, all_pairs = (temporary_bytes(fn.__wrapped__, *SHAPES) for fn in (ours, whole))
    assert tiled < 25e6 and all_pairs > 10 * tiled


def test_errors():
    g, x, y, b, _ = problem(7, 5)
    cost = kernels.squared_euclidean_factors(x, y)
    with pytest.raises(AssertionError):
        kernels.sinkhorn_update(g, cost.T, b, epsilon=1.0)
    with pytest.raises(AssertionError):
        kernels.sinkhorn_update(g, cost, b[:3], epsilon=1.0)
    with pytest.raises(UserError, match="pallas"):
        kernels.sinkhorn_update(g, cost, b, epsilon=1.0, implementation="palas")
