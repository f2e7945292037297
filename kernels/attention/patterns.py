"""Which keys a query may see, as functions of their positions.

Each is hashable and equal only to its own kind, so that it can be a static argument, and is made of
operators alone: NumPy, JAX and Pallas kernels call it alike. None of them looks only backwards by
itself: that is ``is_causal``'s.
"""

import functools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LocalPattern:
    """Keys at most ``window - 1`` places before or after the query."""

    window: int

    def __call__(self, i, j):
        return (i - j < self.window) & (j - i < self.window)


@dataclass(frozen=True)
class StridedPattern:
    r"""Keys at most ``stride`` places away, and those a multiple of ``stride`` away.

    .. math:: |i - j| \le l \quad\text{or}\quad (i - j) \bmod l = 0

    The two heads of the paper's strided attention as one set; with ``is_causal`` it is the paper's.

    Source: Generating Long Sequences with Sparse Transformers, arXiv:1904.10509, Section 4.3.
    """

    stride: int

    def __call__(self, i, j):
        near = (i - j <= self.stride) & (j - i <= self.stride)
        return near | ((i - j) % self.stride == 0)


@dataclass(frozen=True)
class FixedPattern:
    r"""Keys of the query's own block of ``stride`` places, and the last ``summary`` of each block.

    .. math:: \lfloor j / l \rfloor = \lfloor i / l \rfloor \quad\text{or}\quad j \bmod l \ge l - c

    The two heads of the paper's fixed attention as one set; with ``is_causal`` it is the paper's.

    Source: Generating Long Sequences with Sparse Transformers, arXiv:1904.10509, Section 4.3.
    """

    stride: int
    summary: int

    def __call__(self, i, j):
        # Not i // l, whose sign a Pallas kernel is lowered differently for by each kind of TPU.
        same = i - i % self.stride == j - j % self.stride
        return same | (j % self.stride >= self.stride - self.summary)


@dataclass(frozen=True)
class LocalGlobalPattern:
    r"""Keys at most ``window - 1`` places away; the first ``globals_`` places see and are seen.

    .. math:: |i - j| < w \quad\text{or}\quad i < g \quad\text{or}\quad j < g

    Source: Longformer: The Long-Document Transformer, arXiv:2004.05150; Big Bird: Transformers for
      Longer Sequences, NeurIPS 2020, arXiv:2007.14062, without its random keys.
    """

    window: int
    globals_: int

    def __call__(self, i, j):
        near = (i - j < self.window) & (j - i < self.window)
        return near | (i < self.globals_) | (j < self.globals_)


def kept_blocks(queries, keys, query_block, key_block, *, is_causal=False, pattern=None):
    """Which blocks of the scores have anything to compute, for positions 0, 1, ….

    Made on the host, a row of blocks at a time: there is never more than ``query_block * keys``.

    Args:
      queries, keys: Lengths.
      query_block, key_block: Sizes of a block; the last ones may be cut short.
      is_causal, pattern: As in :func:`tinker.kernels.flash_attention`.

    Returns:
      Boolean NumPy array ``[query blocks, key blocks]``, not to be written to.
    """
    # With the type: named tuples of two kinds can be equal.
    return _kept_blocks(
        queries, keys, query_block, key_block, bool(is_causal), pattern, type(pattern)
    )


@functools.lru_cache(maxsize=128)
def _kept_blocks(queries, keys, query_block, key_block, is_causal, pattern, _):
    first_keys = np.arange(0, keys, key_block)
    first_queries = np.arange(0, queries, query_block)
    last_queries = np.minimum(first_queries + query_block, queries) - 1
    kept = np.ones((len(first_queries), len(first_keys)), bool)
    if is_causal:
        kept &= first_keys <= last_queries[:, None]
    if pattern is not None:
        for row, first, last in zip(kept, first_queries, last_queries, strict=True):
            seen_keys = min(keys, np.count_nonzero(row) * key_block)
            i = np.arange(first, last + 1, dtype=np.int32)[:, None]
            j = np.arange(seen_keys, dtype=np.int32)[None]
            seen = np.broadcast_to(pattern(i, j), (len(i), seen_keys))
            if is_causal:
                seen = seen & (j <= i)
            blocks = np.arange(0, seen_keys, key_block)
            row[: len(blocks)] = np.logical_or.reduceat(seen.any(0), blocks)
    kept.flags.writeable = False
    return kept


def block_lists(kept):
    """Each row's kept blocks, for a loop over them.

    Args:
      kept: Boolean ``[rows, columns]``.

    Returns:
      ``(columns [rows, steps], counts [rows])``, int32, at least one step. After a row's count its
      last column is repeated, so that nothing new is fetched there.
    """
    counts = np.count_nonzero(kept, 1)
    order = np.argsort(~kept, 1, kind="stable")
    steps = np.minimum(np.arange(max(counts.max(), 1)), np.maximum(counts, 1)[:, None] - 1)
    return np.take_along_axis(order, steps, 1).astype(np.int32), counts.astype(np.int32)
