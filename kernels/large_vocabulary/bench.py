"""The loss against optax's on logits: ``python -m tinker.kernels.large_vocabulary.bench``."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tinker import kernels
from tinker.kernels.benchmarking import Case, main


def cases():
    """Forward, and with gradients, as large as the device takes; then the memory of a real size."""
    if jax.default_backend() == "cpu":
        sizes = [(256, 256, 8192), (1024, 256, 16384), (1024, 512, 32768)]
        dtypes = [jnp.float32]
    else:
        sizes = [(8192, 2048, 32768), (8192, 2304, 131072)]
        dtypes = [jnp.float32, jnp.bfloat16]
    made = []
    for dtype in dtypes:
        for n, d, vocab in sizes:
            rng = np.random.default_rng(0)
            hidden = jnp.asarray(rng.normal(size=(n, d)), dtype)
            weight = jnp.asarray(rng.normal(size=(vocab, d)) * d**-0.5, dtype)
            args = hidden, weight, jnp.asarray(rng.integers(0, vocab, n))
            made += [_case(gradients, args) for gradients in (False, True)]
    for dtype in (jnp.float32, jnp.bfloat16):
        shape = jax.ShapeDtypeStruct
        args = shape((8192, 512), dtype), shape((131072, 512), dtype), shape((8192,), jnp.int32)
        made.append(_case(True, args)._replace(args=None, shapes=args))
    return made


def _case(gradients, args):
    functions = [
        jax.value_and_grad(fn, (0, 1)) if gradients else fn
        for fn in (
            lambda *a: kernels.linear_cross_entropy(*a).mean(),
            lambda *a: _of_logits(*a).mean(),
        )
    ]
    (n, d), vocab = args[0].shape, len(args[1])
    return Case(
        name="large_vocabulary, forward" + " and backward" * gradients,
        shape=f"{n} x {vocab}, d {d}, {args[0].dtype}",
        ours=functions[0],
        peers={"optax": functions[1]},
        args=args,
    )


def _of_logits(hidden, weight, labels):
    logits = jnp.einsum("nd,vd->nv", hidden, weight, preferred_element_type=jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


if __name__ == "__main__":
    main([cases])
