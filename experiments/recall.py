"""A transformer must recall a sign of long ago: what it remembers, and whether it answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from tinker import data, losses, nn
from tinker.numerics import fold_in, integer_seed
from tinker.train import Net, Term, compose, instantiate

BINS = 8  # of distances


def run(config, key):
    """Trains on delayed recall in one compiled scan, and asks at the doors of unseen corridors.

    Args:
      config: ``data``, options of :func:`tinker.data.delayed_recall`; ``model``, which reads
        tokens; ``window``, of the memory of a model without spans, 0 for none; ``span_loss``, the
        weight of :func:`tinker.nn.expire_loss` for a model with spans; ``optimizer``; ``steps``;
        ``batch_size``; ``test_size``.
      key: Of the corridors, their order and the initialisation.

    Returns:
      ``accuracy`` at the last door, and at all doors by their distance from the sign as
      ``accuracy_curve`` ``[8]`` at ``distance``; ``memory``, tokens that a query remembers on
      average over blocks, and as ``memory_share`` over those of a model that forgets none. With
      spans also ``span_cue`` and ``span_noise``, their means over signs and over other tokens.
    """
    train = data.delayed_recall(integer_seed(key, "train"), config.train_size, **config.data)
    test = data.delayed_recall(integer_seed(key, "test"), config.test_size, **config.data)
    rows = functools.partial(data.batch_indices, config.train_size, config.batch_size)
    seed = integer_seed(key, "order")
    rows = np.stack([rows(step, seed=seed)[0] for step in range(config.steps)])
    batches = {k: train[k][rows] for k in ("tokens", "targets", "where")}
    named = ("model", "optimizer", "span_loss", "window")
    spec = FrozenConfigDict({name: config[name] for name in named})
    right, found = jax.device_get(_train(spec, fold_in(key, "train"), batches, test["tokens"]))
    right = right == test["targets"]
    length = config.data.length
    edges = np.linspace(0, length, BINS + 1)
    doors, bins = test["where"], np.digitize(test["distance"], edges) - 1
    whole = (length + 1) / 2
    results = {
        "accuracy": right[:, -1].mean(),
        "accuracy_curve": np.array([right[doors & (bins == i)].mean() for i in range(BINS)]),
        "distance": (edges[1:] + edges[:-1]) / 2,
    }
    window = config.window or length
    results["memory"] = np.minimum(np.arange(1, length + 1), window).mean()
    if found is not None:
        spans, kept = found
        results["memory"] = kept.mean()
        results["span_cue"] = spans[..., 0, :][:, test["distance"] == 0].mean()
        results["span_noise"] = spans[..., 0, :][:, test["distance"] != 0].mean()
    return {**results, "memory_share": results["memory"] / whole}


@functools.partial(jax.jit, static_argnums=0)  # the specs: compiled once for all seeds
def _train(spec, key, batches, tokens):
    """The answers at every place of the test's corridors; spans and how many are remembered."""
    model = instantiate(spec.model, "model")
    asked = {"logits": "logits", "labels": "targets", "where": "where"}
    terms = [Term(losses.cross_entropy, asked)]
    ramp = spec.model.bias_fn.ramp if spec.model.get("bias_fn") else None
    if ramp is not None:
        hyper = {"ramp": ramp}
        terms.append(Term(nn.expire_loss, ("bias/spans",), scale=spec.span_loss, hyper=hyper))
    program = compose(
        model=Net(model, ("tokens",)),
        loss=terms,
        optimizer=instantiate(spec.optimizer, "optimizer"),
    )
    state = program.init(key, jax.tree.map(lambda x: x[0], batches))
    state, _ = jax.lax.scan(lambda s, b: (program.train_step(s, b)[0], None), state, batches)
    outputs = model.apply({"params": program.params(state)["model"]}, tokens)
    answers = jnp.argmax(outputs["logits"], -1)
    if ramp is None:
        return answers, None
    spans = outputs["bias"]["spans"]
    return answers, (spans, nn.kept_memories(spans, ramp=ramp))


def span_ratio(values, *, arm):
    """A claim's number: the mean span of signs over that of other tokens."""
    return np.divide(values[arm]["span_cue"], values[arm]["span_noise"])
