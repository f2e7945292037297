"""Sentences are tagged: how many names a network finds, and how often its tags make no sense."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from tinker import data, losses, metrics
from tinker.numerics import fold_in, integer_seed
from tinker.train import Net, Term, compose, instantiate

CRF = ("transitions", "start", "end")


def run(config, key):
    """Trains in one compiled scan and tags unseen sentences.

    Args:
      config: ``data``, options of :func:`tinker.data.named_entities`; ``model``, which reads words
        and letters; ``optimizer`` (a spec without its ``learning_rate``) and ``learning_rate``;
        ``steps``; ``batch_size``; ``train_size``; ``eval_size``, of each of ``eval_splits``.
      key: Of dictionary and sentences, their order, the initialisation and dropout.

    Returns:
      For each split ``SPLIT/f1`` of spans, ``SPLIT/accuracy`` of tags, and ``SPLIT/broken``, the
      share of neighbouring tags that cannot follow one another.
    """
    size, each = config.train_size, config.eval_size
    world = data.named_entities(integer_seed(key, "world"), size + 2 * each, **config.data)
    seed = integer_seed(key, "order")
    rows = functools.partial(data.batch_indices, size, config.batch_size, seed=seed)
    rows = np.stack([rows(step)[0] for step in range(config.steps)])
    batches = {k: x[rows] for k, x in world.items()}
    at = {"validation": slice(size, size + each), "test": slice(size + each, None)}
    held_out = {split: {k: x[at[split]] for k, x in world.items()} for split in config.eval_splits}
    spec = FrozenConfigDict({name: config[name] for name in ("model", "optimizer")})
    rate = config.learning_rate
    found = jax.device_get(_train(spec, rate, fold_in(key, "train"), batches, held_out))
    results = {}
    for split, tags in found.items():
        true = held_out[split]["label"]
        results[f"{split}/f1"] = metrics.span_f1(tags, true, tags=data.NAME_TAGS)
        results[f"{split}/accuracy"] = np.mean(tags == true)
        results[f"{split}/broken"] = 1 - np.mean(_follows()[tags[:, :-1], tags[:, 1:]])
    return results


def _follows():
    """Which tag may follow which."""
    places, kinds = zip(*(tag.partition("-")[::2] for tag in data.NAME_TAGS), strict=True)
    opened, open_still = np.isin(places, ["B", "I"]), np.isin(places, ["I", "E"])
    same = np.equal.outer(kinds, kinds)
    return np.where(opened[:, None], open_still & same, ~open_still)


@functools.partial(jax.jit, static_argnums=0)  # the specs: compiled once for all seeds and rates
def _train(spec, rate, key, batches, held_out):
    model = instantiate(spec.model, "model")
    loss = Term(losses.cross_entropy, ("logits", "label"))
    if spec.model.crf:
        named = {"logits": "logits", "labels": "label"} | {name: name for name in CRF}
        loss = Term(losses.crf_loss, named)
    program = compose(
        model=Net(model, ("words", "letters")),
        loss=loss,
        optimizer=instantiate({**spec.optimizer, "learning_rate": lambda _: rate}, "optimizer"),
    )
    state = program.init(key, jax.tree.map(lambda x: x[0], batches))
    state, _ = jax.lax.scan(lambda s, b: (program.train_step(s, b)[0], None), state, batches)
    params = {"params": program.params(state)["model"]}

    def tags(batch):
        outputs = model.apply(params, batch["words"], batch["letters"])
        if not spec.model.crf:
            return jnp.argmax(outputs["logits"], -1)
        ends = {"start": outputs["start"], "end": outputs["end"]}
        return losses.crf_decode(outputs["logits"], outputs["transitions"], **ends)

    return {split: tags(batch) for split, batch in held_out.items()}
