"""The text encoder against NumPy."""

import jax
import numpy as np
import pytest

from tests.models.drawing import double, drawn, jit
from tests.models.test_vision_transformer import block, layer_norm
from tinker import models
from tinker.numerics import UserError

TOKENS = np.random.default_rng(0).integers(0, 11, (3, 6))
MODEL = models.TextEncoder(vocab=11, length=7, width=8, depth=2, heads=2, mlp_ratio=2)
VARIABLES = drawn(MODEL, TOKENS)


def test_text_encoder_is_its_equations():
    p = double(VARIABLES["params"])
    expected = []
    for tokens in TOKENS:
        x = p["embed"]["embedding"][tokens] + p["positions"][:6]
        for i in range(2):
            x = block(x, p["transformer"][f"blocks_{i}"], 2, lambda x: x)
        expected.append(layer_norm(x, p["transformer"]["norm"]).mean(0))
    found = jit(MODEL.apply)(VARIABLES, TOKENS)["embeddings"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_too_many_tokens_are_refused():
    with pytest.raises(UserError, match=r"TextEncoder reads tokens \[batch, up to 7\]"):
        jax.eval_shape(MODEL.apply, VARIABLES, np.zeros((2, 8), int))
