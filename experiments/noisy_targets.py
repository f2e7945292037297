"""A network translates all words at once, having learned from translations with words astray."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from tinker import data, losses, metrics
from tinker.numerics import fold_in, integer_seed
from tinker.train import Net, Term, compose, instantiate

BATCH = ("words", "labels", "label_mask")


def run(config, key):
    """Trains in one compiled scan, first by cross-entropy, and translates unseen sentences.

    Args:
      config: ``data``, options of :func:`tinker.data.noisy_translation`; ``model``, which reads
        words one-hot; ``warmup``, the share of steps of cross-entropy alone; from then on
        ``edit_weight`` of :func:`tinker.losses.edit_invariant_loss` over ``ngrams``, and
        ``token_weight`` of cross-entropy; ``optimizer`` (a spec without its ``learning_rate``) and
        ``learning_rate``; ``steps``; ``batch_size``; ``train_size``; ``eval_size``, of each of
        ``eval_splits``.
      key: Of the sentences, their order and the initialisation.

    Returns:
      For each split, against true translations, ``SPLIT/error``, edits per word; ``SPLIT/pairs``,
      the share of a translation's neighbouring words that the output has as neighbours; and
      ``SPLIT/nll`` of a word at its place.
    """
    size, each = config.train_size, config.eval_size
    seed = integer_seed(key, "world")
    world = data.noisy_translation(seed, size + 2 * each, **config.data)
    world["words"] = np.eye(config.data.words, dtype=np.float32)[world.pop("source")]
    seed = integer_seed(key, "order")
    rows = functools.partial(data.batch_indices, size, config.batch_size, seed=seed)
    rows = np.stack([rows(step)[0] for step in range(config.steps)])
    batches = {k: world[k][rows] for k in BATCH}
    at = {"validation": slice(size, size + each), "test": slice(size + each, None)}
    named = ("model", "optimizer", "ngrams", "warmup", "steps")
    spec = FrozenConfigDict({name: config[name] for name in named})
    hyper = {k: config[k] for k in ("learning_rate", "edit_weight", "token_weight")}
    results = {}
    for split in config.eval_splits:  # one, so that all runs are of one shape
        batch = {k: world[k][at[split]] for k in ("words", "target")}
        found = jax.device_get(_train(spec, hyper, fold_in(key, "train"), batches, batch))
        results |= {f"{split}/{name}": x for name, x in found.items()}
    return results


@functools.partial(jax.jit, static_argnums=0)  # the specs: compiled once for seeds, rates and arms
def _train(spec, hyper, key, batches, batch):
    model = instantiate(spec.model, "model")
    change = int(spec.warmup * spec.steps)

    def weight(name, first):
        return lambda step: jnp.where(step < change, first, hyper[name])

    def token_loss(logits, labels, label_mask):
        each = losses.cross_entropy(logits, labels, where=label_mask)
        return each.sum(-1) / jnp.maximum(label_mask.sum(-1), 1)

    edits = functools.partial(losses.edit_invariant_loss, ngrams=tuple(spec.ngrams))
    named = {"logits": "logits", "labels": "labels", "label_mask": "label_mask"}
    rate = hyper["learning_rate"]
    program = compose(
        model=Net(model, ("words",)),
        loss=[
            Term(token_loss, named, weight("token_weight", 1.0), name="tokens"),
            Term(edits, named, weight("edit_weight", 0.0), name="edits"),
        ],
        optimizer=instantiate({**spec.optimizer, "learning_rate": lambda _: rate}, "optimizer"),
    )
    state = program.init(key, jax.tree.map(lambda x: x[0], batches))
    state, _ = jax.lax.scan(lambda s, b: (program.train_step(s, b)[0], None), state, batches)
    params = {"params": program.params(state)["model"]}
    logits, target = model.apply(params, batch["words"])["logits"], batch["target"]
    found = jnp.argmax(logits, -1)
    pairs = (target[:, :-1, None] == found[:, None, :-1]) & (
        target[:, 1:, None] == found[:, None, 1:]
    )
    return {
        "error": metrics.edit_distance(found, target).mean() / target.shape[1],
        "pairs": pairs.any(-1).mean(),
        "nll": losses.cross_entropy(logits, target).mean(),
    }
