"""A small language model does sums and products: how far its answers are off, as numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import FrozenConfigDict

from tinker import data, losses
from tinker.numerics import fold_in, integer_seed
from tinker.train import Net, Term, compose, instantiate

VALUES = (*range(10), *[float("nan")] * 3)  # of the tokens of tinker.data.arithmetic


def run(config, key):
    """Trains on the digits of answers in one compiled scan, and answers unseen problems.

    Args:
      config: ``digits`` of an operand; ``model``, which reads tokens; ``number_loss``, None,
        "absolute" or "squared" (:func:`tinker.losses.number_token_loss`) or "gaussian", targets
        spread over near digits in place of cross-entropy's; ``weight`` of the number loss;
        ``spread``, the standard deviation of those targets; ``optimizer`` (a spec without its
        ``learning_rate``) and ``learning_rate``, the peak, reached linearly in a tenth of the steps
        and left along a cosine; ``steps``; ``batch_size``; ``train_size``; ``test_size``.
      key: Of the problems, their order and the initialisation.

    Returns:
      Of answers decoded digit by digit: ``exact``, the share that is right; ``error``, the mean of
      their absolute errors; ``log_error``, that of log10(1 + absolute error); and
      ``digit_error`` [digits of an answer], the mean absolute error of each, the first one first.
    """
    size = config.train_size
    world = data.arithmetic(integer_seed(key, "train"), size, digits=config.digits)
    test = data.arithmetic(integer_seed(key, "test"), config.test_size, digits=config.digits)
    seed = integer_seed(key, "order")
    rows = functools.partial(data.batch_indices, size, config.batch_size, seed=seed)
    rows = np.stack([rows(step)[0] for step in range(config.steps)])
    batches = {k: world[k][rows] for k in ("tokens", "targets", "where")}
    named = ("model", "optimizer", "number_loss", "weight", "spread", "digits", "steps")
    spec = FrozenConfigDict({name: config[name] for name in named})
    rate, key = config.learning_rate, fold_in(key, "train")
    found = np.asarray(_train(spec, rate, key, batches, test["tokens"])).astype(int)
    count = 2 * config.digits
    places = 10 ** np.arange(count)[::-1]
    off = np.abs(found @ places - test["answer"])
    digits = test["answer"][:, None] // places % 10
    return {
        "exact": np.mean(off == 0),
        "error": np.mean(off),
        "log_error": np.mean(np.log10(1 + off)),
        "digit_error": np.abs(found - digits).mean(0),
    }


def _terms(spec):
    tokens = ("logits", "targets", "where")
    named = dict(zip(("logits", "labels", "where"), tokens, strict=True))
    if spec.number_loss == "gaussian":
        digits = np.arange(10.0)
        hyper = {"distances": (digits - digits[:, None]) ** 2, "tokens": np.arange(10)}
        hyper["temperature"] = 2 * spec.spread**2
        return [Term(losses.distance_target_loss, named, hyper=hyper)]
    terms = [Term(losses.cross_entropy, named)]
    if spec.number_loss:
        hyper = {"values": np.array(VALUES), "error": spec.number_loss}
        terms.append(Term(losses.number_token_loss, named, spec.weight, hyper=hyper))
    return terms


@functools.partial(jax.jit, static_argnums=0)  # the specs: compiled once for all seeds and rates
def _train(spec, rate, key, batches, tokens):
    """The digits of the answers to the test's problems, ``[size, 2 * digits]``."""
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, spec.steps // 10, spec.steps)
    optimizer = {**spec.optimizer, "learning_rate": lambda step: rate * shape(step)}
    model = instantiate(spec.model, "model")
    program = compose(
        model=Net(model, ("tokens",)),
        loss=_terms(spec),
        optimizer=instantiate(optimizer, "optimizer"),
    )
    state = program.init(key, jax.tree.map(lambda x: x[0], batches))
    state, _ = jax.lax.scan(lambda s, b: (program.train_step(s, b)[0], None), state, batches)
    params = {"params": program.params(state)["model"]}
    first = 2 * spec.digits + 1  # the place of "=", after which the answer comes
    answer = []
    for place in range(first, first + 2 * spec.digits):
        logits = model.apply(params, tokens)["logits"][:, place, :10]
        answer.append(jnp.argmax(logits, -1))
        if place + 1 < tokens.shape[1]:
            tokens = tokens.at[:, place + 1].set(answer[-1])
    return jnp.stack(answer, 1)
