"""Training an encoder on some classes, then retrieving images of others by its embeddings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tinker import metrics
from tinker.experiments.train import seeded
from tinker.numerics import fold_in
from tinker.train.building import load_streams
from tinker.train.compiling import compiled
from tinker.train.loop import run as train_run
from tinker.train.specs import as_plain, parts

CHUNK = 500  # images embedded at a time


def run(config, key):
    """Trains as the config says, and compares all images of a split with each other.

    Args:
      config: A training config, see :func:`tinker.train.default_config`, whose data has ``image``
        and ``label``; with ``disjoint_classes`` the classes of the split are none of training. The
        split is the first of ``eval_splits``. Beside it ``config.retrieval``, with

        - ``output``: name of the model's output that is compared, by its cosines;
        - ``false_accept_rate``: at which verification is read;
        - ``corruptions``: ``{name: dict(fn=…)}`` of ``fn(key, images)``, tried on the images too.
      key: Of all that a seed decides, as in :func:`tinker.experiments.train.run`.

    Returns:
      ``{split}/recall_at_1`` and ``{split}/map_at_r`` of retrieval; ``{split}/eer`` and
      ``{split}/tar``, equal error rate and true accept rate of verification; ``{split}/same`` and
      ``{split}/different``, mean cosines of pairs of a class and of two. The same of each
      corruption, ``{split}/{corruption}/…``, and ``{split}/{corruption}/shorter``, the share of
      images that it gives a shorter embedding. ``loss`` and ``step`` as logged, ``[logs]``.
    """
    config = seeded(config, key)
    retrieval = as_plain(config.retrieval)
    del config["retrieval"]
    split = config.eval_splits[0]
    config.eval_splits = ()
    state, _, rows = train_run(config, progress=False, key=fold_in(key, "train"))
    program = compiled(config, load_streams(config, "train")).program
    source = load_streams(config, split, False)[0].dataset.source
    images, labels = source["image"], source["label"]

    def embed(images):
        starts = range(0, len(images), CHUNK)
        z = [_embed(program, retrieval["output"], state, images[s : s + CHUNK]) for s in starts]
        return np.concatenate(z)

    def measured(prefix, z):
        found = _measure(z, labels, false_accept_rate=retrieval["false_accept_rate"])
        return {f"{prefix}/{name}": value for name, value in found.items()}

    clean = embed(images)
    found, length = measured(split, clean), np.linalg.norm(clean, axis=-1)
    for name, spec in retrieval["corruptions"].items():
        fn, _, keywords = parts(spec, f"retrieval.corruptions.{name}")
        z = embed(np.asarray(fn(fold_in(key, f"corrupt/{name}"), jnp.asarray(images), **keywords)))
        found |= measured(f"{split}/{name}", z)
        found[f"{split}/{name}/shorter"] = np.mean(np.linalg.norm(z, axis=-1) < length)
    logged = [row for row in rows if "steps_per_second" in row]
    curves = {name: np.array([row[name] for row in logged]) for name in ("loss", "step")}
    return {**found, **curves}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed(program, output, state, images):
    ctx = program.context(state, {"image": images})
    return ctx["apply"](images, train=False)[output].astype(jnp.float32)


@functools.partial(jax.jit, static_argnames="false_accept_rate")
def _measure(z, labels, *, false_accept_rate):
    return {
        "recall_at_1": metrics.recall_at_k(z, labels),
        "map_at_r": metrics.mean_average_precision(z, labels, at_r=True),
        "eer": metrics.equal_error_rate(z, labels),
        "tar": metrics.true_accept_rate(z, labels, false_accept_rate=false_accept_rate),
        "same": metrics.class_similarity(z, labels),
        "different": metrics.class_similarity(z, labels, same=False),
    }


def low_quality(key, images, *, probability=1.0):
    """Makes images of grey pixels small, dark and noisy, each by half and more of all that.

    Args:
      key: A jax random key.
      images: ``[batch, height, width, channels]`` in [0, 1], sides divisible by 4.
      probability: Of each image; the others stay as they are.

    Returns:
      The images: of a strength u in [0.5, 1] a share u is the mean of squares of 4x4 pixels, 0.7 u
      of the ink is gone, and the noise has a standard deviation of 0.3 u.
    """
    batch, height, width, channels = images.shape
    strength, hit, noise = jax.random.split(key, 3)
    u = jax.random.uniform(strength, (batch, 1, 1, 1), minval=0.5)
    u = u * jax.random.bernoulli(hit, probability, u.shape)
    squares = images.reshape(batch, height // 4, 4, width // 4, 4, channels).mean((2, 4))
    coarse = jnp.repeat(jnp.repeat(squares, 4, 1), 4, 2)
    worse = ((1 - u) * images + u * coarse) * (1 - 0.7 * u)
    return jnp.clip(worse + 0.3 * u * jax.random.normal(noise, images.shape), 0.0, 1.0)
