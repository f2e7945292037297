"""Kernel ridge regression distilled into itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tinker import data
from tinker.losses import best_truth_weight, self_distilled_ridge
from tinker.numerics import check_choice, fold_in, integer_seed, squared_euclidean


def run(config, key):
    """Distills step by step, and measures each step on test.

    Args:
      config: ``data``, options of :func:`tinker.data.load` of a source with features and a target,
        or ``{"source": "sine", "size": …, "noise": …}``; ``penalty``; ``steps`` of fits, the first
        included; ``weight`` of the truth in the later steps if ``choose`` is "fixed"; else
        "closed_form" or "grid", by the validation error at each step, the latter among ``grid``.
      key: Of the split, or of the sine's points and noise.

    Returns:
      ``test/mse`` ``[steps]`` at ``step``; ``test/first`` and ``test/last`` of them, and
      ``test/ratio`` of the last over the first; ``weight``, those chosen on average; ``shrinkage``,
      the norm of the last fit over the first's; ``limit_gap``, how far the last predictions on test
      are from those of plain ridge regression with the penalty over the last weight, in share of
      the first's norm; ``fits``, how many systems were solved.
    """
    check_choice("choose", config.choose, ("fixed", "closed_form", "grid"))
    with jax.enable_x64(True):
        (x, y), (x_val, y_val), (x_test, y_test) = _splits(config.data, key)
        width = np.median(squared_euclidean(x, x))  # of the kernel

        def gram(x_new):
            return jnp.exp(-squared_euclidean(x_new, x) / width)

        kernel, at_val, at_test = gram(x), gram(x_val), gram(x_test)

        def fitted(*weights, penalty=config.penalty):
            """Coefficients of all steps for each row of weights, which end with what is 0."""
            rows = np.zeros((len(weights), config.steps - 1))
            for row, some in zip(rows, weights, strict=True):
                row[: len(some)] = some
            return _coefficients(kernel, y, penalty, rows)

        chosen, fits = [], 1
        for step in range(1, config.steps):
            options, extra = [config.weight], 1
            if config.choose != "fixed":
                options = (0.0, 1.0) if config.choose == "closed_form" else config.grid
                found = fitted(*[[*chosen, w] for w in options])[:, step] @ at_val.T
                extra = len(options)
            if config.choose == "closed_form":
                options = [float(best_truth_weight(y_val, found[1], found[0]))]
            elif config.choose == "grid":
                options = [options[int(np.argmin(jnp.square(found - y_val).sum(1)))]]
            chosen += options
            fits += extra
        coefficients = fitted(chosen)[0]
        predictions = coefficients @ at_test.T
        mse = np.asarray(jnp.square(predictions - y_test).mean(1))
        limit = 0 * y_test
        if chosen and chosen[-1] > 0:
            limit = at_test @ fitted([], penalty=config.penalty / chosen[-1])[0, 0]
        size = jnp.linalg.norm(predictions[0])
        norms = jnp.linalg.norm(coefficients @ kernel, axis=1)
        return {
            "test/mse": mse,
            "step": 1 + np.arange(config.steps),
            "test/first": mse[0],
            "test/last": mse[-1],
            "test/ratio": mse[-1] / mse[0],
            "weight": float(np.mean(chosen)),
            "shrinkage": float(norms[-1] / norms[0]),
            "limit_gap": float(jnp.linalg.norm(predictions[-1] - limit) / size),
            "fits": fits,
        }


@jax.jit
def _coefficients(kernel, y, penalty, weights):
    """``[rows, steps, n]``, of one decomposition."""
    distill = functools.partial(self_distilled_ridge, kernel, y, penalty=penalty)
    return jax.vmap(lambda row: distill(weights=row).coefficients)(weights)


def _splits(spec, key):
    """Features and targets of train, validation and test, float64."""
    options = dict(spec)
    if options["source"] == "sine":
        draw = np.random.default_rng(integer_seed(fold_in(key, "sine"), "points"))
        splits = []
        for size in (options["size"], options["size"], 10 * options["size"]):
            x = draw.uniform(0, 2 * np.pi, (size, 1))
            splits.append((x, np.sin(x[:, 0]) + options["noise"] * draw.normal(size=size)))
        return splits
    options["split_seed"] = integer_seed(key, "split")
    source = options.pop("source")
    parts = [data.load(source, s, **options).source for s in ("train", "validation", "test")]
    return [(p["features"].astype(float), p["target"].astype(float)) for p in parts]
