"""Classification losses against optax, scipy and NumPy, at the corners too."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from tinker import losses
from tinker.numerics import UserError

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


@jax.jit
def of_every_tau(logits, tau):
    return jax.vmap(lambda t: losses.comp_sum(logits, LABELS, tau=t))(tau)


def test_comp_sum_is_its_members_and_a_sum_over_the_other_classes():
    taus = np.array([0.0, 0.5, 0.999, 1.0, 1.5, 1.7, 2.0], np.float32)
    found, z = of_every_tau(LOGITS, taus), LOGITS.astype(np.float64)
    u = np.array([sum(np.exp(r[k] - r[y]) for k in range(4) if k != y) for r, y in zip(z, LABELS)])
    p = 1 / (1 + u)
    for tau, value in zip(taus.astype(np.float64), found):
        if tau != 1:
            expected = ((1 + u) ** (1 - tau) - 1) / (1 - tau)
            np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(found[0], u, rtol=1e-4)
    np.testing.assert_allclose(found[3], -np.log(p), rtol=1e-5)
    np.testing.assert_allclose(found[5], (1 - p**0.7) / 0.7, rtol=1e-5)
    absolute = np.abs(np.eye(4)[LABELS] - softmax(z, 1)).sum(1) / 2
    np.testing.assert_allclose(found[6], absolute, rtol=1e-5)
    assert (np.diff(found, axis=0) <= 1e-6).all()  # each is below the one before
    # beyond e⁶⁰ it is a line in -log p_y
    far = losses.comp_sum(np.float32([[0, 61], [0, 62], [0, 63]]), np.zeros(3, int), tau=0.0)
    np.testing.assert_allclose(far / np.exp(60.0), [2, 3, 4], rtol=1e-5)


def least_and_regret(p, s, tau):
    """Regrets of predicting s where the labels' probabilities are p, by the equations."""
    if tau == 1:
        risk, least = -p @ np.log(s), -p @ np.log(p)
    else:
        risk = p @ (s ** (tau - 1) - 1) / (1 - tau)
        if tau == 2:
            least = 1 - p.max()
        else:  # the best s is in proportion to p ** (1 / (2 - tau))
            best = p ** (1 / (2 - tau))
            least = p @ ((best / best.sum()) ** (tau - 1) - 1) / (1 - tau)
    return p.max() - p[s.argmax()], risk - least


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_regret_of_comp_sum_bounds_that_of_zero_one_and_is_tight_to_cross_entropy(tau):
    rng, options = np.random.default_rng(3), {"tau": tau, "classes": 5}
    pairs = []
    for _ in range(500):
        p = rng.dirichlet(np.full(5, rng.choice([0.3, 1.0, 10.0]))) + 1e-9
        s = rng.dirichlet(np.full(5, rng.choice([1.0, 100.0])))
        pairs.append(least_and_regret(p / p.sum(), s, tau))
    beta, regret = np.transpose(pairs)
    with jax.enable_x64(True):
        bound = jax.jit(lambda b: losses.least_comp_sum_regret(b, **options))
        back = jax.jit(lambda r: losses.greatest_zero_one_regret(r, **options))
        least = bound(beta)
        assert (least <= regret + 1e-9).all() and (beta > 0.3).any()
        assert (back(regret) >= beta - 1e-9).all() and back(1e3) == 1
        np.testing.assert_allclose(back(least), beta, atol=1e-6)
        # two even scores, and labels that are not even
        gaps = np.array([0.01, 0.3, 0.9])
        p = np.stack([(1 + gaps) / 2, (1 - gaps) / 2], 1)
        met = [least_and_regret(q, np.array([0.5, 0.5]), tau)[1] for q in p]
        np.testing.assert_allclose(losses.least_comp_sum_regret(gaps, tau=tau), met, rtol=1e-9)
        assert np.ndim(losses.least_comp_sum_regret(1.0, **options)) == 0
        assert np.isfinite([bound(0.0), bound(1.0)]).all() and bound(0.0) == 0


def test_more_classes_weaken_the_bound_just_above_cross_entropy():
    for tau in (0.5, 1.0, 1.5, 2.0):
        few, many = (losses.least_comp_sum_regret(0.4, tau=tau, classes=k) for k in (2, 50))
        ratio = 25.0 ** (tau - 1) if tau > 1 else 1.0
        np.testing.assert_allclose(few / many, ratio, rtol=1e-5)
    small = losses.greatest_zero_one_regret(1e-4)
    np.testing.assert_allclose(small, np.sqrt(2e-4), rtol=1e-3)
    with pytest.raises(UserError, match=r"tau=2\.5"):
        losses.least_comp_sum_regret(0.1, tau=2.5)


def test_squared_error_is_optaxs_l2():
    x, y = RNG.normal(size=5).astype(np.float32), RNG.normal(size=5).astype(np.float32)
    np.testing.assert_allclose(losses.squared_error(x, y), optax.l2_loss(x, y), rtol=1e-6)
    np.testing.assert_allclose(losses.squared_error(x[:, None], y), optax.l2_loss(x, y), rtol=1e-6)
    with pytest.raises(AssertionError):
        losses.squared_error(x[:4], y)


@pytest.mark.parametrize("loss", SCORE_LOSSES)
def test_values_of_scores_far_apart_and_of_one_class(loss):
    hard = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], np.float32)
    np.testing.assert_allclose(loss(hard, np.array([0, 0])), [0.0, 2e4], rtol=1e-3, atol=1e-3)
    one_class = loss(np.ones((2, 1), np.float32), np.zeros(2, int))
    np.testing.assert_allclose(one_class, 0, atol=1e-6)
    with pytest.raises(AssertionError):
        loss(LOGITS, LABELS[:5])
