"""A language model of words under one form of its loss: memory, loss curve, gradients, tiles."""

import collections
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tinker import data
from tinker.kernels.large_vocabulary import reference
from tinker.numerics import fold_in, integer_seed
from tinker.train import Net, Term, compose, instantiate
from tinker.train.specs import as_plain

TILE = 256, 512  # of the filter: tokens and words


def run(config, key):
    """Asks the compiler for the loss's memory, and trains a small model with it.

    Args:
      config: ``loss`` (a spec of a function of embeddings, their table and labels) and
        ``first_loss``, which half of the steps begin with; ``memory`` (``tokens``, ``width`` and
        ``vocabularies`` to compile for); ``filter`` (the threshold by which tiles are counted); and
        of the model ``data`` (``length`` in words and ``vocab``), ``model``, ``learning_rate``,
        ``steps``, ``batch_size``, ``points``, ``eval_size``.
      key: Of the held-out files, the order of the data and the initialisation.

    Returns:
      ``memory`` [vocabularies], temporary bytes of the compiled value and gradients, at
      ``vocabulary`` [vocabularies]; ``memory_at_most``, that of the largest, and ``memory_slope``,
      the exponent by which it grows; ``test/curve`` [points] in nats per word at ``step``, and its
      end ``test/nll``; at the trained model, ``gradient_error``, by which the gradients in the
      embeddings and their table differ from the plain form's, over the norm of those; and the
      share of tiles that have no probability above the filter, the label's apart: ``skipped`` with
      the words in order of their frequency, ``skipped_sorted`` by their mean logit,
      ``skipped_shuffled``.
    """
    specs = [json.dumps({**as_plain(c), "partial": True}) for c in (config.first_loss, config.loss)]
    memory = _memory(specs[1], **as_plain(config.memory))
    sizes = np.array(config.memory.vocabularies)
    train, test = _words(integer_seed(key, "split"), **as_plain(config.data))
    seed = integer_seed(key, "order")
    rows = functools.partial(data.batch_indices, len(train), config.batch_size, seed=seed)
    rows = np.stack([rows(step)[0] for step in range(config.steps)])
    batches = train[rows.reshape(config.points, -1, config.batch_size)]
    some = np.linspace(0, len(test) - 1, config.eval_size).astype(int)
    model, key = instantiate(config.model, "model"), fold_in(key, "train")
    static = model, tuple(specs), config.filter, config.steps
    curve, measured = _train(*static, config.learning_rate, key, batches, test[some])
    return {
        "memory": memory,
        "vocabulary": sizes,
        "memory_at_most": memory[-1],
        "memory_slope": np.polyfit(np.log(sizes), np.log(memory), 1)[0],
        "test/curve": np.asarray(curve),
        "test/nll": float(curve[-1]),
        "step": np.linspace(0, config.steps, config.points + 1)[1:],
        **{name: float(value) for name, value in measured.items()},
    }


@functools.lru_cache(maxsize=8)  # seeds and arms share what they compile for
def _memory(spec, tokens, width, vocabularies):
    loss, found = instantiate(json.loads(spec), "loss"), []
    for vocab in vocabularies:
        shapes = [(tokens, width), (vocab, width)]
        shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
        labels = jax.ShapeDtypeStruct((tokens,), jnp.int32)
        mean = jax.value_and_grad(lambda x, w, labels: loss(x, w, labels).mean(), (0, 1))
        compiled = jax.jit(mean).lower(*shapes, labels).compile()
        found.append(compiled.memory_analysis().temp_size_in_bytes)
    return np.array(found)


@functools.lru_cache(maxsize=2)
def _words(split_seed, length, vocab):
    """Windows of words, ``[windows, length + 1]``, of train and test; the last word is any other.

    Words are runs of letters or spaces, or single signs; the likeliest is 0.
    """
    found = []
    for split in "train", "test":
        text = data.load("text:stdlib", split, split_seed=split_seed, length=2**14).source["tokens"]
        text = text[:: 3 if split == "train" else 1].astype(np.uint8).tobytes().decode("latin1")
        found.append(re.findall(r"[^\W\d_]+|\s+|.", text))
    common = collections.Counter(found[0]).most_common(vocab - 1)
    index = {word: i for i, (word, _) in enumerate(common)}
    found = [np.array([index.get(w, vocab - 1) for w in words], np.int32) for words in found]
    return [w[: len(w) // (length + 1) * (length + 1)].reshape(-1, length + 1) for w in found]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _train(model, specs, threshold, steps, learning_rate, key, batches, test):
    losses = [instantiate(json.loads(spec), "loss") for spec in specs]
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 10, steps)
    programs = [
        compose(
            model=Net(model, ("tokens",)),
            loss=Term(loss, ("embeddings", "params/model/embed/embedding", "targets")),
            optimizer=optax.adamw(lambda step: learning_rate * shape(step), weight_decay=0.0),
        )
        for loss in losses
    ]

    def as_batch(windows):
        return {"tokens": windows[:, :-1], "targets": windows[:, 1:]}

    def stretch(program, state, windows):
        def step(state, windows):
            return program.train_step(state, as_batch(windows))[0], None

        state, _ = jax.lax.scan(step, state, windows)
        return state, program.loss(state, as_batch(test))[0]

    state = programs[0].init(key, as_batch(batches[0, 0]))
    parts = [len(batches) // 2, len(batches)] if specs[0] != specs[1] else [0, len(batches)]
    curves = []
    for program, first, last in zip(programs, [0, parts[0]], parts):
        if first < last:
            rest = batches[first:last]
            state, curve = jax.lax.scan(functools.partial(stretch, program), state, rest)
            curves.append(curve)
    ctx = programs[1].context(state, as_batch(test))
    x = ctx["embeddings"].reshape(-1, model.width)
    table, labels = ctx["params"]["model"]["embed"]["embedding"], test[:, 1:].reshape(-1)
    return jnp.concatenate(curves), {
        "gradient_error": _gradient_error(losses[1], x, table, labels),
        **_skipped(x @ table.T, labels, threshold, fold_in(key, "shuffle")),
    }


def _gradient_error(loss, x, table, labels):
    def gradients(fn):
        return jax.grad(lambda x, table: fn(x, table, labels).mean(), (0, 1))(x, table)

    plain = gradients(reference.cross_entropy)
    error = jax.tree.map(jnp.subtract, gradients(loss), plain)
    return optax.global_norm(error) / optax.global_norm(plain)


def _skipped(logits, labels, threshold, key):
    others = jax.nn.softmax(logits).at[jnp.arange(len(labels)), labels].set(0.0)
    orders = {
        "": jnp.arange(logits.shape[1]),
        "_sorted": jnp.argsort(logits.mean(0)),
        "_shuffled": jax.random.permutation(key, logits.shape[1]),
    }
    found = {}
    for name, order in orders.items():
        tiles = others[:, order].reshape(-1, TILE[0], logits.shape[1] // TILE[1], TILE[1])
        found["skipped" + name] = (tiles.max((1, 3)) < threshold).mean()
    return found
