"""Losses of what a network gives for other inputs."""

import jax.numpy as jnp
import numpy as np

from tinker import losses


def test_on_inputs_is_the_loss_of_the_output():
    x, labels = np.eye(3, dtype=np.float32), np.array([2, 0, 1])

    def apply(x):
        return {"logits": 2 * x, "other": -x}

    found = losses.on_inputs(apply, x, labels, loss=losses.cross_entropy)
    np.testing.assert_allclose(found, losses.cross_entropy(2 * x, labels))
    found = losses.on_inputs(apply, x, labels, loss=losses.cross_entropy, output="other")
    np.testing.assert_allclose(found, losses.cross_entropy(-x, labels))
    found = losses.on_inputs(jnp.negative, x, labels, loss=losses.cross_entropy)
    np.testing.assert_allclose(found, losses.cross_entropy(-x, labels))
    assert losses.on_inputs.batch_coupled
