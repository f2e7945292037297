"""Contrastive losses in tiles against all scores at once: ``tinker bench kernels/contrastive``."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tinker.kernels.benchmarking import Case, main
from tinker.kernels.contrastive import api, reference

FORMS = {
    "softmax": (api.contrastive_softmax, reference.softmax, {}),
    "softmax both ways": (api.contrastive_softmax, reference.softmax, {"symmetric": True}),
    "sigmoid": (api.contrastive_sigmoid, reference.sigmoid, {"bias": -10.0}),
}


def cases():
    """Value and gradient of each form, as large as the device takes, and the memory of larger."""
    on_cpu = jax.default_backend() == "cpu"
    timed = [(4096, 64), (4096, 512)] if on_cpu else [(8192, 512), (32768, 512)]
    for name, (ours, plain, options) in FORMS.items():
        functions = [_with_gradient(fn, options) for fn in (ours, plain)]
        for n, d in [*timed, (65536, 512)]:
            shapes = [jax.ShapeDtypeStruct((n, d), jnp.float32)] * 2
            yield Case(
                name=f"contrastive {name}, forward and backward",
                shape=f"{n} x {d}",
                ours=functions[0],
                peers={"all scores": functions[1]},
                args=_unit_rows(n, d) if (n, d) in timed else None,
                shapes=shapes,
            )


def _with_gradient(fn, options):
    def loss(x, y):
        return functools.partial(fn, **options)(x / 0.07, y).mean()

    return jax.value_and_grad(loss, (0, 1))


def _unit_rows(n, d):
    rows = np.random.default_rng(0).normal(size=(2, n, d))
    return list((rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32))


if __name__ == "__main__":
    main([cases])
