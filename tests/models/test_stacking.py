"""The scanned model is the unrolled one: values, gradients, dropout, steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.models.drawing import drawn, jit
from tinker import models
from tinker.models import stack_layers, unstack_layers
from tinker.numerics import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 4, 4, 1)).astype(np.float32)
TOKENS = RNG.integers(0, 11, (3, 6))
SMALL = dict(width=8, depth=2, heads=2)
VIT = (
    models.ViT,
    dict(patch=2, **SMALL),
    IMAGES,
    [(True, None), (True, "full"), (False, "dots_saveable")],
)
LM = (models.ByteLM, dict(vocab=11, length=6, **SMALL), TOKENS, [(True, "full")])


def close(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("make, options, x, variants", [VIT, LM], ids=["vit", "lm"])
def test_values_gradients_and_steps_agree(make, options, x, variants):
    unrolled = drawn(make(**options), x)
    target = RNG.normal(size=(*x.shape[: 1 + (x is TOKENS)], 11 if x is TOKENS else 10))
    # The gradient of a key's bias is zero but for rounding, which Adam's usual epsilon amplifies.
    rule = optax.adam(0.1, eps=1e-2)

    def run(scan, remat):
        model = make(**options, scan=scan, remat=remat)

        def loss(variables):
            return jnp.sum(target * model.apply(variables, x, train=True)["logits"])

        def step(variables):
            value, grads = jax.value_and_grad(loss)(variables)
            updates, state = rule.update(grads, rule.init(variables))
            return value, grads, optax.apply_updates(variables, updates), state

        return jit(step)(stack_layers(unrolled) if scan else unrolled)

    expected = run(False, None)
    for scan, remat in variants:
        got = run(scan, remat)
        close(unstack_layers(got) if scan else got, expected, rtol=1e-3, atol=1e-4)
        if scan:
            close(got, stack_layers(expected), rtol=1e-3, atol=1e-4)


def test_dropout_is_recomputed_as_it_was():
    def run(remat):
        model = models.ByteLM(**LM[1], scan=True, remat=remat, dropout=0.4)

        def loss(variables, key):
            rngs = {"dropout": key, "params": key}
            return jnp.sum(model.apply(variables, TOKENS, train=True, rngs=rngs)["logits"] ** 2)

        return jit(jax.value_and_grad(loss))(drawn(model, TOKENS), jax.random.key(0))

    close(run(None), run("full"), rtol=1e-4, atol=1e-5)


def test_round_trips_in_any_tree():
    layer = lambda i: {"kernel": np.full((2, 3), i), "bias": np.full(3, i)}  # noqa: E731
    tree = {"model": {f"blocks_{i}": layer(i) for i in range(11)}, "head": layer(-1), "none": None}
    stacked = stack_layers(tree)
    assert set(stacked["model"]) == {"blocks"}
    np.testing.assert_array_equal(stacked["model"]["blocks"]["bias"][:, 0], np.arange(11))
    close(unstack_layers(stacked), tree)
    state = optax.adam(1e-3).init(tree["model"])
    close(unstack_layers(stack_layers(state)), state)
    close(stack_layers(layer(0)), layer(0))
    close(unstack_layers(layer(0)), layer(0))


def test_unlike_blocks_are_refused():
    with pytest.raises(UserError, match="blocks_0 … blocks_1 differ in shape"):
        stack_layers({"blocks_0": {"a": np.zeros(2)}, "blocks_1": {"a": np.zeros(3)}})
