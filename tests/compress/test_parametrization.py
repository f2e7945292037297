"""Parametrizations against NumPy, on unrolled and stacked layers alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinker import compress
from tinker.numerics import UserError

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def params():
    draw = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "model": {
            "Dense_0": {"kernel": draw(6, 4), "bias": draw(4)},
            "attention": {"query": {"kernel": draw(6, 2, 3)}, "out": {"kernel": draw(2, 3, 6)}},
            "blocks": {"Dense_0": {"kernel": draw(3, 5, 4), "bias": draw(3, 4)}},
        }
    }


def see(parametrization, state, step=0):
    return parametrization.materialize(*state, step=jnp.int32(step), key=KEY, train=True)


def assert_same(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_masks_keep_the_largest_of_each_matrix():
    tree = params()
    p = compress.masked(sparsity=0.75)
    seen = see(p, p.init(KEY, tree, {}))["model"]
    tree = tree["model"]
    np.testing.assert_array_equal(seen["Dense_0"]["bias"], tree["Dense_0"]["bias"])
    np.testing.assert_array_equal(
        seen["blocks"]["Dense_0"]["bias"], tree["blocks"]["Dense_0"]["bias"]
    )
    pairs = [
        (seen["Dense_0"]["kernel"], tree["Dense_0"]["kernel"]),
        (seen["attention"]["query"]["kernel"], tree["attention"]["query"]["kernel"]),
        *zip(seen["blocks"]["Dense_0"]["kernel"], tree["blocks"]["Dense_0"]["kernel"]),
    ]
    for new, old in pairs:
        new, old = np.ravel(new), np.ravel(old)
        keep = round(0.25 * old.size)
        largest = np.argsort(-np.abs(old))[:keep]
        expected = np.zeros_like(old)
        expected[largest] = old[largest]
        np.testing.assert_array_equal(new, expected)


def test_random_masks_have_the_share_and_depend_on_the_key():
    tree = params()
    p = compress.masked(sparsity=0.5, score="random", match="Dense_0")
    (_, base), (_, other) = p.init(KEY, tree, {}), p.init(jax.random.key(1), tree, {})
    masks = base["masks"]
    assert set(masks) == {"model/Dense_0/kernel", "model/blocks/Dense_0/kernel"}
    assert np.asarray(masks["model/blocks/Dense_0/kernel"]).sum((1, 2)).tolist() == [10, 10, 10]
    assert (masks["model/Dense_0/kernel"] != other["masks"]["model/Dense_0/kernel"]).any()
    with pytest.raises(UserError, match="magnitude"):
        compress.masked(score="size")


def test_ties_do_not_keep_more():
    assert (
        np.asarray(compress.keep_largest(jnp.zeros((2, 8)), 3)).tolist()
        == [[True] * 3 + [False] * 5] * 2
    )


def test_gradual_pruning_follows_its_cubic():
    tree = params()
    p = compress.gradually_pruned(sparsity=0.8, begin=2, end=10, every=4)
    state = p.init(KEY, tree, {})
    update = jax.jit(lambda t, b, step: p.update(t, b, None, step=step, key=KEY))
    shares = []
    for step in range(16):
        state = update(*state, jnp.int32(step))
        shares.append(float((see(p, state)["model"]["blocks"]["Dense_0"]["kernel"][1] == 0).mean()))
    wanted, current = [], 0.0
    for t in range(1, 17):
        if t % 4 == 0 and 2 <= t < 14:
            progress = min(max((t - 2) / 8, 0), 1)
            keep = np.round((1 - 0.8 * (1 - (1 - progress) ** 3)) * 20)
            current = 1 - keep / 20
        wanted.append(current)
    np.testing.assert_allclose(shares, wanted, atol=1e-6)
    with pytest.raises(UserError, match="end > begin"):
        compress.gradually_pruned(begin=5, end=5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantized_weights_lie_on_the_grid(bits):
    tree = params()
    p = compress.quantize(bits=bits)
    state = p.init(KEY, tree, {})
    seen = see(p, state)["model"]
    w = np.asarray(tree["model"]["blocks"]["Dense_0"]["kernel"], np.float64)
    step = np.abs(w).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
    np.testing.assert_allclose(
        seen["blocks"]["Dense_0"]["kernel"], np.round(w / step) * step, atol=1e-6
    )
    # straight through: the gradient is that of the identity
    grads = jax.grad(lambda t: jnp.sum(see(p, (t, state[1]))["model"]["Dense_0"]["kernel"] ** 3))(
        state[0]
    )
    expected = 3 * np.asarray(seen["Dense_0"]["kernel"]) ** 2
    np.testing.assert_allclose(grads["params"]["model"]["Dense_0"]["kernel"], expected, rtol=1e-5)
    # frozen, the same weights from packed codes
    packed = compress.frozen(p)
    trainable, base = packed.init(KEY, tree, {})
    assert trainable == {}
    assert_same(see(packed, (trainable, base)), see(p, state), atol=1e-6)
    codes = base["packed"]["model"]["blocks"]["Dense_0"]["kernel"].codes
    assert codes.dtype == jnp.uint8 and codes.size == -(-60 * bits // 8)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_come_back(bits):
    codes = RNG.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, 7))
    packed = compress.pack_codes(jnp.asarray(codes), bits=bits)
    np.testing.assert_array_equal(compress.unpack_codes(packed, (3, 7), bits=bits), codes)
    with pytest.raises(UserError, match="2, 4 or 8"):
        compress.quantize(bits=3)


def test_lora_starts_at_the_weights_and_adds_a_product():
    tree = params()
    p = compress.lora(rank=2, alpha=6.0, match="Dense|query", full="out")
    trainable, base = p.init(KEY, tree, {})
    assert_same(see(p, (trainable, base)), tree, atol=0)
    assert set(trainable["a"]) == {
        "model/Dense_0/kernel",
        "model/attention/query/kernel",
        "model/blocks/Dense_0/kernel",
    }
    assert set(trainable["full"]) == {"model/attention/out/kernel"}
    b = {k: jnp.asarray(RNG.normal(size=x.shape), x.dtype) for k, x in trainable["b"].items()}
    full = {k: x + 1 for k, x in trainable["full"].items()}
    seen = see(p, (trainable | {"b": b, "full": full}, base))["model"]
    path = "model/blocks/Dense_0/kernel"
    for layer in range(3):
        change = 3.0 * np.asarray(trainable["a"][path][layer]) @ np.asarray(b[path][layer])
        expected = tree["model"]["blocks"]["Dense_0"]["kernel"][layer] + change
        np.testing.assert_allclose(seen["blocks"]["Dense_0"]["kernel"][layer], expected, rtol=1e-5)
    path = "model/attention/query/kernel"
    change = 3.0 * np.asarray(trainable["a"][path][0]) @ np.asarray(b[path][0])
    expected = tree["model"]["attention"]["query"]["kernel"] + change.reshape(6, 2, 3)
    np.testing.assert_allclose(seen["attention"]["query"]["kernel"], expected, rtol=1e-5)
    np.testing.assert_array_equal(
        seen["attention"]["out"]["kernel"], tree["model"]["attention"]["out"]["kernel"] + 1
    )
    wide = compress.lora(rank=4).init(KEY, tree, {})[0]
    assert "model/Dense_0/kernel" not in wide["a"]  # rank 4 of a 6 x 4 matrix saves nothing


def test_lora_draws_factors_of_variance_one_over_in():
    tree = {"model": {"Dense_0": {"kernel": jnp.zeros((400, 100))}}}
    a = compress.lora(rank=50).init(KEY, tree, {})[0]["a"]["model/Dense_0/kernel"]
    np.testing.assert_allclose(np.var(a), 1 / 400, rtol=0.05)


def test_a_stack_acts_on_what_lies_below():
    tree = params()
    for lower in (compress.quantize(bits=4), compress.frozen(compress.quantize(bits=4))):
        p = compress.stack(lower, compress.lora(rank=2))
        trainable, base = p.init(KEY, tree, {})
        assert not jax.tree.leaves(trainable[0])  # low rank freezes what lies below
        stored = [x.shape for x in jax.tree.leaves(base[1])]
        assert not stored  # and the weights are stored once
        quantized = compress.quantize(bits=4)
        expected = see(quantized, quantized.init(KEY, tree, {}))
        assert_same(see(p, (trainable, base)), expected, atol=1e-6)
        b = {k: jnp.ones_like(x) for k, x in trainable[1]["b"].items()}
        seen = see(p, ([trainable[0], trainable[1] | {"b": b}], base))
        path = "model/Dense_0/kernel"
        change = np.asarray(trainable[1]["a"][path][0]).sum(1, keepdims=True)
        wanted = expected["model"]["Dense_0"]["kernel"] + change
        np.testing.assert_allclose(seen["model"]["Dense_0"]["kernel"], wanted, atol=1e-5)


def test_a_mask_over_a_quantizer_trains_the_weights_below():
    tree = params()
    pruned = compress.gradually_pruned(sparsity=0.5, end=2, every=1)
    p = compress.stack(compress.quantize(bits=8), pruned)
    trainable, base = p.init(KEY, tree, {})
    grads = jax.grad(lambda t: jnp.sum(see(p, (t, base))["model"]["Dense_0"]["kernel"]))(trainable)
    np.testing.assert_allclose(grads[0]["params"]["model"]["Dense_0"]["kernel"], 1.0)
    for step in range(3):
        trainable, base = p.update(trainable, base, grads, step=jnp.int32(step), key=KEY)
    kernel = np.asarray(see(p, (trainable, base))["model"]["Dense_0"]["kernel"])
    assert (kernel == 0).mean() == 0.5
    assert_same(trainable[0]["params"], tree, atol=0)
    assert_same(p.init(KEY, tree, {})[0], trainable, atol=0)


def test_frozen_of_anything_has_nothing_to_train():
    tree = params()
    p = compress.masked(sparsity=0.5)
    held = compress.frozen(p)
    trainable, base = held.init(KEY, tree, {})
    assert trainable == {} and held.update is None
    assert_same(see(held, (trainable, base)), see(p, p.init(KEY, tree, {})), atol=0)


def test_coverage_counts_what_is_matched():
    matched, skipped = compress.coverage(compress.lora(rank=2, match="Dense").covers, params())
    assert matched == {"model/Dense_0/kernel": 24, "model/blocks/Dense_0/kernel": 60}
    assert "model/Dense_0/bias" in skipped and "model/attention/query/kernel" in skipped
