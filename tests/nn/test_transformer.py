"""Attention against flax's own, and what a stack of blocks promises."""

import functools

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.drawing import drawn, jit
from tinker import nn
from tinker.kernels import flash_attention
from tinker.models import stack_layers
from tinker.numerics import UserError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 8)).astype(np.float32)
Y = RNG.normal(size=(2, 7, 6)).astype(np.float32)
MASK = np.tril(np.ones((5, 5), bool))[None, None]


@pytest.mark.parametrize("attention_fn", [jax.nn.dot_product_attention, fnn.dot_product_attention])
def test_attention_is_flax_attention(attention_fn):
    ours = nn.Attention(2, qkv_features=4, out_features=3, attention_fn=attention_fn)
    flax = fnn.MultiHeadDotProductAttention(2, qkv_features=4, out_features=3)
    own, across = drawn(flax, X), drawn(flax, X, Y)
    assert jax.tree.map(jnp.shape, drawn(ours, X)) == jax.tree.map(jnp.shape, own)

    def both(own, across):
        return [
            (ours.apply(own, X, mask=MASK), flax.apply(own, X, mask=MASK)),
            (ours.apply(across, X, Y), flax.apply(across, X, Y)),
            (ours.apply(across, X, Y, 2 * Y), flax.apply(across, X, Y, 2 * Y)),
        ]

    for a, b in jit(both)(own, across):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_attention_bias_and_the_keys_it_saw():
    layer = nn.Attention(2)
    variables = drawn(layer, X)
    hidden = np.where(MASK, 0.0, -1e9).astype(np.float32)
    x, (queries, keys, values) = layer.apply(variables, X, bias=hidden, return_qkv=True)
    np.testing.assert_allclose(x, layer.apply(variables, X, mask=MASK), atol=1e-6)
    for name, seen in (("query", queries), ("key", keys), ("value", values)):
        p = variables["params"][name]
        expected = np.einsum("btd,dhk->bthk", X, p["kernel"]) + p["bias"]
        np.testing.assert_allclose(seen, expected, atol=1e-5)


def test_attention_forgets_order_without_positions():
    order = RNG.permutation(5)
    for position_fn, same in ((None, True), (nn.rope, False)):
        layer = nn.Attention(2, position_fn=position_fn)
        variables = drawn(layer, X)
        shuffled = layer.apply(variables, X[:, order])
        assert np.allclose(shuffled, layer.apply(variables, X)[:, order], atol=1e-5) == same


def test_bfloat16_stays_bfloat16():
    model = nn.Transformer(1, 2)
    variables = drawn(model, X)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (variables, X))
    mixed = nn.Transformer(1, 2, dtype=jnp.bfloat16, scan=True)

    def run(half, variables):
        x = X.astype(jnp.bfloat16)
        scanned = mixed.apply(stack_layers(variables), x)
        return [y for y, _ in (model.apply(*half), scanned, model.apply(variables, X))]

    *halves, exact = jit(run)(half, variables)
    for y in halves:
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(y.astype(np.float32), exact, atol=0.1)


def dropout_only(depth):
    """Parameters under which every block adds its dropout's mask, 0 or 1 / (1 - rate)."""
    variables = jax.tree.map(np.zeros_like, drawn(nn.Transformer(depth, 2), X))
    for i in range(depth):
        variables["params"][f"blocks_{i}"]["mlp"]["down"]["bias"] += 1.0
    return variables


def test_dropout_differs_from_block_to_block():
    x = np.zeros((8, 5, 8), np.float32)

    def run(scan, variables, key):
        model = nn.Transformer(3, 2, dropout_rate=0.25, scan=scan)
        options = dict(deterministic=False, rngs={"dropout": key}, intermediates=True)
        each = model.apply(variables, x, **options)[1]["intermediates"]
        each = jnp.stack([x, *(each[f"blocks_{i}"] for i in range(3))])
        return jnp.diff(each, axis=0)

    variables, key = dropout_only(3), jax.random.key(0)
    for scan in (False, True):
        masks = jit(functools.partial(run, scan))(
            stack_layers(variables) if scan else variables, key
        )
        values, counts = np.unique(np.round(masks, 4), return_counts=True)
        np.testing.assert_allclose(values, [0, 1.3333], atol=1e-4)
        np.testing.assert_allclose(counts / counts.sum(), [0.25, 0.75], atol=0.06)
        kept = np.asarray(masks) > 0.5
        agreement = [np.mean(kept[i] == kept[i - 1]) for i in range(3)]
        np.testing.assert_allclose(agreement, 0.25**2 + 0.75**2, atol=0.12)


def test_remat_recomputes():
    variables = drawn(nn.Transformer(2, 2), X)

    def tanhs(remat, scan=False):
        model = nn.Transformer(2, 2, remat=remat, scan=scan)
        v = stack_layers(variables) if scan else variables
        jaxpr = jax.make_jaxpr(jax.grad(lambda v: model.apply(v, X)[0].sum()))(v)
        return str(jaxpr).count("tanh")

    assert tanhs("full") > tanhs("everything_saveable") == tanhs(None) == 2
    assert tanhs("full", scan=True) > tanhs(None, scan=True)


def test_the_hook_sees_layers_and_carries_its_dict():
    seen = []

    def halve(tokens, keys, info):
        seen.append((info["layer"], tokens.shape, keys.shape, sorted(info)))
        return tokens[:, ::2], {**info, "kept": tokens.mean()}

    model = nn.Transformer(2, 2, token_fn=halve)
    variables = drawn(nn.Transformer(2, 2), X)
    y, aux = jax.eval_shape(lambda v: model.apply(v, X, intermediates=True), variables)
    assert seen == [
        (0, (2, 5, 8), (2, 5, 2, 4), ["layer", "queries"]),
        (1, (2, 3, 8), (2, 3, 2, 4), ["kept", "layer", "queries"]),
    ]
    assert list(aux["info"]) == ["kept"]
    assert [x.shape[1] for x in aux["intermediates"].values()] == [3, 2] and y.shape[1] == 2


def test_causal_attention_needs_no_mask():
    layer = nn.Attention(2)
    variables = drawn(layer, X)

    def run(variables):
        flash = layer.clone(attention_fn=flash_attention)
        options = dict(key_bias=jnp.zeros((1, 2, 5)))
        return (
            layer.apply(variables, X, mask=MASK),
            layer.apply(variables, X, is_causal=True),
            flash.apply(variables, X, is_causal=True, **options),
        )

    masked, *others = jit(run)(variables)
    for x in others:
        np.testing.assert_allclose(x, masked, atol=1e-5)


def test_biases_are_of_each_block_and_are_handed_on():
    seen = []

    def first(tokens, keys, info):
        seen.append(sorted(info))
        return tokens, {"kept": tokens.mean()}

    model = nn.Transformer(2, 2, attention_fn=flash_attention, bias_fn=nn.cable)
    variables = drawn(model, X)
    for i in range(2):
        assert variables["params"][f"blocks_{i}"]["cable"]["kernel"].shape == (8, 2)

    def run(variables):
        options = dict(is_causal=True)
        changed = [dict(token_fn=first), dict(remat="full"), dict(scan=True)]
        found = [model.apply(variables, X, **options)]
        for fields in changed:
            given = stack_layers(variables) if "scan" in fields else variables
            found.append(model.clone(**fields).apply(given, X, **options))
        alibi = model.clone(bias_fn=nn.alibi).apply(variables, X, **options)[1]
        return found, alibi

    found, alibi = jit(run)(variables)
    (x, aux), *others = found
    assert aux["bias"]["key_bias"].shape == (2, 2, 2, 5)
    assert np.abs(aux["bias"]["key_bias"][0] - aux["bias"]["key_bias"][1]).min() > 1e-3
    for y, other in others:
        np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            other["bias"]["query_bias"], aux["bias"]["query_bias"], rtol=1e-4, atol=1e-5
        )
    assert seen[0] == ["layer", "queries"] and "bias" not in others[0][1]["info"]
    np.testing.assert_allclose(alibi["bias"]["key_bias"][1, 0, 0], np.arange(5) / 16)


def test_mistakes_are_told_in_one_line():
    init = lambda model: jax.eval_shape(model.init, jax.random.key(0), X)  # noqa: E731
    with pytest.raises(UserError, match="token_fn .* needs scan=False"):
        init(nn.Transformer(2, 2, scan=True, token_fn=lambda t, k, i: (t, i)))
    with pytest.raises(UserError, match=r"remat='ful': .* \(did you mean 'full'\?\)"):
        init(nn.Transformer(2, 2, remat="ful"))
    with pytest.raises(UserError, match="num_heads=3 does not divide a width of 8"):
        init(nn.Transformer(2, 3))
    block, key = nn.Block(2, bias_fn=nn.alibi), jax.random.key(0)
    with pytest.raises(UserError, match="a cache does not keep what it gives"):
        block.init(key, X, cache=(np.zeros((2, 5, 2, 4)),) * 2)
