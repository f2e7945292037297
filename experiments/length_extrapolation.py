"""A language model learns from short texts and reads longer ones."""

import functools

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from tinker import data, losses
from tinker.numerics import fold_in, integer_seed
from tinker.train import Net, Term, compose, instantiate


def run(config, key):
    """Trains at one length in one compiled scan, and evaluates at several.

    Each length cuts the same held-out bytes into so many more examples.

    Args:
      config: ``data``, a language source and its options with the ``length`` of training;
        ``model``; ``optimizer``; ``steps``; ``batch_size``; ``lengths`` to evaluate at, of which
        each divides the last; ``eval_splits`` and ``eval_size``, examples of the last length.
      key: Of the held-out files, the order of the data and the initialisation.

    Returns:
      For each evaluated split ``SPLIT/nll`` ``[lengths]``, in nats per token, at ``length``
      ``[lengths]``; its entries ``SPLIT/nll_LENGTH``; ``SPLIT/gain``, how much less it is at the
      last length than at the first.
    """
    options = {**config.data, "split_seed": integer_seed(key, "split")}
    train = _load(split="train", **options)
    rows = functools.partial(data.batch_indices, len(train["tokens"]), config.batch_size)
    seed = integer_seed(key, "order")
    rows = np.stack([rows(step, seed=seed)[0] for step in range(config.steps)])
    batches = {k: x[rows] for k, x in train.items()}
    longest, held_out = config.lengths[-1], {}
    for split in config.eval_splits:
        found = _load(split=split, **{**options, "length": longest})
        some = np.linspace(0, len(found["tokens"]) - 1, config.eval_size).astype(int)
        parts = {k: x[some] for k, x in found.items()}
        held_out[split] = {
            n: {k: x.reshape(-1, n) for k, x in parts.items()} for n in config.lengths
        }
    spec = FrozenConfigDict({"model": config.model, "optimizer": config.optimizer})
    found = losses_after_training(spec, fold_in(key, "train"), batches, held_out)
    results = {"length": np.array(config.lengths)}
    for split, by_length in jax.device_get(found).items():
        results |= {f"{split}/nll_{n}": x for n, x in by_length.items()}
        results[f"{split}/nll"] = curve = np.array([by_length[n] for n in config.lengths])
        results[f"{split}/gain"] = curve[0] - curve[-1]
    return results


@functools.lru_cache(maxsize=8)  # the arms of a seed see the same text
def _load(source, split, **options):
    return data.load(source, split, **options).source


@functools.partial(jax.jit, static_argnums=0)  # the specs: compiled once for all seeds
def losses_after_training(spec, key, batches, held_out):
    """Trains a model of tokens.

    Args:
      spec: A FrozenConfigDict of ``model`` and ``optimizer``.
      key: Of the initialisation and what is random in training.
      batches: ``tokens`` and ``targets`` ``[steps, batch, length]``.
      held_out: Such dicts ``[examples, length]``, in any pytree.

    Returns:
      The losses on these, in nats per token.
    """
    program = compose(
        model=Net(instantiate(spec.model, "model"), ("tokens",)),
        loss=Term(losses.cross_entropy, ("logits", "targets")),
        optimizer=instantiate(spec.optimizer, "optimizer"),
    )
    state = program.init(key, jax.tree.map(lambda x: x[0], batches))
    state, _ = jax.lax.scan(lambda s, b: (program.train_step(s, b)[0], None), state, batches)
    is_batch = lambda x: "tokens" in x  # noqa: E731
    return jax.tree.map(lambda b: program.loss(state, b)[0], held_out, is_leaf=is_batch)
