"""Losses of tokens that are more than classes: numbers, coordinates, and words that may move."""

import chex
import jax
import jax.numpy as jnp

from tinker.numerics import check_choice

ERRORS = ("absolute", "squared")


def number_token_loss(logits, labels, values, *, error="absolute", where=None):
    r"""How far, as a number, the token is from the label's.

    .. math:: \ell_{abs} = \sum_{j} p_j\, |v_j - v_y|, \qquad
              \ell_{sq} = \Big(\sum_j p_j v_j - v_y\Big)^2

    over the tokens that are numbers, with p the softmax of their logits alone. The first is the
    Wasserstein-1 distance from p to the label; the second is 0 as well where only the mean is
    right. Add one to cross-entropy: the authors have 0.3 of it.

    Args:
      logits: ``[..., vocabulary]``, any float dtype; computed in float32 at least.
      labels: Tokens, ``[...]``, integers in [0, vocabulary).
      values: v, of each token the number that it is, ``[vocabulary]``; NaN for one that is none.
      error: ``"absolute"`` (NTL-WAS) or ``"squared"`` (NTL-MSE).
      where: Optional boolean ``[...]``; False entries return 0. The mean is to be over the labels
        that are numbers: give those.

    Returns:
      Loss per token in units of the values, or their square, ``[...]``, float32; 0 where the label
      is not a number.

    Raises:
      UserError: An unknown error.

    Source: Regress, Don't Guess: A Regression-like Loss on Number Tokens for Language Models,
      ICML 2025, arXiv:2411.02083, NTL-WAS and NTL-MSE.
    """
    check_choice("error", error, ERRORS)
    chex.assert_equal_shape_prefix([logits, labels], labels.ndim)
    chex.assert_shape(values, logits.shape[-1:])
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    values = jnp.asarray(values, logits.dtype)
    is_number = ~jnp.isnan(values)
    kept = is_number[labels] if where is None else is_number[labels] & where
    values = jnp.where(is_number, values, 0.0)
    p = jax.nn.softmax(logits, -1, where=is_number)
    off = values - values[labels][..., None]
    if error == "absolute":
        loss = (p * jnp.abs(off)).sum(-1)
    else:
        loss = jnp.square((p * off).sum(-1))
    return jnp.where(kept, loss, 0.0)


def distance_target_loss(logits, labels, distances, *, tokens=None, temperature=1.0, where=None):
    r"""The divergence from a target that gives near tokens some of the label's probability.

    .. math:: \ell = \sum_v p(v) \log \frac{p(v)}{q(v)}, \qquad
              p(v) = \frac{\exp(-d(v, y) / \tau)}{\sum_u \exp(-d(u, y) / \tau)}

    over the tokens between which there is a distance, with q the softmax of their logits alone. Add
    it to cross-entropy: the authors have 0.1 of it.

    Args:
      logits: ``[..., vocabulary]``, any float dtype; computed in float32 at least.
      labels: Tokens y, ``[...]``, integers in [0, vocabulary).
      distances: d >= 0, ``[n, n]``, such as differences of coordinates, or lengths between the
        entries of a codebook. With squared differences of numbers the target is a Gaussian of
        variance :math:`\tau / 2`.
      tokens: Optional: which tokens these are, ``[n]``, integers; by default all.
      temperature: :math:`\tau` > 0, in units of the distances; near 0 the loss is cross-entropy.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per token in nats, ``[...]``, float32; 0 where the label is none of the tokens.

    Source: Teaching Metric Distance to Discrete Autoregressive Language Models, ICLR 2026,
      arXiv:2503.02379, the target of DIST2Loss. Numbers of several digits, which the paper
      weighs by their place, are left to ``where`` and the loss's scale.
    """
    chex.assert_equal_shape_prefix([logits, labels], labels.ndim)
    if tokens is None:
        there, place = jnp.ones(labels.shape, bool), labels
    else:
        chex.assert_shape(tokens, distances.shape[:1])
        same = labels[..., None] == jnp.asarray(tokens)
        there, place = same.any(-1), jnp.argmax(same, -1)
        logits = jnp.take(logits, jnp.asarray(tokens), axis=-1)
    chex.assert_shape(distances, (logits.shape[-1],) * 2)
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    log_q = jax.nn.log_softmax(logits.astype(dtype), -1)
    log_p = jax.nn.log_softmax(-jnp.asarray(distances, dtype)[place] / temperature, -1)
    p = jnp.exp(log_p)
    loss = jnp.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
    return jnp.where(there if where is None else there & where, loss, 0.0)


def edit_invariant_loss(
    logits, labels, *, ngrams=(2,), position_mask=None, label_mask=None, key=None, where=None
):
    r"""How well an output says each n-gram of the labels somewhere, wherever that is.

    .. math:: \ell_n = -\operatorname{mean}_j \sum_i q_{ij} g_{ij}, \qquad
              g_{ij} = \frac1n \sum_{k < n} \log p_{i + k}(y_{j + k}), \qquad
              q_{\cdot j} = \mathrm{softmax}_i(g_{ij})

    with p the softmax of the logits, whose logarithm is held at -20 at least; and the mean of
    :math:`\ell_n` over the n asked for. With one n-gram, all of the labels, and as many positions,
    it is cross-entropy.

    Args:
      logits: Of the output's positions, ``[batch, positions, vocabulary]``, any float dtype;
        computed in float32 at least.
      labels: y, ``[batch, labels]``, integers in [0, vocabulary).
      ngrams: The n; static. Those longer than the labels or the output say nothing.
      position_mask: Optional boolean ``[batch, positions]``, True at those of an output, which come
        first.
      label_mask: Optional boolean ``[batch, labels]``.
      key: None, or a key of the Gumbel noise on q that the authors train with.
      where: Optional boolean ``[batch]``; False entries return 0.

    Returns:
      Loss per sequence in nats per token, ``[batch]``, float32; 0 of labels too short for any n.

    Source: Don't Take It Literally: An Edit-Invariant Sequence Loss for Text Generation, NAACL
      2022, arXiv:2106.15078. As in the authors' code (guangyliu/EISL) g is divided by n before the
      softmax; unlike there, what is masked is no n-gram's.
    """
    chex.assert_rank([logits, labels], [3, 2])
    batch, positions, _ = logits.shape
    chex.assert_shape(labels, (batch, None))
    count = labels.shape[1]
    i, j = (
        jnp.ones(shape, bool) if mask is None else mask
        for mask, shape in ((position_mask, (batch, positions)), (label_mask, (batch, count)))
    )
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    log_p = jnp.maximum(jax.nn.log_softmax(logits, -1), -20.0)
    at = jnp.broadcast_to(jnp.where(j, labels, 0)[:, None], (batch, positions, count))
    match = jnp.take_along_axis(log_p, at, -1)
    losses = []
    for n in ngrams:
        rows, columns = positions - n + 1, count - n + 1
        if rows < 1 or columns < 1:
            losses.append(jnp.zeros(batch, match.dtype))
            continue
        g = sum(match[:, k : k + rows, k : k + columns] for k in range(n)) / n
        from_i, from_j = i[:, n - 1 :, None], j[:, None, n - 1 :]
        noise = 0.0
        if key is not None:
            noise = jax.random.gumbel(jax.random.fold_in(key, n), g.shape, g.dtype)
        q = jax.nn.softmax(jnp.where(from_i, g + noise, -1e30), axis=1)
        found = jnp.where(from_i & from_j, q * g, 0.0).sum((1, 2))
        losses.append(-found / jnp.maximum(from_j.sum((1, 2)), 1))
    loss = sum(losses) / len(losses)
    return loss if where is None else jnp.where(where, loss, 0.0)
