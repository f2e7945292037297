"""Winning tickets: a network is pruned round by round, and what is left trains from its start."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from tinker import compress
from tinker.experiments.train import seeded
from tinker.numerics import check_choice, fold_in
from tinker.train import build, load_streams
from tinker.train.workdir import plain

NETWORKS = ("ticket", "random_reinit", "random_mask", "dense")


def run(config, key):
    """Prunes round by round, and trains one kind of network at some of the levels.

    The rounds are kept for the arms that follow with the same key; in another process they are run
    again, to the same values. At one level all networks see the same batches in the same order.

    Args:
      config: A training config whose parametrization is ``masked(sparsity=0)``, and
        ``config.pruning``: ``rounds``; ``rate``, pruned of each layer in a round, and
        ``head_rate``, of the last one; ``levels``, the numbers of rounds to report, and ``level``,
        one of them; ``network``, "ticket", "random_reinit" (its masks on other weights),
        "random_mask" (its masks shuffled) or "dense" (the unpruned one, at all levels);
        ``measure_every``, in steps.
      key: Of all that a seed decides.

    Returns:
      At ``level``: ``accuracy``, on test at the lowest validation loss; ``early_stop``, the step of
      that; ``final_accuracy``; ``kept``, the share of weights. Over ``levels``: ``accuracy_curve``,
      ``early_stop_curve`` and ``kept_curve``.
    """
    pruning = config.pruning
    check_choice("pruning.network", pruning.network, NETWORKS)
    training = type(config)({k: v for k, v in config.items() if k != "pruning"})
    every = pruning.measure_every
    arrays, tickets = _rounds(training, pruning, key)

    def curves(level):
        masks, found = tickets[level]
        init, order = _init_and_order(key, level)
        if pruning.network == "ticket":
            return found
        if pruning.network == "dense":
            return tickets[0][1]
        if pruning.network == "random_reinit":
            init = fold_in(key, f"reinit/{level}")
        else:
            masks = compress.shuffle_masks(fold_in(key, f"shuffle/{level}"), masks)
        return train(FrozenConfigDict(training), every, arrays, init, order, masks)[1]

    def kept(level):
        return np.mean(np.concatenate([np.ravel(m) for m in tickets[level][0].values()]))

    found = [jax.device_get(curves(level)) for level in pruning.levels]
    best = [int(np.argmin(f["loss"])) for f in found]
    each = {
        "accuracy": np.array([f["accuracy"][b] for f, b in zip(found, best)]),
        "early_stop": every * (np.array(best) + 1),
        "kept": np.array([kept(level) for level in pruning.levels]),
    }
    at = pruning.levels.index(pruning.level)
    return {
        **{name: values[at] for name, values in each.items()},
        **{f"{name}_curve": values for name, values in each.items()},
        "final_accuracy": found[at]["accuracy"][-1],
    }


_KEPT = {}  # the data and the rounds of the last config and key


def _rounds(training, pruning, key):
    """``(arrays, [(masks, curves) of each level])``, the dense network's first."""
    shared = {name: pruning[name] for name in ("rounds", "rate", "head_rate", "measure_every")}
    name = json.dumps([plain(training), shared]), jax.random.key_data(key).tobytes()
    if name not in _KEPT:
        _KEPT.clear()
        config, spec = seeded(training, key), FrozenConfigDict(training)
        splits = ("train", "validation", "test")
        arrays = {s: load_streams(config, s, training=False)[0].dataset.source for s in splits}
        arrays = jax.tree.map(jnp.asarray, arrays)

        def once(masks, level):
            return train(spec, pruning.measure_every, arrays, *_init_and_order(key, level), masks)

        state = jax.eval_shape(lambda: _start(spec, arrays, key)[1])
        masks = {p: jnp.ones(m.shape, bool) for p, m in state.base["masks"].items()}
        rate = {p: pruning.head_rate if "head" in p else pruning.rate for p in masks}
        rounds = compress.iterative_magnitude_pruning(once, masks, rounds=pruning.rounds, rate=rate)
        _KEPT[name] = arrays, list(rounds)
    return _KEPT[name]


def _init_and_order(key, level):
    """The key of the initial weights, and of the order of the data at a level."""
    return fold_in(key, "init"), fold_in(key, f"order/{level}")


def _start(spec, arrays, key):
    """The program of a config, and its initial state."""
    batch = {k: v[: spec.batch_size] for k, v in arrays["train"].items()}
    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}
    program = build(spec, shapes)
    return program, program.init(key, batch)


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(spec, every, arrays, init, order, masks):
    """Trains a masked network from its initial weights; compiled once for all masks and seeds.

    Args:
      spec: The training config, frozen.
      every: Steps between two measurements.
      arrays: The three splits.
      init: Key of the initial weights.
      order: Key of the order of the data.
      masks: Boolean arrays by path.

    Returns:
      ``(weights, curves)``: the trained matrices by path, and ``loss`` on validation and
      ``accuracy`` on test, ``[steps / every]``.
    """
    program, state = _start(spec, arrays, init)
    state = state.replace(base={"masks": masks})
    count = len(arrays["train"]["label"]) // spec.batch_size * spec.batch_size
    keys = jax.random.split(order, -(-spec.steps * spec.batch_size // count))
    epochs = jax.vmap(lambda k: jax.random.permutation(k, len(arrays["train"]["label"]))[:count])
    rows = epochs(keys).reshape(-1, spec.batch_size)[: spec.steps]

    def step(state, rows):
        batch = {k: v[rows] for k, v in arrays["train"].items()}
        return program.train_step(state, batch)[0], None

    def stretch(state, rows):
        state, _ = jax.lax.scan(step, state, rows)
        logits = program.predict(state, arrays["test"])["logits"]
        accuracy = jnp.mean(logits.argmax(-1) == arrays["test"]["label"])
        return state, {"loss": program.loss(state, arrays["validation"])[0], "accuracy": accuracy}

    state, curves = jax.lax.scan(stretch, state, rows.reshape(-1, every, spec.batch_size))
    weights = compress.leaf_table(state.trainable["params"])
    return {path: weights[path] for path in masks}, curves
