"""Which axes of a parameter make it a matrix.

A flax kernel may have any number of axes: attention's ``[width, heads, head_dim]``, a convolution's
``[height, width, in, out]``, and one more in front where layers are scanned. A matrix-wise method
(Muon, low rank, pruning by row, quantization by output) that tested ``ndim == 2`` would miss most
of a transformer and mistake the stacked biases of a scanned one for matrices. It asks here.

The answer comes from names, by flax's conventions and one of this library's: the layers that a
model scans over, or vmaps over, are stacked under a module whose name is in :data:`STACKED`, along
the first axis of every leaf. Unrolled, layer i is called ``blocks_i``.
"""

import math

import jax

STACKED = ("blocks", "experts", "heads", "members")
PROJECTIONS = ("query", "key", "value", "qkv")


def matrix_axes(path, leaf):
    """Finds the axes of a parameter that are stacked matrices, their inputs and their outputs.

    ======================================  ============================  ========================
    leaf                                    shape                         axes (batch, in, out)
    ======================================  ============================  ========================
    Dense ``kernel``                        ``[in, out]``                 ``(), (0,), (1,)``
    ``query``, ``key``, ``value`` kernel    ``[in, heads, head_dim]``     ``(), (0,), (1, 2)``
    ``out`` kernel of attention             ``[heads, head_dim, out]``    ``(), (0, 1), (2,)``
    convolution ``kernel``                  ``[h, w, in / groups, out]``  ``(), (0, 1, 2), (3,)``
    ``embedding``                           ``[entries, features]``       ``(), (0,), (1,)``
    any of them below ``blocks``            ``[depth, ...]``              ``(0,)``, the others + 1
    bias, scale, position, class token      any                           None
    ======================================  ============================  ========================

    Kernels with more than two axes that belong to no attention count as a convolution's. A rank
    that leaves no axis for a stack (a Dense kernel below a ``heads`` that is not vmapped) has none.

    Args:
      path: Where the leaf is: a jax key path, a tuple of names, or one string with slashes. Only
        the names count, so that an optimizer's moments may be asked for as well.
      leaf: Anything with a ``shape``.

    Returns:
      ``(batch_axes, in_axes, out_axes)``, tuples that together hold every axis in order, or None
      if the leaf is no matrix.
    """
    *modules, name = _names(path)
    rank = len(leaf.shape)
    if name not in ("kernel", "embedding") or rank < 2:
        return None
    stacked = min(sum(module in STACKED for module in modules), rank - 2)
    parent = modules[-1] if modules else ""
    inputs = 1 if parent in PROJECTIONS else rank - stacked - 1
    axes = tuple(range(rank))
    return axes[:stacked], axes[stacked : stacked + inputs], axes[stacked + inputs :]


def is_matrix(path, leaf):
    """Whether the leaf is a matrix, or a stack of them, by :func:`matrix_axes`."""
    return matrix_axes(path, leaf) is not None


def as_matrices(path, leaf):
    """Reshapes a parameter into the matrices it holds.

    Args:
      path: Where the leaf is, as for :func:`matrix_axes`.
      leaf: An array of any shape that is a matrix there.

    Returns:
      ``[batch, in, out]``: as many matrices as layers are stacked, one if none are.

    Raises:
      ValueError: The leaf is no matrix.
    """
    axes = matrix_axes(path, leaf)
    if axes is None:
        raise ValueError(f"{'/'.join(_names(path))} {tuple(leaf.shape)} is not a matrix")
    return leaf.reshape([math.prod(leaf.shape[i] for i in group) for group in axes])


def from_matrices(path, matrices, leaf):
    """The inverse of :func:`as_matrices`.

    Args:
      path: Where the leaf is.
      matrices: ``[batch, in, out]``.
      leaf: The parameter, or anything of its shape.

    Returns:
      The matrices in the leaf's shape; their dtype is kept.
    """
    if not is_matrix(path, leaf):
        raise ValueError(f"{'/'.join(_names(path))} {tuple(leaf.shape)} is not a matrix")
    return matrices.reshape(leaf.shape)


def _names(path):
    if isinstance(path, str):
        return path.split("/")
    keystr = jax.tree_util.keystr
    return [entry if isinstance(entry, str) else keystr((entry,), simple=True) for entry in path]
