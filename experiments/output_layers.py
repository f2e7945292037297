"""What a step of an output layer of many classes costs, dense or in factors."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from tinker import losses
from tinker.numerics import fold_in


def dense(loss):
    """A step of gradient descent on a layer of scores, by differentiating all of them."""

    def step(weights, hidden, label, learning_rate):
        def of(weights, hidden):
            return loss(jnp.dot(weights, hidden, precision="highest"), label)

        value, (d_weights, d_hidden) = jax.value_and_grad(of, (0, 1))(weights, hidden)
        return weights - learning_rate * d_weights, value, d_hidden

    return step


LAYERS = {
    "cross_entropy": (dense(losses.cross_entropy), lambda weights: weights),
    "z_loss": (dense(losses.spherical_z_loss), lambda weights: weights),
    "factored_z_loss": (losses.spherical_step, losses.spherical_output),
}


def run(config, key):
    """Compiles the step for each number of classes, and times it.

    Args:
      config: ``layer`` (a key of ``LAYERS``), ``width`` d, ``classes`` (numbers of them, rising)
        and ``repeats`` of the timing.
      key: Of weights, hidden values and labels.

    Returns:
      ``classes``; ``flops``, XLA's count, and ``seconds_per_step``, the least of the repeats, of
      each; ``slope``, with which power of the classes the operations grow; ``flops_at_most`` and
      ``seconds_at_most``, at the last.
    """
    step, prepare = LAYERS[config.layer]
    flops, seconds = [], []
    hidden = jax.random.normal(fold_in(key, "hidden"), (config.width,))
    for classes in config.classes:
        weights = jax.random.normal(fold_in(key, "weights"), (classes, config.width)) * 0.1
        layer, label = jax.jit(prepare)(weights), jnp.int32(classes // 2)
        compiled = jax.jit(step, donate_argnums=0).lower(layer, hidden, label, 1e-3).compile()
        flops.append(compiled.cost_analysis()["flops"])
        layer = jax.tree.map(jnp.copy, layer)  # no two leaves may be one buffer
        taken = []
        for _ in range(config.repeats):
            start = time.perf_counter()
            layer, _, slope = compiled(layer, hidden, label, 1e-3)
            jax.block_until_ready((layer, slope))
            taken.append(time.perf_counter() - start)
        seconds.append(min(taken))
    slope = np.polyfit(np.log(config.classes), np.log(flops), 1)[0]
    return {
        "classes": np.array(config.classes),
        "flops": np.array(flops),
        "seconds_per_step": np.array(seconds),
        "slope": slope,
        "flops_at_most": flops[-1],
        "seconds_at_most": seconds[-1],
    }
