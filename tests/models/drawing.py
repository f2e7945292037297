"""Variables of a module without running its initializers: every leaf random, biases included."""

import functools

import jax
import numpy as np

# Unoptimized code, in half the time: these tests spend theirs in the compiler.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def drawn(module, *inputs, seed=0, scale=0.3):
    """``{"params": …, …}`` of NumPy arrays; scales and variances lie around 1."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x), *inputs)

    def draw(path, leaf):
        value = scale * rng.normal(size=leaf.shape)
        name = path[-1].key
        value = 1 + value if name == "scale" else np.exp(value) if name == "var" else value
        return value.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def double(tree):
    """The same numbers in float64, for an oracle in NumPy."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
