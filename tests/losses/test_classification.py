"""Classification losses against optax, scipy and NumPy, at the corners too."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax
from scipy.stats import entropy

from tinker import losses

SCORE_LOSSES = [losses.cross_entropy, losses.focal, losses.poly1_cross_entropy]
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 4)).astype(np.float32) * 3
LABELS = RNG.integers(0, 4, 6)


def test_cross_entropy_is_optaxs_and_smoothing_is_a_mixture():
    plain = losses.cross_entropy(LOGITS, LABELS)
    expected = optax.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS)
    np.testing.assert_allclose(plain, expected, rtol=1e-6)
    # against the mixed target distribution: cross-entropy is KL plus entropy
    target = 0.9 * np.eye(4)[LABELS] + 0.1 / 4
    p = np.exp(log_softmax(LOGITS.astype(np.float64), axis=1))
    expected = entropy(target, p, axis=1) + entropy(target, axis=1)
    smoothed = losses.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    np.testing.assert_allclose(smoothed, expected, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_the_equation(gamma):
    log_p = log_softmax(LOGITS.astype(np.float64), axis=1)[np.arange(6), LABELS]
    expected = -((1 - np.exp(log_p)) ** gamma) * log_p
    np.testing.assert_allclose(losses.focal(LOGITS, LABELS, gamma=gamma), expected, rtol=2e-5)


@pytest.mark.parametrize("epsilon", [-1.0, 0.0, 2.0])
def test_poly1_is_the_series_with_its_first_coefficient_raised(epsilon):
    p = np.exp(log_softmax(LOGITS.astype(np.float64), axis=1))[np.arange(6), LABELS]
    expected = (1 + epsilon) * (1 - p)
    expected += sum((1 - p) ** j / j for j in range(2, 20_000))
    found = losses.poly1_cross_entropy(LOGITS, LABELS, epsilon=epsilon)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    # -dl/dp = 1 / p + epsilon, and dp/dz_y = p (1 - p)
    grad = jax.grad(lambda z: losses.poly1_cross_entropy(z, LABELS, epsilon=epsilon).sum())(LOGITS)
    slope = -(1 / p + epsilon) * p * (1 - p)
    np.testing.assert_allclose(grad[np.arange(6), LABELS], slope, rtol=1e-4)


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_poly1_focal_is_the_equation(alpha):
    z, y = LOGITS.astype(np.float64), np.eye(4)[LABELS]
    p = 1 / (1 + np.exp(-z))
    p_t = np.where(y == 1, p, 1 - p)
    weight = 1.0 if alpha is None else np.where(y == 1, alpha, 1 - alpha)
    expected = -weight * (1 - p_t) ** 1.5 * np.log(p_t) - 0.7 * (1 - p_t) ** 2.5
    options = {"epsilon": -0.7, "gamma": 1.5, "alpha": alpha}
    found = losses.poly1_focal(LOGITS, y, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    where = np.arange(6)[:, None] % 2 == np.zeros((1, 4))
    np.testing.assert_allclose(
        losses.poly1_focal(LOGITS, y, where=where, **options), np.where(where, found, 0)
    )
    hard = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    value, grad = jax.value_and_grad(lambda z: losses.poly1_focal(z, np.eye(2)).sum())(hard)
    assert np.isfinite(value) and np.isfinite(grad).all()
    half = losses.poly1_focal(jnp.asarray(LOGITS, jnp.bfloat16), y, **options)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, found, atol=0.1)


def test_squared_error_is_optaxs_l2():
    x, y = RNG.normal(size=5).astype(np.float32), RNG.normal(size=5).astype(np.float32)
    np.testing.assert_allclose(losses.squared_error(x, y), optax.l2_loss(x, y), rtol=1e-6)
    np.testing.assert_allclose(losses.squared_error(x[:, None], y), optax.l2_loss(x, y), rtol=1e-6)
    with pytest.raises(AssertionError):
        losses.squared_error(x[:4], y)


@pytest.mark.parametrize("loss", SCORE_LOSSES)
def test_corners_are_finite_and_where_drops_rows(loss):
    hard = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 0.0]], np.float32)
    labels = np.array([0, 0, 1])
    value, grads = jax.jit(
        lambda z: (loss(z, labels), jax.grad(lambda z: loss(z, labels).sum())(z))
    )(hard)
    assert np.isfinite(value).all() and np.isfinite(grads).all()
    np.testing.assert_allclose(value[:2], [0.0, 2e4], rtol=1e-3, atol=1e-3)
    where = np.array([True, False, True])
    kept = loss(hard, labels, where=where)
    np.testing.assert_allclose(kept, np.where(where, value, 0))
    one_class = loss(np.ones((2, 1), np.float32), np.zeros(2, int))
    np.testing.assert_allclose(one_class, 0, atol=1e-6)
    half = loss(jnp.asarray(LOGITS, jnp.bfloat16), LABELS)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, loss(LOGITS, LABELS), atol=0.1)
    with pytest.raises(AssertionError):
        loss(LOGITS, LABELS[:5])


@pytest.mark.parametrize("loss", SCORE_LOSSES)
def test_gradient_is_a_central_difference(loss):
    direction = RNG.normal(size=LOGITS.shape)
    with jax.enable_x64(True):
        z, f = jnp.asarray(LOGITS, jnp.float64), lambda z: loss(z, LABELS).sum()
        slope = (f(z + 1e-5 * direction) - f(z - 1e-5 * direction)) / 2e-5
        np.testing.assert_allclose(jnp.vdot(jax.grad(f)(z), direction), slope, rtol=1e-7)
