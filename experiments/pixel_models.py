"""A language model of pixels, one after another, whose attention may be sparse."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from tinker import data
from tinker.experiments.length_extrapolation import losses_after_training
from tinker.numerics import fold_in, integer_seed
from tinker.train import instantiate


def run(config, key):
    """Trains on drawn characters in one compiled scan, and counts the scores of its attention.

    Args:
      config: ``data``, options of :func:`glyph_pixels`; ``model``, of tokens, whose vocabulary has
        one more than the levels of grey; ``optimizer``; ``steps``; ``batch_size``; ``train_size``;
        ``eval_splits`` and ``eval_size``.
      key: Of the characters, their order and the initialisation.

    Returns:
      ``SPLIT/nll`` of each evaluated split, in nats per pixel; ``scores``, the pairs of a query and
      a key that a head computes, per pixel; ``score_share``, of those of dense causal attention;
      ``unjoined``, pairs that two blocks one after another do not join.
    """
    sizes = {"train": config.train_size, **dict.fromkeys(config.eval_splits, config.eval_size)}
    found = {
        split: glyph_pixels(integer_seed(key, split), size, **config.data)
        for split, size in sizes.items()
    }
    seed = integer_seed(key, "order")
    rows = [
        data.batch_indices(config.train_size, config.batch_size, step, seed=seed)[0]
        for step in range(config.steps)
    ]
    batches = {k: x[np.stack(rows)] for k, x in found.pop("train").items()}
    spec = FrozenConfigDict({"model": config.model, "optimizer": config.optimizer})
    nll = jax.device_get(losses_after_training(spec, fold_in(key, "train"), batches, found))
    seen = _seen(spec.model, config.data.side**2)
    pixels, causal = len(seen), np.tril(np.ones_like(seen))
    twice = (seen.astype(int) @ seen) > 0
    return {
        **{f"{split}/nll": x for split, x in nll.items()},
        "scores": seen.sum() / pixels,
        "score_share": seen.sum() / causal.sum(),
        "unjoined": (causal & ~twice).sum(),
    }


def glyph_pixels(seed, size, *, side=14, levels=8, **drawing):
    """Characters as sequences of grey levels, row by row: predict the next pixel.

    Args:
      seed: Of which they are drawn, see :func:`tinker.data.draw_glyphs`.
      size: Number of images.
      side: Of an image, 28, 14 or 7: pixels are averaged.
      levels: Of grey.
      **drawing: Options of :func:`tinker.data.draw_glyphs`.

    Returns:
      A dict of ``targets`` int32 ``[size, side²]``, in [0, levels), and ``tokens``, one pixel
      before, which start with ``levels``.
    """
    image = data.draw_glyphs(seed, size, **drawing)["image"]
    image = image.reshape(size, side, 28 // side, side, 28 // side).mean((2, 4))
    targets = np.minimum(image * levels, levels - 1).astype(np.int32).reshape(size, -1)
    tokens = np.concatenate([np.full((size, 1), levels, np.int32), targets[:, :-1]], 1)
    return {"tokens": tokens, "targets": targets}


def _seen(model, pixels):
    """Whether the first head of a model's attention looks from a pixel at another."""
    attend = instantiate(model, "model").attention_fn
    each = jnp.eye(pixels)[None, :, None].repeat(model.heads, 2)
    weights = attend(jnp.zeros_like(each), jnp.zeros_like(each), each, is_causal=True)
    return np.asarray(weights[0, :, 0] > 0)
