"""From the parameters of unrolled layers to those of scanned ones, and back."""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from tinker.numerics import UserError


def stack_layers(tree):
    """Stacks the parameters of unrolled blocks, as the scanned model has them.

    Args:
      tree: Parameters, or a tree that holds some: variables, an optimizer's state. Wherever it has
        ``blocks_0``, ``blocks_1``, …, these become ``blocks``.

    Returns:
      The tree with layers along the first axis of every leaf below ``blocks``.

    Raises:
      UserError: Blocks whose parameters differ in structure or shape.
    """

    def convert(node):
        if not isinstance(node, Mapping):
            return node
        node = {name: _walk(convert, child) for name, child in node.items()}
        names = [name for name in node if re.fullmatch(r"blocks_\d+", str(name))]
        names.sort(key=lambda name: int(name.removeprefix("blocks_")))
        layers = [node.pop(name) for name in names]
        if layers:
            shapes = [jax.tree.map(jnp.shape, layer) for layer in layers]
            if any(shape != shapes[0] for shape in shapes):
                raise UserError(f"{names[0]} … {names[-1]} differ in shape: they cannot be stacked")
            node["blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        return node

    return _walk(convert, tree)


def unstack_layers(tree):
    """The inverse of :func:`stack_layers`: ``blocks`` becomes ``blocks_0``, ``blocks_1``, …"""

    def convert(node):
        if not isinstance(node, Mapping):
            return node
        node = {name: _walk(convert, child) for name, child in node.items()}
        if isinstance(node.get("blocks"), Mapping):
            stacked = node.pop("blocks")
            depth = len(jax.tree.leaves(stacked)[0])
            for i in range(depth):
                node[f"blocks_{i}"] = jax.tree.map(lambda leaf: leaf[i], stacked)  # noqa: B023
        return node

    return _walk(convert, tree)


def _walk(convert, tree):
    """Applies ``convert`` to the topmost dicts of a tree, whatever holds them."""
    return jax.tree.map(convert, tree, is_leaf=lambda node: isinstance(node, Mapping))
