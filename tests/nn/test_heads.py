"""Heads at the start of training."""

import jax
import numpy as np

from tinker import nn


def test_prototypes_are_unit_vectors_on_average():
    vectors, variables = nn.Prototypes(400, 50).init_with_output(jax.random.key(0))
    assert vectors.shape == (400, 50) and variables["params"]["vectors"].shape == (400, 50)
    np.testing.assert_allclose(np.square(vectors).sum(1).mean(), 1, atol=0.05)


def test_a_learned_scalar_starts_where_it_is_told_and_moves():
    for positive, slope in ((False, 1.0), (True, 0.2)):  # d exp(log 0.2) is 0.2
        module = nn.LearnedScalar(0.2, positive=positive)
        value, variables = module.init_with_output(jax.random.key(0))
        np.testing.assert_allclose(value, 0.2, rtol=1e-6)
        (grad,) = jax.tree.leaves(jax.grad(module.apply)(variables))
        np.testing.assert_allclose(grad, slope, rtol=1e-6)
        assert value.shape == grad.shape == () and value.dtype == np.float32
