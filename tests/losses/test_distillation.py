"""Self-distillation against scikit-learn's kernel ridge regression, refitted at every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

from tinker import losses

RNG = np.random.default_rng(0)
X, NEW = RNG.normal(size=(12, 3)), RNG.normal(size=(5, 3))
Y = RNG.normal(size=(12, 2))


def gram(a, b):
    return np.exp(-0.2 * np.square(a[:, None] - b[None]).sum(-1))


def distilled(y, weights, penalty=0.3):
    with jax.enable_x64(True):
        run = jax.jit(
            lambda k, y: losses.self_distilled_ridge(k, y, penalty=penalty, weights=weights)
        )
        return jax.tree.map(np.asarray, run(gram(X, X), y))


def test_it_is_ridge_regression_refitted():
    weights = [0.25, 1.0, 0.0, 0.6]
    found, fit = distilled(Y, weights), None
    for t, weight in enumerate([1.0, *weights]):
        mixed = Y if fit is None else weight * Y + (1 - weight) * fit
        ridge = KernelRidge(alpha=0.3, kernel="precomputed").fit(gram(X, X), mixed)
        fit = ridge.predict(gram(X, X))
        np.testing.assert_allclose(found.fits[t], fit, atol=1e-10)
        expected = ridge.predict(gram(NEW, X))
        np.testing.assert_allclose(gram(NEW, X) @ found.coefficients[t], expected, atol=1e-10)
    single = distilled(Y[:, 0], weights)
    np.testing.assert_allclose(single.fits, found.fits[..., 0], atol=1e-12)


def test_its_limit_is_a_larger_penalty():
    last = distilled(Y, [0.25] * 400).fits[-1]
    ridge = KernelRidge(alpha=0.3 / 0.25, kernel="precomputed").fit(gram(X, X), Y)
    np.testing.assert_allclose(last, ridge.predict(gram(X, X)), atol=1e-9)
    sizes = np.square(distilled(Y, [0.0] * 400).fits).sum((1, 2))
    assert (np.diff(sizes) < 0).all()  # without the truth ever less is left


def test_the_best_weight_is_a_grids():
    truth, teacher, y = RNG.normal(size=(3, 40, 2))
    y = y + 0.7 * truth + 0.3 * teacher
    grid = np.linspace(0, 1, 100_001)
    for g, h in ((teacher, truth), (truth, teacher), (y + truth, y + 2 * truth), (y, y)):
        errors = [np.square(y - a * h - (1 - a) * g).sum() for a in grid[:: len(grid) // 1000]]
        found = losses.best_truth_weight(y, h, g)
        best = grid[:: len(grid) // 1000][int(np.argmin(errors))]
        assert abs(found - (1.0 if g is h else best)) < 2e-3
    where = (np.arange(40) % 2 == 0)[:, None]
    kept = losses.best_truth_weight(y[::2], truth[::2], teacher[::2])
    found = losses.best_truth_weight(y, truth, teacher, where=where)
    np.testing.assert_allclose(found, kept, rtol=1e-5)


def test_corners_and_gradients():
    with jax.enable_x64(True):
        flat = losses.self_distilled_ridge(jnp.zeros((3, 3)), jnp.ones(3), penalty=1.0, weights=[])
        assert flat.fits.shape == (1, 3) and not flat.fits.any()

        def loss(y):
            found = losses.self_distilled_ridge(gram(X, X), y, penalty=0.3, weights=[0.4])
            return jnp.square(found.fits[-1]).sum()

        direction = RNG.normal(size=Y.shape)
        slope = (jax.grad(loss)(jnp.asarray(Y)) * direction).sum()
        ahead, behind = (loss(Y + s * direction) for s in (1e-5, -1e-5))
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-7)
    one = jnp.ones((1, 1))
    assert losses.best_truth_weight(one, one, one) == 1
    assert jnp.isfinite(jax.grad(losses.best_truth_weight, argnums=1)(one, one, one)).all()
    with pytest.raises(AssertionError):
        losses.self_distilled_ridge(one, jnp.ones(2), penalty=1.0, weights=[])
