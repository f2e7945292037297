"""Positions against rotations of complex numbers and waves in a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinker import nn
from tinker.numerics import UserError

RNG = np.random.default_rng(0)


def test_rope_multiplies_complex_numbers():
    x = RNG.normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = np.array([0, 1, 2, 7, 40])
    y = jax.jit(lambda x, p: nn.rope(x, p, base=100.0))(x, positions)
    z = x[..., :4] + 1j * x[..., 4:]
    for t, p in enumerate(positions):
        for i in range(4):
            turned = z[:, t, :, i] * np.exp(1j * p * 100.0 ** (-2 * i / 8))
            np.testing.assert_allclose(y[:, t, :, i], turned.real, atol=1e-5)
            np.testing.assert_allclose(y[:, t, :, i + 4], turned.imag, atol=1e-5)


def test_rope_products_depend_on_the_distance():
    q, k = RNG.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    product = jax.jit(lambda a, b: jnp.sum(nn.rope(q, a[None]) * nn.rope(k, b[None])))
    near, far, other = product(7, 3), product(507, 503), product(7, 4)
    np.testing.assert_allclose(near, far, rtol=1e-3)
    assert abs(near - other) > 1e-2
    half = nn.rope(jnp.asarray(q, jnp.bfloat16), jnp.array([500]))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), nn.rope(q, jnp.array([500])), atol=2e-2)


def test_sincos2d_is_four_waves():
    e = np.asarray(nn.sincos2d(2, 3, 8, base=50.0)).reshape(2, 3, 4, 2)
    for y in range(2):
        for x in range(3):
            for i, w in enumerate((1.0, 50.0**-0.5)):
                waves = [np.sin(x * w), np.cos(x * w), np.sin(y * w), np.cos(y * w)]
                np.testing.assert_allclose(e[y, x, :, i], waves, atol=1e-6)
    assert np.isfinite(nn.sincos2d(2, 2, 4)).all()


def test_widths_that_do_not_divide():
    with pytest.raises(UserError, match="rope turns pairs of features, but x has 3 per head"):
        nn.rope(jnp.zeros((1, 2, 1, 3)), jnp.arange(2))
    with pytest.raises(UserError, match="a width of 6"):
        nn.sincos2d(2, 2, 6)
