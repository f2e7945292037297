"""Low rank: weights, or their changes, as products of thin factors."""

import re

import jax
import jax.numpy as jnp

from tinker import nn
from tinker.compress.parametrization import (
    Parametrization,
    leaf_table,
    map_leaves,
    matrices_matching,
)
from tinker.numerics import fold_in


def lora(*, rank=8, alpha=None, match=".", full=None):
    r"""Trains a low-rank change of frozen weights.

    .. math:: w = W + \frac{\alpha}{r} A B, \qquad A \in \mathbb{R}^{\mathrm{in} \times r},\;
              B \in \mathbb{R}^{r \times \mathrm{out}}

    A starts Gaussian with variance 1/in, B at zero, so that w starts at W. (The paper's B A is
    this product for weights that multiply from the left.)

    Args:
      rank: r, at least 1; matrices whose smaller side is not above it stay frozen.
      alpha: The scale; the rank by default, which makes the factor 1.
      match: Regular expression searched in the path of a matrix.
      full: Regular expression of leaves trained in full, such as ``"head"``; none by default.

    Returns:
      A :class:`Parametrization`: trainable ``{"a", "b", "full"}``, each a dict by path. Whatever
      is in none of them is frozen.

    Source: LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, arXiv:2106.09685, Eq. 3.
    """
    matching = matrices_matching(match)
    whole = re.compile(full) if full else None
    factor = 1.0 if alpha is None else alpha / rank

    def is_full(path):
        return whole is not None and whole.search(path) is not None

    def covers(path, leaf):
        if not matching(path, leaf) or is_full(path):
            return False
        return min(nn.as_matrices(path, leaf).shape[1:]) > rank

    def init(key, params, ctx):
        table, a, b = leaf_table(params), {}, {}
        for path, leaf in table.items():
            if covers(path, leaf):
                batch, rows, columns = nn.as_matrices(path, leaf).shape
                drawn = jax.random.normal(fold_in(key, path), (batch, rows, rank), leaf.dtype)
                a[path] = drawn / jnp.sqrt(rows).astype(leaf.dtype)
                b[path] = jnp.zeros((batch, rank, columns), leaf.dtype)
        whole_leaves = {p: x for p, x in table.items() if is_full(p)}
        return {"a": a, "b": b, "full": whole_leaves}, {"params": params}

    def materialize(trainable, base, *, step, key, train):
        b = trainable["b"]

        def one(path, leaf, a):
            change = factor * jnp.einsum("nir,nro->nio", a, b[path])
            return leaf + nn.from_matrices(path, change, leaf)

        params = map_leaves(one, base["params"], trainable["a"])
        return map_leaves(lambda path, leaf, new: new, params, trainable["full"])

    return Parametrization(init, materialize, covers=covers, trains_weights=False)
