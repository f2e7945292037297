"""Memories: slow state that losses read and no gradient touches.

A memory is a pair ``init(key, ctx) -> memory`` and ``update(memory, ctx) -> memory``, called after
the optimizer's step; ``ctx`` then holds the new ``params`` beside the batch and its outputs.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from tinker.losses import NormStatistics, norm_statistics, uniform_alignment
from tinker.numerics import check_choice


class Memory(NamedTuple):
    """The pair (init, update)."""

    init: Callable
    update: Callable


class Averaged(NamedTuple):
    """What :func:`parameter_average` remembers."""

    ema: dict


def parameter_average(*, decay=0.999, warmup=True):
    r"""An exponential moving average of the parameters, read as ``memory/ema``.

    .. math:: \bar w_{t} = d_t\, \bar w_{t-1} + (1 - d_t)\, w_t, \qquad
              d_t = \min\bigl(d, \tfrac{1 + t}{10 + t}\bigr)

    A loss evaluates the teacher by ``apply(x, params=memory.ema)``.

    Args:
      decay: d in [0, 1), or a schedule of the step.
      warmup: Whether the decay starts low, as in the second equation; else :math:`d_t = d`.

    Returns:
      A :class:`Memory` whose state has one field, ``ema``.

    Source: Mean teachers are better role models, NeurIPS 2017, arXiv:1703.01780, Eq. 2; the warm-up
      is that of TensorFlow's ExponentialMovingAverage.
    """

    def init(key, ctx):
        return Averaged(jax.tree.map(jnp.asarray, ctx["params"]))

    def update(memory, ctx):
        step = ctx["step"]
        d = decay(step) if callable(decay) else decay
        d = jnp.minimum(d, (1 + step) / (10 + step)) if warmup else d
        return Averaged(optax.incremental_update(ctx["params"], memory.ema, 1 - d))

    return Memory(init, update)


class Queue(NamedTuple):
    """What :func:`output_queue` remembers: the rows, and how many of them were written."""

    rows: jax.Array
    filled: jax.Array


def output_queue(*, output="embeddings", size=1024):
    """A first-in first-out queue of an output's rows, the negatives of later batches.

    Args:
      output: Name of an output ``[batch, …]``.
      size: Rows kept; the newest stand first.

    Returns:
      A :class:`Memory` whose state has ``rows [size, …]`` float32, zeros at first, and
      ``filled []``, how many of them have been written.

    Source: Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020,
      arXiv:1911.05722, Section 3.1.
    """

    def init(key, ctx):
        shape = (size, *ctx[output].shape[1:])
        return Queue(jnp.zeros(shape, jnp.float32), jnp.zeros((), jnp.int32))

    def update(memory, ctx):
        new = jax.lax.stop_gradient(ctx[output]).astype(jnp.float32)[:size]
        rows = jnp.concatenate([new, memory.rows])[:size]
        return Queue(rows, jnp.minimum(memory.filled + len(new), size))

    return Memory(init, update)


class Center(NamedTuple):
    """What :func:`teacher_center` remembers."""

    value: jax.Array


def teacher_center(
    *,
    logits_fn,
    space="probability",
    decay=0.9,
    teacher="teacher",
    images=("image/0", "image/1"),
):
    r"""The running centre of a teacher's logits, which keeps it from collapsing to one prototype.

    .. math:: c = \log \bar p, \qquad
              \bar p \leftarrow m\, \bar p + (1 - m) \frac{1}{n} \sum_i \mathrm{softmax}(l_i)

    in the space of probabilities, kept as a logarithm so that nothing underflows; in that of
    logits :math:`c \leftarrow m\, c + (1 - m) \frac1n \sum_i l_i`.

    Args:
      logits_fn: ``logits_fn(apply, params, *images) -> [batch, views, K]``, the teacher's logits,
        temperature included: :func:`tinker.losses.teacher_logits`, of the loss's temperature.
      space: "probability" (DINO-vMF) or "logit" (DINO).
      decay: m in [0, 1).
      teacher: Name of the memory that has the teacher's parameters, a :func:`parameter_average`.
      images: Names of the views that the teacher sees.

    Returns:
      A :class:`Memory` whose state has one field, ``value [K]`` float32, c: at first that of a
      uniform teacher. Rows outside the batch's ``mask`` do not count.

    Raises:
      UserError: An unknown space.

    Source: DINO as a von Mises-Fisher mixture model, ICLR 2023, arXiv:2405.10939, centering in the
      probability space; Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021,
      arXiv:2104.14294, centering. That the average is taken before the logarithm is our reading.
    """
    check_choice("space", space, ("probability", "logit"))

    def init(key, ctx):
        views = [ctx[name] for name in images]
        k = jax.eval_shape(lambda: logits_fn(ctx["apply"], ctx["params"], *views)).shape[-1]
        return Center(jnp.full(k, -math.log(k) if space == "probability" else 0.0, jnp.float32))

    def update(memory, ctx):
        views = [ctx[name] for name in images]
        logits = logits_fn(ctx["apply"], ctx["memory"][teacher].ema, *views).astype(jnp.float32)
        rows = jnp.broadcast_to(ctx.get("mask", True), logits.shape[:1]).astype(bool)
        where = jnp.broadcast_to(rows[:, None, None], logits.shape)
        count = jnp.maximum(where.sum((0, 1)), 1)
        if space == "logit":
            mean = jnp.sum(logits, (0, 1), where=where) / count
            value = decay * memory.value + (1 - decay) * mean
        else:
            log_p = jax.nn.log_softmax(logits)
            mean = jax.nn.logsumexp(log_p, (0, 1), where=where) - jnp.log(count)
            value = jnp.logaddexp(jnp.log(decay) + memory.value, jnp.log1p(-decay) + mean)
        return Center(jnp.where(rows.any(), value, memory.value))

    return Memory(init, update)


class Confidence(NamedTuple):
    """What :func:`confidence_statistics` remembers."""

    mean: jax.Array
    variance: jax.Array
    marginal: jax.Array


def confidence_statistics(*, view="unlabeled/image/0", decay=0.999):
    r"""Running mean and variance of the model's confidence, and its mean prediction.

    .. math:: \bar p \leftarrow m \bar p + (1 - m) \frac1n \sum_i p_i, \qquad
              \mu \leftarrow m \mu + (1 - m)\, \overline{c}, \qquad
              \sigma^2 \leftarrow m \sigma^2 + (1 - m) \frac{1}{n - 1} \sum_i (c_i - \overline{c})^2

    with :math:`c_i = \max_k \mathrm{UA}(p_i)_k`, see :func:`tinker.losses.uniform_alignment`. The
    authors' code takes a batch in before it weights that batch; here it counts from the next on.

    Args:
      view: Name of what the model is to be confident about, ``[batch, …]``.
      decay: m in [0, 1).

    Returns:
      A :class:`Memory` whose state has ``mean []``, at first 1 / K, ``variance []``, at first 1,
      and ``marginal [classes]``, at first that of the first batch.

    Source: SoftMatch: Addressing the Quantity-Quality Tradeoff in Semi-supervised Learning,
      ICLR 2023, arXiv:2301.10921, the moving averages of its weighting function.
    """

    def probabilities(ctx):
        logits = ctx["apply"](ctx[view], train=False)["logits"]
        return jax.lax.stop_gradient(jax.nn.softmax(logits.astype(jnp.float32)))

    def init(key, ctx):
        p = probabilities(ctx)
        return Confidence(jnp.float32(1 / p.shape[-1]), jnp.float32(1.0), p.mean(0))

    def update(memory, ctx):
        p = probabilities(ctx)
        marginal = decay * memory.marginal + (1 - decay) * p.mean(0)
        confidence = uniform_alignment(p, marginal).max(-1)
        spread = jnp.square(confidence - confidence.mean()).sum() / max(len(confidence) - 1, 1)
        mean = decay * memory.mean + (1 - decay) * confidence.mean()
        return Confidence(mean, decay * memory.variance + (1 - decay) * spread, marginal)

    return Memory(init, update)


def norm_memory(*, output="embeddings", decay=0.99, mean=20.0, std=100.0):
    """The running statistics of the lengths of an output's rows, as AdaFace's loss reads them.

    Args:
      output: Name of an output ``[batch, dim]``.
      decay: As in :func:`tinker.losses.norm_statistics`.
      mean: Where the mean starts.
      std: Where the deviation starts.

    Returns:
      A :class:`Memory` whose state is a :class:`tinker.losses.NormStatistics`. Rows outside the
      batch's ``mask`` do not count.

    Source: AdaFace: Quality Adaptive Margin for Face Recognition, CVPR 2022, arXiv:2204.00964,
      Section 3.2; mean and std at the start as in mk-minchul/AdaFace.
    """

    def init(key, ctx):
        return NormStatistics(jnp.float32(mean), jnp.float32(std))

    def update(memory, ctx):
        where = ctx.get("mask")
        return norm_statistics(memory, ctx[output], decay=decay, where=where)[0]

    return Memory(init, update)
