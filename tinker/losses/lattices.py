"""The forward recursion over lattices, and its simplest case, the linear-chain CRF.

A lattice is a graph of states in steps whose arcs have scores, the logarithms of weights. One
recursion sums over all its paths, or takes the best of them; what else is wanted is a gradient: of
the sum, the probability that a path takes an arc; of the best, whether the best path takes it.
Connectionist temporal classification and the transducers of :mod:`tinker.losses.alignment` are
lattices too.
"""

import functools

import chex
import jax
import jax.numpy as jnp

LOG_ZERO = -1e30  # the score of what cannot be; finite, so that gradients are


def best_score(scores, axis):
    """The maximum, whose gradient goes to the first of equals: to one path."""
    first = jnp.argmax(scores, axis, keepdims=True)
    return jnp.take_along_axis(scores, first, axis).squeeze(axis)


def forward_scores(arrive, start, inputs, *, where=None, plus=jax.nn.logsumexp):
    r"""Scores of all paths from the start to each state, one step of the lattice after another.

    .. math:: \alpha_n(s) = \bigoplus_{a \to s} \alpha_{n - \ell(a)}(\mathrm{source}(a)) + w_n(a)

    over the arcs a into s, which span :math:`\ell(a)` steps. With the logarithm of a sum as
    :math:`\oplus`, backpropagation is the backward recursion: it holds one score per state and
    step, and makes the shares of arcs anew, each in [0, 1], however long the path. In each step the
    largest score is taken out of the recursion, where it would use up the digits that tell paths
    apart, and summed on its own.

    Args:
      arrive: ``arrive(history, x) -> [arcs, batch, states]``, scores of paths that end with each
        arc into each state. ``history`` ``[lags, batch, states]`` holds scores of the last steps,
        the latest first. Scores of minus infinity are held at :data:`LOG_ZERO`.
      start: Scores before the first step, ``[lags, batch, states]``, float32 or float64.
      inputs: A pytree of ``[steps, …]``: x of each step.
      where: Optional boolean ``[steps, batch]``; a step that is False leaves all as it is.
      plus: :math:`\oplus`, ``plus(scores, axis)``: ``jax.nn.logsumexp`` or :func:`best_score`.

    Returns:
      Scores after the last step, ``[batch, states]``; about :data:`LOG_ZERO` where no path ends.
    """
    steps = len(jax.tree.leaves(inputs)[0])
    where = jnp.ones((steps, start.shape[1]), bool) if where is None else where

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(carry, x):
        (history, taken), (x, kept) = carry, x
        scores = plus(jnp.maximum(arrive(history, x), LOG_ZERO), axis=0)
        largest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
        largest = jnp.where(kept[:, None] & (largest > LOG_ZERO / 2), largest, 0.0)
        moved = jnp.concatenate([scores[None], history[:-1]]) - largest
        return (jnp.where(kept[:, None], moved, history), taken + largest), None

    carry = start, jnp.zeros_like(start[0, :, :1])
    (history, taken), _ = jax.lax.scan(step, carry, (inputs, where))
    return history[0] + taken


def crf_log_partition(
    logits, transitions, *, start=None, end=None, mask=None, plus=jax.nn.logsumexp
):
    r"""The logarithm of the sum over all label sequences of a linear-chain CRF.

    .. math:: \log Z = \log \sum_y \exp s(y), \qquad
              s(y) = a_{y_1} + \sum_t P_{t, y_t} + \sum_{t > 1} A_{y_{t-1}, y_t} + b_{y_T}

    Its gradient for the logits are the marginals :math:`p(y_t = k)`. With ``plus=best_score`` it
    is the score of the best sequence, and its gradient for the logits that sequence, one-hot.

    Args:
      logits: P, scores of labels, ``[batch, length, labels]``, any float dtype; computed in
        float32 at least.
      transitions: A, from row to column, ``[labels, labels]``; minus infinity forbids one.
      start: a, scores of the first label, ``[labels]``; 0 by default.
      end: b, scores of the last label, ``[labels]``; 0 by default.
      mask: Optional boolean ``[batch, length]``, True at the places of a sequence, which come
        first. Of an empty sequence :math:`\log Z` is 0.
      plus: See :func:`forward_scores`.

    Returns:
      ``[batch]``, float32.

    Source: Neural Architectures for Named Entity Recognition, NAACL 2016, arXiv:1603.01360, the
      CRF tagging model, its added begin and end tags being ``start`` and ``end``.
    """
    logits, transitions, start, end, mask = _crf(logits, transitions, start, end, mask)

    def arrive(history, x):
        return history[0].T[:, :, None] + transitions[:, None] + x

    first = (start + logits[:, 0])[None]
    rest = jnp.moveaxis(logits[:, 1:], 1, 0)
    scores = first[0]
    if len(rest):
        scores = forward_scores(arrive, first, rest, where=mask[:, 1:].T, plus=plus)
    return jnp.where(mask[:, 0], plus(scores + end, axis=-1), 0.0)


def crf_loss(logits, labels, transitions, *, start=None, end=None, mask=None, where=None):
    r"""Minus the log-likelihood of a label sequence under a linear-chain CRF.

    .. math:: \ell = \log Z - s(y)

    with both as in :func:`crf_log_partition`. It is not divided by the length.

    Args:
      logits: P, ``[batch, length, labels]``, any float dtype; computed in float32 at least.
      labels: y, ``[batch, length]``, integers in [0, labels) where the mask is True.
      transitions: A, ``[labels, labels]``.
      start: a, ``[labels]``; 0 by default.
      end: b, ``[labels]``; 0 by default.
      mask: Optional boolean ``[batch, length]``, True at the places of a sequence, which come
        first.
      where: Optional boolean ``[batch]``; False entries return 0.

    Returns:
      Loss per sequence in nats, ``[batch]``, float32.

    Source: Neural Architectures for Named Entity Recognition, NAACL 2016, arXiv:1603.01360, the
      CRF tagging model. As in its authors' code (glample/tagger), no transition is forbidden.
    """
    log_z = crf_log_partition(logits, transitions, start=start, end=end, mask=mask)
    logits, transitions, start, end, mask = _crf(logits, transitions, start, end, mask)
    chex.assert_shape(labels, logits.shape[:2])
    labels = jnp.where(mask, labels, 0)
    at = jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
    between = transitions[labels[:, :-1], labels[:, 1:]]
    last = jnp.take_along_axis(labels, jnp.maximum(mask.sum(-1) - 1, 0)[:, None], -1)[:, 0]
    score = jnp.where(mask, at, 0.0).sum(-1) + jnp.where(mask[:, 1:], between, 0.0).sum(-1)
    score = score + jnp.where(mask[:, 0], start[labels[:, 0]] + end[last], 0.0)
    loss = log_z - score
    return loss if where is None else jnp.where(where, loss, 0.0)


def crf_decode(logits, transitions, *, start=None, end=None, mask=None):
    """The best label sequence of a linear-chain CRF (the Viterbi algorithm).

    Args:
      logits: As for :func:`crf_log_partition`, as all that follow.
      transitions: ``[labels, labels]``.
      start: ``[labels]``.
      end: ``[labels]``.
      mask: ``[batch, length]``.

    Returns:
      Labels, ``[batch, length]``, int32; 0 outside the mask.
    """
    options = {"start": start, "end": end, "mask": mask, "plus": best_score}
    path = jax.grad(lambda z: crf_log_partition(z, transitions, **options).sum())(logits)
    return jnp.argmax(path, -1).astype(jnp.int32)


def _crf(logits, transitions, start, end, mask):
    """The parts of a CRF in one dtype, the absent ones filled in."""
    chex.assert_rank(logits, 3)
    batch, length, labels = logits.shape
    chex.assert_shape(transitions, (labels, labels))
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    start, end = (jnp.zeros(labels) if x is None else x for x in (start, end))
    chex.assert_shape([start, end], (labels,))
    mask = jnp.ones((batch, length), bool) if mask is None else mask
    chex.assert_shape(mask, (batch, length))
    parts = (jnp.asarray(x, dtype) for x in (logits, transitions, start, end))
    return *parts, mask
