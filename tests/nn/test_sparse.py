"""Sparse attention against loops over the sets of keys, and the authors' code."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.kernels.checks import temporary_bytes
from tests.models.drawing import drawn, jit
from tinker import nn
from tinker.numerics import UserError

RNG = np.random.default_rng(0)
GOLDEN = json.loads((ROOT / "tests" / "golden" / "sparse_attention.json").read_text())
STRIDED = functools.partial(nn.strided_attention, stride=4)
FIXED = functools.partial(nn.fixed_attention, stride=5, summary=2)


def sets(fn, mode, tokens, head):
    """The keys of each query, ``[tokens, tokens]``, from the paper's definitions."""
    options, seen = fn.keywords, np.zeros((tokens, tokens), bool)
    stride, subsets = options["stride"], options.get("subsets", 1)
    for i in range(tokens):
        for j in range(i + 1):
            if fn.func is nn.strided_attention:
                local, far = i - j < stride, (i - j) % stride == 0
            else:
                end = stride - (head % subsets) * options["summary"]
                local = i // stride == j // stride
                far = end - options["summary"] <= j % stride < end
            first = mode == "heads" and head < 2
            seen[i, j] = {"merged": local or far, "heads": local if first else far}.get(
                mode, {"local": local, "far": far}.get(mode)
            )
    return seen


def loop(q, k, v, seen):
    """Attention of one head, a query at a time; 0 where there is no key."""
    out = np.zeros_like(v)
    for i, keys in enumerate(seen):
        if keys.any():
            e = np.exp(k[keys] @ q[i] / np.sqrt(q.shape[1]))
            out[i] = e @ v[keys] / e.sum()
    return out


CASES = [
    (STRIDED, "merged"),
    (STRIDED, "heads"),
    (STRIDED, "local"),
    (STRIDED, "far"),
    (FIXED, "merged"),
    (functools.partial(FIXED, subsets=2), "merged"),
    (functools.partial(FIXED, subsets=2), "far"),
    (FIXED, "heads"),
    (FIXED, "local"),
]


def test_sparse_attention_is_its_sets():
    """In every mode, of lengths that strides divide or not, and shorter than one."""
    q, k, v = RNG.normal(size=(3, 2, 14, 4, 3)).astype(np.float32)

    def run(q, k, v):
        return [
            [fn(q[:, :n], k[:, :n], v[:, :n], mode=mode) for n in (3, 14)] for fn, mode in CASES
        ]

    for (fn, mode), found in zip(CASES, jit(run)(q, k, v), strict=True):
        for n, out in zip((3, 14), found, strict=True):
            for b, h in np.ndindex(2, 4):
                seen = sets(fn, mode, n, h)
                one = [x[b, :n, h].astype(float) for x in (q, k, v)]
                message = f"{fn.func.__name__} {mode} {n}"
                np.testing.assert_allclose(
                    out[b, :, h], loop(*one, seen), rtol=1e-4, atol=1e-5, err_msg=message
                )


def test_sparse_attention_is_the_authors():
    heads, stride = GOLDEN["heads"], GOLDEN["stride"]
    qkv = np.array([GOLDEN[n] for n in "qkv"], np.float32)
    qkv = qkv.reshape(*qkv.shape[:3], heads, -1)
    strided = functools.partial(nn.strided_attention, stride=stride)
    fixed = functools.partial(nn.fixed_attention, stride=stride, summary=GOLDEN["summary"])

    def run(q, k, v):
        return {
            "local": strided(q, k, v, mode="local"),
            "strided": strided(q, k, v, mode="far"),
            "fixed_one": fixed(q, k, v),
            "fixed": fixed(q, k, v, subsets=GOLDEN["subsets"]),
        }

    for name, out in jit(run)(*qkv).items():
        expected = np.reshape(GOLDEN[name], out.shape)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_gradients_of_both_parts_are_those_of_one_softmax():
    q, k, v, weights = RNG.normal(size=(4, 1, 10, 2, 3)).astype(np.float32)
    seen = np.stack([sets(STRIDED, "merged", 10, h) for h in range(2)])[None]

    def grads(fn):
        return jax.grad(lambda qkv: jnp.sum(weights * fn(*qkv)))

    def dense(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=seen)

    found, expected = jit(lambda x: (grads(STRIDED)(x), grads(dense)(x)))((q, k, v))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_every_pair_is_joined_in_two_steps():
    zeros, each = np.zeros((1, 30, 1, 30), np.float32), np.eye(30, dtype=np.float32)[None, :, None]
    weights = jit(lambda v: [fn(zeros, zeros, v)[0, :, 0] for fn in (STRIDED, FIXED)])(each)
    for once in np.asarray(weights):
        assert (once > 0).sum() < 0.55 * 30 * 31 / 2
        np.testing.assert_array_equal(once @ once > 0, np.tril(np.ones((30, 30), bool)))


def test_no_square_is_held():
    fn = functools.partial(nn.strided_attention, stride=64)
    shapes = [jax.ShapeDtypeStruct((1, 4096, 1, 8), jnp.float32)] * 3
    square = 4 * 4096**2
    assert temporary_bytes(fn, *shapes) < square / 8
    fn = functools.partial(nn.fixed_attention, stride=64, summary=1)
    assert temporary_bytes(fn, *shapes) < square / 8


def test_blocks_take_turns():
    x = RNG.normal(size=(2, 9, 8)).astype(np.float32)
    turns = tuple(functools.partial(STRIDED, mode=mode) for mode in ("local", "far"))
    model = nn.Transformer(2, 2, attention_fn=turns)
    variables = drawn(model, x)

    def run(variables):
        whole = model.apply(variables, x, is_causal=True, intermediates=True)[1]["intermediates"]
        y = x
        for i, attend in enumerate(turns):
            block = nn.Block(2, attention_fn=attend)
            params = {"params": variables["params"][f"blocks_{i}"]}
            y = block.apply(params, y, is_causal=True)[0]
        return y, whole["blocks_1"]

    np.testing.assert_allclose(*jit(run)(variables), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="several attention_fn need scan=False"):
        model.clone(scan=True).init(jax.random.key(0), x)


def test_sparse_mistakes_are_told_in_one_line():
    q = jnp.zeros((1, 6, 2, 4))
    for options, message in (
        (dict(mode="merge"), r"did you mean 'merged'\?"),
        (dict(is_causal=False), "is causal"),
        (dict(mask=jnp.ones((1, 1, 6, 6), bool)), "neither a bias nor a mask"),
    ):
        with pytest.raises(UserError, match=message):
            STRIDED(q, q, q, **options)
    with pytest.raises(UserError, match="3 subsets of 2 are more than a block of 5 has"):
        FIXED(q, q, q, subsets=3)
    with pytest.raises(UserError, match="subsets=2 does not divide 3 heads"):
        FIXED(*(jnp.zeros((1, 6, 3, 4)),) * 3, subsets=2)
    with pytest.raises(AssertionError):
        STRIDED(q, q[:, :, :1], q[:, :, :1])
