"""Token reduction off the shelf: a ViT is trained once, then runs with fewer and fewer tokens."""

import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from tinker import compress, kernels
from tinker.experiments.train import seeded
from tinker.numerics import fold_in
from tinker.train import instantiate, load_streams
from tinker.train.compiling import compiled
from tinker.train.loop import run as train_run
from tinker.train.workdir import plain

BATCH, PAIRS = 250, 7  # images in a forward pass, timed pairs of passes


def run(config, key):
    """Trains a ViT, then takes tokens from it without further training.

    The trained weights are kept for the arms that follow with the same key; in another process they
    are trained again, to the same values.

    Args:
      config: A training config, and ``config.reduction``: ``changes`` to the model but for the
        ``r`` of its ``token_fn``; ``sweep``, the values of r from 0 on; and ``r``, one of them.
      key: Of all that a seed decides.

    Returns:
      On test, at ``r``: ``accuracy``; ``lost``, how much less that is than at 0; ``flops``, XLA's
      count over that at 0; ``speedup``, the time of a pass at 0 over its time at ``r`` on this
      machine, the median over interleaved pairs. Over ``sweep``: ``lost_curve`` and
      ``flops_curve``.
    """
    reduction = config.reduction
    training = type(config)({k: v for k, v in config.items() if k != "reduction"})
    params, images, labels = _trained(training, key)

    def model(r):
        changes = reduction.changes.to_dict() if r else {}
        if r:
            changes["token_fn"]["r"] = r
        return FrozenConfigDict({**config.model.to_dict(), **changes})

    def accuracy(r):
        return np.mean([hits(model(r), params, x, y) for x, y in zip(images, labels)])

    accuracies = np.array([accuracy(r) for r in reduction.sweep])
    costs = np.array([_flops(model(r), params, images[0], labels[0]) for r in reduction.sweep])
    at = reduction.sweep.index(reduction.r)
    return {
        "accuracy": accuracies[at],
        "lost": accuracies[0] - accuracies[at],
        "flops": costs[at] / costs[0],
        "speedup": _speedup(model(0), model(reduction.r), params, images[0], labels[0]),
        "lost_curve": accuracies[0] - accuracies,
        "flops_curve": costs / costs[0],
    }


@functools.partial(jax.jit, static_argnums=0)  # the model's spec: compiled once for all seeds
def hits(spec, params, images, labels):
    """The share of a batch that is classified right."""
    logits = instantiate(spec, "model").apply({"params": params}, images)["logits"]
    return jnp.mean(logits.argmax(-1) == labels)


def _flops(spec, *inputs):
    """XLA's count of a forward pass."""
    if spec not in _FLOPS:
        _FLOPS[spec] = hits.lower(spec, *inputs).cost_analysis()["flops"]
    return _FLOPS[spec]


_FLOPS = {}  # by the model's spec
_KEPT = {}  # the last trained weights, by config and key


def _trained(config, key):
    """Trained parameters, and the test split's images and labels, ``[parts, BATCH, …]``."""
    name = json.dumps(plain(config), sort_keys=True), jax.random.key_data(key).tobytes()
    if name not in _KEPT:
        _KEPT.clear()
        config = seeded(config, key)
        state, _, _ = train_run(config, progress=False, key=fold_in(key, "train"))
        program = compiled(config, load_streams(config, "train")).program
        test = load_streams(config, "test", training=False)[0].dataset.source
        parts = [test[k].reshape(-1, BATCH, *test[k].shape[1:]) for k in ("image", "label")]
        _KEPT[name] = program.params(state)["model"], *map(jnp.asarray, parts)
    return _KEPT[name]


def _speedup(before, after, *inputs):
    """Time of one model's pass over another's: the median over pairs, one after the other."""

    def seconds(spec):
        start = time.perf_counter()
        hits(spec, *inputs).block_until_ready()
        return time.perf_counter() - start

    return np.median([seconds(before) / seconds(after) for _ in range(PAIRS)])


# What merging is compared with. The number of tokens falls from block to block, and seeds the draw.


def merge_at_random(tokens, keys, info, *, r):
    """A ``token_fn``: as many tokens merge as in token merging, each with a random other."""
    noise = jax.random.normal(jax.random.key(tokens.shape[1]), keys.shape)
    return compress.merge_tokens(tokens, noise, info, r=r)


def random_scores(queries, keys):
    """Scores for :func:`tinker.compress.prune_tokens` that know nothing."""
    return jax.random.uniform(jax.random.key(keys.shape[1]), keys.shape[:2])


def unweighted_attention(query, key, value, *, bias=None, mask=None):
    """Attention that leaves out the sizes of tokens, which come as its bias."""
    return kernels.flash_attention(query, key, value, mask=mask)
