"""The loss as its equation says, with the logits."""

import jax
import jax.numpy as jnp

from tinker.kernels.tiled_matmul.reference import scores


def cross_entropy(hidden, weight, labels, *, z_loss=0.0, where=None, **options):
    """What :func:`tinker.kernels.linear_cross_entropy` computes."""
    logits = scores(hidden.reshape(-1, hidden.shape[-1]), weight, **options)
    logits = logits.reshape(*labels.shape, -1)
    lse = jax.nn.logsumexp(logits, -1)
    labels = labels if where is None else jnp.where(where, labels, 0)
    loss = lse - jnp.take_along_axis(logits, labels[..., None], -1)[..., 0] + z_loss * lse**2
    return loss if where is None else jnp.where(where, loss, 0.0)
