"""Heads of language models that come to an end."""

import chex
import jax
import jax.numpy as jnp

NEVER = -1e30  # the logarithm of a probability that is 0; finite, so that gradients are


def non_monotonic_log_probs(logits, *, eos, epsilon=1e-4, positions=None):
    r"""Log-probabilities of tokens of which the end's is bounded below, ever closer to 1.

    .. math:: p_t(\mathrm{eos}) = \sigma(-a_t)\,\big(1 - (1 - \epsilon)^t\big) + \sigma(a_t)

    where :math:`a_t` is the end's logit; the other tokens share the rest by their softmax. Greedy,
    top-k, nucleus and beam search end, whatever the logits: by the time that :math:`(1 -
    \epsilon)^t` is below one half the end is the likeliest token.

    Args:
      logits: ``[..., length, vocabulary]``, any float dtype; computed in float32 at least.
      eos: The token that ends a sequence, an integer.
      epsilon: In (0, 1).
      positions: t, ``[length]`` or what broadcasts to ``[..., length]``; 1, 2, … by default. Up to
        0, in a prompt, the end has no probability.

    Returns:
      Of the logits' shape, float32: they sum to one, and may be given to losses as logits.

    Source: A Non-monotonic Self-terminating Language Model, ICLR 2023, arXiv:2210.00660, NMST+.
      Of the authors' programs one counts t from the end of the prompt, the other from the start.
    """
    a, others, positions = _parts(logits, eos, positions)
    bound = positions * jnp.log1p(-epsilon)  # log (1 - epsilon)^t
    stays = jax.nn.log_sigmoid(-a)
    ends = jnp.logaddexp(jax.nn.log_sigmoid(a), stays + _log_complement(bound))
    return _joined(others, eos, ends, bound + stays, positions)


def self_terminating_log_probs(logits, *, eos, epsilon=1e-4, positions=None):
    r"""Log-probabilities of tokens of which the end's never falls, and goes to 1.

    .. math:: p_t(\mathrm{eos}) = 1 - \prod_{s \le t} (1 - \epsilon)\,\sigma(a_s)

    where :math:`a_s` is the end's logit, large where it is not the end; the other tokens share the
    rest by their softmax.

    Args:
      logits: ``[..., length, vocabulary]``, any float dtype; computed in float32 at least.
      eos: The token that ends a sequence, an integer.
      epsilon: In (0, 1).
      positions: As for :func:`non_monotonic_log_probs`; those up to 0 are not in the product.

    Returns:
      Of the logits' shape, float32.

    Source: Consistency of a Recurrent Language Model With Respect to Incomplete Decoding, EMNLP
      2020, arXiv:2002.02492, the self-terminating language model.
    """
    a, others, positions = _parts(logits, eos, positions)
    stays = jnp.log1p(-epsilon) + jax.nn.log_sigmoid(a)
    rest = jnp.cumsum(jnp.where(positions > 0, stays, 0.0), -1)
    return _joined(others, eos, _log_complement(rest), rest, positions)


def _parts(logits, eos, positions):
    """The end's logit, the logarithms of the other tokens' shares, and positions."""
    chex.assert_rank(logits, {2, 3, 4})
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    is_eos = jnp.arange(logits.shape[-1]) == eos
    others = jax.nn.log_softmax(jnp.where(is_eos, NEVER, logits), -1)
    length = logits.shape[-2]
    positions = jnp.arange(1, length + 1) if positions is None else jnp.asarray(positions)
    chex.assert_axis_dimension(positions, -1, length)
    return logits[..., eos], others, jnp.broadcast_to(positions, logits.shape[:-1])


def _log_complement(log_p):
    """log(1 - p) of log p <= 0, at least NEVER, with a gradient everywhere."""
    gone = log_p >= 0
    log_p = jnp.where(gone, -1.0, log_p)
    small = log_p > -0.693
    near = jnp.log(-jnp.expm1(jnp.where(small, log_p, -0.1)))
    far = jnp.log1p(-jnp.exp(jnp.where(small, -1.0, log_p)))
    return jnp.where(gone, NEVER, jnp.where(small, near, far))


def _joined(others, eos, log_eos, rest, positions):
    given = positions <= 0
    log_eos, rest = jnp.where(given, NEVER, log_eos), jnp.where(given, 0.0, rest)
    is_eos = jnp.arange(others.shape[-1]) == eos
    return jnp.where(is_eos, log_eos[..., None], jnp.maximum(others + rest[..., None], NEVER))
