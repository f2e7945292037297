"""Losses of embeddings that are compared by distance: margins on cosines, pairs, and mining.

Losses of pairs are functions of a row of similarities and two masks, which of its columns are
positives and which negatives. :func:`of_pairs` takes the other rows of a batch for columns,
:func:`of_prototypes` a table with a row for each class, and :func:`mine` leaves some out.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from tinker.numerics import check_choice, cosine_similarity, euclidean

EDGE = 1e-6  # how near cosines come to -1 and 1, where the angle has no derivative


def margin_cosines(cosines, labels, *, factor=1.0, angle=0.0, additive=0.0):
    r"""Makes the cosine to an example's own class harder to reach, by three margins.

    .. math:: c_y \leftarrow \psi(m_1 \theta_y + m_2) - m_3, \qquad \theta_y = \arccos c_y, \qquad
              \psi(\varphi) = (-1)^k \cos \varphi - 2 k, \quad k = \lfloor \varphi / \pi \rfloor

    which is SphereFace for :math:`m_1 > 1`, ArcFace for :math:`m_2 > 0` and CosFace for
    :math:`m_3 > 0`. :math:`\psi` is the cosine up to :math:`\pi`, and falls on beyond it, as
    SphereFace has it for all three: ArcFace's code gives up the angle there, the equation turns.

    Args:
      cosines: c in [-1, 1], ``[..., classes]``, any float dtype; computed in float32 at least.
      labels: Class indices, ``[...]``.
      factor: :math:`m_1`, a number or ``[...]``.
      angle: :math:`m_2` in radians, a number or ``[...]``.
      additive: :math:`m_3`, a number or ``[...]``.

    Returns:
      The cosines with that of the label replaced, ``[..., classes]``, float32. Its gradient is
      zero where it is within 1e-6 of -1 or 1.

    Source: ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019,
      arXiv:1801.07698, Eq. 4; the continuation as in SphereFace: Deep Hypersphere Embedding for
      Face Recognition, CVPR 2017, arXiv:1704.08063.
    """
    chex.assert_equal_shape_prefix([cosines, labels], labels.ndim)
    cosines = jnp.asarray(cosines, jnp.promote_types(jnp.result_type(cosines), jnp.float32))
    own = jnp.take_along_axis(cosines, labels[..., None], -1)[..., 0]
    phi = factor * jnp.arccos(jnp.clip(own, EDGE - 1, 1 - EDGE)) + angle
    turns = jax.lax.stop_gradient(jnp.floor(phi / jnp.pi))
    own = jnp.where(turns % 2 == 0, 1.0, -1.0) * jnp.cos(phi) - 2 * turns - additive
    return jnp.where(labels[..., None] == jnp.arange(cosines.shape[-1]), own[..., None], cosines)


def margin_softmax(
    embeddings, prototypes, labels, *, temperature=1 / 64, factor=1.0, angle=0.0, additive=0.0
):
    r"""Cross-entropy of scaled cosines to a vector for each class, with margins on one's own.

    .. math:: \ell = -\log \mathrm{softmax}(c / \tau)_y

    with the cosines of :func:`margin_cosines`: NormFace without a margin, CosFace (AM-Softmax) with
    an additive one, ArcFace with an angle, SphereFace with a factor.

    Args:
      embeddings: ``[batch, dim]``, any float dtype; computed in float32 at least.
      prototypes: The classes' vectors, ``[classes, dim]``, such as :class:`tinker.nn.Prototypes`.
      labels: Class indices, ``[batch]``.
      temperature: :math:`\tau` > 0, the papers' 1 / s.
      factor: :math:`m_1`, a number or ``[batch]``.
      angle: :math:`m_2` in radians, a number or ``[batch]``; ArcFace's is 0.5.
      additive: :math:`m_3`, a number or ``[batch]``; CosFace's is 0.35.

    Returns:
      Loss per example in nats, ``[batch]``, float32. A zero row has a cosine of 0 to everything.

    Source: ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019,
      arXiv:1801.07698, Eq. 4.
    """
    chex.assert_equal_shape_prefix([embeddings, labels], 1)
    cosines = cosine_similarity(embeddings, prototypes)
    margins = {"factor": factor, "angle": angle, "additive": additive}
    logits = margin_cosines(cosines, labels, **margins) / temperature
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


class NormStatistics(NamedTuple):
    """A running mean and standard deviation of the lengths of embeddings."""

    mean: jax.Array
    std: jax.Array


def norm_statistics(statistics, embeddings, *, decay=0.99, where=None):
    r"""The running statistics of embeddings' lengths, with a batch more.

    .. math:: \mu \leftarrow d\, \mu + (1 - d)\, \mathrm{mean}_i \lVert z_i \rVert, \qquad
              \sigma \leftarrow d\, \sigma + (1 - d)\, \mathrm{std}_i \lVert z_i \rVert

    Args:
      statistics: A :class:`NormStatistics` of ``mean []`` and ``std []``, as
        :func:`tinker.optim.norm_memory` keeps them.
      embeddings: z, ``[batch, dim]``, any float dtype; lengths count as 0.001 to 100.
      decay: d in [0, 1]; 0 takes the batch's own.
      where: Optional boolean ``[batch]``: the rows that count.

    Returns:
      ``(NormStatistics, lengths [batch])``, float32, without gradient. The deviation is the
      unbiased one, and 0 of a single row; a batch in which no row counts changes nothing.

    Source: AdaFace: Quality Adaptive Margin for Face Recognition, CVPR 2022, arXiv:2204.00964,
      Section 3.2; the bounds as in mk-minchul/AdaFace.
    """
    z = jax.lax.stop_gradient(jnp.asarray(embeddings, jnp.float32))
    lengths = jnp.clip(jnp.sqrt(jnp.sum(z * z, -1)), 1e-3, 100.0)
    where = jnp.ones(lengths.shape, bool) if where is None else where
    count = where.sum()
    mean = jnp.sum(lengths, where=where) / jnp.maximum(count, 1)
    square = jnp.sum(jnp.square(lengths - mean), where=where) / jnp.maximum(count - 1, 1)
    found = NormStatistics(mean, jnp.sqrt(square))
    decay = jnp.where(count > 0, decay, 1.0)
    running = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, statistics, found)
    return NormStatistics(*running), lengths


def adaface(
    embeddings,
    prototypes,
    labels,
    statistics,
    *,
    margin=0.4,
    concentration=0.333,
    temperature=1 / 64,
    decay=0.99,
    where=None,
):
    r"""Margin softmax whose margins fit an example's quality, which its embedding's length tells.

    .. math:: q = \mathrm{clip}\Big(h \frac{\lVert z \rVert - \mu}{\sigma}, -1, 1\Big), \qquad
              m_2 = -m q, \qquad m_3 = m q + m

    which are the margins of :func:`margin_cosines`: ArcFace's for the worst, whose hard examples
    then weigh less, CosFace's for the average, and a negative angle for the best. No gradient goes
    through q. The statistics are those of memory with this batch among them, as in the authors'
    code, which clips the angles, where :func:`margin_cosines` continues them.

    Args:
      embeddings: z, ``[batch, dim]``, not of unit length; computed in float32.
      prototypes: The classes' vectors, ``[classes, dim]``.
      labels: Class indices, ``[batch]``.
      statistics: :class:`NormStatistics` of earlier batches, as :func:`tinker.optim.norm_memory`
        keeps them.
      margin: m.
      concentration: h: two thirds of the lengths are within h of the middle.
      temperature: :math:`\tau` > 0, the paper's 1 / s.
      decay: Of the statistics.
      where: Optional boolean ``[batch]``; False rows return 0 and do not count in the statistics.

    Returns:
      Loss per example in nats, ``[batch]``, float32. Couples the batch.

    Source: AdaFace: Quality Adaptive Margin for Face Recognition, CVPR 2022, arXiv:2204.00964,
      Section 3.2.
    """
    (mean, std), lengths = norm_statistics(statistics, embeddings, decay=decay, where=where)
    quality = jnp.clip(concentration * (lengths - mean) / (std + 1e-3), -1.0, 1.0)
    margins = {"angle": -margin * quality, "additive": margin * quality + margin}
    loss = margin_softmax(embeddings, prototypes, labels, temperature=temperature, **margins)
    return loss if where is None else jnp.where(where, loss, 0.0)


adaface.batch_coupled = True


def hardest_share(scores, candidates, *, share=0.1, largest=True):
    r"""A row's hardest candidates.

    Args:
      scores: ``[..., columns]``.
      candidates: Boolean, ``[..., columns]``.
      share: In (0, 1]: of n candidates :math:`\lceil` share n :math:`\rceil` are kept, and those
        level with the last of them.
      largest: Whether the hardest have the largest scores, as negatives, or the smallest.

    Returns:
      Boolean, ``[..., columns]``; none of a row without candidates.
    """
    scores, candidates = jnp.broadcast_arrays(scores, candidates)
    height = jnp.where(candidates, scores if largest else -scores, -jnp.inf)
    count = jnp.ceil(share * candidates.sum(-1, keepdims=True) - 1e-4).astype(jnp.int32)
    ordered = -jnp.sort(-height, -1)
    last = jnp.take_along_axis(ordered, jnp.maximum(count, 1) - 1, -1)
    return candidates & (height >= last)


def mine(scores, positives, negatives, *, positive="all", negative="all", margin=0.2):
    """Leaves the pairs of each row that are worth learning from.

    Args:
      scores: Similarities, ``[..., columns]``.
      positives: Boolean, ``[..., columns]``.
      negatives: Boolean, ``[..., columns]``.
      positive: "all", "hardest" (the least similar) or "easiest".
      negative: "all", "hardest" (the most similar) or "semi_hard": less similar than the least
        similar of the positives that are left, by up to the margin.
      margin: > 0, of semi-hard negatives alone.

    Returns:
      ``(positives, negatives)``, boolean, ``[..., columns]``. Of hardest ones there are several
      where they are level.

    Raises:
      UserError: An unknown kind.

    Source: FaceNet: A Unified Embedding for Face Recognition and Clustering, CVPR 2015,
      arXiv:1503.03832, Section 3.2 (semi-hard, there for each pair); In Defense of the Triplet Loss
      for Person Re-Identification, 2017, arXiv:1703.07737, Section 2 (hardest).
    """
    check_choice("positive", positive, ("all", "hardest", "easiest"))
    check_choice("negative", negative, ("all", "hardest", "semi_hard"))
    if positive != "all":
        largest = positive == "easiest"
        positives = hardest_share(scores, positives, share=1e-6, largest=largest)
    if negative == "hardest":
        negatives = hardest_share(scores, negatives, share=1e-6)
    elif negative == "semi_hard":
        last = jnp.where(positives, scores, jnp.inf).min(-1, keepdims=True)
        negatives = negatives & (scores < last) & (scores > last - margin)
    return positives, negatives


def triplet_loss(scores, positives, negatives, *, margin=0.2):
    r"""How far each positive is from being more similar than each negative by a margin.

    .. math:: \ell = \frac{1}{|P| |N|} \sum_{p \in P} \sum_{n \in N} \max(0, s_n - s_p + m)

    Args:
      scores: Similarities s, such as distances times -1, ``[..., columns]``, any float dtype;
        computed in float32 at least.
      positives: Boolean, ``[..., columns]``.
      negatives: Boolean, ``[..., columns]``.
      margin: m.

    Returns:
      Loss per row, ``[...]``, float32; 0 for a row without a triplet. Takes memory for columns²
      triplets of each row.

    Source: FaceNet: A Unified Embedding for Face Recognition and Clustering, CVPR 2015,
      arXiv:1503.03832, Eq. 2, in similarities and as a mean.
    """
    scores = jnp.asarray(scores, jnp.promote_types(jnp.result_type(scores), jnp.float32))
    triplets = positives[..., :, None] & negatives[..., None, :]
    each = jax.nn.relu(scores[..., None, :] - scores[..., :, None] + margin)
    total = jnp.sum(each, (-2, -1), where=triplets)
    return total / jnp.maximum(triplets.sum((-2, -1)), 1)


def unified_pair_loss(scores, positives, negatives, *, margin=0.25, gamma=80.0):
    r"""A smooth form of the most violated of all triplets.

    .. math:: \ell = \log \Big[1 + \sum_{n \in N} \sum_{p \in P} e^{\gamma (s_n - s_p + m)}\Big]

    Of one positive it is AM-Softmax over the classes, see :func:`of_prototypes`; divided by
    :math:`\gamma`, the triplet loss of the hardest pairs as :math:`\gamma` grows.

    Args:
      scores: Similarities s, ``[..., columns]``, any float dtype; computed in float32 at least.
      positives: Boolean, ``[..., columns]``.
      negatives: Boolean, ``[..., columns]``.
      margin: m.
      gamma: :math:`\gamma` > 0.

    Returns:
      Loss per row in nats, ``[...]``, float32; 0 for a row without positives or negatives.

    Source: Circle Loss: A Unified Perspective of Pair Similarity Optimization, CVPR 2020,
      arXiv:2002.10857, Eq. 1.
    """
    scores = jnp.asarray(scores, jnp.promote_types(jnp.result_type(scores), jnp.float32))
    return _softplus_of_sums(-gamma * scores, gamma * (scores + margin), positives, negatives)


def circle_loss(scores, positives, negatives, *, margin=0.25, gamma=80.0):
    r"""The unified loss of pairs, each similarity weighted by how far it is from its optimum.

    .. math:: \ell = \log \Big[1 + \sum_{n \in N} e^{\gamma \alpha_n (s_n - m)}
                  \sum_{p \in P} e^{-\gamma \alpha_p (s_p - 1 + m)}\Big], \qquad
              \alpha_p = [1 + m - s_p]_+, \quad \alpha_n = [s_n + m]_+

    No gradient goes through the weights. Of one positive and one negative the loss is log 2 on the
    circle :math:`s_n^2 + (1 - s_p)^2 = 2 m^2`.

    Args:
      scores: Cosines s, ``[..., columns]``, any float dtype; computed in float32 at least.
      positives: Boolean, ``[..., columns]``.
      negatives: Boolean, ``[..., columns]``.
      margin: m in [0, 1].
      gamma: :math:`\gamma` > 0; the paper's is 80 for pairs and 256 for classes.

    Returns:
      Loss per row in nats, ``[...]``, float32; 0 for a row without positives or negatives.

    Source: Circle Loss: A Unified Perspective of Pair Similarity Optimization, CVPR 2020,
      arXiv:2002.10857, Section 3.
    """
    scores = jnp.asarray(scores, jnp.promote_types(jnp.result_type(scores), jnp.float32))
    fixed = jax.lax.stop_gradient(scores)
    drawn = -gamma * jax.nn.relu(1 + margin - fixed) * (scores - (1 - margin))
    pushed = gamma * jax.nn.relu(fixed + margin) * (scores - margin)
    return _softplus_of_sums(drawn, pushed, positives, negatives)


def _softplus_of_sums(drawn, pushed, positives, negatives):
    """log(1 + sum of exp(drawn) over positives times sum of exp(pushed) over negatives)."""
    idle = ~(positives.any(-1) & negatives.any(-1))  # the sums run over all, so as to be finite
    drawn = jax.nn.logsumexp(drawn, -1, where=positives | idle[..., None])
    pushed = jax.nn.logsumexp(pushed, -1, where=negatives | idle[..., None])
    return jnp.where(idle, 0.0, jax.nn.softplus(drawn + pushed))


def of_pairs(embeddings, labels, *, loss, similarity="cosine", mining=None, where=None):
    """A loss of pairs, of a batch with itself: others of a row's class are its positives.

    Args:
      embeddings: ``[batch, dim]``, any float dtype; computed in float32 at least.
      labels: Class indices, ``[batch]``.
      loss: ``loss(scores, positives, negatives) -> [batch]``, such as :func:`circle_loss`; in a
        config a partial spec.
      similarity: "cosine", or "euclidean" for the distance times -1.
      mining: None, or ``mining(scores, positives, negatives) -> (positives, negatives)``, such as
        :func:`mine`; no gradient goes through it.
      where: Optional boolean ``[batch]``; False rows return 0 and are nobody's positive or
        negative.

    Returns:
      What ``loss`` returns, per row of the batch. Couples the batch; takes memory for batch²
      scores.

    Raises:
      UserError: An unknown similarity.
    """
    chex.assert_equal_shape_prefix([embeddings, labels], 1)
    scores = _similarities(similarity, embeddings, embeddings)
    same = labels == labels[:, None]
    positives, negatives = same & ~jnp.eye(len(labels), dtype=bool), ~same
    if where is not None:
        kept = where & where[:, None]
        positives, negatives = positives & kept, negatives & kept
    if mining is not None:
        positives, negatives = mining(jax.lax.stop_gradient(scores), positives, negatives)
    return loss(scores, positives, negatives)


of_pairs.batch_coupled = True


def of_prototypes(embeddings, prototypes, labels, *, loss, similarity="cosine"):
    """A loss of pairs, of a batch with a vector for each class: one positive, all others negatives.

    Args:
      embeddings: ``[batch, dim]``, any float dtype; computed in float32 at least.
      prototypes: ``[classes, dim]``, such as :class:`tinker.nn.Prototypes`.
      labels: Class indices, ``[batch]``.
      loss: As in :func:`of_pairs`.
      similarity: As in :func:`of_pairs`.

    Returns:
      What ``loss`` returns, per row of the batch.

    Raises:
      UserError: An unknown similarity.
    """
    chex.assert_equal_shape_prefix([embeddings, labels], 1)
    positives = labels[:, None] == jnp.arange(len(prototypes))
    return loss(_similarities(similarity, embeddings, prototypes), positives, ~positives)


def _similarities(similarity, x, y):
    check_choice("similarity", similarity, ("cosine", "euclidean"))
    return cosine_similarity(x, y) if similarity == "cosine" else -euclidean(x, y)
