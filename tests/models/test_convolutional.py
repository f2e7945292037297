"""Convolutional networks against scipy's correlations, and batch statistics by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from tests.models.drawing import double, drawn, jit
from tinker import models
from tinker.numerics import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 6, 6, 2)).astype(np.float32)


def conv(x, kernel, stride=1):
    """SAME convolution of [batch, h, w, in] with [k, k, in, out], a channel at a time."""
    k, (height, width) = kernel.shape[0], x.shape[1:3]
    pads = [max((-(-n // stride) - 1) * stride + k - n, 0) for n in (height, width)]
    x = np.pad(x, [(0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)])
    out = [
        [
            sum(correlate(image[..., i], kernel[..., i, o], "valid") for i in range(x.shape[-1]))
            for o in range(kernel.shape[-1])
        ]
        for image in x
    ]
    return np.moveaxis(np.array(out), 1, -1)[:, ::stride, ::stride]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def relu(x):
    return np.maximum(x, 0)


def max_pool(x):
    x = np.pad(x, [(0, 0), *((0, n % 2) for n in x.shape[1:3]), (0, 0)], constant_values=-np.inf)
    return np.max([x[:, i::2, j::2] for i in range(2) for j in range(2)], 0)


def test_cnn_is_its_equations():
    model = models.CNN((3, 4), hidden=5, classes=3, quantize_fn=jnp.tanh, intermediates=True)
    variables = drawn(model, IMAGES)
    outputs = jit(model.apply)(variables, IMAGES)
    p, x = double(variables["params"]), double(IMAGES)
    for name in ("conv_0", "conv_1"):
        x = relu(conv(np.tanh(x), p[name]["kernel"]) + p[name]["bias"])
        np.testing.assert_allclose(outputs["intermediates"][name], x, rtol=1e-4, atol=1e-5)
        x = max_pool(x)
    x = relu(dense(np.tanh(x.reshape(3, -1)), p["hidden"]))
    np.testing.assert_allclose(outputs["embeddings"], x, rtol=1e-4, atol=1e-5)
    logits = dense(np.tanh(x), p["head"])
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-4, atol=1e-5)


class Norms:
    """Norms of a ResNet by name, recording what batch norm saw."""

    def __init__(self, kind, params, stats, train):
        self.kind, self.params, self.stats, self.train = kind, params, stats, train
        self.new = {}

    def __call__(self, x, *path):
        p, s = self.params, self.stats
        for name in path:
            p, s = p[name], s.get(name, {})
        if self.kind == "batch":
            mean, var = s["mean"], s["var"]
            if self.train:
                mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
                self.new[path] = 0.9 * s["mean"] + 0.1 * mean, 0.9 * s["var"] + 0.1 * var
            return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]
        groups = 1 if self.kind == "layer" else {4: 4, 8: 8, 16: 8}[x.shape[-1]]
        parts = []
        for part in np.split(x, groups, -1):
            mean, var = (f(part, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.var))
            parts.append((part - mean) / np.sqrt(var + 1e-6))
        return np.concatenate(parts, -1) * p["scale"] + p["bias"]


def resnet(p, x, norm, q):
    x = relu(norm(conv(q(x), p["stem"]["kernel"]), "stem_norm"))
    each = []
    for stage in range(3):
        name = f"stage_{stage}_block_0"
        b, stride = p[name], 2 if stage else 1
        y = relu(norm(conv(q(x), b["conv_0"]["kernel"], stride), name, "norm_0"))
        y = norm(conv(q(y), b["conv_1"]["kernel"]), name, "norm_1")
        if stage:
            x = norm(conv(q(x), b["projection"]["kernel"], stride), name, "projection_norm")
        x = relu(x + y)
        each.append(x)
    x = x.mean((1, 2))
    return each, x, dense(q(x), p["head"])


@pytest.mark.parametrize(
    "norm, train", [("batch", True), ("batch", False), ("group", True), ("layer", True)]
)
def test_resnet_is_its_equations(norm, train):
    quantized = norm == "group"
    slot = dict(quantize_fn=jnp.tanh) if quantized else {}
    model = models.ResNet(8, 4, norm=norm, classes=3, intermediates=True, **slot)
    variables = drawn(model, IMAGES)
    assert ("batch_stats" in variables) == (norm == "batch")
    stats = variables.get("batch_stats", {})

    def run(variables):
        mutable = ["batch_stats"] if train and stats else False
        out = model.apply(variables, IMAGES, train=train, mutable=mutable)
        return out if mutable else (out, {})

    outputs, new = jit(run)(variables)
    norms = Norms(norm, double(variables["params"]), double(stats), train)
    q = np.tanh if quantized else lambda x: x
    each, pooled, logits = resnet(norms.params, double(IMAGES), norms, q)
    for stage, expected in enumerate(each):
        got = outputs["intermediates"][f"stage_{stage}"]
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(outputs["embeddings"], pooled, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-3, atol=1e-4)
    assert len(norms.new) == (9 if train and norm == "batch" else 0)
    for path, (mean, var) in norms.new.items():
        got = new["batch_stats"]
        for name in path:
            got = got[name]
        np.testing.assert_allclose(got["mean"], mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(got["var"], var, rtol=1e-3, atol=1e-4)


def test_resnet_depth_counts_layers():
    model = models.ResNet(20, 4)
    params = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kernels = [p for p, _ in leaves if p[-1].key == "kernel" and p[-2].key != "projection"]
    assert len(kernels) == 20


@pytest.mark.parametrize(
    "model, images, message",
    [
        (models.ResNet(18), IMAGES, r"depth=18: a ResNet has 6n \+ 2 layers"),
        (models.ResNet(8, norm="bacth"), IMAGES, r"did you mean 'batch'\?"),
        (models.ResNet(8), IMAGES[0], "ResNet reads images"),
        (models.CNN(), IMAGES[0], r"CNN reads images .* not an array of shape \(6, 6, 2\)"),
    ],
)
def test_mistakes_are_told_in_one_line(model, images, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), images)
