"""Losses of margins against their authors' code and the conditions they are to meet."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT
from tinker import losses

RNG = np.random.default_rng(0)
MARGINS, DRAWS = RNG.normal(size=(2, 9)) * [[2.0], [1.0]]
slopes_of = jax.jit(losses.calibrated_slopes, static_argnames="power")


def test_slopes_are_the_authors():
    (golden,) = json.loads((ROOT / "tests" / "golden" / "margins.json").read_text())
    for case in golden["cases"]:
        margins = (2 * np.array(case["labels"]) - 1) * np.array(case["scores"])
        slopes = slopes_of(margins, np.array(case["draws"]), power=case["power"])
        np.testing.assert_allclose(np.mean(slopes * margins), case["loss"], rtol=1e-5)


@pytest.mark.parametrize("power", [0.0, 0.7, -0.7])
def test_slopes_are_those_of_a_convex_and_calibrated_loss(power):
    slopes = slopes_of(MARGINS, DRAWS, power=power)
    assert (np.diff(slopes[np.argsort(MARGINS)]) >= 0).all()
    assert (slopes < 0).all() and (slopes >= -1 - 2e-6).all()
    order = RNG.permutation(9)  # which draw goes where is decided by the margins alone
    again = slopes_of(MARGINS[order], DRAWS, power=power)
    np.testing.assert_allclose(again, slopes[order], rtol=1e-6)
    # at margins of 1 and less they are the draws' own, by the inverse of Box and Cox
    sizes = np.exp(DRAWS) if power == 0 else np.maximum(1 + power * DRAWS, 0) ** (1 / power)
    low = slopes_of(np.linspace(-1, 1, 9), DRAWS, power=power)
    np.testing.assert_allclose(low, np.sort(-np.minimum(sizes, 1)) - 1e-6, rtol=1e-5)
    high = slopes_of(np.linspace(-1, 1, 9) + 4, DRAWS, power=power)
    np.testing.assert_allclose((high + 1e-6) * (np.linspace(-1, 1, 9) + 4), low + 1e-6, rtol=1e-5)


def test_rows_left_out_take_their_draws_with_them():
    where = np.arange(9) % 3 != 1
    found = slopes_of(MARGINS, DRAWS, where=where)
    np.testing.assert_allclose(found[where], slopes_of(MARGINS[where], DRAWS[where]), rtol=1e-6)
    assert not found[~where].any()


def test_the_loss_has_the_slopes_for_gradient_and_takes_one_score_or_two():
    labels, key = np.array([1, 0, 1, 1, 0]), jax.random.key(3)
    scores = RNG.normal(size=5).astype(np.float32) * 3
    where = np.array([True, True, False, True, True])

    @jax.jit
    def run(scores, two):
        def loss(scores):
            value = losses.random_calibrated_loss(key, scores, labels, where=where)
            return value.sum(), value

        (_, value), slope = jax.value_and_grad(loss, has_aux=True)(scores)
        others = [
            losses.random_calibrated_loss(key, x, labels, where=where)
            for x in (scores[:, None], two, scores.astype(jnp.bfloat16))
        ]
        return value, slope, others

    two = np.stack([0 * scores + 1.5, scores + 1.5], 1)
    value, slope, (column, pair, half) = run(scores, two)
    signs = 2 * labels - 1
    expected = losses.calibrated_slopes(signs * scores, jax.random.normal(key, (5,)), where=where)
    np.testing.assert_allclose(slope, signs * expected, rtol=1e-5)
    np.testing.assert_allclose(value, signs * scores * expected, rtol=1e-5)
    np.testing.assert_allclose(column, value, rtol=1e-6)
    np.testing.assert_allclose(pair, value, rtol=1e-4, atol=1e-5)
    assert half.dtype == jnp.float32
    assert losses.random_calibrated_loss.batch_coupled
    for hard in (scores * 0, scores * 1e4):
        value, slope, _ = run(hard, two)
        assert np.isfinite(value).all() and np.isfinite(slope).all()
    another = losses.random_calibrated_loss(jax.random.key(4), scores, labels, where=where)
    assert np.abs(another - value).max() > 1e-3
    with pytest.raises(AssertionError):
        losses.random_calibrated_loss(key, np.zeros((5, 3)), labels)
    with pytest.raises(AssertionError):
        losses.random_calibrated_loss(key, scores[:4], labels)
