"""The Hopper kernels of tiled products: in the GPU interpreter, and as far as lowering goes.

No GPU is needed, and none of this shows that they run on one. The interpreter checks copies,
barriers, loops and what is done to scores; products of tiles are ``jnp.dot`` there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.checks import lowered_for
from tests.kernels.hopper import interpreted
from tinker.kernels import matmul_logsumexp, matmul_softplus_sum
from tinker.kernels.tiled_matmul import pallas_gpu, reference
from tinker.numerics import UserError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several tiles for a block, and several calls backward, of small products."""
    monkeypatch.setattr(pallas_gpu, "BLOCKS", 1)
    monkeypatch.setattr(pallas_gpu, "WEIGHTS", 1)


def arrays(n, m, d, dtype, seed=0):
    rng = np.random.default_rng(seed)
    x, y, bias = rng.normal(size=(n, d)), rng.normal(size=(m, d)) / d**0.5, rng.normal(size=m)
    bias[::7] = -np.inf
    exclude = rng.integers(-1, m, n)
    g = rng.normal(size=n)
    x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
    bias, g = (jnp.asarray(v, jnp.float32) for v in (bias, g))
    return x, y, bias, jnp.asarray(exclude, jnp.int32), g


def expected(x, y, bias, exclude, g, kind, softcap):
    """The reduction and its gradients by the reference, in float64."""
    with jax.enable_x64(True):
        exclude = jnp.asarray(np.asarray(exclude))
        x, y, bias, g = (jnp.asarray(np.asarray(v), jnp.float64) for v in (x, y, bias, g))

        @jax.jit
        def run(x, y, bias, g):
            def reduce(x, y, bias):
                if kind == "softplus":
                    return reference.softplus_sum(x, y, bias=bias)
                options = dict(bias=bias, softcap=softcap, exclude=exclude)
                return reference.logsumexp(x, y, **options)

            result, pull = jax.vjp(reduce, x, y, bias)
            return result, pull(g)

        return jax.tree.map(np.asarray, run(x, y, bias, g))


def check(n, m, d, kind, softcap=None, dtype=jnp.bfloat16, scale=1.0):
    x, y, bias, exclude, g = arrays(n, m, d, dtype)
    g = g * scale
    exclude = jnp.full_like(exclude, -1) if kind == "softplus" else exclude
    wanted, gradients = expected(x, y, bias, exclude, g, kind, softcap)
    static = dict(kind=kind, softcap=softcap)
    result = interpreted(functools.partial(pallas_gpu.forward, **static), x, y, bias, exclude)
    assert result.shape == (n,) and result.dtype == jnp.float32
    np.testing.assert_allclose(result, wanted, rtol=2e-5)
    backward = functools.partial(pallas_gpu.backward, **static)
    given = x, y, bias, exclude, jnp.asarray(wanted, jnp.float32), g
    for v, dv, of in zip((x, y, bias), interpreted(backward, *given), gradients, strict=True):
        assert dv.shape == v.shape and dv.dtype == v.dtype
        of = np.nan_to_num(of)
        assert np.abs(np.asarray(dv, np.float64) - of).max() <= 1e-2 * np.abs(of).max()
    return x, y, bias, exclude, result


def test_values_and_gradients():
    """Two tiles of rows and of columns, each cut short, two pieces deep, and all terms."""
    x, y, bias, exclude, result = check(130, 300, 100, "logsumexp", softcap=3.0)
    x, y, bias = (np.asarray(v, np.float64) for v in (x, y, bias))
    for i in 0, 129:  # the equation, one sum at a time
        total = 0.0
        for j in range(300):
            if j != exclude[i] and np.isfinite(bias[j]):
                total += np.exp(3 * np.tanh((x[i] @ y[j] + bias[j]) / 3))
        np.testing.assert_allclose(result[i], np.log(total), rtol=2e-5)


@pytest.mark.deep
@pytest.mark.parametrize(
    "case",
    [
        dict(n=130, m=300, d=130, kind="softplus"),
        dict(n=1, m=1, d=8, kind="softplus"),
        dict(n=3, m=600, d=64, kind="logsumexp"),
        # Of these cotangents, float16 alone would hold a digit.
        dict(n=130, m=256, d=64, kind="logsumexp", dtype=jnp.float16, scale=1e-4),
    ],
)
def test_cases(case):
    check(**case)


def test_softplus():
    z = np.array([-np.inf, -1e4, -60.0, -20.0, -6.0, -4.0, 0.0, 3.0, 1e4])
    actual = pallas_gpu._softplus(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(actual, np.logaddexp(0, z), rtol=1e-5)


def lowered(fn, n, m, d, dtype=jnp.bfloat16, **static):
    x, y = jax.ShapeDtypeStruct((n, d), dtype), jax.ShapeDtypeStruct((m, d), dtype)

    def run(x, y):
        result, pull = jax.vjp(lambda x, y: fn(x, y, **static, implementation="pallas"), x, y)
        return result, pull(result)

    return lowered_for("cuda", run, x, y)


def assert_kernels(text, kind):
    assert f"matmul_{kind}" in text.replace(f"matmul_{kind}_weights", "")
    assert f"matmul_{kind}_weights" in text
    assert text.count("mosaic_gpu") >= 2


def test_lowers():
    text = lowered(matmul_logsumexp, 4096, 32000, 4096, softcap=30.0)
    assert_kernels(text, "logsumexp")


@pytest.mark.deep
@pytest.mark.parametrize("depth", [8, 768])
def test_lowers_all(depth):
    assert_kernels(lowered(matmul_logsumexp, 1000, 3000, depth), "logsumexp")
    assert_kernels(lowered(matmul_softplus_sum, 1000, 1000, depth), "softplus")


def test_refuses():
    with pytest.raises(UserError, match="float32"):
        lowered(matmul_logsumexp, 64, 64, 64, jnp.float32)
