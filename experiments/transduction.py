"""Transducers on speech-like frames: their errors, their work in decoding, and their memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import FrozenConfigDict

from tinker import data, losses, metrics
from tinker.models import transducer_greedy
from tinker.numerics import fold_in, integer_seed
from tinker.train import Net, Term, compose, instantiate

BATCH = ("features", "labels", "frame_mask", "label_mask")
NAMED = {name: name for name in ("logits", *BATCH[1:])}


def run(config, key):
    """Trains in one compiled scan, and decodes unseen sequences.

    Args:
      config: ``data``, options of :func:`tinker.data.speech_like`; ``model``, a
        :class:`tinker.models.Transducer`; ``durations``, of a model that predicts them, and
        ``sigma``; ``optimizer`` (a spec without its ``learning_rate``) and ``learning_rate``;
        ``steps``; ``batch_size``; ``train_size``; ``eval_size``, of each of ``eval_splits``;
        ``memory``, None or the sizes for which :func:`peak_megabytes` compiles a training step,
        which is not run.
      key: Of the sequences, their order and the initialisation.

    Returns:
      For each split ``SPLIT/token_error``, edits per label; ``SPLIT/evaluations`` of the joint
      network per frame; and ``SPLIT/delay``, frames from a token's start to where it was decided,
      of sequences without an error. With ``memory`` also ``peak_megabytes``.
    """
    size, each = config.train_size, config.eval_size
    world = data.speech_like(integer_seed(key, "world"), size + 2 * each, **config.data)
    seed = integer_seed(key, "order")
    rows = functools.partial(data.batch_indices, size, config.batch_size, seed=seed)
    rows = np.stack([rows(step)[0] for step in range(config.steps)])
    batches = {k: world[k][rows] for k in BATCH}
    at = {"validation": slice(size, size + each), "test": slice(size + each, None)}
    named = ("model", "optimizer", "durations", "sigma", "steps")
    spec = FrozenConfigDict({name: config[name] for name in named})
    rate, key = config.learning_rate, fold_in(key, "train")
    results = {}
    for split in config.eval_splits:  # one, so that all runs are of one shape
        held_out = {k: x[at[split]] for k, x in world.items()}
        found = jax.device_get(_train(spec, rate, key, batches, held_out))
        results |= {f"{split}/{name}": x for name, x in found.items()}
    if config.memory is not None:
        results["peak_megabytes"] = peak_megabytes(spec, FrozenConfigDict(config.memory))
    return results


def _terms(spec):
    """The losses of a model: of durations, of windows, or of all."""
    if spec.durations:
        hyper = {"durations": tuple(spec.durations), "sigma": spec.sigma}
        inputs = {**NAMED, "duration_logits": "duration_logits"}
        return [Term(losses.tdt_loss, inputs, hyper=hyper)]
    if spec.model.window:
        warmup = spec.steps // 10  # the windows are of no use before the simple loss is
        simple = optax.piecewise_constant_schedule(1.0, {warmup: 0.5})
        pruned = optax.piecewise_constant_schedule(0.1, {warmup: 10.0})
        inputs = {name: name for name in ("frame_logits", "label_logits", *BATCH[1:])}
        return [
            Term(losses.simple_rnnt_loss, inputs, simple),
            Term(losses.pruned_rnnt_loss, {**NAMED, "starts": "starts"}, pruned),
        ]
    return [Term(losses.rnnt_loss, NAMED)]


@functools.partial(jax.jit, static_argnums=0)  # the specs: compiled once for all seeds and rates
def _train(spec, rate, key, batches, batch):
    model = instantiate(spec.model, "model")
    program = compose(
        model=Net(model, BATCH),
        loss=_terms(spec),
        optimizer=instantiate({**spec.optimizer, "learning_rate": lambda _: rate}, "optimizer"),
    )
    state = program.init(key, jax.tree.map(lambda x: x[0], batches))
    state, _ = jax.lax.scan(lambda s, b: (program.train_step(s, b)[0], None), state, batches)
    params = {"params": program.params(state)["model"]}

    decide = functools.partial(model.apply, params, method="decide")
    labels, label_mask = batch["labels"], batch["label_mask"]
    found = transducer_greedy(
        decide,
        model.apply(params, batch["features"], method="encode"),
        most_labels=2 * labels.shape[1],
        context=model.context,
        durations=spec.durations or None,
        frame_mask=batch["frame_mask"],
    )
    masks = {"predicted_mask": found.mask, "label_mask": label_mask}
    edits = metrics.edit_distance(found.labels, labels, **masks)
    right = label_mask & (edits == 0)[:, None]
    late = jnp.where(right, found.frames[:, : labels.shape[1]] - batch["starts"], 0)
    return {
        "token_error": edits.sum() / label_mask.sum(),
        "evaluations": found.evaluations.sum() / batch["frame_mask"].sum(),
        "delay": late.sum() / jnp.maximum(right.sum(), 1),
    }


@functools.lru_cache(maxsize=8)  # of the specs alone: the same for all seeds
def peak_megabytes(spec, sizes):
    """What a training step needs beside its arguments, as compiled for a batch of one.

    Args:
      spec: Of the model and its losses, as for a run.
      sizes: ``frames``, ``labels``, ``classes``, ``width`` and, of a model with windows, their
        ``window``.

    Returns:
      A number, in units of 2^20 bytes.
    """
    model = {**spec.model, "classes": sizes.classes, "width": sizes.width}
    model["window"] = sizes.window if spec.model.window else 0
    program = compose(
        model=Net(instantiate(model, "model"), BATCH), loss=_terms(spec), optimizer=optax.sgd(0.1)
    )
    frames, labels = (1, sizes.frames), (1, sizes.labels)
    shapes = ((*frames, sizes.width), float), (labels, int), (frames, bool), (labels, bool)
    batch = {
        name: jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype))
        for name, (shape, dtype) in zip(BATCH, shapes, strict=True)
    }
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    step = jax.jit(lambda state, batch: program.train_step(state, batch)[0])
    return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes / 2**20
