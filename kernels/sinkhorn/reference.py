"""A Sinkhorn step as its equation says, with the cost of every pair."""

import jax
import jax.numpy as jnp

from tinker.kernels.sparse_ot.reference import cost_matrix


def update(potential, cost, weights, *, epsilon):
    """What :func:`tinker.kernels.sinkhorn_update` computes."""
    scores = (potential - cost_matrix(cost)) / epsilon + jnp.log(weights)
    return -epsilon * jax.nn.logsumexp(scores, 1)
