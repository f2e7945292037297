"""Calibration losses against sums over triples, their authors' code and their expectations."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from tests.conftest import ROOT
from tinker import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(8, 3)) * 2
LOGITS[5] = LOGITS[2]  # a tie
LABELS = np.array([0, 1, 2, 0, 1, 1, 2, 0])


@jax.jit
def evaluated(logits, labels):
    return {
        "esd": losses.expected_squared_difference(logits, labels),
        "root": losses.expected_squared_difference(logits, labels, root=True),
        "mmce": losses.mmce(logits, labels, bandwidth=0.2),
        "soft_ece": losses.soft_binned_ece(logits, labels),
    }


def of_triples(logits, labels):
    """The mean of g_ij g_ik over distinct i, j, k."""
    p = softmax(logits, 1)
    z, c = p.max(1), p.argmax(1) == labels
    g = [[float(zj <= zi) * (cj - zj) for zj, cj in zip(z, c)] for zi in z]
    n = len(z)
    triples = [
        g[i][j] * g[i][k]
        for i in range(n)
        for j in range(n)
        for k in range(n)
        if len({i, j, k}) == 3
    ]
    return np.mean(triples)


def test_expected_squared_difference_is_the_sum_over_triples():
    found = evaluated(LOGITS, LABELS)
    expected = of_triples(LOGITS, LABELS)
    np.testing.assert_allclose(found["esd"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["root"], np.sqrt(max(expected, 0)), rtol=1e-5)
    flat = evaluated(LOGITS * 0.3, LABELS)["esd"]
    np.testing.assert_allclose(flat, of_triples(LOGITS * 0.3, LABELS), rtol=1e-5)


def test_calibration_losses_are_the_authors():
    (golden,) = json.loads((ROOT / "tests" / "golden" / "calibration.json").read_text())
    signs = set()
    for case in golden["cases"]:
        found = evaluated(np.array(case["logits"]), np.array(case["labels"]))
        for name in ("esd", "mmce", "soft_ece"):
            np.testing.assert_allclose(found[name], case[name], rtol=2e-5, atol=1e-7)
        np.testing.assert_allclose(found["root"] ** 2, max(case["esd"], 0), rtol=2e-5)
        signs.add(np.sign(case["esd"]))
    assert signs == {-1.0, 1.0}


def test_expected_squared_difference_is_unbiased_and_zero_where_calibrated():
    """Of two classes: z uniform over [1/2, 1], and right with probability z - 0.1 or z."""

    def draw(key, gap):
        of_z, of_c = jax.random.split(key)
        z = jax.random.uniform(of_z, (12,), minval=0.5)
        c = jax.random.uniform(of_c, (12,)) < z - gap
        logits = jnp.stack([jnp.log(z), jnp.log1p(-z)], 1)
        return losses.expected_squared_difference(logits, jnp.where(c, 0, 1))

    @jax.jit
    def estimates(key):
        keys = jax.random.split(key, 4000)
        return [jax.vmap(lambda k, gap=gap: draw(k, gap))(keys) for gap in (0.0, 0.1)]

    # with a constant gap it is E (0.1 P(z <= z'))² = 0.01 / 3
    for found, expected in zip(estimates(jax.random.key(0)), (0.0, 0.01 / 3)):
        error = np.std(found) / np.sqrt(len(found))
        assert abs(np.mean(found) - expected) < 3 * error < 0.001
        assert (np.asarray(found) < 0).any()


def test_mmce_and_soft_binned_ece_by_loops():
    p = softmax(LOGITS, 1)
    z, c = p.max(1), (p.argmax(1) == LABELS).astype(float)
    total = sum(
        (c[i] - z[i]) * (c[j] - z[j]) * np.exp(-abs(z[i] - z[j]) / 0.2)
        for i in range(8)
        for j in range(8)
    )
    found = evaluated(LOGITS, LABELS)
    np.testing.assert_allclose(found["mmce"], np.sqrt(total) / 8, rtol=1e-5)
    # with hard bins it is the root of the mean squared gap of each example to its bin's accuracy
    bins = np.minimum((z * 15).astype(int), 14)
    accuracy = np.array([c[bins == b].mean() for b in bins])
    hard = jax.jit(lambda z: losses.soft_binned_ece(z, LABELS, temperature=1e-7))(LOGITS)
    np.testing.assert_allclose(hard, np.sqrt(np.mean((accuracy - z) ** 2)), rtol=1e-5)


def test_confidence_is_pulled_to_accuracy():
    """Of six rows at one confidence: all wrong, every winner's score is to fall, else to rise."""
    logits = np.tile(np.float32([[2.0, 0.0, 0.0]]), (6, 1))
    slopes = jax.jit(
        lambda labels: [
            jax.grad(loss)(logits, labels)
            for loss in (losses.expected_squared_difference, losses.mmce, losses.soft_binned_ece)
        ]
    )
    for label, sign in ((1, 1), (0, -1)):
        for slope in slopes(np.full(6, label)):
            assert (sign * slope[:, 0] > 0).all() and (sign * slope[:, 1:] < 0).all()
