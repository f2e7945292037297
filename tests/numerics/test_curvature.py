"""Hessian-vector products and Lanczos against dense linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tinker import numerics

RNG = np.random.default_rng(0)
N = 12
ORTHOGONAL = np.linalg.qr(RNG.normal(size=(N, N)))[0]
SPECTRUM = np.array([9.0, 5.0, 4.0, 1.0, 0.5, 0.2, 0.1, 0.0, -0.3, -1.0, -2.0, -12.0])
A = ORTHOGONAL * SPECTRUM @ ORTHOGONAL.T
START = {
    "a": RNG.normal(size=4).astype(np.float32),
    "b": RNG.normal(size=(2, 4)).astype(np.float32),
}


def flat(tree):
    """The tree's leaves side by side, for each row of it."""
    return np.concatenate([np.reshape(x, (*np.shape(x)[:1], -1)) for x in jax.tree.leaves(tree)], 1)


def times(matrix):
    """The matrix on a tree like START."""

    def matvec(v):
        vector = jnp.concatenate([v["a"], v["b"].reshape(-1)])
        y = jnp.asarray(matrix, vector.dtype) @ vector
        return {"a": y[:4], "b": y[4:].reshape(2, 4)}

    return matvec


def run_lanczos(matrix, start, steps):
    return numerics.lanczos(times(matrix), start, steps)


def run_top(matrix, start, k=1, tolerance=1e-4, **hyper):
    return numerics.top_eigenvalues(times(matrix), start, k, tolerance=tolerance, **hyper)


run_lanczos = jax.jit(run_lanczos, static_argnums=2)
run_top = jax.jit(run_top, static_argnames=("k", "max_iterations"))


def test_hvp_is_the_hessian_times_the_vector():
    x = {"w": RNG.normal(size=(2, 3)), "b": RNG.normal(size=3)}
    v = jax.tree.map(lambda x: RNG.normal(size=x.shape), x)
    with jax.enable_x64(True):
        x, v = jax.tree.map(jnp.asarray, (x, v))
        flat_x, unflatten = jax.flatten_util.ravel_pytree(x)
        f = lambda x: jnp.sum(jnp.tanh(x["w"]) @ jnp.exp(x["b"])) ** 2  # noqa: E731
        dense = jax.hessian(lambda z: f(unflatten(z)))(flat_x)
        expected = unflatten(dense @ jax.flatten_util.ravel_pytree(v)[0])
        found = jax.jit(lambda x, v: numerics.hvp(f, x, v))(x, v)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), found, expected)


def test_lanczos_is_the_three_term_factorisation():
    steps = 7
    found = run_lanczos(A, START, steps)
    q = flat(found.basis)
    np.testing.assert_allclose(q @ q.T, np.eye(steps), atol=1e-5)
    np.testing.assert_allclose(
        q[0], flat(jax.tree.map(lambda x: x[None], START))[0] / optax.tree.norm(START), rtol=1e-5
    )
    t = np.diag(found.alphas) + np.diag(found.betas, 1) + np.diag(found.betas, -1)
    left = A @ q.T - q.T @ t  # nothing but the last column, along the direction to come
    np.testing.assert_allclose(left[:, :-1], 0, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(left[:, -1]), found.residual, rtol=1e-4)
    np.testing.assert_allclose(q @ left[:, -1], 0, atol=2e-5)
    # the recurrence in float64, from the definition
    v, before, beta = q[0].astype(float), np.zeros(N), 0.0
    for step in range(3):
        w = A @ v - beta * before
        np.testing.assert_allclose(found.alphas[step], w @ v, rtol=1e-4)
        w = w - (w @ v) * v
        before, beta = v, np.linalg.norm(w)
        np.testing.assert_allclose(found.betas[step], beta, rtol=1e-4)
        v = w / beta


def tridiagonal_eigenvalues(found):
    t = np.diag(found.alphas) + np.diag(found.betas, 1) + np.diag(found.betas, -1)
    return np.linalg.eigvalsh(t)


@pytest.mark.parametrize(
    "matrix, start",
    [
        (A, START),
        (A, jax.tree.map(np.zeros_like, START)),
        (np.eye(N) * 3, START),
        (np.zeros((N, N)), START),
        (np.diag([2.0] * 6 + [1.0] * 6), START),
        (1e-6 * A, START),
        (1e6 * A, START),
    ],
)
def test_all_steps_give_the_whole_spectrum_even_where_the_krylov_space_ends(matrix, start):
    found = run_lanczos(matrix, start, N)
    exact = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(tridiagonal_eigenvalues(found), exact, atol=1e-5 * abs(exact).max())
    q = flat(found.basis)
    np.testing.assert_allclose(q @ q.T, np.eye(N), atol=1e-5)
    assert float(found.residual) <= 1e-5 * abs(exact).max()


def test_lanczos_is_differentiable_and_maps():
    """The tridiagonal of s A is s times that of A."""
    f = lambda s: numerics.lanczos(times(A * s), START, 5).alphas.sum()  # noqa: E731
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(f)))(np.array([1.0, 2.0]))
    expected = run_lanczos(A, START, 5).alphas.sum()
    np.testing.assert_allclose(values, expected * np.array([1, 2]), rtol=1e-4)
    np.testing.assert_allclose(slopes, expected, rtol=1e-4)


@pytest.mark.parametrize("k", [1, 3])
def test_top_eigenvalues_are_eighs(k):
    found = run_top(A, START, k=k, tolerance=1e-5)
    np.testing.assert_allclose(found.solution, SPECTRUM[:k], rtol=1e-5)
    assert found.converged and found.error <= 1e-5 and k <= found.num_iterations <= N
    np.testing.assert_allclose(abs(flat(found.vectors) @ ORTHOGONAL[:, :k]), np.eye(k), atol=1e-3)
    low = run_top(-A, START, k=k)
    np.testing.assert_allclose(low.solution, -SPECTRUM[::-1][:k], rtol=1e-4)
    tiny = run_top(1e-12 * A, START, k=k)
    np.testing.assert_allclose(tiny.solution, 1e-12 * SPECTRUM[:k], rtol=1e-3)


def test_the_error_is_the_residual_and_says_when_iterations_ran_out():
    found = run_top(A, START, k=2, max_iterations=5, tolerance=1e-6)
    assert not found.converged and found.num_iterations == 5
    q = flat(found.vectors)
    residuals = np.linalg.norm(A @ q.T - q.T * np.asarray(found.solution), axis=0)
    tri = run_lanczos(A, START, 5)
    scale = np.abs(tri.alphas).max() + np.abs([*tri.betas, tri.residual]).max()
    np.testing.assert_allclose(found.error, residuals.max() / scale, rtol=1e-3)
    enough = run_top(A, START, k=2, max_iterations=5, tolerance=float(found.error) * 1.01)
    assert enough.converged


def test_iteration_stops_early_by_default_only_when_converged():
    dim = 200
    spectrum = np.linspace(0, 1, dim)
    spectrum[-1] = 10.0
    matvec = lambda v: jnp.asarray(spectrum, v.dtype) * v  # noqa: E731
    start = jax.random.normal(jax.random.key(0), (dim,))
    found = jax.jit(lambda v: numerics.top_eigenvalues(matvec, v))(start)
    assert found.converged and 2 <= found.num_iterations < 15 and found.error <= 1e-4
    np.testing.assert_allclose(found.solution, [10.0], rtol=1e-5)
    even = lambda v: jnp.linspace(0.0, 1.0, dim) * v  # noqa: E731
    never = jax.jit(lambda v: numerics.top_eigenvalues(even, v, tolerance=1e-12))(start)
    assert never.num_iterations == 50 and not never.converged


def test_top_eigenvalues_at_the_corners():
    zero = run_top(np.zeros((N, N)), START, k=3)
    np.testing.assert_array_equal(zero.solution, 0)
    assert zero.converged and zero.num_iterations == 3
    twice = run_top(2 * np.eye(N), START, k=3)
    np.testing.assert_allclose(twice.solution, 2.0, rtol=1e-6)
    q = flat(twice.vectors)
    np.testing.assert_allclose(q @ q.T, np.eye(3), atol=1e-5)
    one = numerics.top_eigenvalues(lambda v: -3.0 * v, jnp.ones(1))
    np.testing.assert_allclose(one.solution, [-3.0])
    np.testing.assert_allclose(abs(one.vectors), [[1.0]])
    half = run_top(A, jax.tree.map(lambda x: x.astype(jnp.bfloat16), START))
    np.testing.assert_allclose(half.solution, [9.0], rtol=0.02)
    assert half.solution.dtype == jnp.float32
    for k, most in ((0, 50), (13, 50), (3, 2)):
        with pytest.raises(ValueError, match=f"k={k}"):
            numerics.top_eigenvalues(times(A), START, k, max_iterations=most)
    for steps in (0, 13):
        with pytest.raises(ValueError, match=f"{steps} steps"):
            numerics.lanczos(times(A), START, steps)


def test_sharpness_of_a_loss():
    x, y = RNG.normal(size=(20, 3)), RNG.normal(size=20)
    loss = lambda w: 0.5 * jnp.mean((x @ w - y) ** 2)  # noqa: E731
    w = jnp.zeros(3)
    sharpest = jax.jit(lambda v: numerics.top_eigenvalues(lambda v: numerics.hvp(loss, w, v), v))
    found = sharpest(jnp.ones(3))
    np.testing.assert_allclose(found.solution[0], np.linalg.eigvalsh(x.T @ x / 20)[-1], rtol=1e-4)
