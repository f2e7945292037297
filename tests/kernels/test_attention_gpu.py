"""The Hopper kernels of attention: in the GPU interpreter, and as far as lowering for CUDA goes.

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
from tinker.kernels import LocalPattern, flash_attention
from tinker.kernels.attention import pallas_gpu, patterns, reference
from tinker.numerics import UserError

NAMES = "query", "key", "value", "query_bias", "key_bias", "spans"


def arrays(shape, terms="", dtype=jnp.bfloat16, seed=0):
    """Arguments of ``(batch, queries, keys, heads, kv_heads, dim)``, and cotangents."""
    batch, queries, keys, heads, kv_heads, dim = shape
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape)

    q, k, v = normal(batch, queries, heads, dim), *normal(2, batch, keys, kv_heads, dim)
    u = normal(1, heads, queries) if "u" in terms else None
    c = normal(batch, 1, keys) if "c" in terms else None
    if "-" in terms:
        c[:, :, ::3] = -np.inf
    e = rng.uniform(-90, 60, (batch, heads, keys)) if "e" in terms else None
    cotangents = normal(batch, queries, heads, dim), normal(batch, heads, queries)
    matrices = [jnp.asarray(x, dtype) for x in (q, k, v)]
    vectors = [None if x is None else jnp.asarray(x, jnp.float32) for x in (u, c, e)]
    do, dlse = jnp.asarray(cotangents[0], dtype), jnp.asarray(cotangents[1], jnp.float32)
    return (*matrices, *vectors), (do, dlse)


def options(dim, terms="", is_causal=False, pattern=None, scale=None):
    scale = dim**-0.5 if scale is None else scale
    ramp = 25.0 if "e" in terms else None
    return dict(ramp=ramp, is_causal=is_causal, pattern=pattern, scale=scale)


def expected(args, cotangents, **static):
    """Outputs and gradients of the reference in float64."""
    with jax.enable_x64(True):
        given = [None if x is None else jnp.asarray(np.asarray(x), jnp.float64) for x in args]
        there = {n: x for n, x in zip(NAMES, given, strict=True) if x is not None}
        cotangents = [jnp.asarray(np.asarray(x), jnp.float64) for x in cotangents]

        @jax.jit
        def run(there, do, dlse):
            attend = functools.partial(reference.attend, **static)
            results, pull = jax.vjp(lambda there: attend(**there), there)
            return results, pull((do, jnp.where(jnp.isneginf(results[1]), 0.0, dlse)))[0]

        results, gradients = jax.tree.map(np.asarray, run(there, *cotangents))
        return *results, [gradients.get(n) for n in NAMES]


def close(actual, wanted, tolerance):
    """The largest error, as a part of the largest value."""
    actual, wanted = (np.asarray(x, np.float64) for x in (actual, wanted))
    hidden = np.isneginf(wanted)
    np.testing.assert_array_equal(np.isneginf(actual), hidden)
    actual, wanted = np.where(hidden, 0, actual), np.where(hidden, 0, wanted)
    assert np.abs(actual - wanted).max() <= tolerance * max(np.abs(wanted).max(), 1e-3)


def check(args, cotangents, tolerance=1e-2, **static):
    out, lse, gradients = expected(args, cotangents, **static)
    actual = interpreted(functools.partial(pallas_gpu.forward, **static), *args)
    assert actual[0].dtype == args[0].dtype and actual[1].dtype == jnp.float32
    close(actual[0], out, tolerance)
    close(actual[1], lse, 1e-5)
    residuals = jnp.asarray(out, args[0].dtype), jnp.asarray(lse, jnp.float32)
    backward = functools.partial(pallas_gpu.backward, **static)
    for x, dx, wanted in zip(
        args, interpreted(backward, *args, *residuals, *cotangents), gradients, strict=True
    ):
        assert (dx is None) == (x is None)
        if x is not None:
            assert dx.shape == x.shape and dx.dtype == x.dtype
            close(dx, wanted, tolerance)
    return actual


def test_values_and_gradients():
    """Two tiles of queries and two of keys, each cut short, and all terms."""
    args, cotangents = arrays((1, 130, 150, 1, 1, 64), "uce")
    static = options(64, "uce", is_causal=True)
    out, lse = check(args, cotangents, **static)
    q, k, v, u, c, e = (np.asarray(x, np.float64) for x in args)
    for i in 0, 40, 129:  # the equation, one sum at a time
        top, bottom = np.zeros(64), 0.0
        for j in range(i + 1):
            fade = min(max((25 + e[0, 0, j] - (i - j)) / 25, 0), 1)
            s = q[0, i, 0] @ k[0, j, 0] / 8 + u[0, 0, i] + c[0, 0, j]
            top += fade * np.exp(s) * v[0, j, 0]
            bottom += fade * np.exp(s)
        wanted = np.log(bottom) if bottom else -np.inf
        np.testing.assert_allclose(lse[0, 0, i], wanted, rtol=1e-5)
        wanted = top / bottom if bottom else np.zeros(64)
        np.testing.assert_allclose(np.float64(out[0, i, 0]), wanted, atol=0.02)


CASES = {
    "plain": dict(shape=(2, 128, 256, 2, 2, 64)),
    "four heads to a head": dict(shape=(1, 130, 150, 4, 1, 64), terms="uce", is_causal=True),
    "one key": dict(shape=(1, 3, 1, 1, 1, 40), is_causal=True),
    "wide": dict(shape=(1, 128, 130, 2, 1, 128), is_causal=True),
    "widest": dict(shape=(1, 70, 140, 1, 1, 200), terms="ce"),
    "float16": dict(shape=(1, 128, 128, 1, 1, 64), terms="u", dtype=jnp.float16),
    "hidden": dict(shape=(1, 128, 128, 1, 1, 64), terms="c-", pattern=patterns.FixedPattern(32, 1)),
    "local": dict(shape=(1, 300, 300, 1, 1, 64), is_causal=True, pattern=LocalPattern(20)),
    "local, wider": dict(shape=(1, 512, 512, 1, 1, 64), pattern=LocalPattern(200)),
    "strided": dict(shape=(1, 256, 256, 1, 1, 64), pattern=patterns.StridedPattern(24)),
    "negative scale": dict(shape=(1, 128, 128, 1, 1, 64), scale=-0.3, is_causal=True),
}


@pytest.mark.deep
@pytest.mark.parametrize("name", CASES)
def test_cases(name):
    case = dict(CASES[name])
    shape, terms = case.pop("shape"), case.pop("terms", "")
    args, cotangents = arrays(shape, terms, case.pop("dtype", jnp.bfloat16))
    check(args, cotangents, **options(shape[-1], terms, **case))


@pytest.mark.deep
def test_vmap():
    args, _ = arrays((2, 128, 128, 1, 1, 64))
    static = options(64)
    out, _, _ = expected(args, arrays((2, 128, 128, 1, 1, 64))[1], **static)

    def each(q, k, v, interpret):
        attend = functools.partial(pallas_gpu.forward, **static, interpret=interpret)
        results = jax.vmap(lambda q, k, v: attend(q, k, v, None, None, None))
        return results(q[:, None], k[:, None], v[:, None])

    close(interpreted(each, *args[:3])[0][:, 0], out, 1e-2)


def lowered(shape, terms="", dtype=jnp.bfloat16, **static):
    """The forward and backward pass of the public function, lowered for CUDA."""
    args, _ = jax.eval_shape(lambda: arrays(shape, terms, dtype))
    there = {n: x for n, x in zip(NAMES, args, strict=True) if x is not None}
    static = options(shape[-1], terms, **static) | dict(implementation="pallas", return_lse=True)

    def run(there):
        results, pull = jax.vjp(lambda there: flash_attention(**there, **static), there)
        return results, pull(results)

    return lowered_for("cuda", run, there)


def assert_kernels(text):
    for name in "forward", "backward_queries", "backward_keys":
        assert f"attention_{name}" in text
    assert text.count("mosaic_gpu") >= 3


def test_lowers():
    assert_kernels(lowered((2, 2048, 2048, 8, 2, 128), "uce", is_causal=True))


@pytest.mark.deep
@pytest.mark.parametrize("dim", [40, 64, 128, 256])
@pytest.mark.parametrize("terms", ["", "u", "c", "e"])
def test_lowers_all(dim, terms):
    dtype = jnp.float16 if dim == 64 else jnp.bfloat16
    assert_kernels(lowered((1, 1024, 1500, 4, 4, dim), terms, dtype, is_causal=terms == "c"))


@pytest.mark.deep
@pytest.mark.parametrize(
    "pattern",
    [
        LocalPattern(100),
        patterns.StridedPattern(64),
        patterns.FixedPattern(64, 8),
        patterns.LocalGlobalPattern(64, 4),
    ],
)
def test_lowers_patterns(pattern):
    assert_kernels(lowered((1, 1024, 1024, 2, 2, 64), is_causal=True, pattern=pattern))


@pytest.mark.parametrize(
    "dim, dtype, message", [(64, jnp.float32, "float32"), (257, jnp.bfloat16, "257")]
)
def test_refuses(dim, dtype, message):
    with pytest.raises(UserError, match=message):
        lowered((1, 64, 64, 1, 1, dim), dtype=dtype)
