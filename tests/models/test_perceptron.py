"""The perceptron against matrix products."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.models.drawing import double, drawn, jit
from tinker import models

RNG = np.random.default_rng(0)
A, B, C = (RNG.normal(size=s).astype(np.float32) for s in ((4, 2, 3), (4,), (4, 5)))


def test_mlp_is_its_equations():
    model = models.MLP((7, 6), 3, activation=jnp.sin, quantize_fn=jnp.tanh, intermediates=True)
    variables = drawn(model, A, B, C)
    outputs = jit(model.apply)(variables, A, B, C)
    p, each = double(variables["params"]), []
    x = np.concatenate([A.reshape(4, 6), B[:, None], C], 1)
    for name in ("hidden_0", "hidden_1"):
        x = np.sin(np.tanh(x) @ p[name]["kernel"] + p[name]["bias"])
        each.append(x)
    np.testing.assert_allclose(outputs["embeddings"], x, atol=1e-5)
    for i in range(2):
        np.testing.assert_allclose(outputs["intermediates"][f"hidden_{i}"], each[i], atol=1e-5)
    logits = np.tanh(x) @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-5)


def test_mlp_without_hidden_layer_or_head():
    linear = models.MLP((), 3)
    variables = drawn(linear, C)
    p, outputs = variables["params"]["head"], linear.apply(variables, C)
    np.testing.assert_allclose(outputs["logits"], C @ p["kernel"] + p["bias"], atol=1e-5)
    headless = models.MLP((4,), None)
    assert set(headless.apply(drawn(headless, C), C)) == {"embeddings"}


def test_dropout_keeps_the_mean_and_is_off_outside_training():
    model = models.MLP((4000,), None, dropout=0.25)
    variables = drawn(model, C)

    def run(variables):
        rngs = {"dropout": jax.random.key(0)}
        plain = model.apply(variables, C)["embeddings"]
        return plain, model.apply(variables, C, train=True, rngs=rngs)["embeddings"]

    plain, dropped = map(np.asarray, jit(run)(variables))
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], plain[kept] / 0.75, rtol=1e-5)
    np.testing.assert_allclose(kept[plain != 0].mean(), 0.75, atol=0.02)
