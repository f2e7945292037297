"""The ViT against NumPy loops written from the equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.drawing import double, drawn, jit
from tinker import models
from tinker.models import stack_layers
from tinker.numerics import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 4, 6, 3)).astype(np.float32)
TINY = dict(patch=2, depth=2, width=8, heads=2, mlp_ratio=2, classes=5)


def layer_norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attention(x, p, heads, q, turn=lambda x: x, causal=False):
    """Attention over tokens [n, d], a head and a query at a time; q quantizes what is read."""
    out = np.zeros_like(x) + p["out"]["bias"]
    for h in range(heads):
        query, key, value = (
            q(x) @ p[name]["kernel"][:, h] + p[name]["bias"][h]
            for name in ("query", "key", "value")
        )
        query, key = turn(query), turn(key)
        for i in range(len(x)):
            seen = i + 1 if causal else len(x)
            weights = softmax(key[:seen] @ query[i] / np.sqrt(query.shape[1]))
            out[i] += q(weights @ value[:seen]) @ p["out"]["kernel"][h]
    return out


def block(x, p, heads, q, **options):
    x = x + attention(layer_norm(x, p["attention_norm"]), p["attention"], heads, q, **options)
    h = gelu(q(layer_norm(x, p["mlp_norm"])) @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"])
    return x + q(h) @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"]


def vit(p, image, model, q):
    tokens = []
    for i in range(0, image.shape[0], model.patch):
        for j in range(0, image.shape[1], model.patch):
            patch = q(image[i : i + model.patch, j : j + model.patch])
            tokens.append(np.sum(patch[..., None] * p["embed"]["kernel"], (0, 1, 2)))
    x = np.stack(tokens) + p["embed"]["bias"]
    if model.posemb == "learned":
        x = x + p["position"]
    else:
        omega = 10_000.0 ** (-np.arange(2) / 2)
        for t, (row, column) in enumerate(np.ndindex(2, 3)):
            waves = [f(r * omega) for r in (column, row) for f in (np.sin, np.cos)]
            x[t] += np.concatenate(waves)
    if model.pool == "cls":
        x = np.concatenate([p["cls"][None], x])
    each = []
    for i in range(model.depth):
        x = block(x, p["transformer"][f"blocks_{i}"], model.heads, q)
        each.append(x)
    x = layer_norm(x, p["transformer"]["norm"])
    pooled = x[0] if model.pool == "cls" else x.mean(0)
    return x, each, pooled, q(pooled) @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.parametrize(
    "options",
    [
        dict(pool="cls", posemb="learned"),
        dict(pool="gap", posemb="sincos2d", scan=True),
        dict(pool="gap", posemb="learned", quantize_fn=jnp.tanh, remat="full"),
    ],
    ids=lambda o: "-".join(str(v) for v in o.values() if isinstance(v, str)),
)
def test_vit_is_its_equations(options):
    unrolled = models.ViT(**TINY, **{k: v for k, v in options.items() if k != "scan"})
    model = models.ViT(**TINY, **options, intermediates=True)
    variables = drawn(unrolled, IMAGES)
    given = stack_layers(variables) if model.scan else variables
    assert jax.tree.map(jnp.shape, given) == jax.tree.map(jnp.shape, drawn(model, IMAGES))
    outputs = jit(model.apply)(given, IMAGES)
    q = np.tanh if "quantize_fn" in options else lambda x: x
    for i, image in enumerate(double(IMAGES)):
        tokens, each, pooled, logits = vit(double(variables["params"]), image, model, q)
        for name, expected in (("tokens", tokens), ("embeddings", pooled), ("logits", logits)):
            np.testing.assert_allclose(outputs[name][i], expected, rtol=2e-4, atol=2e-5)
        for layer, expected in enumerate(each):
            got = outputs["intermediates"][f"blocks_{layer}"][i]
            np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)


def test_patches_are_a_convolution():
    p = drawn(models.ViT(**TINY), IMAGES)["params"]
    conv = jax.lax.conv_general_dilated(
        IMAGES, p["embed"]["kernel"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    patches = IMAGES.reshape(2, 2, 2, 3, 2, 3).swapaxes(2, 3).reshape(2, 6, -1)
    product = patches @ p["embed"]["kernel"].reshape(-1, 8)
    np.testing.assert_allclose(conv.reshape(2, 6, 8), product, rtol=1e-4, atol=1e-5)


def test_without_positions_patches_have_no_order():
    model = models.ViT(**TINY)
    variables = drawn(model, IMAGES)
    columns = [2, 3, 0, 1, 4, 5]
    variables["params"]["position"][:] = 0
    run = jit(lambda v: [model.apply(v, x)["logits"] for x in (IMAGES, IMAGES[:, :, columns])])
    np.testing.assert_allclose(*run(variables), rtol=1e-4)
    variables["params"]["position"] += RNG.normal(size=(6, 8)).astype(np.float32)
    first, second = run(variables)
    assert np.abs(first - second).max() > 1e-3


def merge(tokens, keys, info):
    """Merges the last two tokens into their mean, if the next to last is not alone yet."""
    size = info.get("size", jnp.ones(tokens.shape[:2]))
    merged = jnp.einsum("bt,btd->bd", size[:, -2:], tokens[:, -2:]) / size[:, -2:].sum(1)[:, None]
    info = {**info, "size": jnp.append(size[:, :-2], size[:, -2:].sum(1)[:, None], 1)}
    return jnp.append(tokens[:, :-2], merged[:, None], 1), info


@pytest.mark.parametrize("pool", ["gap", "cls"])
def test_merging_equal_tokens_changes_nothing(pool):
    """What proportional attention and the weighted mean are for."""
    plain = models.ViT(**TINY, pool=pool)
    merging = models.ViT(**TINY, pool=pool, token_fn=merge, remat="full", intermediates=True)
    images = IMAGES.copy()
    images[:, 2:] = np.tile(images[:, 2:, :2], (1, 1, 3, 1))  # the last three patches are equal
    variables = drawn(plain, images)
    variables["params"]["position"][:] = RNG.normal(size=8)
    whole, merged = jit(lambda v: (plain.apply(v, images), merging.apply(v, images)))(variables)
    np.testing.assert_allclose(merged["logits"], whole["logits"], rtol=1e-4, atol=1e-5)
    count = 6 + (pool == "cls")
    assert [x.shape[1] for x in merged["intermediates"].values()] == [count - 1, count - 2]
    np.testing.assert_array_equal(merged["info"]["size"][0], [1] * (count - 3) + [3])


def test_outputs_asked_for():
    def shapes(**options):
        model = models.ViT(**{**TINY, **options})
        return jax.eval_shape(lambda k: model.init_with_output(k, IMAGES)[0], jax.random.key(0))

    assert set(shapes()) == {"logits", "embeddings", "tokens"}
    assert set(shapes(classes=None)) == {"embeddings", "tokens"}
    assert set(shapes(intermediates=True)["intermediates"]) == {"blocks_0", "blocks_1"}


@pytest.mark.parametrize(
    "options, images, message",
    [
        (dict(pool="mean"), IMAGES, "pool='mean': it takes gap, cls"),
        (dict(posemb="sincos"), IMAGES, r"did you mean 'sincos2d'\?"),
        (dict(patch=4), IMAGES, "patch=4 does not divide an image of 4x6"),
        (dict(scan=True, token_fn=merge), IMAGES, "needs scan=False"),
        ({}, IMAGES[0], r"ViT reads images .* not an array of shape \(4, 6, 3\)"),
    ],
)
def test_mistakes_are_told_in_one_line(options, images, message):
    model = models.ViT(**{**TINY, **options})
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), images)
