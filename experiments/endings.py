"""A language model of lines: whether what it writes comes to an end, and how well it predicts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from tinker import data, losses, nn
from tinker.numerics import fold_in, integer_seed
from tinker.train import Net, Term, compose, instantiate

END = 10  # the byte of a new line, which no line has
LIMITS = (50, 100, 200, 400, 800)


def run(config, key):
    """Trains in one compiled scan, and goes on greedily from the beginnings of unseen lines.

    Args:
      config: ``length``, bytes of a line at most; ``prompt``, bytes that are given; ``model``, a
        :class:`tinker.models.LSTMLM`; ``head``, None, "non_monotonic" or "self_terminating", and
        its ``epsilon``; ``optimizer`` (a spec without its ``learning_rate``) and ``learning_rate``;
        ``steps``; ``batch_size``; ``eval_size``.
      key: Of the held-out files, the order of the lines and the initialisation.

    Returns:
      ``nll`` of the bytes of unseen lines after the prompt, the end among them, in nats per byte;
      and ``endless`` [limits], the share of continuations that have not ended within ``limit``
      [limits] bytes, the last one also as ``endless_at_last``.
    """
    split_seed = integer_seed(key, "split")
    train, test = (_lines(split, split_seed, config.length) for split in ("train", "test"))
    test = test[np.linspace(0, len(test) - 1, config.eval_size).astype(int)]
    rows = functools.partial(data.batch_indices, len(train), config.batch_size)
    seed = integer_seed(key, "order")
    batches = train[np.stack([rows(step, seed=seed)[0] for step in range(config.steps)])]
    named = ("model", "optimizer", "head", "prompt")
    spec = FrozenConfigDict({name: config[name] for name in named})
    hyper = {k: config[k] for k in ("learning_rate", "epsilon")}
    nll, last = jax.device_get(_train(spec, hyper, fold_in(key, "train"), batches, test))
    endless = np.array([np.mean(last > limit) for limit in LIMITS])
    return {
        "nll": nll,
        "endless": endless,
        "endless_at_last": endless[-1],
        "limit": np.array(LIMITS),
    }


@functools.lru_cache(maxsize=4)  # the arms of a seed see the same text
def _lines(split, split_seed, length):
    """Lines of 16 bytes and more, with their end, ``[lines, length]``; 0 beyond it."""
    text = data.load("text:stdlib", split, length=256, split_seed=split_seed).source["tokens"]
    lines = bytes(text.astype(np.uint8).ravel()).split(b"\n")
    lines = [line.strip() for line in lines]
    lines = [line for line in lines if 16 <= len(line) < length and line.isascii()]
    lines = [np.frombuffer(line + b"\n", np.uint8) for line in lines]
    return np.stack([np.pad(line, (0, length - len(line))) for line in lines]).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)  # the specs: compiled once for all seeds and rates
def _train(spec, hyper, key, batches, test):
    model = instantiate(spec.model, "model")

    def log_probs(logits, positions):
        if not spec.head:
            return logits
        head = getattr(nn, f"{spec.head}_log_probs")
        return head(logits, eos=END, epsilon=hyper["epsilon"], positions=positions)

    def loss(logits, lines):
        """Of every byte of a line but the first, the mean over its length."""
        targets = lines[:, 1:]
        at = jnp.arange(targets.shape[1]) + 1 - (spec.prompt - 1)
        each = losses.cross_entropy(log_probs(logits[:, :-1], at), targets)
        kept = (targets > 0) & (at > 0)
        return jnp.where(kept, each, 0.0).sum(-1) / jnp.maximum(kept.sum(-1), 1)

    rate = hyper["learning_rate"]
    program = compose(
        model=Net(model, ("lines",)),
        loss=Term(loss, ("logits", "lines")),
        optimizer=instantiate({**spec.optimizer, "learning_rate": lambda _: rate}, "optimizer"),
    )
    state = program.init(key, {"lines": batches[0]})
    state, _ = jax.lax.scan(
        lambda s, lines: (program.train_step(s, {"lines": lines})[0], None), state, batches
    )
    params = {"params": program.params(state)["model"]}
    nll = program.loss(state, {"lines": test})[0]

    def write(carry, t):
        """The next byte of every line, the t-th after its prompt, and when it came to its end."""
        token, memory, rest, last = carry
        outputs = model.apply(params, token[:, None], memory)
        found = log_probs(outputs["logits"], t[None])[:, 0]
        if spec.head == "self_terminating":  # whose product goes over all bytes so far
            others = found.at[:, END].set(-jnp.inf) + rest[:, None]
            rest = jax.nn.logsumexp(others, -1)
            found = others.at[:, END].set(jnp.log(-jnp.expm1(rest)))
        token = jnp.argmax(found, -1).astype(jnp.int32)
        last = jnp.where(token == END, jnp.minimum(last, t), last)
        return (token, outputs["carry"], rest, last), None

    start = model.apply(params, test[:, : spec.prompt - 1])["carry"]
    never = jnp.full(len(test), LIMITS[-1] + 1)
    carry = test[:, spec.prompt - 1], start, jnp.zeros(len(test)), never
    (*_, last), _ = jax.lax.scan(write, carry, jnp.arange(1, LIMITS[-1] + 1))
    return nll, last
