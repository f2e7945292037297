"""Contrastive losses: of matching rows, and of views that carry labels."""

import chex
import jax
import jax.numpy as jnp

from tinker.kernels import contrastive_sigmoid, contrastive_softmax
from tinker.numerics import check_choice, l2_normalize, soft_top_k

VARIANTS = ("out", "in")


def info_nce(
    queries,
    keys,
    *,
    temperature=0.1,
    symmetric=False,
    where=None,
    axis=None,
    precision="highest",
    implementation=None,
):
    r"""The contrastive loss of matching rows, every other row a negative.

    .. math:: \ell_i = -\log \frac{\exp(\langle q_i, k_i \rangle / \tau)}
                                  {\sum_j \exp(\langle q_i, k_j \rangle / \tau)}

    with q and k scaled to unit length; or, symmetric, the mean of that and of the same with q and k
    exchanged, which is CLIP's loss. A zero row stays zero. Of large batches the scores are never
    held, see :func:`tinker.kernels.contrastive_softmax`.

    Args:
      queries: q, ``[batch, dim]``, any float dtype; computed in float32 at least.
      keys: k, ``[batch, dim]``; row i matches query i.
      temperature: :math:`\tau` > 0, a number or ``[]``; it may be learned, as the output of a
        network such as :class:`tinker.nn.LearnedScalar`.
      symmetric: Whether keys look for their queries too.
      where: Optional boolean ``[batch]``; False rows return 0 and are nobody's negative.
      axis: None, or the axis (or axes) of the mesh around which blocks of rows go in a ring, under
        ``with jax.set_mesh(mesh)``: memory of a device is then that of its rows.
      precision: Of the scores, as in ``jax.lax.dot``.
      implementation: See :mod:`tinker.kernels`.

    Returns:
      Loss per query in nats, ``[batch]``, float32. Couples the batch.

    Raises:
      UserError: An unknown implementation, or an axis that the mesh lacks or cannot split by.

    Source: Representation Learning with Contrastive Predictive Coding, 2018, arXiv:1807.03748,
      Eq. 4, with the cosine similarity of SimCLR; in tiles and rings Breaking the Memory Barrier:
      Near Infinite Batch Size Scaling for Contrastive Loss, 2024, arXiv:2410.17243, Section 3.
    """
    options = {"axis": axis, "precision": precision, "implementation": implementation}
    queries, keys = l2_normalize(queries) / temperature, l2_normalize(keys)
    return contrastive_softmax(queries, keys, symmetric=symmetric, where=where, **options)


info_nce.batch_coupled = True


def siglip(
    x,
    y,
    *,
    temperature=0.1,
    bias=-10.0,
    where=None,
    axis=None,
    precision="highest",
    implementation=None,
):
    r"""Logistic regression of whether rows match, of all pairs in the batch.

    .. math:: \ell_i = -\sum_j \log \sigma\big(s_{ij} (\langle x_i, y_j \rangle / \tau + b)\big),
              \qquad s_{ij} = 1 \text{ where } i = j, \text{ else } -1

    with x and y scaled to unit length. A zero row stays zero. Temperature and bias are learned:
    the paper's t' is :math:`-\log \tau`, the logarithm of which :class:`tinker.nn.LearnedScalar`
    learns, and starts at log 10 as does the default. Its bias starts at -10, for batches of
    thousands; at -log(batch - 1) the matching pairs and all others pull alike, and the authors'
    configuration for batches of 512 has -2.71.

    Args:
      x: ``[batch, dim]``, any float dtype; computed in float32 at least.
      y: ``[batch, dim]``; row i matches row i of x.
      temperature: :math:`\tau` > 0, a number or ``[]``.
      bias: b, a number or ``[]``.
      where: Optional boolean ``[batch]``; False rows return 0 and are in no pair.
      axis: As for :func:`info_nce`.
      precision: Of the scores, as in ``jax.lax.dot``.
      implementation: See :mod:`tinker.kernels`.

    Returns:
      Loss per row of x in nats, summed over all rows of y, ``[batch]``, float32. Couples the batch.

    Raises:
      UserError: An unknown implementation, or an axis that the mesh lacks or cannot split by.

    Source: Sigmoid Loss for Language Image Pre-Training, ICCV 2023, arXiv:2303.15343, Algorithm 1.
    """
    options = {"axis": axis, "precision": precision, "implementation": implementation}
    return contrastive_sigmoid(
        l2_normalize(x) / temperature, l2_normalize(y), bias, where=where, **options
    )


siglip.batch_coupled = True


def multi_positive_cross_entropy(
    scores, positives, *, candidates=None, margin=0.0, decoupled=False
):
    r"""Cross-entropy of finding each of a row's positives among its candidates, on average.

    .. math:: \ell_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \log
                  \frac{e^{s_{ip} - m}}{e^{s_{ip} - m} + \sum_{a \in D_{ip}} e^{s_{ia} - m_a}}

    D are the row's other candidates and positives; decoupled, the candidates that are no positives,
    so that positives do not compete. The margin m is taken from the scores of positives, above the
    line and below. It is what the losses of pairs are made of: of one positive it is InfoNCE, of a
    class's others, which they are each other's candidates too, supervised contrastive learning; a
    queue or a table of labels is so many columns more.

    Args:
      scores: s, ``[..., columns]``, any float dtype; computed in float32 at least. What is divided
        by a temperature is divided before.
      positives: Boolean, ``[..., columns]``.
      candidates: Boolean, ``[..., columns]``; True by default. Positives need not be among them.
      margin: m, in the units of the scores: divided by the temperature, as they are.
      decoupled: Whether a row's other positives are left out below the line.

    Returns:
      Loss per row in nats, ``[...]``, float32; 0 for a row without a positive.

    Source: Supervised Contrastive Learning, NeurIPS 2020, arXiv:2004.11362, Eq. 2; decoupled,
      Dual-Encoders for Extreme Multi-Label Classification, ICLR 2024, arXiv:2310.10636.
    """
    scores, positives = jnp.broadcast_arrays(scores, positives)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    scores = scores - margin * positives
    count = positives.sum(-1)
    alone = count == 0  # its sums run over everything, so as to be finite, and are not used
    below = positives if candidates is None else candidates | positives
    below = jnp.ones_like(positives) if candidates is None else below
    if decoupled:
        below = below & ~positives
        empty = ~below.any(-1)
        rest = jax.nn.logsumexp(scores, -1, where=below | empty[..., None])
        rest = jnp.where(empty, -jnp.inf, rest)[..., None]
        each = jnp.where(positives, jax.nn.softplus(rest - scores), 0.0)
        loss = each.sum(-1) / jnp.maximum(count, 1)
    else:
        total = jax.nn.logsumexp(scores, -1, where=below | alone[..., None])
        found = jnp.where(positives, scores, 0.0).sum(-1) / jnp.maximum(count, 1)
        loss = total - found
    return jnp.where(alone, 0.0, loss)


def supcon(z, labels=None, *, temperature=0.1, variant="out", margin=0.0, where=None):
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
      margin: Taken from the cosines of positives, above the line and below; 0.1 without labels is
        the additive margin of NT-Xent-AM.
      where: Optional boolean ``[batch]``; False rows return 0 and are nobody's positive or
        negative.

    Returns:
      Loss per example in nats, ``[batch]``, float32, the mean over its views as anchors. An anchor
      without a positive counts as 0, in this mean and in the batch's. Couples the batch; takes
      memory for ``(batch * views)²`` scores.

    Raises:
      UserError: An unknown variant.

    Source: Supervised Contrastive Learning, NeurIPS 2020, arXiv:2004.11362, Eq. 2 (out) and Eq. 3
      (in); the margin as in Additive Margin in Contrastive Self-Supervised Frameworks to Learn
      Discriminative Speaker Representations, Odyssey 2024, arXiv:2404.14913.
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
    margin = margin / temperature
    if variant == "out":
        loss = multi_positive_cross_entropy(scores, positives, candidates=others, margin=margin)
    else:
        alone = ~positives.any(-1)  # its sums run over everything, so as to be finite
        scores = scores - margin * positives
        total, drawn = (
            jax.nn.logsumexp(scores, -1, where=among | alone[:, None])
            for among in (others, positives)
        )
        loss = total - drawn + jnp.log(jnp.maximum(positives.sum(-1), 1))
        loss = jnp.where(alone, 0.0, loss)
    return loss.reshape(batch, views).mean(1)


supcon.batch_coupled = True


def soft_top_k_loss(scores, positives, *, k=5, alpha=2.0):
    r"""How likely a row's positives are among its top k, by a smooth top-k.

    .. math:: \ell_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \log \zeta_{ip}, \qquad
              \zeta_{ij} = \sigma\big(\alpha (s_{ij} + t_i)\big), \qquad
              \sum_j \zeta_{ij} = k

    Args:
      scores: s, ``[..., columns]``, any float dtype; computed in float32 at least. The authors'
        are cosines over a temperature of 0.05.
      positives: Boolean, ``[..., columns]``. What is neither positive nor a rival, such as
        positives that were not sampled, has a score far below all others.
      k: 0 < k < columns, a number or ``[...]``.
      alpha: :math:`\alpha` > 0, how sharply the top is cut.

    Returns:
      Loss per row in nats, ``[...]``, float32; 0 for a row without a positive.

    Source: Dual-Encoders for Extreme Multi-Label Classification, ICLR 2024, arXiv:2310.10636,
      SoftTop-k; the logarithm of the operator, k = 5 and alpha = 2 as in nilesh2797/DEXML.
    """
    scores, positives = jnp.broadcast_arrays(scores, positives)
    log_zeta = soft_top_k(scores, k, alpha=alpha, log=True)
    total = jnp.where(positives, log_zeta, 0.0).sum(-1)
    return -total / jnp.maximum(positives.sum(-1), 1)
