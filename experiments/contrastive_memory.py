"""What a contrastive loss costs, and that it trains as it should."""

import functools
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tinker.experiments.train import seeded
from tinker.numerics import fold_in, l2_normalize
from tinker.train.loop import run as train_run
from tinker.train.specs import as_plain, parts

TURNS = 9


def run(config, key):
    """Trains, then asks the compiler for the loss's memory, and the clock for its time.

    Args:
      config: A training config whose loss is of two arrays ``[batch, width]``, and
        ``config.contrast``: ``batches`` and ``width`` of the pairs whose memory is planned, and
        ``timed``, the pairs of the timing.
      key: Of all that a seed decides.

    Returns:
      ``loss`` of each step, ``[steps]``; of value and gradients of the loss by itself
      ``mebibytes``, temporary memory at each of the batches, with ``batch``; ``slope`` of the one
      over the other, both logarithmic; ``largest``, the last; ``speed``, the time of
      :func:`all_scores` over the loss's own, the median of interleaved turns.
    """
    config = seeded(config, key)
    contrast = as_plain(config.contrast)
    del config["contrast"]
    _, _, rows = train_run(config, progress=False, key=fold_in(key, "train"))
    fn, path, keywords = parts(config.loss, "loss")
    batches = np.array(contrast["batches"], float)
    shapes = [(int(b), contrast["width"]) for b in batches]
    bytes_ = np.array([_temporary(fn, tuple(sorted(keywords.items())), s) for s in shapes])
    return {
        "loss": np.array([row["loss"] for row in rows if "loss" in row]),
        "batch": batches,
        "mebibytes": bytes_ / 2**20,
        "slope": np.polyfit(np.log(batches), np.log(bytes_), 1)[0],
        "largest": bytes_[-1],
        "speed": _speed(fn, keywords, fold_in(key, "pairs"), contrast["timed"], contrast["width"]),
    }


def all_scores(queries, keys, *, temperature=0.1, symmetric=True):
    """The symmetric contrastive loss of matching rows as CLIP's code has it, ``[batch]``."""
    chex.assert_equal_shape([queries, keys])
    scores = l2_normalize(queries) @ l2_normalize(keys).T / temperature
    label = jnp.arange(len(scores))
    loss = optax.softmax_cross_entropy_with_integer_labels(scores, label)
    if symmetric:
        loss = (loss + optax.softmax_cross_entropy_with_integer_labels(scores.T, label)) / 2
    return loss


all_scores.batch_coupled = True


def largest_gap(values, *, metric, arm, over):
    """The largest difference of two arms' curves, one number per seed."""
    curves = (np.asarray(values[name][metric], float) for name in (arm, over))
    return np.abs(np.subtract(*curves)).max(1)


def _with_gradients(fn, keywords):
    return jax.jit(jax.value_and_grad(lambda x, y: fn(x, y, **keywords).mean(), (0, 1)))


@functools.cache
def _temporary(fn, keywords, shape):
    """Planned, not run."""
    pairs = [jax.ShapeDtypeStruct(shape, jnp.float32)] * 2
    compiled = _with_gradients(fn, dict(keywords)).lower(*pairs).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def _speed(fn, keywords, key, n, width):
    pairs = jax.random.normal(key, (2, n, width))
    ours, plain = _with_gradients(fn, keywords), _with_gradients(all_scores, {})

    def seconds(loss):
        start = time.perf_counter()
        jax.block_until_ready(loss(*pairs))
        return time.perf_counter() - start

    turns = [(seconds(plain), seconds(ours)) for _ in range(TURNS + 1)]
    return np.median([slow / fast for slow, fast in turns[1:]])
