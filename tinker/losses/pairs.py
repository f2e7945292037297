"""Losses over all pairs of a batch."""

import chex
import jax
import jax.numpy as jnp


def info_nce(queries, keys, *, temperature=0.1, where=None):
    r"""The contrastive loss of matching rows, every other row a negative.

    .. math:: \ell_i = -\log \frac{\exp(\langle q_i, k_i \rangle / \tau)}
                                  {\sum_j \exp(\langle q_i, k_j \rangle / \tau)}

    with q and k scaled to unit length. A zero row stays zero.

    Args:
      queries: q, ``[batch, dim]``, any float dtype; computed in float32 at least.
      keys: k, ``[batch, dim]``; row i matches query i.
      temperature: :math:`\tau` > 0.
      where: Optional boolean ``[batch]``; False rows return 0 and are nobody's negative.

    Returns:
      Loss per query in nats, ``[batch]``, float32. Couples the batch.

    Source: Representation Learning with Contrastive Predictive Coding, 2018, arXiv:1807.03748,
      Eq. 4, with the cosine similarity of SimCLR.
    """
    chex.assert_equal_shape([queries, keys])
    dtype = jnp.promote_types(queries.dtype, jnp.float32)

    def unit(x):
        x = x.astype(dtype)
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))

    scores = unit(queries) @ unit(keys).T / temperature
    if where is not None:
        scores = jnp.where(where[None, :] | jnp.eye(len(scores), dtype=bool), scores, -jnp.inf)
    loss = jax.nn.logsumexp(scores, -1) - jnp.diagonal(scores)
    return loss if where is None else jnp.where(where, loss, 0.0)


info_nce.batch_coupled = True
