"""Quantizers: weights on a grid."""

import math

import flax
import jax
import jax.numpy as jnp

from tinker import nn
from tinker.compress.parametrization import (
    Parametrization,
    leaf_table,
    map_leaves,
    matrices_matching,
)
from tinker.numerics import UserError


def symmetric_scale(matrices, *, bits):
    """The grid's step for each output of each matrix: largest magnitude over largest code.

    Args:
      matrices: ``[batch, in, out]``.
      bits: Bits per weight, >= 2.

    Returns:
      ``[batch, 1, out]``, 1 where a column is all zero.
    """
    peak = jnp.max(jnp.abs(matrices), axis=1, keepdims=True)
    return jnp.where(peak > 0, peak / (2 ** (bits - 1) - 1), 1.0)


def pack_codes(codes, *, bits):
    """Packs signed codes, 8 / bits of them in a byte.

    Args:
      codes: Integers in [-2^(bits-1), 2^(bits-1)), any shape.
      bits: 2, 4 or 8.

    Returns:
      uint8 ``[ceil(codes.size * bits / 8)]``.
    """
    per_byte = 8 // bits
    flat = (codes.reshape(-1).astype(jnp.int32) & (2**bits - 1)).astype(jnp.uint8)
    flat = jnp.pad(flat, (0, -flat.size % per_byte)).reshape(-1, per_byte)
    shifts = (bits * jnp.arange(per_byte)).astype(jnp.uint8)
    return jnp.sum(flat << shifts, axis=1, dtype=jnp.uint8)


def unpack_codes(packed, shape, *, bits):
    """The inverse of :func:`pack_codes`; int8 of the given shape."""
    shifts = (bits * jnp.arange(8 // bits)).astype(jnp.uint8)
    codes = (packed[:, None] >> shifts) & jnp.uint8(2**bits - 1)
    codes = codes.reshape(-1)[: math.prod(shape)].astype(jnp.int16)
    signed = jnp.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes)
    return signed.astype(jnp.int8).reshape(shape)


@flax.struct.dataclass
class Packed:
    """A matrix as packed codes: the leaf's shape, and a step size ``[batch, 1, out]``."""

    codes: jax.Array
    scale: jax.Array
    shape: tuple = flax.struct.field(pytree_node=False)


def quantize(*, bits=8, match="."):
    r"""Trains through weights rounded to a symmetric grid, one step size for each output.

    .. math:: w = \Delta \cdot \mathrm{round}(\theta / \Delta), \qquad
              \Delta_j = \max_i |\theta_{ij}| / (2^{b-1} - 1)

    The rounding has the gradient of the identity (straight through).

    Args:
      bits: b, 2, 4 or 8.
      match: Regular expression searched in the path of a matrix.

    Returns:
      A :class:`Parametrization`. Under :func:`frozen` the weights are stored as packed codes.

    Source: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
      Inference, CVPR 2018, arXiv:1712.05877, Section 3, on a symmetric grid.
    """
    if bits not in (2, 4, 8):
        raise UserError(f"bits={bits}: quantize takes 2, 4 or 8")
    covers = matrices_matching(match)

    def init(key, params, ctx):
        return {"params": params}, {}

    def steps(w):
        return jax.lax.stop_gradient(symmetric_scale(w, bits=bits))

    def rounded(path, leaf, _):
        w = nn.as_matrices(path, leaf)
        grid = jnp.round(w / steps(w)) * steps(w)
        return nn.from_matrices(path, w + jax.lax.stop_gradient(grid - w), leaf)

    def unpacked(path, leaf):
        if not isinstance(leaf, Packed):
            return leaf
        like = jax.ShapeDtypeStruct(leaf.shape, leaf.scale.dtype)
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        codes = unpack_codes(leaf.codes, leaf.shape, bits=bits).astype(leaf.scale.dtype)
        return nn.from_matrices(path, nn.as_matrices(path, codes) * leaf.scale, like)

    def materialize(trainable, base, *, step, key, train):
        if "packed" in base:
            is_packed = lambda x: isinstance(x, Packed)  # noqa: E731
            return jax.tree_util.tree_map_with_path(unpacked, base["packed"], is_leaf=is_packed)
        params = trainable["params"]
        table = {p: None for p, x in leaf_table(params).items() if covers(p, x)}
        return map_leaves(rounded, params, table)

    def pack(trainable, base):
        def one(path, leaf, _):
            w = nn.as_matrices(path, leaf)
            codes = nn.from_matrices(path, jnp.round(w / steps(w)), leaf)
            return Packed(pack_codes(codes, bits=bits), steps(w), leaf.shape)

        params = trainable["params"]
        table = {p: None for p, x in leaf_table(params).items() if covers(p, x)}
        return {"packed": map_leaves(one, params, table)}

    return Parametrization(init, materialize, pack=pack, covers=covers)
