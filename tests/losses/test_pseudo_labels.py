"""Pseudo-labels against their authors' code and by hand."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax, softmax

from tests.conftest import ROOT
from tinker import losses, optim

(GOLDEN,) = json.loads((ROOT / "tests" / "golden" / "softmatch.json").read_text())


@jax.jit
def weighed(logits, mean, variance, marginal):
    p = jax.nn.softmax(logits)
    aligned = losses.uniform_alignment(p, marginal)
    return aligned, losses.truncated_gaussian(p, mean, variance, marginal)


def test_weights_and_their_statistics_are_the_authors():
    memory = optim.confidence_statistics(view="x", decay=0.5)
    ctx = {"apply": lambda x, train: {"logits": x}}
    update = jax.jit(lambda state, x: memory.update(state, {**ctx, "x": x}))
    first = np.array(GOLDEN["cases"][0]["logits"], np.float32)
    state = memory.init(jax.random.key(0), {**ctx, "x": first})
    assert (state.mean, state.variance) == (0.25, 1.0)
    np.testing.assert_allclose(state.marginal, softmax(first, 1).mean(0), rtol=1e-5)
    for case in GOLDEN["cases"]:
        logits = np.array(case["logits"], np.float32)
        state = update(state, logits)
        for name, value in state._asdict().items():
            np.testing.assert_allclose(value, case[name], rtol=1e-5)
        aligned, weight = weighed(logits, *state)
        np.testing.assert_allclose(aligned, case["aligned"], rtol=1e-5)
        np.testing.assert_allclose(weight, case["weight"], rtol=1e-4, atol=1e-7)
    assert (weight == 1).any() and (weight < 0.9).any()


def test_weight_is_one_above_the_mean_and_a_gaussian_below():
    p = np.stack([np.linspace(0.5, 1, 6), 1 - np.linspace(0.5, 1, 6)], 1).astype(np.float32)
    even = np.array([0.5, 0.5], np.float32)
    found = losses.truncated_gaussian(p, 0.8, 0.04, even, n_sigma=1.0)
    z = np.minimum(np.linspace(0.5, 1, 6) - 0.8, 0) / 0.2
    np.testing.assert_allclose(found, np.exp(-(z**2) / 2), rtol=1e-5)
    # of no spread it is a threshold
    found = losses.truncated_gaussian(p, 0.85, 0.0, even)
    np.testing.assert_allclose(found, [0, 0, 0, 0, 1, 1], atol=1e-6)
    np.testing.assert_array_equal(losses.above_threshold(p, threshold=0.85), [0, 0, 0, 0, 1, 1])


def test_uniform_alignment_evens_out_the_marginal():
    p = softmax(np.random.default_rng(0).normal(size=(50, 3)) * 0.1 + [0.3, 0, -0.2], 1)
    found = losses.uniform_alignment(p, p.mean(0))
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.mean(found, 0), 1 / 3, atol=2e-3)


def test_pseudo_labelled_is_the_weighted_cross_entropy_to_the_guess():
    rng = np.random.default_rng(1)
    weights, weak, strong = (rng.normal(size=s) * 2 for s in ((3, 4), (5, 3), (5, 3)))

    @functools.partial(jax.jit, static_argnames="weight")
    def run(w, weight):
        def total(w):
            loss = losses.pseudo_labelled(lambda x: {"logits": x @ w}, weak, strong, weight=weight)
            return loss.sum(), loss

        return jax.value_and_grad(total, has_aux=True)(w)

    threshold = functools.partial(losses.above_threshold, threshold=0.7)
    (_, found), slope = run(weights, threshold)
    p, guess = softmax(weak @ weights, 1), (weak @ weights).argmax(1)
    kept = p.max(1) >= 0.7
    assert 0 < kept.sum() < 5
    expected = -log_softmax(strong @ weights, 1)[np.arange(5), guess] * kept
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # only the strong view has a gradient: that of cross-entropy to the guess
    gap = (softmax(strong @ weights, 1) - np.eye(4)[guess]) * kept[:, None]
    np.testing.assert_allclose(slope, strong.T @ gap, rtol=1e-4, atol=1e-5)
    # a weight that depends on p has none either
    _, slope = run(weights, lambda p: p.max(-1))
    gap = (softmax(strong @ weights, 1) - np.eye(4)[guess]) * p.max(1)[:, None]
    np.testing.assert_allclose(slope, strong.T @ gap, rtol=1e-4, atol=1e-5)
    (value, _), slope = run(jnp.float32(weights * 1e4), threshold)
    assert np.isfinite(value) and np.isfinite(slope).all()
