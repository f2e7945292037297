"""Causal attention to few keys, chosen beforehand, so that n tokens have O(n √n) scores."""

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp

from tinker.kernels import LocalPattern, flash_attention
from tinker.numerics import UserError, check_choice

MODES = ("merged", "heads", "local", "far")


def strided_attention(
    query,
    key,
    value,
    bias=None,
    mask=None,
    *,
    stride,
    mode="merged",
    is_causal=True,
    scale=None,
    implementation=None,
):
    r"""Attention to the last tokens, and to those whole strides before: an ``attention_fn``.

    .. math:: A^{\mathrm{local}}_i = \{j : 0 \le i - j < l\}, \qquad
              A^{\mathrm{far}}_i = \{j \le i : (i - j) \bmod l = 0\}

    With the width of an image as l these are the last row of pixels and the column above. The far
    keys are those of plain causal attention once the l columns are examples of their own. Of n
    tokens a query sees l + n / l, and any token reaches any later one in two steps.

    Args:
      query: ``[batch, tokens, heads, dim]``.
      key: Of the same shape.
      value: Of the same shape.
      bias: None.
      mask: None.
      stride: l, about the square root of the number of tokens.
      mode: "merged", one softmax over both sets; "heads", the local set for the first half of the
        heads and the far one for the others; or "local" or "far" alone, for blocks that take turns
        (:class:`Transformer`'s ``attention_fn`` may be a sequence).
      is_causal: True.
      scale: See :func:`tinker.kernels.flash_attention`.
      implementation: See :func:`tinker.kernels.flash_attention`.

    Returns:
      ``[batch, tokens, heads, dim]``, of the query's dtype.

    Raises:
      UserError: A bias, a mask, no causality, or an unknown mode.

    Source: Generating Long Sequences with Sparse Transformers, 2019, arXiv:1904.10509, the strided
      pattern. The local set there has the token l places ago as well; here as in the authors' code.
    """
    _check(query, key, value, bias, mask, mode, is_causal)
    options = dict(scale=scale, implementation=implementation, return_lse=True)

    def local(*qkv):
        return flash_attention(*qkv, is_causal=True, pattern=LocalPattern(stride), **options)

    def far(*qkv, pattern=None):
        batch, tokens = qkv[0].shape[:2]
        columns = (_rows(x, stride).swapaxes(1, 2) for x in qkv)
        columns = (x.reshape(-1, *x.shape[2:]) for x in columns)
        out, lse = flash_attention(*columns, is_causal=True, pattern=pattern, **options)
        out = out.reshape(batch, stride, *out.shape[1:]).swapaxes(1, 2)
        lse = jnp.moveaxis(lse.reshape(batch, stride, *lse.shape[1:]), 1, 3)
        out = out.reshape(batch, -1, *out.shape[3:])[:, :tokens]
        return out, lse.reshape(*lse.shape[:2], -1)[..., :tokens]

    return _attend(query, key, value, mode, local, far, lambda *qkv: far(*qkv, pattern=_above))


def fixed_attention(
    query,
    key,
    value,
    bias=None,
    mask=None,
    *,
    stride,
    summary,
    subsets=1,
    mode="merged",
    is_causal=True,
    scale=None,
    implementation=None,
):
    r"""Attention to a token's own block, and to the last few of each: an ``attention_fn``.

    .. math:: A^{\mathrm{local}}_i = \{j \le i : \lfloor j / l \rfloor = \lfloor i / l \rfloor\},
              \qquad A^{\mathrm{far}}_i = \{j \le i : l - c \le j \bmod l < l\}

    The last c of a block can sum it up for all that follow. With s subsets the heads of number h
    take the c that end :math:`(h \bmod s)\, c` before the block does.

    Args:
      query: ``[batch, tokens, heads, dim]``.
      key: Of the same shape.
      value: Of the same shape.
      bias: None.
      mask: None.
      stride: l, of the order of the square root of the number of tokens.
      summary: c.
      subsets: s, which divides the number of heads; s c is at most l.
      mode: "merged", one softmax over both sets; "heads", the local set for the first half of the
        heads and the far one for the others; or "local" or "far" alone, for blocks that take turns.
        Far alone, a query of the first block may see no key; its output is then 0.
      is_causal: True.
      scale: See :func:`tinker.kernels.flash_attention`.
      implementation: See :func:`tinker.kernels.flash_attention`.

    Returns:
      ``[batch, tokens, heads, dim]``, of the query's dtype.

    Raises:
      UserError: A bias, a mask, no causality, an unknown mode, or subsets that do not fit.

    Source: Generating Long Sequences with Sparse Transformers, 2019, arXiv:1904.10509, the fixed
      pattern; merged with subsets as in the authors' code, there in blocks of 32 keys or so.
    """
    _check(query, key, value, bias, mask, mode, is_causal)
    if subsets * summary > stride:
        raise UserError(f"{subsets} subsets of {summary} are more than a block of {stride} has")
    options = dict(scale=scale, implementation=implementation, return_lse=True)

    def local(*qkv):
        batch, tokens, heads, _ = qkv[0].shape
        blocks = (x.reshape(-1, *x.shape[2:]) for x in (_rows(x, stride) for x in qkv))
        out, lse = flash_attention(*blocks, is_causal=True, **options)
        out = out.reshape(batch, -1, *out.shape[2:])[:, :tokens]
        lse = lse.reshape(batch, -1, heads, stride).swapaxes(1, 2).reshape(batch, heads, -1)
        return out, lse[..., :tokens]

    def far(q, k, v, own=True):
        heads = q.shape[2]
        if heads % subsets:
            raise UserError(f"subsets={subsets} does not divide {heads} heads")
        found = []
        for s in range(subsets):
            start = stride - (s + 1) * summary
            few = (_rows(x[:, :, s::subsets], stride)[:, :, start:][:, :, :summary] for x in (k, v))
            few = (x.reshape(len(q), -1, *x.shape[3:]) for x in few)
            pattern = _Summaries(stride, summary, start, own)
            found.append(flash_attention(q[:, :, s::subsets], *few, pattern=pattern, **options))
        outs, lses = zip(*found, strict=True)
        return jnp.stack(outs, 3).reshape(q.shape), jnp.stack(lses, 2).reshape(
            len(q), heads, q.shape[1]
        )

    return _attend(query, key, value, mode, local, far, lambda *qkv: far(*qkv, own=False))


def _above(i, j):
    """A pattern: rows of a column before the query's own, which is in the local set."""
    return i > j


@dataclass(frozen=True)
class _Summaries:
    """A pattern: the summaries j that lie before token i; ``own`` are those of its own block."""

    stride: int
    summary: int
    start: int
    own: bool

    def __call__(self, i, j):
        block = j // self.summary
        before = block < i // self.stride
        if not self.own:
            return before
        return before | (block * self.stride + self.start + j % self.summary <= i)


def _check(query, key, value, bias, mask, mode, is_causal):
    check_choice("mode", mode, MODES)
    if bias is not None or mask is not None or not is_causal:
        raise UserError("sparse attention is causal, and takes neither a bias nor a mask")
    chex.assert_rank(query, 4)
    chex.assert_equal_shape([query, key, value])


def _attend(query, key, value, mode, local, far, rest):
    """Attends in one of the modes; ``rest`` is the far set without what the local one has."""
    qkv = (query, key, value)
    if mode == "local":
        return local(*qkv)[0]
    if mode == "far":
        return far(*qkv)[0]
    if mode == "heads":
        half = query.shape[2] // 2
        first, second = ([x[:, :, s] for x in qkv] for s in (slice(half), slice(half, None)))
        return jnp.concatenate([local(*first)[0], far(*second)[0]], 2)
    outs, lses = zip(local(*qkv), rest(*qkv), strict=True)
    # A query sees itself, so that not all sums are empty.
    shares = jax.nn.softmax(jnp.stack(lses), 0).swapaxes(2, 3)[..., None]
    return sum(share * out for share, out in zip(shares, outs, strict=True)).astype(query.dtype)


def _rows(x, stride):
    """Tokens in rows of ``stride``, ``[batch, rows, stride, …]``; zeros fill up the last."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % stride)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(len(x), -1, stride, *x.shape[2:])
