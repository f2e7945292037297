"""Spherical losses against their equations, and a layer in factors against the dense one."""

import functools

import jax
import numpy as np
import pytest

from tinker import losses
from tinker.experiments import output_layers

RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(size=(5, 7)) * 2 + 1, RNG.integers(0, 7, 5)


@jax.jit
def evaluated(logits):
    own = logits[np.arange(5), LABELS]
    sums = own, logits.sum(-1), (logits**2).sum(-1)
    return {
        "z": losses.spherical_z_loss(logits, LABELS, slope=0.7, shift=2.0),
        "of_sums": losses.z_loss_of_sums(*sums, 7, slope=0.7, shift=2.0),
        "taylor": losses.taylor_softmax_loss(logits, LABELS),
    }


def test_losses_are_the_equations_and_the_z_loss_knows_no_shift_or_scale():
    found = evaluated(LOGITS)
    z = (LOGITS - LOGITS.mean(1, keepdims=True)) / LOGITS.std(1, keepdims=True)
    z = z[np.arange(5), LABELS]
    np.testing.assert_allclose(found["z"], np.log1p(np.exp(0.7 * (2 - z))) / 0.7, rtol=1e-5)
    np.testing.assert_allclose(found["of_sums"], found["z"], rtol=1e-4)
    np.testing.assert_allclose(evaluated(30 * LOGITS - 100)["z"], found["z"], rtol=1e-4)
    assert np.abs(evaluated(-LOGITS)["z"] - found["z"]).max() > 0.1
    mass = 1 + LOGITS + LOGITS**2 / 2
    expected = -np.log(mass[np.arange(5), LABELS] / mass.sum(1))
    np.testing.assert_allclose(found["taylor"], expected, rtol=1e-5)
    # near 0 the expansion is the exponential
    small = losses.taylor_softmax_loss(LOGITS * 1e-2, LABELS)
    np.testing.assert_allclose(small, losses.cross_entropy(LOGITS * 1e-2, LABELS), atol=1e-4)


def test_the_label_can_be_at_most_so_many_deviations_above():
    one_hot = np.eye(7)
    found = losses.spherical_z_loss(one_hot, np.arange(7), slope=1.0, shift=0.0)
    np.testing.assert_allclose(found, np.log1p(np.exp(-np.sqrt(6))), rtol=1e-5)
    alike = losses.spherical_z_loss(np.ones((1, 7)), np.zeros(1, int), slope=0.5, shift=3.0)
    np.testing.assert_allclose(alike, np.log1p(np.exp(1.5)) / 0.5, rtol=1e-5)


def squared_error_of_sums(own, total, squares, classes):
    """The squared distance of the scores to the label's one-hot, and a term of their sum."""
    return squares - 2 * own + 1 + 0.1 * total**2 / classes


@pytest.mark.parametrize("kind", ["z", "squared"])
def test_a_layer_in_factors_takes_the_dense_layers_steps(kind):
    of_sums = {
        "z": functools.partial(losses.z_loss_of_sums, slope=0.7, shift=2.0),
        "squared": squared_error_of_sums,
    }[kind]
    weights, hidden = RNG.normal(size=(9, 4)), RNG.normal(size=(12, 4))
    labels, rate = RNG.integers(0, 9, 12), 0.02

    def dense_loss(scores, label):
        return of_sums(scores[label], scores.sum(), (scores**2).sum(), 9)

    @jax.jit
    def both(weights):
        def one(carry, example):
            dense, layer = carry
            dense, *expected = output_layers.dense(dense_loss)(dense, *example, rate)
            layer, *found = losses.spherical_step(layer, *example, rate, loss=of_sums)
            return (dense, layer), (expected, found)

        start = weights, losses.spherical_output(weights)
        (dense, layer), shown = jax.lax.scan(one, start, (hidden, labels))
        return dense, layer, losses.spherical_weights(layer), shown

    with jax.enable_x64(True):
        dense, layer, found, (expected, shown) = both(weights)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)
        close(found, dense)
        for a, b in zip(shown, expected):  # losses, and slopes of what the layer reads
            close(a, b)
        close(layer.gram, dense.T @ dense)
        close(layer.total, dense.sum(0))
        close(layer.inverse @ layer.turn, np.eye(4))
        assert np.abs(dense - weights).max() > 1e-2


def test_a_step_in_factors_costs_no_more_for_more_classes():
    def flops(step, layer):
        lowered = jax.jit(step, donate_argnums=0).lower(layer, np.zeros(16), 3, 0.1)
        return lowered.compile().cost_analysis()["flops"]

    few, many = (jax.eval_shape(losses.spherical_output, np.zeros((n, 16))) for n in (50, 5000))
    assert flops(losses.spherical_step, many) < 1.01 * flops(losses.spherical_step, few)
    step = output_layers.dense(losses.cross_entropy)
    assert flops(step, np.zeros((5000, 16))) > 50 * flops(step, np.zeros((50, 16)))
