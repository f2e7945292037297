"""A network says the edges of a rectangle as tokens: how far off, from few examples and many."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from tinker import data, losses
from tinker.numerics import fold_in, integer_seed
from tinker.train import Net, Term, compose, instantiate


def run(config, key):
    """Trains in one compiled scan, and finds the rectangles of unseen images.

    Args:
      config: ``data``, options of :func:`tinker.data.boxed_images`; ``model``, which reads the
        image and gives 4 * bins logits; ``distance``, "steps" between coordinates, "permuted", the
        same between coordinates that have changed places, or "none", 1 between any two; ``weight``
        of :func:`tinker.losses.distance_target_loss` beside cross-entropy, and its ``temperature``;
        ``optimizer`` (a spec without its ``learning_rate``) and ``learning_rate``; ``steps``;
        ``batch_size``; ``train_size``; ``eval_size``, of each of ``eval_splits``.
      key: Of the images, their order, the initialisation and the permutation.

    Returns:
      For each split ``SPLIT/error``, the mean distance of the likeliest coordinates from the true
      ones, in steps; ``SPLIT/iou`` of the rectangles; ``SPLIT/exact``, the share of coordinates
      that is right; and ``SPLIT/nll`` of a coordinate, in nats.
    """
    size, each = config.train_size, config.eval_size
    world = data.boxed_images(integer_seed(key, "world"), 2 * each + size, **config.data)
    held_out, train = ({k: x[part] for k, x in world.items()} for part in _parts(2 * each))
    seed = integer_seed(key, "order")
    rows = functools.partial(data.batch_indices, size, config.batch_size, seed=seed)
    rows = np.stack([rows(step)[0] for step in range(config.steps)])
    batches = {k: x[rows] for k, x in train.items()}
    spec = FrozenConfigDict({name: config[name] for name in ("model", "optimizer")})
    bins = np.arange(config.data.bins)
    distances = {
        "steps": np.abs(bins - bins[:, None]),
        "none": (bins != bins[:, None]).astype(int),
    }
    mixed = np.random.default_rng(integer_seed(key, "permutation")).permutation(bins)
    distances["permuted"] = distances["steps"][mixed][:, mixed]
    hyper = {k: config[k] for k in ("learning_rate", "weight", "temperature")}
    hyper["distances"] = distances[config.distance]
    results = {}
    for split in config.eval_splits:
        chosen = slice(0, each) if split == "validation" else slice(each, None)
        batch = {k: x[chosen] for k, x in held_out.items()}
        found = jax.device_get(_train(spec, hyper, fold_in(key, "train"), batches, batch))
        results |= {f"{split}/{name}": x for name, x in found.items()}
    return results


def _parts(count):
    """Held out and training: the former come first, and so are the same for every size."""
    return slice(0, count), slice(count, None)


@functools.partial(jax.jit, static_argnums=0)  # the specs: compiled once for seeds, rates and arms
def _train(spec, hyper, key, batches, batch):
    model = instantiate(spec.model, "model")
    distances = hyper["distances"]

    def loss(logits, label):
        logits = logits.reshape(*label.shape, len(distances))
        options = {"distances": distances, "temperature": hyper["temperature"]}
        near = losses.distance_target_loss(logits, label, **options)
        return (losses.cross_entropy(logits, label) + hyper["weight"] * near).mean(-1)

    rate = hyper["learning_rate"]
    program = compose(
        model=Net(model, ("image",)),
        loss=Term(loss, ("logits", "label")),
        optimizer=instantiate({**spec.optimizer, "learning_rate": lambda _: rate}, "optimizer"),
    )
    state = program.init(key, jax.tree.map(lambda x: x[0], batches))
    state, _ = jax.lax.scan(lambda s, b: (program.train_step(s, b)[0], None), state, batches)
    logits = model.apply({"params": program.params(state)["model"]}, batch["image"])["logits"]
    label = batch["label"]
    logits = logits.reshape(*label.shape, len(distances))
    found = jnp.argmax(logits, -1)
    both = jnp.minimum(found, label)[:, 2:] - jnp.maximum(found, label)[:, :2]
    both = jnp.maximum(both, 0).prod(-1)
    either = sum(jnp.maximum(x[:, 2:] - x[:, :2], 0).prod(-1) for x in (found, label)) - both
    return {
        "error": jnp.abs(found - label).mean(),
        "iou": (both / jnp.maximum(either, 1)).mean(),
        "exact": (found == label).mean(),
        "nll": losses.cross_entropy(logits, label).mean(),
    }


def gain_where_scarce(values, *, metric, few, many):
    """A claim's number: how much more an arm gains over another on few examples than on many.

    Args:
      values: Of all arms.
      metric: The lower the better.
      few: The two arms on few examples, the better one first.
      many: The two on many.
    """
    arms = [np.asarray(values[arm][metric]) for arm in (*few, *many)]
    return (arms[1] - arms[0]) - (arms[3] - arms[2])
