"""Positions against rotations of complex numbers, waves in a loop, sums on the way and Cable's."""

import functools
import json

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.models.drawing import jit
from tinker import nn
from tinker.kernels import flash_attention
from tinker.numerics import UserError

RNG = np.random.default_rng(0)
GOLDEN = json.loads((ROOT / "tests" / "golden" / "cable.json").read_text())


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


def test_alibi_slopes_are_the_papers():
    np.testing.assert_allclose(nn.alibi_slopes(8), [0.5**h for h in range(1, 9)])
    np.testing.assert_allclose(nn.alibi_slopes(2), [2**-4, 2**-8])
    np.testing.assert_allclose(nn.alibi_slopes(1), [2**-8])
    # The authors' 12 are the 8, and of the 16 the first four at odd places.
    odd = [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    np.testing.assert_allclose(nn.alibi_slopes(12), [*nn.alibi_slopes(8), *odd], rtol=1e-6)


def test_cable_adds_up_what_lies_between():
    z = RNG.normal(size=(2, 7, 3)).astype(np.float32) * 3
    z[0, 3], z[1, 2] = 1e4, -1e4
    found = jax.jit(nn.cable_bias)(z)
    between = found["query_bias"][..., :, None] + found["key_bias"][..., None, :]
    for b, i, h in np.ndindex(2, 7, 3):
        for j in range(i + 1):
            expected = -sum(np.logaddexp(0.0, float(z[b, k, h])) for k in range(j + 1, i + 1))
            np.testing.assert_allclose(between[b, h, i, j], expected, rtol=1e-4, atol=1e-2)
    assert jax.eval_shape(nn.cable_bias, z.astype(jnp.bfloat16))["key_bias"].dtype == jnp.float32


def test_constant_steps_are_alibi():
    positions, slopes = jnp.array([0, 1, 2, 3, 4, 5]), np.asarray(nn.alibi_slopes(3), float)
    z = np.broadcast_to(np.log(np.expm1(slopes)), (1, 6, 3))  # softplus gives the slope
    found = nn.cable_bias(jnp.asarray(z, jnp.float32))
    linear = nn.alibi(None, positions, 3)
    for given in (found, linear):
        given["sum"] = given["query_bias"][..., :, None] + given["key_bias"][..., None, :]
    np.testing.assert_allclose(found["sum"], linear["sum"], atol=1e-5)
    distance = positions[:, None] - positions
    np.testing.assert_allclose(linear["sum"][0, 2], -slopes[2] * distance, rtol=1e-6)


class CableAttention(fnn.Module):
    """Attention on its own biases, without a block's norm, scores undivided as in Cable's code."""

    @fnn.compact
    def __call__(self, x):
        given = nn.cable(x, jnp.arange(x.shape[1]), 2)
        attend = functools.partial(flash_attention, scale=1.0)
        return nn.Attention(2, attention_fn=attend)(x, is_causal=True, **given)


def test_attention_with_cable_is_the_authors():
    def dense(name, rows=slice(None), split=(8,)):
        w, b = (np.array(GOLDEN[name][k], np.float32)[rows] for k in ("weight", "bias"))
        return {"kernel": w.T.reshape(8, *split), "bias": b.reshape(split)}

    names = enumerate(("query", "key", "value"))
    attention = {n: dense("c_attn", slice(8 * i, 8 * i + 8), (2, 4)) for i, n in names}
    out = dense("c_proj")
    attention["out"] = {"kernel": out["kernel"].reshape(2, 4, 8), "bias": out["bias"]}
    params = {"Attention_0": attention, "cable": dense("h_attn", split=(2,))}
    x = np.array(GOLDEN["x"], np.float32)
    layer = CableAttention()
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    )
    apply = jit(lambda params, x: layer.apply({"params": params}, x))
    np.testing.assert_allclose(apply(params, x), GOLDEN["y"], rtol=1e-4, atol=1e-5)
    before = apply(params, x)[:, :4]
    x[:, 4:] += 1.0
    np.testing.assert_array_equal(apply(params, x)[:, :4], before)


def test_biases_as_vectors_have_the_gradients_of_a_matrix():
    q, k, v = RNG.normal(size=(3, 1, 6, 2, 4)).astype(np.float32)
    z = RNG.normal(size=(1, 6, 2)).astype(np.float32)

    def by_vectors(z):
        return flash_attention(q, k, v, is_causal=True, **nn.cable_bias(z))

    def by_matrix(z):
        a = -jnp.logaddexp(0.0, z).swapaxes(1, 2)  # [batch, heads, tokens]
        i, j, t = jnp.ogrid[:6, :6, :6]
        bias = jnp.einsum("bht,ijt->bhij", a, (j < t) & (t <= i))
        return jax.nn.dot_product_attention(q, k, v, bias=bias, is_causal=True)

    def value_and_grad(fn):
        return jax.value_and_grad(lambda z: jnp.sum(weights * fn(z)))

    weights = RNG.normal(size=(1, 6, 2, 4)).astype(np.float32)
    both = jit(lambda z: (value_and_grad(by_vectors)(z), value_and_grad(by_matrix)(z)))
    (a, da), (b, db) = both(z)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(da, db, rtol=1e-4, atol=1e-6)
    assert np.abs(da).max() > 1e-2
