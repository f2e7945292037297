"""The losses as their equations say, with all scores."""

import jax
import jax.numpy as jnp


def softmax(x, y, *, symmetric=False, where=None, precision=None):
    """What :func:`tinker.kernels.contrastive_softmax` computes."""
    z = _scores(x, y, precision)
    # A row's own score always counts: an empty sum's gradient would not be 0.
    kept = None if where is None else where | jnp.eye(len(z), dtype=bool)
    loss = jax.nn.logsumexp(z, 1, where=kept)
    if symmetric:
        loss = (loss + jax.nn.logsumexp(z, 0, where=None if kept is None else kept.T)) / 2
    loss -= jnp.diagonal(z)
    return loss if where is None else jnp.where(where, loss, 0.0)


def sigmoid(x, y, bias, *, where=None, precision=None):
    """What :func:`tinker.kernels.contrastive_sigmoid` computes."""
    z = _scores(x, y, precision) + bias
    terms = jax.nn.softplus(jnp.where(jnp.eye(len(z), dtype=bool), -z, z))
    if where is not None:
        terms = jnp.where(where & where[:, None], terms, 0.0)
    return terms.sum(1)


def _scores(x, y, precision):
    dtype = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
    return jnp.einsum("nd,md->nm", x, y, precision=precision, preferred_element_type=dtype)
