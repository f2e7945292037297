"""A small training job for the tests of the loop: digits through one hidden layer."""

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from tinker import losses, metrics, train


class Net(nn.Module):
    width: int = 32
    dropout: float = 0.1

    @nn.compact
    def __call__(self, image, *, train=False):
        x = image.reshape(image.shape[0], -1)
        x = nn.relu(nn.Dense(self.width)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return {"logits": nn.Dense(10)(x)}


def spoiled_loss(logits, label, step, *, at):
    """Cross-entropy that is NaN at one step."""
    return jnp.where(step == at, jnp.nan, losses.cross_entropy(logits, label))


def macro_accuracy():
    """The mean of the classes' accuracies: sums over batches and a finish."""

    def sums(logits, label, where):
        weight = (label[:, None] == jnp.arange(10)) & where[:, None]
        right = (logits.argmax(-1) == label)[:, None]
        return (weight & right).sum(0), weight.sum(0)

    return metrics.SplitSums(sums, lambda total: (total[0] / total[1]).mean())


def largest_margin(logits, label):
    """A function of a whole split."""
    assert len(logits) == len(label)
    return (logits.max(-1) - logits.mean(-1)).max()


largest_margin.whole_split = True


def mean_logit(logits):
    """No metric: it loses the examples."""
    return logits.mean()


def tiny(**changes):
    """The job's config; ``changes`` are its top-level keys, or dotted ones."""
    config = train.default_config()
    config.model = ml_collections.ConfigDict({"fn": "tests.train.tiny:Net"})
    config.optimizer = ml_collections.ConfigDict({"fn": "optax:adam", "learning_rate": 3e-3})
    config.data = ml_collections.ConfigDict({"source": "digits"})
    config.update(steps=40, batch_size=64, log_every=10, eval_every=20, checkpoint_every=10)
    return train.override(config, changes)


def bits(state):
    """A state as ``{path: (dtype, shape, bytes)}``, to compare bit for bit."""
    import jax

    from tinker.train.checkpoints import flatten

    flat = jax.device_get(flatten(state))
    return {path: (str(x.dtype), x.shape, x.tobytes()) for path, x in flat.items()}


def rows(workdir):
    """The rows of a run's metrics.jsonl, without their timing."""
    import json

    from tinker.train.reporting import TIMING

    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]
