"""Training programs that only tests name: each noun of the design, used through the trainer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from tinker import losses, optim, train


def base(**changes):
    """A small job on the digits; ``changes`` by top-level key."""
    config = train.default_config()
    config.steps = 6
    config.batch_size = 32
    config.log_every = 3
    config.checkpoint_every = 3
    config.eval_splits = ()
    config.data = {"source": "digits"}
    config.model = {"fn": "tinker.models:MLP", "hidden": (16,), "inputs": ("image",)}
    config.loss = {"fn": "tinker.losses:cross_entropy", "inputs": ("logits", "label")}
    config.optimizer = {"fn": "optax:adam", "learning_rate": 1e-3}
    for key, value in changes.items():
        config[key] = value
    return config


def spec(name, **keywords):
    return {"fn": f"{__name__}:{name}", **keywords}


SUPERVISED = {"fn": "tinker.losses:cross_entropy", "inputs": ("logits", "label")}


# An exponential moving average as a teacher: memory, and apply at other parameters.


def mean_teacher(logits, image, apply, memory):
    teacher = apply(image, params=memory.ema, train=False)["logits"]
    return jnp.square(logits - jax.lax.stop_gradient(teacher)).mean(-1)


def ema_teacher():
    consistency = spec("mean_teacher", inputs=("logits", "image", "apply", "memory"), scale=0.5)
    memory = {"fn": "tinker.optim:parameter_average", "decay": 0.9}
    return base(loss=[SUPERVISED, consistency], memory=memory)


# A frozen network of another architecture.


def soft_cross_entropy(logits, teacher, *, temperature=2.0):
    return optax.safe_softmax_cross_entropy(
        logits / temperature, jax.nn.softmax(teacher / temperature)
    )


def frozen_teacher():
    teacher = {"fn": "tinker.models:CNN", "widths": (4, 8), "inputs": ("image",), "frozen": True}
    distill = spec("soft_cross_entropy", inputs=("logits", "teacher/logits"))
    return base(loss=[SUPERVISED, distill], nets={"teacher": teacher})


# A learnable number, and a loss that couples the batch.


class Temperature(nn.Module):
    start: float = 0.1

    @nn.compact
    def __call__(self):
        return jnp.exp(self.param("log", lambda _: jnp.log(self.start)))


def tempered_pairs(embeddings, temperature, *, where=None):
    return losses.info_nce(embeddings, embeddings[::-1], temperature=temperature, where=where)


tempered_pairs.batch_coupled = True


def learnable_temperature():
    nets = {"temperature": spec("Temperature", start=0.2, inputs=())}
    return base(loss=spec("tempered_pairs", inputs=("embeddings", "temperature")), nets=nets)


# What each worker did not send is remembered and added to its next gradient.


def sign_with_memory(*, workers):
    def init(trainable):
        return jax.tree.map(lambda x: jnp.zeros((workers, *x.shape), x.dtype), trainable)

    def step(loss_fn, error, trainable, key, batch):
        keys = jax.random.split(key, workers)
        grads, aux = optim.per_part_gradients(loss_fn, trainable, keys, batch)
        wanted = jax.tree.map(jnp.add, grads, error)
        sent = jax.tree.map(lambda x: jnp.sign(x) * jnp.abs(x).mean(), wanted)
        mean = jax.tree.map(lambda x: x.mean(0), sent)
        return mean, aux, jax.tree.map(jnp.subtract, wanted, sent)

    return optim.Gradient(init, step, workers=workers)


def worker_memory():
    return base(gradient=spec("sign_with_memory"), workers=4)


# Parametrizations: one with an update, and a stack.


def gradual_pruning():
    pruned = {"fn": "tinker.compress:gradually_pruned", "sparsity": 0.8, "end": 5, "every": 2}
    return base(parametrization=pruned)


def quantized_lora():
    def quantizer():
        return {"fn": "tinker.compress:quantize", "bits": 4}

    frozen = {"fn": "tinker.compress:frozen", "parametrization": quantizer()}
    low_rank = {"fn": "tinker.compress:lora", "rank": 2, "full": "head"}
    return base(parametrization=[frozen, low_rank])


# Each term's gradient by itself: the smaller is projected off the larger where they conflict.


def without_conflict(loss_fn, trainable, key, batch):
    def terms(trainable):
        aux = loss_fn(trainable, key, batch)[1]
        return aux["losses"], aux

    values, pull, aux = jax.vjp(terms, trainable, has_aux=True)
    one_hot = lambda name: {n: jnp.float32(n == name) for n in values}  # noqa: E731
    first, second = (pull(one_hot(name))[0] for name in sorted(values))
    dot = optax.tree.vdot(first, second)
    share = jnp.minimum(dot, 0.0) / jnp.maximum(optax.tree.vdot(first, first), 1e-12)
    return jax.tree.map(lambda a, b: a + b - share * a, first, second), aux


def term_gradients():
    other = {"fn": "tinker.losses:focal", "inputs": ("logits", "label"), "scale": 0.5}
    return base(loss=[SUPERVISED, other], gradient=spec("without_conflict"))


# A model of two inputs.


class Pairwise(nn.Module):
    @nn.compact
    def __call__(self, left, right):
        both = jnp.concatenate([left.reshape(len(left), -1), right.reshape(len(right), -1)], -1)
        return {"logits": nn.Dense(10)(nn.tanh(nn.Dense(8)(both)))}


def two_inputs():
    augment = [{"fn": "tinker.data:gaussian_noise", "scale": 0.1}]
    data = {"source": "digits", "views": 2, "augment": augment}
    return base(model=spec("Pairwise", inputs=("image/0", "image/1")), data=data)


# A second stream, unlabelled.


def sharpened(apply, images):
    logits = apply(images)["logits"]
    return -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), -1)


def two_streams():
    streams = {"unlabeled": {"source": "digits", "split_seed": 1, "batch_size": 48}}
    entropy = spec("sharpened", inputs=("apply", "unlabeled/image"), scale=0.1)
    return base(loss=[SUPERVISED, entropy], data={"source": "digits", "streams": streams})


RESUMED = (
    ema_teacher,
    frozen_teacher,
    learnable_temperature,
    worker_memory,
    gradual_pruning,
    quantized_lora,
    term_gradients,
    two_inputs,
    two_streams,
)


# What must be refused before anything is compiled.


def coupled_accumulation():
    config = learnable_temperature()
    config.accumulate = 2
    return config


def per_example_with_batch_norm():
    model = {"fn": "tinker.models:ResNet", "norm": "batch", "inputs": ("image",)}
    gradient = {"fn": "tinker.optim:clipped_per_example", "max_norm": 1.0}
    return base(model=model, gradient=gradient)
