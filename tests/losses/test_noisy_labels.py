"""Losses for wrong labels against searches, their authors' code and what their papers prove."""

import functools
import json

import jax
import numpy as np
import pytest
from scipy.special import softmax

from tests.conftest import ROOT
from tinker import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 3)) * 2
LABELS = RNG.integers(0, 3, 6)
focal = functools.partial(losses.focal, gamma=0.5)
generalized = functools.partial(losses.comp_sum, tau=1.7)


@jax.jit
def robust(logits, labels, temperature, margin):
    options = {"temperature": temperature, "margin": margin}
    return {
        "ldr": losses.ldr(logits, labels, **options),
        "adaptive": losses.adaptive_ldr(logits, labels, num_iterations=200, **options),
    }


@jax.jit
def bounded(logits, labels):
    each = {"nce": losses.cross_entropy, "nfl": focal, "ngce": generalized}
    found = {k: losses.normalized_loss(logits, labels, loss=v) for k, v in each.items()}
    found["gce"] = generalized(logits, labels)
    found["mae"] = losses.comp_sum(logits, labels, tau=2.0)
    found["rce"] = losses.reverse_cross_entropy(logits, labels, log_zero=np.log(1e-4))
    found["sce"] = 0.1 * losses.cross_entropy(logits, labels) + found["rce"]
    found["nce_rce"] = 10 * found["nce"] + 0.1 * found["rce"]
    return found


def margins(logits, labels, margin):
    rows = np.arange(len(labels))
    d = logits - logits[rows, labels][:, None] + margin
    d[rows, labels] = 0
    return d


def test_ldr_is_the_best_of_a_grid_over_the_simplex():
    ticks = np.linspace(0, 1, 301)
    a, b = np.meshgrid(ticks, ticks)
    p = np.stack([a, b, 1 - a - b], -1)[a + b <= 1]
    p = p[p.min(1) >= -1e-12].clip(1e-12)
    divergence = np.sum(p * np.log(3 * p), 1)
    for temperature in (0.5, 3.0):
        best = (margins(LOGITS, LABELS, 0.7) @ p.T - temperature * divergence).max(1)
        found = robust(LOGITS, LABELS, temperature, 0.7)["ldr"]
        assert (found >= best - 1e-5).all()
        np.testing.assert_allclose(found, best, atol=1e-3)


def test_adaptive_ldr_is_the_best_of_a_grid_over_temperatures():
    d, grid = margins(LOGITS, LABELS, 0.7), np.linspace(0.3, 2.0, 20_001)
    for start in (0.7, 1.5):
        lam = grid[:, None] * start
        value = lam * np.log(np.mean(np.exp(d[None] / lam[..., None]), -1))
        value -= 2.0 * np.log(3) / (2 * start) * (lam - start) ** 2
        found = robust(LOGITS, LABELS, start, 0.7)["adaptive"]
        np.testing.assert_allclose(found, value.max(0), rtol=1e-4, atol=1e-5)


def test_ldr_is_between_cross_entropy_svm_and_a_symmetric_loss():
    plain = robust(LOGITS, LABELS, 1.0, 0.0)["ldr"]
    np.testing.assert_allclose(plain, losses.cross_entropy(LOGITS, LABELS) - np.log(3), atol=1e-5)
    d = margins(LOGITS, LABELS, 0.7)
    np.testing.assert_allclose(robust(LOGITS, LABELS, 1e-4, 0.7)["ldr"], d.max(1), atol=2e-4)
    np.testing.assert_allclose(robust(LOGITS, LABELS, 1e4, 0.7)["ldr"], d.mean(1), atol=3e-3)
    every = [robust(LOGITS, np.full(6, k), 1e4, 0.7)["ldr"] for k in range(3)]
    np.testing.assert_allclose(sum(every), 0.7 * 2, atol=5e-3)
    far = losses.adaptive_ldr(LOGITS, LABELS, temperature=0.9, alpha=1e5)
    np.testing.assert_allclose(far, losses.ldr(LOGITS, LABELS, temperature=0.9), rtol=1e-3)


def test_robust_losses_are_their_authors():
    passive, robustly = json.loads((ROOT / "tests" / "golden" / "noisy_labels.json").read_text())
    for case in passive["cases"]:
        found = bounded(np.array(case["logits"]), np.array(case["labels"]))
        for name, value in found.items():
            np.testing.assert_allclose(value.mean(), case[name], rtol=2e-5)

    @jax.jit
    def visited(z, y, temperature):
        positive = jax.nn.softplus(z)
        positive = positive / positive.mean(-1, keepdims=True)
        once = functools.partial(
            losses.adaptive_ldr, temperature=temperature, margin=0.0, num_iterations=1
        )
        return {
            "ldr": losses.ldr(positive, y, temperature=temperature, margin=0.1),
            "adaptive": losses.unit_mean_scores(z, y, loss=once),
        }

    for case in robustly["cases"]:
        args = np.array(case["logits"]), np.array(case["labels"]), case["temperature"]
        found = visited(*args)
        np.testing.assert_allclose(found["ldr"].mean(), case["ldr"], rtol=1e-4, atol=1e-6)
        # they add 1e-5 to p
        np.testing.assert_allclose(found["adaptive"].mean(), case["adaptive"], atol=2e-3)


def test_sums_over_labels_are_constant():
    every = [bounded(LOGITS, np.full(6, k)) for k in range(3)]
    for name, constant in (("nce", 1), ("nfl", 1), ("ngce", 1), ("mae", 2)):
        np.testing.assert_allclose(sum(found[name] for found in every), constant, rtol=1e-5)
    assert np.ptp(sum(found["gce"] for found in every)) > 0.1
    # so evenly wrong labels, two in five, only scale and shift what is expected
    rate, clean = 0.4, bounded(LOGITS, LABELS)
    for name, sums in (("nce", 1.0), ("mae", 2.0)):
        wrong = [every[k][name] * (LABELS != k) for k in range(3)]
        expected = (1 - rate) * clean[name] + rate / 2 * sum(wrong)
        scaled = (1 - rate * 3 / 2) * clean[name] + rate / 2 * sums
        np.testing.assert_allclose(expected, scaled, rtol=1e-4)


def test_reverse_cross_entropy_is_the_sum_with_a_logarithm_of_zero():
    p, q = softmax(LOGITS, 1), np.eye(3)[LABELS]
    expected = -(p * np.where(q > 0, 0.0, -4.0)).sum(1)
    np.testing.assert_allclose(losses.reverse_cross_entropy(LOGITS, LABELS), expected, rtol=1e-5)


def test_unit_mean_scores_take_any_scale():
    loss = functools.partial(losses.unit_mean_scores, loss=losses.cross_entropy)
    found = loss(LOGITS, LABELS)
    np.testing.assert_allclose(loss(100 * LOGITS, LABELS), found, rtol=1e-5)
    sized = LOGITS / np.abs(LOGITS).mean(1, keepdims=True)
    np.testing.assert_allclose(found, losses.cross_entropy(sized, LABELS), rtol=1e-5)


@pytest.mark.parametrize("loss", [losses.ldr, losses.adaptive_ldr, losses.normalized_loss])
def test_shapes_that_do_not_fit_are_told(loss):
    options = {"loss": losses.cross_entropy} if loss is losses.normalized_loss else {}
    with pytest.raises(AssertionError):
        loss(LOGITS, LABELS[:4], **options)
