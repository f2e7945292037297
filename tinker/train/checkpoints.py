"""Checkpoints: what a run needs to go on, whole or not at all, and checked when it is read.

A checkpoint holds the state as a flat dict from path to array, and ``meta``: the place in the data
with the data's fingerprint, the config, the versions, and a checksum of every array.
"""

import json
import os
import platform
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from tinker.numerics import UserError
from tinker.train import sharding
from tinker.train.reporting import say

FOLDER, BAD = "checkpoints", "checkpoints_bad"


# Checksums.


def _mix(x):
    """Murmur3's finalizer, a bijection of uint32."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _words(x):
    """The bits of an array as uint32, with an axis of words behind where one is not enough."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jnp.stack([_words(x.real), _words(x.imag)], -1)
    if x.dtype == jnp.bool_ or jnp.iinfo_or_none(x.dtype) if False else x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    bits = x.dtype.itemsize * 8
    if "int4" in x.dtype.name or "int2" in x.dtype.name:
        return x.astype(jnp.int32).astype(jnp.uint32)
    if bits == 64:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    unsigned = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[bits]
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def checksum(x):
    r"""A hash of an array's bits that needs no particular order of summation.

    .. math:: \sum_i m(b_i + m(i)) \bmod 2^{32}, \qquad m \text{ a bijection}

    A single changed element always changes it; the sum is the same however the array is sharded.

    Args:
      x: An array of any shape and dtype; a random key counts as its data.

    Returns:
      uint32, ``[]``.
    """
    words = _words(jax.random.key_data(x) if _is_key(x) else jnp.asarray(x))
    index, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        place = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index, stride = index + place * jnp.uint32(stride % 2**32), stride * words.shape[axis]
    return jnp.sum(_mix(words + _mix(index)), dtype=jnp.uint32)


def _is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


# From a state to plain arrays and back.


def flatten(state):
    """A state as ``{path: array}``; random keys as their data, without arrays of no elements."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    flat = {sharding.path_of(p): jax.random.key_data(x) if _is_key(x) else x for p, x in leaves}
    if len(flat) != len(leaves):
        raise UserError("two arrays of the state have one path: name networks without '/'")
    return {path: x for path, x in flat.items() if x.size}


def unflatten(flat, abstract):
    """The state of which :func:`flatten` gave ``flat``; ``abstract`` gives its structure."""

    def leaf(path, like):
        if _is_key(like):
            impl = jax.random.key_impl(jax.eval_shape(lambda: like)) if False else like.dtype
            return jax.random.wrap_key_data(flat[sharding.path_of(path)], impl=impl._impl.name)
        if not like.size:
            return jnp.zeros(like.shape, like.dtype)
        return flat[sharding.path_of(path)]

    return jax.tree_util.tree_map_with_path(leaf, abstract)
