"""Parametrizations: what is trained, and how it becomes the parameters a network sees.

A parametrization is ``init(key, params, ctx) -> (trainable, base)``, ``materialize(trainable, base,
*, step, key, train) -> params`` and, for what changes along the way, ``update(trainable, base,
grads, *, step, key) -> (trainable, base)``, called after every optimizer step. ``params`` is keyed
by network, as in ``{"model": …}``.

The weights that a parametrization was given, it keeps as they were under the key ``"params"``: of
its trainable if they are trained (``trains_weights``), of its base if they are not. That is how
:func:`stack` puts one on top of another.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tinker import nn


class Parametrization(NamedTuple):
    """The functions of a parametrization; see the module.

    ``pack(trainable, base) -> base`` gives a smaller base from which ``materialize`` works with an
    empty trainable. ``covers(path, leaf)`` says which leaves it acts on.
    """

    init: Callable
    materialize: Callable
    update: Callable | None = None
    pack: Callable | None = None
    covers: Callable = lambda path, leaf: True
    trains_weights: bool = True


def leaf_table(params):
    """The leaves of a tree by path: ``{"model/Dense_0/kernel": leaf}``."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def map_leaves(fn, params, table):
    """Replaces each leaf whose path is in ``table`` by ``fn(path, leaf, table[path])``."""

    def one(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        return fn(path, leaf, table[path]) if path in table else leaf

    return jax.tree_util.tree_map_with_path(one, params)


def matrices_matching(match):
    """``covers`` of a matrix-wise method: the matrices whose path has a match of the pattern."""
    pattern = re.compile(match)

    def covers(path, leaf):
        return nn.is_matrix(path, leaf) and pattern.search(path) is not None

    return covers


def coverage(covers, params):
    """Which leaves a method acts on.

    Args:
      covers: ``covers(path, leaf) -> bool``, a parametrization's or an optimizer's.
      params: The parameters it was given.

    Returns:
      ``(matched, skipped)``: dicts from path to number of elements.
    """
    matched, skipped = {}, {}
    for path, leaf in leaf_table(params).items():
        (matched if covers(path, leaf) else skipped)[path] = leaf.size
    return matched, skipped


def frozen(parametrization):
    """The same parametrization with nothing to train: its trainable moves into the base, packed.

    Args:
      parametrization: A :class:`Parametrization`.

    Returns:
      A :class:`Parametrization` with an empty trainable and no update.
    """
    pack = parametrization.pack or (lambda trainable, base: {"trainable": trainable, "base": base})

    def init(key, params, ctx):
        return {}, pack(*parametrization.init(key, params, ctx))

    def materialize(trainable, base, *, step, key, train):
        if parametrization.pack is None:
            trainable, base = base["trainable"], base["base"]
        return parametrization.materialize(trainable, base, step=step, key=key, train=train)

    return Parametrization(init, materialize, covers=parametrization.covers, trains_weights=False)


def stack(*layers):
    """Parametrizations one on top of another, each acting on what the ones before materialize.

    ``stack(frozen(quantize(bits=4)), lora(rank=8))`` trains low-rank factors on packed 4-bit
    weights. A layer that does not train the weights it is given freezes all below it. The weights
    are stored once, by the lowest layer; the ``update`` of a higher one sees them, but neither
    their gradient nor what it writes to them.

    Args:
      *layers: :class:`Parametrization`, the lowest first; at least one.

    Returns:
      A :class:`Parametrization` whose trainable and base are lists, a place for each layer.
    """
    top = max((i for i, layer in enumerate(layers) if not layer.trains_weights), default=0)
    layers = [frozen(layer) if i < top else layer for i, layer in enumerate(layers)]

    def given(layer, params, trainable, base):
        if layer.trains_weights:
            return {**trainable, "params": params}, base
        return trainable, {**base, "params": params}

    def own(tree):
        return {k: v for k, v in tree.items() if k != "params"}

    def init(key, params, ctx):
        trainables, bases = [], []
        for i, layer in enumerate(layers):
            layer_key = jax.random.fold_in(key, i)
            trainable, base = layer.init(layer_key, params, ctx)
            start = jnp.zeros((), jnp.int32)
            params = layer.materialize(trainable, base, step=start, key=layer_key, train=False)
            trainables.append(own(trainable) if i else trainable)
            bases.append(own(base) if i else base)
        return trainables, bases

    def levels(trainables, bases, step, key, train):
        """Each layer's trainable and base, weights included, and what it materializes."""
        params = None
        for i, (layer, trainable, base) in enumerate(zip(layers, trainables, bases, strict=True)):
            if i:
                trainable, base = given(layer, params, trainable, base)
            layer_key = jax.random.fold_in(key, i)
            params = layer.materialize(trainable, base, step=step, key=layer_key, train=train)
            yield trainable, base, params

    def materialize(trainables, bases, *, step, key, train):
        *_, (_, _, params) = levels(trainables, bases, step, key, train)
        return params

    def update(trainables, bases, grads, *, step, key):
        new = []
        for i, (trainable, base, _) in enumerate(levels(trainables, bases, step, key, False)):
            if layers[i].update is not None:
                layer_key = jax.random.fold_in(key, i)
                trainable, base = layers[i].update(
                    trainable, base, grads[i], step=step, key=layer_key
                )
            new.append((own(trainable), own(base)) if i else (trainable, base))
        return [t for t, _ in new], [b for _, b in new]

    return Parametrization(
        init,
        materialize,
        update if any(layer.update is not None for layer in layers) else None,
        covers=lambda path, leaf: any(layer.covers(path, leaf) for layer in layers),
        trains_weights=layers[0].trains_weights,
    )
