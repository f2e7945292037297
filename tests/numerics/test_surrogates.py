"""Straight-through values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinker import numerics

X = np.array([-1e8, -2.5, -0.5, 0.0, 0.49, 1.5, 3e38], np.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_round_is_numpys_with_a_gradient_of_one(dtype):
    x = jnp.asarray(X, dtype)
    value, pull = jax.vjp(jax.jit(numerics.round_straight_through), x)
    np.testing.assert_array_equal(value.astype(np.float32), np.round(x.astype(np.float32)))
    assert value.dtype == dtype
    np.testing.assert_array_equal(pull(jnp.full(7, 2.0, dtype))[0], 2)
    np.testing.assert_array_equal(jax.vmap(numerics.round_straight_through)(x), value)


def test_straight_through_has_the_ones_value_and_the_others_gradient():
    f = lambda x: numerics.straight_through(jnp.sign(x), jnp.tanh(x))  # noqa: E731
    x = np.array([-2.0, 0.1, 1e30], np.float32)
    np.testing.assert_array_equal(f(x), [-1, 1, 1])
    np.testing.assert_allclose(jax.vmap(jax.grad(f))(x), 1 - np.tanh(x) ** 2, atol=1e-6)
    np.testing.assert_allclose(jax.jvp(f, (x,), (x,))[1], x * (1 - np.tanh(x) ** 2), rtol=1e-5)
    curve = jax.grad(jax.grad(f))(0.1)
    np.testing.assert_allclose(curve, -2 * np.tanh(0.1) * (1 - np.tanh(0.1) ** 2), rtol=1e-5)
    far = jax.grad(lambda a: numerics.straight_through(a, jnp.float32(0)))(1.0)
    assert far == 0
    with pytest.raises(AssertionError):
        numerics.straight_through(jnp.ones(2), jnp.ones(3))
    with pytest.raises(AssertionError):
        numerics.straight_through(jnp.ones(2), jnp.ones(2, jnp.bfloat16))
