"""Losses of views of the same examples that carry no labels."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from tinker.losses.contrastive import multi_positive_cross_entropy
from tinker.losses.metric_learning import hardest_share
from tinker.numerics import check_choice, l2_normalize, squared_euclidean


def view_alignment(z, *, alpha=2.0):
    r"""How far apart the views of an example are.

    .. math:: \ell_i = \lVert z_i^{(1)} - z_i^{(2)} \rVert^\alpha

    with rows scaled to unit length; of more than two views the mean over their pairs. Beside
    :func:`uniformity` it is a contrastive loss in two terms; by itself it lets all rows collapse.

    Args:
      z: Projections of views, ``[batch, views, dim]``, two views at least, any float dtype;
        computed in float32 at least. A zero row stays zero.
      alpha: :math:`\alpha` > 0.

    Returns:
      Loss per example in [0, 2**alpha], ``[batch]``, float32; where two views are equal the
      gradient of their distance is zero.

    Source: Understanding Contrastive Representation Learning through Alignment and Uniformity on
      the Hypersphere, ICML 2020, arXiv:2005.10242, Section 4.1.
    """
    chex.assert_rank(z, 3)
    chex.assert_axis_dimension_gteq(z, 1, 2)
    z = l2_normalize(z)
    first, second = np.triu_indices(z.shape[1], 1)
    square = jnp.sum(jnp.square(z[:, first] - z[:, second]), -1)
    apart = square > 0
    return jnp.where(apart, jnp.where(apart, square, 1.0) ** (alpha / 2), 0.0).mean(1)


def uniformity(z, *, t=2.0, where=None):
    r"""How unevenly rows lie on the sphere: the logarithm of their mean Gaussian potential.

    .. math:: \ell = \log \frac{2}{n (n - 1)} \sum_{i < j} e^{-t \lVert z_i - z_j \rVert^2}

    with rows scaled to unit length; of several views the mean over views of each one's. It is a
    metric of whole splits too.

    Args:
      z: ``[batch, dim]`` or ``[batch, views, dim]``, any float dtype; computed in float32 at least.
        A zero row stays zero.
      t: t > 0.
      where: Optional boolean ``[batch]``; rows that are False are in no pair.

    Returns:
      A scalar in [-4 t, 0], float32; 0 where there is no pair. Couples the batch; takes memory for
      ``views * batch²`` distances.

    Source: Understanding Contrastive Representation Learning through Alignment and Uniformity on
      the Hypersphere, ICML 2020, arXiv:2005.10242, Section 4.1.
    """
    chex.assert_rank(z, {2, 3})
    z = l2_normalize(z[:, None] if z.ndim == 2 else z).swapaxes(0, 1)
    pairs = jnp.triu(jnp.ones((z.shape[1], z.shape[1]), bool), 1)
    if where is not None:
        pairs &= where & where[:, None]
    count = pairs.sum()  # without a pair the sum runs over everything, so as to be finite
    energy = -t * squared_euclidean(z, z)
    total = jax.nn.logsumexp(energy, (1, 2), where=pairs | (count == 0))
    return jnp.where(count == 0, 0.0, total.mean() - jnp.log(jnp.maximum(count, 1)))


uniformity.batch_coupled = True
uniformity.whole_split = True


def hard_info_nce(z, *, temperature=0.1, share=0.1, where=None):
    r"""Contrasts a view with the other, the negatives only an anchor's most similar ones.

    .. math:: \ell_i = -\log \frac{\exp(s_{ii} / \tau)}
                  {\exp(s_{ii} / \tau) + \sum_{k \in H_i} \exp(s_{ik} / \tau)},
              \qquad s_{ik} = \langle z_i^{(1)}, z_k^{(2)} \rangle

    with rows scaled to unit length. H are the :math:`\lceil \alpha n \rceil` highest of the n
    negatives' scores, and those level with the last: which makes the loss mind hard negatives at
    temperatures at which InfoNCE, here :math:`\alpha = 1`, weighs all alike.

    Args:
      z: Projections of two views, ``[batch, 2, dim]``, any float dtype; computed in float32 at
        least. The first are anchors. A zero row stays zero.
      temperature: :math:`\tau` > 0.
      share: :math:`\alpha` in (0, 1].
      where: Optional boolean ``[batch]``; False rows return 0 and are nobody's negative.

    Returns:
      Loss per example in nats, ``[batch]``, float32. Couples the batch.

    Source: Understanding the Behaviour of Contrastive Loss, CVPR 2021, arXiv:2012.09740, the hard
      contrastive loss; that paper's threshold is a quantile too, of a memory bank's scores.
    """
    chex.assert_rank(z, 3)
    chex.assert_axis_dimension(z, 1, 2)
    z = l2_normalize(z)
    scores = jnp.matmul(z[:, 0], z[:, 1].T, precision="highest")
    positives = jnp.eye(len(z), dtype=bool)
    negatives = ~positives
    if where is not None:
        kept = where & where[:, None]
        positives, negatives = positives & kept, negatives & kept
    hard = hardest_share(scores, negatives, share=share)
    return multi_positive_cross_entropy(scores / temperature, positives, candidates=hard)


hard_info_nce.batch_coupled = True


def dimension_contrast(z, *, normalize="columns", where=None):
    r"""How far the dimensions of embeddings are from orthogonal, the non-contrastive criterion.

    .. math:: \ell = \big\lVert Z^\top Z - \mathrm{diag}(Z^\top Z) \big\rVert_F^2
              = \sum_{j \ne k} \Big(\sum_i z_{ij} z_{ik}\Big)^2

    the covariance term of VICReg and Barlow Twins but for centring. By

    .. math:: \ell + \sum_j \lVert Z_{\cdot j} \rVert^4
              = \ell' + \sum_i \lVert Z_{i \cdot} \rVert^4

    it is :func:`sample_contrast`, :math:`\ell'`, where the lengths of rows and columns are given.

    Args:
      z: Z, ``[batch, dim]``, or ``[batch, views, dim]`` for the mean over views; any float dtype,
        computed in float32 at least.
      normalize: What is scaled before: "none", "rows" to a length of 1, "columns" to one of
        sqrt(batch / dim), or "both" in turn, 10 times over. Zeros stay zeros.
      where: Optional boolean ``[batch]``; False rows do not count.

    Returns:
      A scalar >= 0, float32. Couples the batch.

    Raises:
      UserError: An unknown kind of ``normalize``.

    Source: On the duality between contrastive and non-contrastive self-supervised learning,
      ICLR 2023, arXiv:2206.02574, Section 3 (there embeddings are columns).
    """
    return _off_diagonal(_scaled(z, normalize, where).swapaxes(1, 2))


dimension_contrast.batch_coupled = True


def sample_contrast(z, *, normalize="rows", where=None):
    r"""How far the embeddings of a batch are from orthogonal, the contrastive criterion.

    .. math:: \ell = \big\lVert Z Z^\top - \mathrm{diag}(Z Z^\top) \big\rVert_F^2
              = \sum_{i \ne k} \langle z_i, z_k \rangle^2

    the negatives' term of the spectral contrastive loss; see :func:`dimension_contrast`.

    Args:
      z: As in :func:`dimension_contrast`.
      normalize: As there.
      where: As there.

    Returns:
      A scalar >= 0, float32. Couples the batch.

    Raises:
      UserError: An unknown kind of ``normalize``.

    Source: On the duality between contrastive and non-contrastive self-supervised learning,
      ICLR 2023, arXiv:2206.02574, Section 3.
    """
    return _off_diagonal(_scaled(z, normalize, where))


sample_contrast.batch_coupled = True


def _scaled(z, normalize, where):
    """``[views, batch, dim]``, the rows that do not count zero."""
    check_choice("normalize", normalize, ("none", "rows", "columns", "both"))
    chex.assert_rank(z, {2, 3})
    z = jnp.asarray(z, jnp.promote_types(jnp.result_type(z), jnp.float32))
    z = (z[:, None] if z.ndim == 2 else z).swapaxes(0, 1)
    count = z.shape[1]
    if where is not None:
        z, count = jnp.where(where[:, None], z, 0.0), where.sum()
    scale = jnp.sqrt(count / z.shape[2])
    if normalize == "both":
        turn = lambda _, z: l2_normalize(l2_normalize(z, axis=1) * scale)  # noqa: E731
        return jax.lax.fori_loop(0, 10, turn, z)
    if normalize == "columns":
        return l2_normalize(z, axis=1) * scale
    return l2_normalize(z) if normalize == "rows" else z


def _off_diagonal(rows):
    """The sum of squared products of all pairs of different rows, the mean over views."""
    products = jnp.matmul(rows, rows.swapaxes(1, 2), precision="highest")
    apart = ~jnp.eye(rows.shape[1], dtype=bool)
    return jnp.sum(jnp.square(products), (1, 2), where=apart).mean()
