"""What attention remembers: spans after which memories expire, a cache of those that are left."""

import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp


def expire_span(x, positions, heads, *, max_span, ramp, start=0.1):
    r"""How long each token is remembered, as it says itself: a ``bias_fn``.

    .. math:: e_j = L\, \sigma(w \cdot x_j + b)

    Attention then weighs token j, of t - j positions ago, by :math:`m_{tj} = \mathrm{clip}(1 +
    r_{tj} / R, 0, 1)` with :math:`r_{tj} = e_j - (t - j)`, the span that remains. To be called in a
    flax module, whose Dense layer ``expire_span`` w and b become.

    Args:
      x: What attention reads, ``[batch, tokens, width]``.
      positions: Not read.
      heads: Not read: all heads forget alike.
      max_span: L, in positions.
      ramp: R > 0, positions in which a memory fades.
      start: In (0, 1); each span is this share of L at first.

    Returns:
      ``spans`` ``[batch, 1, tokens]``, float32, and ``ramp`` of
      :func:`tinker.kernels.flash_attention`.

    Source: Not All Memories are Created Equal: Learning to Forget by Expiring, ICML 2021,
      arXiv:2105.06548; w starts at zero and b at the logit of ``start``, as in the authors' code.
      There a token does not attend to itself, and spans may be clipped at random lengths in
      training, neither of which is done here.
    """
    bias = nn.initializers.constant(math.log(start / (1 - start)))
    options = dict(kernel_init=nn.initializers.zeros, bias_init=bias, name="expire_span")
    spans = max_span * nn.sigmoid(nn.Dense(1, dtype=jnp.float32, **options)(x))
    return {"spans": spans.swapaxes(-1, -2), "ramp": ramp}


def expire_loss(spans, *, ramp, positions=None, first=0, queries=None):
    r"""What spans cost: how much of them remains, over the pairs in which a memory is fading.

    .. math:: \ell = \frac{1}{RM} \sum_j \sum_{t=t_0}^{t_0+M-1} r_{tj}\, [-R < r_{tj} < 0],
              \qquad r_{tj} = e_j - (t - j)

    A memory fades for R queries; if all of them are among the M, the gradient by its span is 1 / M,
    as that of the mean span. It is less if they are not: a span that ends after the last query
    costs nothing. The value itself is negative.

    Args:
      spans: e, ``[..., batch, 1, tokens]``, such as the output ``bias/spans`` of a model, which has
        the blocks in front.
      ramp: R > 0.
      positions: j, that broadcast to ``spans``; 0, 1, … by default.
      first: t_0, position of the first query.
      queries: M; as many as tokens by default.

    Returns:
      Loss per example, summed over blocks, ``[batch]``, float32. It takes time and memory linear in
      the tokens.

    Source: Not All Memories are Created Equal: Learning to Forget by Expiring, ICML 2021,
      arXiv:2105.06548, as in the authors' code; the paper writes the mean span.
    """
    chex.assert_axis_dimension(spans, -2, 1)
    spans = spans.astype(jnp.float32)
    queries = spans.shape[-1] if queries is None else queries
    end = spans + (jnp.arange(spans.shape[-1]) if positions is None else positions)
    # The queries strictly between the span's end and the ramp's: from which, to which, how many.
    low = jnp.maximum(jnp.floor(end) + 1, first)
    high = jnp.minimum(jnp.ceil(end + ramp) - 1, first + queries - 1)
    count = jnp.maximum(high - low + 1, 0)
    total = (count * (end - (low + high) / 2)).sum((-2, -1)) / (ramp * queries)
    return total.reshape(-1, total.shape[-1]).sum(0)


def kept_memories(spans, *, ramp):
    r"""How many tokens a query still remembers, itself included.

    .. math:: \frac{1}{T} \sum_{t=0}^{T-1} \sum_{j \le t} [e_j + R > t - j]

    Args:
      spans: e, ``[..., batch, 1, tokens]``, of one sequence that is read from its start.
      ramp: R > 0.

    Returns:
      The mean over queries, and over blocks, ``[batch]``, float32.
    """
    chex.assert_axis_dimension(spans, -2, 1)
    tokens = spans.shape[-1]
    seen = jnp.ceil(spans.astype(jnp.float32) + ramp)  # by so many queries, if there are
    seen = jnp.minimum(seen, tokens - jnp.arange(tokens)).sum((-2, -1)) / tokens
    return seen.reshape(-1, seen.shape[-1]).mean(0)


def compact_cache(cache, remaining, *, capacity):
    r"""Moves the memories that are left to the front of a buffer of fixed size.

    Args:
      cache: Arrays ``[batch, size, …]`` in any pytree: keys, values, spans, positions.
      remaining: How much longer each is remembered, ``[batch, size]``: at query t, :math:`e_j + R -
        (t - j)`. Those of 0 or less are forgotten.
      capacity: Size of the buffer, static. If more are left, those of the longest stay.

    Returns:
      ``(cache, remaining)``, ``[batch, capacity, …]`` and ``[batch, capacity]``: what is left in
      its old order, then zeros. The slots in use are those where ``remaining`` is above 0.

    Source: Not All Memories are Created Equal: Learning to Forget by Expiring, ICML 2021,
      arXiv:2105.06548. The authors' code has no fixed size: it drops as many memories in each
      sequence of a batch, in multiples of a block.
    """
    size = remaining.shape[1]
    longest, slots = jax.lax.top_k(remaining, capacity)
    slots = jnp.sort(jnp.where(longest > 0, slots, size), 1)

    def kept(x):
        chex.assert_equal_shape_prefix([x, remaining], 2)
        at = slots.reshape(*slots.shape, *(1,) * (x.ndim - 2))
        return jnp.take_along_axis(x, at, 1, mode="fill", fill_value=0)

    return jax.tree.map(kept, (cache, remaining))
