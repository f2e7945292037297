"""Contrastive losses of views that carry labels."""

import chex
import jax
import jax.numpy as jnp

from tinker.numerics import check_choice, l2_normalize

VARIANTS = ("out", "in")


def supcon(z, labels=None, *, temperature=0.1, variant="out", where=None):
    r"""Supervised contrastive loss: all of a class are positives, all else in the batch negatives.

    .. math:: \ell^{out}_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)} \log
                  \frac{\exp(z_i \cdot z_p / \tau)}{\sum_{a \ne i} \exp(z_i \cdot z_a / \tau)},
              \qquad
              \ell^{in}_i = -\log \frac{1}{|P(i)|} \sum_{p \in P(i)}
                  \frac{\exp(z_i \cdot z_p / \tau)}{\sum_{a \ne i} \exp(z_i \cdot z_a / \tau)}

    with rows scaled to unit length. P(i) are the others of i's class, i's other views among them;
    without labels these views alone, which is SimCLR's loss. The authors' code multiplies by the
    temperature (HobbitLong/SupContrast by :math:`\tau / 0.07`), which this does not.

    Args:
      z: Projections, ``[batch, dim]`` or ``[batch, views, dim]``, any float dtype; computed in
        float32 at least. A zero row stays zero.
      labels: Class indices, ``[batch]``, integers, or None: every example a class of its own.
      temperature: :math:`\tau` > 0.
      variant: ``"out"`` or ``"in"``: where the sum over positives stands, as seen from the log.
      where: Optional boolean ``[batch]``; False rows return 0 and are nobody's positive or
        negative.

    Returns:
      Loss per example in nats, ``[batch]``, float32, the mean over its views as anchors. An anchor
      without a positive counts as 0, in this mean and in the batch's. Couples the batch; takes
      memory for ``(batch * views)²`` scores.

    Raises:
      UserError: An unknown variant.

    Source: Supervised Contrastive Learning, NeurIPS 2020, arXiv:2004.11362, Eq. 2 (out) and Eq. 3
      (in).
    """
    check_choice("variant", variant, VARIANTS)
    chex.assert_rank(z, {2, 3})
    z = z[:, None] if z.ndim == 2 else z
    batch, views, dim = z.shape
    labels = jnp.arange(batch) if labels is None else labels
    chex.assert_shape(labels, (batch,))
    labels = jnp.repeat(labels, views)
    z = l2_normalize(z.reshape(batch * views, dim))
    scores = jnp.matmul(z, z.T, precision="highest") / temperature

    others = ~jnp.eye(batch * views, dtype=bool)
    if where is not None:
        kept = jnp.repeat(where, views)
        others &= kept & kept[:, None]
    positives = others & (labels == labels[:, None])
    count = positives.sum(-1)
    alone = count == 0  # its sums run over everything, so as to be finite, and are not used
    total = jax.nn.logsumexp(scores, -1, where=others | alone[:, None])
    if variant == "out":
        drawn = jnp.where(positives, scores, 0.0).sum(-1)  # mutate: equivalent, it is symmetric
        drawn = drawn / jnp.maximum(count, 1)
    else:
        drawn = jax.nn.logsumexp(scores, -1, where=positives | alone[:, None])
        drawn = drawn - jnp.log(jnp.maximum(count, 1))
    return jnp.where(alone, 0.0, total - drawn).reshape(batch, views).mean(1)


supcon.batch_coupled = True
