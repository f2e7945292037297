"""Losses of sequences whose labels stand at unknown frames: CTC and transducers.

All are minus the logarithm of a sum over alignments, by the recursion of
:mod:`tinker.losses.lattices`. Frames and labels that are there come first, as masks say. A sequence
that has no alignment, such as more labels than CTC has frames, returns 0 and has no gradient.
"""

import chex
import jax
import jax.numpy as jnp

from .lattices import LOG_ZERO, best_score, forward_scores


def ctc_loss(
    logits,
    labels,
    *,
    frame_mask=None,
    label_mask=None,
    blank=0,
    delay_penalty=0.0,
    log_prior=None,
    where=None,
):
    r"""Connectionist temporal classification, with a price on late labels and a label prior.

    .. math:: \ell = -\log \sum_{a \in B^{-1}(y)} \prod_t \frac{p_t(a_t)}{q(a_t)}
                     \prod_u e^{\lambda \left(\frac{T - 1}{2} - t_u(a)\right)},
              \qquad p_t = \mathrm{softmax}(z_t)

    over the alignments a, a label or the blank at each frame, that become the labels y when
    repetitions are merged and blanks dropped. :math:`t_u(a)` is the first frame of label u, from 0:
    :math:`\lambda` moves labels to earlier frames. A prior q takes from p what only says that a
    label, above all the blank, is frequent; with one, the loss can be negative.

    Args:
      logits: z, ``[batch, frames, classes]``, any float dtype; computed in float32 at least.
      labels: y, ``[batch, labels]``, integers in [0, classes), none of them blank.
      frame_mask: Optional boolean ``[batch, frames]``, True at the T frames that are there.
      label_mask: Optional boolean ``[batch, labels]``.
      blank: The class of no label.
      delay_penalty: :math:`\lambda`, in nats per frame and label; 0 is CTC.
      log_prior: Optional :math:`\log q`, ``[classes]`` or what broadcasts to the logits, already
        times its exponent; such as the logarithm of the mean of p.
      where: Optional boolean ``[batch]``; False entries return 0.

    Returns:
      Loss per sequence in nats, ``[batch]``, float32; 0 without an alignment. It is not divided by
      the number of labels.

    Source: Connectionist Temporal Classification, ICML 2006, the forward algorithm; the penalty
      from Delay-penalized CTC implemented based on Finite State Transducer, Interspeech 2023,
      arXiv:2305.11539, where k2 has floor(T / 2) for (T - 1) / 2, which changes no gradient; the
      prior from Why does CTC result in peaky behavior?, 2021, arXiv:2105.14849, the label prior
      model.
    """
    parts = _ctc(logits, labels, frame_mask, label_mask, blank, delay_penalty, log_prior)
    return _loss(_ctc_score(*parts), where)


def ctc_align(logits, labels, *, frame_mask=None, label_mask=None, blank=0, log_prior=None):
    """The best alignment of labels to frames under CTC.

    Args:
      logits: As for :func:`ctc_loss`, as all that follow.
      labels: ``[batch, labels]``.
      frame_mask: ``[batch, frames]``.
      label_mask: ``[batch, labels]``.
      blank: The class of no label.
      log_prior: Optional :math:`\\log q`.

    Returns:
      Which of the labels each frame belongs to, its position in 0, 1, …, ``[batch, frames]``,
      int32; -1 for the blank, outside the mask, and everywhere without an alignment.
    """
    emissions, *parts = _ctc(logits, labels, frame_mask, label_mask, blank, 0.0, log_prior)

    def best(emissions):
        return _ctc_score(emissions, *parts, plus=best_score)

    score, pull = jax.vjp(best, emissions)
    (path,) = pull(jnp.ones_like(score))
    state = jnp.argmax(path, -1)
    labelled = (state % 2 == 1) & (path.max(-1) > 0) & (score > LOG_ZERO / 2)[:, None]
    return jnp.where(labelled, state // 2, -1).astype(jnp.int32)


def ctc_greedy(logits, *, frame_mask=None, blank=0):
    """The labels of the best class at each frame, repetitions merged and blanks dropped.

    Args:
      logits: ``[batch, frames, classes]``.
      frame_mask: Optional boolean ``[batch, frames]``.
      blank: The class of no label.

    Returns:
      ``(labels, label_mask)``, ``[batch, frames]`` each, int32 and bool: labels come first, what
      follows is the blank.
    """
    chex.assert_rank(logits, 3)
    frame_mask = jnp.ones(logits.shape[:2], bool) if frame_mask is None else frame_mask
    best = jnp.where(frame_mask, jnp.argmax(logits, -1), blank)
    before = jnp.pad(best, ((0, 0), (1, 0)), constant_values=blank)[:, :-1]
    kept = (best != blank) & (best != before)
    order = jnp.argsort(~kept, axis=-1, stable=True)
    labels = jnp.take_along_axis(jnp.where(kept, best, blank), order, -1)
    return labels.astype(jnp.int32), jnp.take_along_axis(kept, order, -1)


def log_label_prior(logits, *, frame_mask=None):
    r"""How frequent a network has each class be, for the ``log_prior`` of :func:`ctc_loss`.

    .. math:: \log q(v) = \log \operatorname{mean}_{b, t} \mathrm{softmax}(z_{b, t})_v

    Args:
      logits: z, ``[batch, frames, classes]``, any float dtype; computed in float32 at least.
      frame_mask: Optional boolean ``[batch, frames]``.

    Returns:
      ``[classes]``, float32, without a gradient; of no frame it is that of equal shares.

    Source: Why does CTC result in peaky behavior?, 2021, arXiv:2105.14849, the label prior, which
      there is a running mean.
    """
    chex.assert_rank(logits, 3)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    frame_mask = jnp.ones(logits.shape[:2], bool) if frame_mask is None else frame_mask
    where = frame_mask[..., None]
    total = jnp.where(where, jax.nn.softmax(logits, -1), 0.0).sum((0, 1))
    total = jnp.where(frame_mask.any(), total, 1.0 / logits.shape[-1])
    share = total / jnp.maximum(frame_mask.sum(), 1)
    return jax.lax.stop_gradient(jnp.log(share + jnp.finfo(share.dtype).tiny))


def _ctc(logits, labels, frame_mask, label_mask, blank, delay_penalty, log_prior):
    """Scores of frames in states (blank, label, blank, …), of entering, and what may be skipped."""
    chex.assert_rank([logits, labels], [3, 2])
    chex.assert_equal_shape_prefix([logits, labels], 1)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    frames, lengths = _lengths(frame_mask, logits.shape[:2]), _lengths(label_mask, labels.shape)
    batch, width = labels.shape
    states = jnp.full((batch, 2 * width + 1), blank, labels.dtype).at[:, 1::2].set(labels)
    at = jnp.broadcast_to(states[:, None], (*logits.shape[:2], states.shape[1]))
    total = jax.nn.logsumexp(logits, -1, keepdims=True)
    if log_prior is not None:
        logits = logits - log_prior
    emissions = jnp.take_along_axis(logits, at, -1) - total
    early = _earliness(logits, frames, delay_penalty)
    is_label = jnp.arange(states.shape[1]) % 2 == 1
    skips = is_label & (states != jnp.roll(states, 2, 1)) & (jnp.arange(states.shape[1]) > 1)
    return emissions, early, skips, frames, lengths


def _ctc_score(emissions, early, skips, frames, lengths, plus=jax.nn.logsumexp):
    batch, steps, states = emissions.shape
    is_label = jnp.arange(states) % 2 == 1

    def arrive(history, x):
        emission, early = x
        stay, early = history[0], jnp.where(is_label, early[:, None], 0.0)
        skip = jnp.where(skips, _shifted(stay, 2), LOG_ZERO)
        return jnp.stack([stay, _shifted(stay, 1) + early, skip + early]) + emission

    start = jnp.full((1, batch, states), LOG_ZERO, emissions.dtype).at[:, :, 0].set(0.0)
    inputs = jnp.moveaxis(emissions, 1, 0), early.T
    scores = forward_scores(arrive, start, inputs, where=_steps(steps) < frames, plus=plus)
    ends = jnp.stack([2 * lengths, jnp.maximum(2 * lengths - 1, 0)], -1)
    ends = jnp.take_along_axis(scores, ends, -1)
    ends = jnp.where((lengths == 0)[:, None] & (jnp.arange(2) == 1), LOG_ZERO, ends)
    return plus(ends, axis=-1)


def rnnt_loss(
    logits,
    labels,
    *,
    frame_mask=None,
    label_mask=None,
    blank=0,
    delay_penalty=0.0,
    where=None,
):
    r"""The transducer loss: at each frame any number of labels, then a blank to the next.

    .. math:: \alpha(t, u) = \alpha(t - 1, u)\, p_{t-1,u}(\varnothing)
                           + \alpha(t, u - 1)\, p_{t,u-1}(y_u), \qquad
              \ell = -\log \alpha(T - 1, U)\, p_{T-1,U}(\varnothing)

    Args:
      logits: z, of which p is the softmax, ``[batch, frames, labels + 1, classes]``, for frame t
        and the first u labels read; any float dtype, computed in float32 at least.
      labels: y, ``[batch, labels]``, integers in [0, classes), none of them blank.
      frame_mask: Optional boolean ``[batch, frames]``, True at the T frames that are there.
      label_mask: Optional boolean ``[batch, labels]``, True at the U labels that are there.
      blank: The class of no label.
      delay_penalty: :math:`\lambda`: a label at frame t, from 0, has its probability multiplied by
        :math:`\exp \lambda (\frac{T - 1}{2} - t)`.
      where: Optional boolean ``[batch]``; False entries return 0.

    Returns:
      Loss per sequence in nats, ``[batch]``, float32. It is not divided by the number of labels.

    Source: Sequence Transduction with Recurrent Neural Networks, 2012, arXiv:1211.3711, the
      forward-backward algorithm; the penalty as in Delay-penalized CTC implemented based on Finite
      State Transducer, Interspeech 2023, arXiv:2305.11539, and k2-fsa/k2.
    """
    frames, lengths, following = _transducer(logits, labels, frame_mask, label_mask, blank)
    at_blank, at_label = _of_classes(logits, following, blank)
    at_label = at_label + _earliness(logits, frames, delay_penalty)[..., None]
    return _loss(_grid_score([(1, 0, at_blank), (0, 1, at_label)], frames, lengths), where)


def simple_rnnt_loss(
    frame_logits,
    label_logits,
    labels,
    *,
    lm_scale=0.25,
    am_scale=0.0,
    frame_mask=None,
    label_mask=None,
    blank=0,
    delay_penalty=0.0,
    where=None,
):
    r"""The transducer loss of scores that are sums, which needs no array of all their classes.

    .. math:: \log p_{t,u}(v) = (1 - l - a) \log \frac{e^{x_{t,v} + y_{u,v}}}
                                                {\sum_c e^{x_{t,c}} e^{y_{u,c}}}
              + l \log \frac{e^{y_{u,v}}}{\sum_c e^{y_{u,c}}}
              + a \log \frac{q_v e^{x_{t,v}}}{\sum_c q_c e^{x_{t,c}}}

    of which the denominators are a matrix product. The second term has the label network learn
    alone, the third the frame network, with q the mean over the batch's labels of the
    softmax of y.

    Args:
      frame_logits: x, ``[batch, frames, classes]``, any float dtype; computed in float32 at least.
      label_logits: y, ``[batch, labels + 1, classes]``, after the first u labels.
      labels: ``[batch, labels]``, integers in [0, classes), none of them blank.
      lm_scale: l >= 0, the share of the label network alone.
      am_scale: a >= 0, the share of the frame network alone.
      frame_mask: As for :func:`rnnt_loss`, as all that follow.
      label_mask: ``[batch, labels]``.
      blank: The class of no label.
      delay_penalty: In nats per frame and label.
      where: Optional boolean ``[batch]``; False entries return 0 and have no part in q.

    Returns:
      Loss per sequence in nats, ``[batch]``, float32. Couples the batch, through q.

    Source: Pruned RNN-T for fast, memory-efficient ASR training, Interspeech 2022,
      arXiv:2206.13236, the trivial joiner. As in the authors' code (k2-fsa/fast_rnnt) it is the
      logarithms that are mixed; unlike there, q is of labels and sequences that are there.
    """
    frames, lengths, at_blank, at_label = _simple(
        frame_logits, label_logits, labels, lm_scale, am_scale, frame_mask, label_mask, blank, where
    )
    at_label = at_label + _earliness(frame_logits, frames, delay_penalty)[..., None]
    return _loss(_grid_score([(1, 0, at_blank), (0, 1, at_label)], frames, lengths), where)


simple_rnnt_loss.batch_coupled = True


def rnnt_windows(
    frame_logits,
    label_logits,
    labels,
    *,
    size=5,
    lm_scale=0.25,
    am_scale=0.0,
    frame_mask=None,
    label_mask=None,
    blank=0,
):
    r"""Of each frame the window of labels through which most of the probability passes.

    .. math:: s_t = \arg\max_s \sum_{u=s}^{s+r-1} P(\varnothing \text{ at } t, u)
                    - P(y_s \text{ at } t, s - 1)

    with the probabilities that an alignment of :func:`simple_rnnt_loss` has this blank, or this
    label, which would enter the window from below. Then windows are moved down so far that they
    start at 0, never go back, and go on by less than their size r, so that some alignment passes
    through all of them; the last holds the last label.

    Args:
      frame_logits: As for :func:`simple_rnnt_loss`, as all but the size.
      label_logits: ``[batch, labels + 1, classes]``.
      labels: ``[batch, labels]``.
      size: r, at least 2, and at least (U - 1) / T + 2 where there are U labels and T frames; else
        no alignment passes. More than labels + 1 is as much.
      lm_scale: Share of the label network alone.
      am_scale: Share of the frame network alone.
      frame_mask: ``[batch, frames]``.
      label_mask: ``[batch, labels]``.
      blank: The class of no label.

    Returns:
      The windows' first u, ``[batch, frames]``, int32, without a gradient.

    Source: Pruned RNN-T for fast, memory-efficient ASR training, Interspeech 2022,
      arXiv:2206.13236, the pruning bounds, as in the authors' code (k2-fsa/fast_rnnt).
    """
    frame_logits, label_logits = jax.lax.stop_gradient((frame_logits, label_logits))
    frames, lengths, *scores = _simple(
        frame_logits, label_logits, labels, lm_scale, am_scale, frame_mask, label_mask, blank, None
    )

    def total(at_blank, at_label):
        return _grid_score([(1, 0, at_blank), (0, 1, at_label)], frames, lengths).sum()

    at_blank, at_label = jax.grad(total, (0, 1))(*scores)
    steps, width = at_blank.shape[1:]
    size = min(size, width)
    starts = width - size + 1
    inside = sum(at_blank[..., i : i + starts] for i in range(size))
    entering = jnp.pad(at_label, ((0, 0), (0, 0), (1, 0)))[..., :starts]
    start = jnp.argmax(inside - entering, -1)
    last = jnp.maximum(lengths - size + 1, 0)[:, None]
    start = jnp.where(jnp.arange(steps) < frames[:, None] - 1, start, last)
    # Never back; then, of how much each window lags behind the fastest course, never less.
    start = jax.lax.cummin(start, 1, reverse=True)
    fastest = (size - 1) * jnp.arange(steps)
    lag = jax.lax.cummin(fastest - start, 1, reverse=True)
    return (fastest - jnp.maximum(lag, 0)).astype(jnp.int32)


def take_windows(x, starts, *, size=5):
    """Rows of each frame's window of labels.

    Args:
      x: ``[batch, labels + 1, …]``, such as the output of a label network.
      starts: ``[batch, frames]``, of :func:`rnnt_windows`.
      size: Of a window; more than labels + 1 is as much.

    Returns:
      ``[batch, frames, size, …]``.
    """
    chex.assert_equal_shape_prefix([x, starts], 1)
    at = starts[..., None] + jnp.arange(min(size, x.shape[1]))
    return jax.vmap(lambda x, at: x[at])(x, at)


def pruned_rnnt_loss(
    logits,
    labels,
    starts,
    *,
    frame_mask=None,
    label_mask=None,
    blank=0,
    delay_penalty=0.0,
    where=None,
):
    r"""The transducer loss over the alignments that stay inside windows of labels.

    Add it to :func:`simple_rnnt_loss`, of which the windows are: the authors have half of that.

    Args:
      logits: z, ``[batch, frames, size, classes]``: of frame t and the first ``starts + i`` labels
        read; any float dtype, computed in float32 at least.
      labels: ``[batch, labels]``, integers in [0, classes), none of them blank.
      starts: The windows' first u, ``[batch, frames]``, of :func:`rnnt_windows`.
      frame_mask: As for :func:`rnnt_loss`, as all that follow.
      label_mask: ``[batch, labels]``.
      blank: The class of no label.
      delay_penalty: In nats per frame and label.
      where: Optional boolean ``[batch]``; False entries return 0.

    Returns:
      Loss per sequence in nats, ``[batch]``, float32; 0 where no alignment passes.

    Source: Pruned RNN-T for fast, memory-efficient ASR training, Interspeech 2022,
      arXiv:2206.13236, the pruned loss.
    """
    chex.assert_rank([logits, labels, starts], [4, 2, 2])
    chex.assert_equal_shape_prefix([logits, starts], 2)
    frames, lengths = _lengths(frame_mask, logits.shape[:2]), _lengths(label_mask, labels.shape)
    size, width = logits.shape[2], labels.shape[1] + 1
    following = jnp.pad(labels, ((0, 0), (0, size)), constant_values=blank)
    at = starts[..., None] + jnp.arange(size)
    following = jax.vmap(lambda y, at: y[at])(following, at)
    at = jnp.arange(width) - starts[..., None]
    inside = (at >= 0) & (at < size)

    def placed(scores):
        found = jnp.take_along_axis(scores, jnp.clip(at, 0, size - 1), -1)
        return jnp.where(inside, found, LOG_ZERO)

    at_blank, at_label = map(placed, _of_classes(logits, following, blank))
    at_label = at_label + _earliness(logits, frames, delay_penalty)[..., None]
    return _loss(_grid_score([(1, 0, at_blank), (0, 1, at_label)], frames, lengths), where)


def tdt_loss(
    logits,
    duration_logits,
    labels,
    *,
    durations=(0, 1, 2, 3, 4),
    sigma=0.05,
    frame_mask=None,
    label_mask=None,
    blank=0,
    where=None,
):
    r"""The token-and-duration transducer loss: a label, or a blank, says how many frames to go on.

    .. math:: \alpha(t, u) = \sum_{d > 0} \alpha(t - d, u)\, p_{t-d,u}(\varnothing)\, q_{t-d,u}(d)
                           + \sum_d \alpha(t - d, u - 1)\, p_{t-d,u-1}(y_u)\, q_{t-d,u-1}(d)

    and :math:`\ell = -\log \sum_{d > 0} \alpha(T - d, U)\, p_{T-d,U}(\varnothing)\, q_{T-d,U}(d)`:
    it ends with a blank that goes just beyond the last frame. A blank goes on by one frame at
    least.

    Args:
      logits: z, of which p is the softmax, ``[batch, frames, labels + 1, classes]``, any float
        dtype; computed in float32 at least.
      duration_logits: Of which q is the softmax, ``[batch, frames, labels + 1, durations]``.
      labels: y, ``[batch, labels]``, integers in [0, classes), none of them blank.
      durations: d >= 0, in frames; static, 0 and 1 among them.
      sigma: Taken off all :math:`\log p`, so that alignments of fewer, longer steps count more.
      frame_mask: As for :func:`rnnt_loss`, as all that follow.
      label_mask: ``[batch, labels]``.
      blank: The class of no label.
      where: Optional boolean ``[batch]``; False entries return 0.

    Returns:
      Loss per sequence in nats, ``[batch]``, float32; 0 without an alignment.

    Source: Efficient Sequence Transduction by Jointly Predicting Tokens and Durations, ICML 2023,
      arXiv:2304.06795, Eq. 7 (by the account of its authors' code, NVIDIA/NeMo). There a random
      share omega of the batches has :func:`rnnt_loss` of the same logits in its place; in the mean
      that is both losses, with scales omega and 1 - omega.
    """
    frames, lengths, following = _transducer(logits, labels, frame_mask, label_mask, blank)
    chex.assert_shape(duration_logits, (*logits.shape[:3], len(durations)))
    duration_logits = duration_logits.astype(jnp.promote_types(duration_logits.dtype, jnp.float32))
    log_q = jax.nn.log_softmax(duration_logits, -1)
    at_blank, at_label = (x - sigma for x in _of_classes(logits, following, blank))
    arcs = [(d, 0, at_blank + log_q[..., i]) for i, d in enumerate(durations) if d]
    arcs += [(d, 1, at_label + log_q[..., i]) for i, d in enumerate(durations)]
    return _loss(_grid_score(arcs, frames, lengths), where)


def _transducer(logits, labels, frame_mask, label_mask, blank):
    """Numbers of frames and labels, and the label that follows each u (a blank after the last)."""
    chex.assert_rank([logits, labels], [4, 2])
    batch, steps, width, _ = logits.shape
    chex.assert_shape(labels, (batch, width - 1))
    frames, lengths = _lengths(frame_mask, (batch, steps)), _lengths(label_mask, labels.shape)
    following = jnp.pad(labels, ((0, 0), (0, 1)), constant_values=blank)
    return frames, lengths, jnp.broadcast_to(following[:, None], logits.shape[:3])


def _of_classes(logits, following, blank):
    """Log-probabilities of the blank and of the label that follows, each ``[…]``."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    total = jax.nn.logsumexp(logits, -1)
    return logits[..., blank] - total, _pick(logits, following) - total


def _simple(x, y, labels, lm_scale, am_scale, frame_mask, label_mask, blank, where):
    """Numbers of frames and labels; log-probabilities of the blank and the label that follows."""
    chex.assert_rank([x, y, labels], [3, 3, 2])
    (batch, steps, classes), width = x.shape, y.shape[1]
    chex.assert_shape(y, (batch, labels.shape[1] + 1, classes))
    frames, lengths = _lengths(frame_mask, x.shape[:2]), _lengths(label_mask, labels.shape)
    x, y = (z.astype(jnp.promote_types(z.dtype, jnp.float32)) for z in (x, y))
    y = jax.nn.log_softmax(y, -1)
    tops = [jax.lax.stop_gradient(z.max(-1, keepdims=True)) for z in (x, y)]
    factors = (jnp.exp(z - top) for z, top in zip((x, y), tops, strict=True))
    sums = jnp.einsum("btv,buv->btu", *factors, precision="highest")
    tiny = jnp.finfo(sums.dtype).tiny
    total = jnp.log(sums + tiny)
    total = total + tops[0] + jnp.swapaxes(tops[1], 1, 2)
    there = jnp.arange(width) <= lengths[:, None]
    if where is not None:
        there &= where[:, None]
    weight = there / jnp.maximum(there.sum(), 1)
    log_q = jnp.log(jnp.einsum("bu,buv->v", weight, jnp.exp(y)) + tiny)
    alone = jax.nn.log_softmax(x + log_q, -1)
    following = jnp.pad(labels, ((0, 0), (0, 1)), constant_values=blank)
    classes_at = jnp.broadcast_to(following[:, None], (batch, steps, width))

    def mixed(of_x, of_y, of_alone):
        mixture = (1 - lm_scale - am_scale) * (of_x + of_y - total)
        return mixture + lm_scale * of_y + am_scale * of_alone

    at_blank = mixed(x[..., blank, None], y[:, None, :, blank], alone[..., blank, None])
    at_label = mixed(
        jnp.take_along_axis(x, classes_at, -1),
        _pick(y, following)[:, None],
        jnp.take_along_axis(alone, classes_at, -1),
    )
    return frames, lengths, at_blank, at_label


def _grid_score(arcs, frames, lengths, plus=jax.nn.logsumexp):
    """The score of all ways from (0, 0) to (frames, labels) of a grid, by its diagonals.

    Args:
      arcs: A list of (duration, advance, scores ``[batch, frames, labels + 1]``): arcs from (t, u)
        to (t + duration, u + advance). Those that advance end before the last frame is over.
      frames: ``[batch]``.
      lengths: ``[batch]``, of labels.
      plus: See :func:`forward_scores`.

    Returns:
      ``[batch]``.
    """
    batch, steps, width = arcs[0][2].shape
    end = _steps(steps).T  # of an arc that takes no time
    placed = []
    for duration, advance, scores in arcs:
        fits = (end < frames[:, None]) & (end + duration <= frames[:, None] - advance)
        scores = jnp.where(fits[..., None], scores, LOG_ZERO)
        pad = ((0, 0), (duration, 1), (advance, 0))  # to where the arc ends
        scores = jnp.pad(scores, pad, constant_values=LOG_ZERO)[:, : steps + 1, :width]
        placed.append(_diagonals(scores))

    def arrive(history, x):
        return jnp.stack(
            [_shifted(history[d + a - 1], a) + w for (d, a, _), w in zip(arcs, x, strict=True)]
        )

    lags = max(d + a for d, a, _ in arcs)
    start = jnp.full((lags, batch, width), LOG_ZERO, placed[0].dtype).at[0, :, 0].set(0.0)
    inputs = [x[1:] for x in placed]
    on = _steps(steps + width - 1) < frames + lengths
    scores = forward_scores(arrive, start, inputs, where=on, plus=plus)
    return jnp.take_along_axis(scores, lengths[:, None], -1)[:, 0]


def _diagonals(x):
    """``[batch, rows, columns]`` to ``[rows + columns - 1, batch, columns]``: by row + column."""
    batch, rows, columns = x.shape
    x = jnp.swapaxes(x, 1, 2)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, columns)), constant_values=LOG_ZERO).reshape(batch, -1)
    x = x[:, :-columns].reshape(batch, columns, rows + columns - 1)  # a row one longer each time
    return jnp.moveaxis(x, 2, 0)


def _shifted(x, by):
    """Scores ``[batch, states]`` of the states before."""
    if not by:
        return x
    x = jnp.pad(x, ((0, 0), (by, 0)), constant_values=LOG_ZERO)
    return x[:, : x.shape[1] - by]


def _pick(x, index):
    return jnp.take_along_axis(x, index[..., None], -1)[..., 0]


def _steps(count):
    return jnp.arange(count)[:, None]


def _lengths(mask, shape):
    """``[batch]`` int32, of a mask or of what is not masked."""
    if mask is None:
        return jnp.full(shape[0], shape[1], jnp.int32)
    chex.assert_shape(mask, shape)
    return mask.sum(-1, dtype=jnp.int32)


def _earliness(logits, frames, penalty):
    """What a label at each frame gains, ``[batch, frames]``."""
    middle = (frames[:, None] - 1) / 2
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    return (penalty * (middle - jnp.arange(logits.shape[1]))).astype(dtype)


def _loss(score, where):
    """Minus a log-probability; 0 where it is of nothing, or not asked for."""
    possible = score > LOG_ZERO / 2
    return jnp.where(possible if where is None else possible & where, -score, 0.0)
