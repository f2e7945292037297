"""Matrices inside parameters, against the products they take part in."""

import flax.linen as fnn
import jax
import numpy as np
import pytest

from tests.models.drawing import drawn
from tinker import models, nn
from tinker.models import stack_layers, unstack_layers

X = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
IMAGE = np.zeros((2, 8, 8, 1), np.float32)
TOKENS = np.zeros((2, 6), np.int32)

ZOO = {
    "mlp": (models.MLP((8, 8)), IMAGE),
    "cnn": (models.CNN((4, 6), hidden=8), IMAGE),
    "resnet": (models.ResNet(8, 4), IMAGE),
    "vit": (models.ViT(4, 3, 8, 2, pool="cls"), IMAGE),
    "vit scanned": (models.ViT(4, 3, 8, 2, pool="cls", scan=True), IMAGE),
    "lm": (models.ByteLM(16, 8, 8, 2, 2), TOKENS),
    "lm scanned": (models.ByteLM(16, 8, 8, 2, 2, tie=False, scan=True), TOKENS),
}


class Leaf:
    def __init__(self, *shape):
        self.shape = shape


@pytest.mark.parametrize(
    "path, shape, expected",
    [
        ("Dense_0/kernel", (3, 4), ((), (0,), (1,))),
        ("blocks/mlp/up/kernel", (2, 3, 4), ((0,), (1,), (2,))),
        ("blocks_1/mlp/up/kernel", (3, 4), ((), (0,), (1,))),
        ("attention/query/kernel", (8, 2, 4), ((), (0,), (1, 2))),
        ("attention/out/kernel", (2, 4, 8), ((), (0, 1), (2,))),
        ("blocks/attention/value/kernel", (3, 8, 2, 4), ((0,), (1,), (2, 3))),
        ("blocks/attention/out/kernel", (3, 2, 4, 8), ((0,), (1, 2), (3,))),
        ("blocks/experts/Dense_0/kernel", (3, 5, 8, 16), ((0, 1), (2,), (3,))),
        ("attention/qkv/kernel", (8, 3, 2, 4), ((), (0,), (1, 2, 3))),
        ("query/kernel", (8, 4), ((), (0,), (1,))),
        ("Conv_0/kernel", (3, 3, 4, 8), ((), (0, 1, 2), (3,))),
        ("Conv_0/kernel", (5, 4, 8), ((), (0, 1), (2,))),
        ("blocks/Conv_0/kernel", (2, 3, 3, 4, 8), ((0,), (1, 2, 3), (4,))),
        ("members/Conv_0/kernel", (2, 3, 4, 8), ((0,), (1, 2), (3,))),
        ("heads/actor/kernel", (3, 4), ((), (0,), (1,))),
        ("embed/embedding", (256, 8), ((), (0,), (1,))),
        ("kernel", (3, 4), ((), (0,), (1,))),
        ("blocks/mlp/up/bias", (2, 4), None),
        ("blocks/attention/query/bias", (2, 2, 4), None),
        ("blocks/norm/scale", (2, 4), None),
        ("position", (16, 8), None),
        ("log_temperature", (), None),
        ("kernel", (3,), None),
    ],
)
def test_axes_by_name(path, shape, expected):
    leaf, names = Leaf(*shape), tuple(path.split("/"))
    keys = tuple(jax.tree_util.DictKey(name) for name in names)
    attribute = (jax.tree_util.GetAttrKey("mu"), jax.tree_util.SequenceKey(0), *keys)
    for form in (path, names, keys, attribute, f"opt_state/0/mu/{path}"):
        assert nn.matrix_axes(form, leaf) == expected
        assert nn.is_matrix(form, leaf) == (expected is not None)


@pytest.mark.parametrize(
    "layer, x, rows",
    [
        (fnn.Dense(4, use_bias=False), X, X),
        (fnn.DenseGeneral((2, 4), use_bias=False, name="query"), X, X),
        (
            fnn.DenseGeneral(4, axis=(-2, -1), use_bias=False, name="out"),
            X.reshape(5, 2, 3),
            X,
        ),
        (fnn.Conv(4, (3, 1), use_bias=False, padding="VALID"), X.reshape(5, 3, 1, 2), X),
        (
            fnn.Conv(4, (3,), use_bias=False, padding="VALID", feature_group_count=1),
            X.reshape(5, 3, 2),
            X,
        ),
        (fnn.Embed(6, 4), np.arange(6), np.eye(6, dtype=np.float32)),
    ],
    ids=["dense", "query", "out", "conv2d", "conv1d", "embed"],
)
def test_a_layer_multiplies_by_its_matrix(layer, x, rows):
    class Net(fnn.Module):
        @fnn.compact
        def __call__(self, x):
            return layer.clone(parent=self)(x)

    variables = drawn(Net(), x)
    ((path, kernel),) = jax.tree_util.tree_leaves_with_path(variables["params"])
    (matrix,) = nn.as_matrices(path, kernel)
    y = Net().apply(variables, x)
    np.testing.assert_allclose(y.reshape(len(rows), -1), rows @ matrix, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(nn.from_matrices(path, matrix[None], kernel), kernel)


def test_a_grouped_convolution_is_a_block_of_its_matrix():
    layer = fnn.Conv(4, (3,), use_bias=False, padding="VALID", feature_group_count=2)
    x = X.reshape(5, 3, 2)
    kernel = drawn(layer, x)["params"]["kernel"]
    (matrix,) = nn.as_matrices("Conv_0/kernel", kernel)
    y = layer.apply({"params": {"kernel": kernel}}, x)[:, 0]
    expected = [x[:, :, 0] @ matrix[:, :2], x[:, :, 1] @ matrix[:, 2:]]
    np.testing.assert_allclose(y, np.concatenate(expected, 1), rtol=1e-5, atol=1e-5)


def test_what_is_no_matrix_is_not_reshaped():
    for reshape in (
        lambda leaf: nn.as_matrices("blocks/norm/bias", leaf),
        lambda leaf: nn.from_matrices("blocks/norm/bias", np.zeros((1, 2, 4)), leaf),
    ):
        with pytest.raises(ValueError, match=r"blocks/norm/bias \(2, 4\) is not a matrix"):
            reshape(np.zeros((2, 4)))


@pytest.mark.parametrize("name", ZOO)
def test_every_leaf_of_the_zoo(name):
    model, x = ZOO[name]
    params = drawn(model, x)["params"]
    unrolled = unstack_layers(params) if "scanned" in name else params
    scanned = stack_layers(params)

    def table(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(p, simple=True, separator="/"): v for p, v in leaves}

    unrolled, scanned = table(unrolled), table(scanned)
    expected = {"kernel": True, "embedding": True}
    for path, leaf in unrolled.items():
        assert nn.is_matrix(path, leaf) == expected.get(path.split("/")[-1], False), path
    seen = 0
    for path, leaf in scanned.items():
        prefix, found, suffix = path.partition("blocks/")
        paths = [p for p in unrolled if p == path]
        if found:
            depth = len(leaf)
            paths = [f"{prefix}blocks_{i}/{suffix}" for i in range(depth)]
        seen += len(paths)
        same = {nn.is_matrix(path, leaf), *(nn.is_matrix(p, unrolled[p]) for p in paths)}
        assert len(same) == 1, path
        if nn.is_matrix(path, leaf):
            layers = [nn.as_matrices(p, unrolled[p]) for p in paths]
            np.testing.assert_array_equal(nn.as_matrices(path, leaf), np.concatenate(layers))
            back = nn.from_matrices(path, nn.as_matrices(path, leaf), leaf)
            np.testing.assert_array_equal(back, leaf)
    assert seen == len(unrolled)
    if name.startswith("vit"):
        assert sum(nn.is_matrix(p, v) for p, v in unrolled.items()) == 3 * 6 + 2
