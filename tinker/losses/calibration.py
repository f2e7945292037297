"""Losses that train confidence to be accuracy, of a batch as a whole."""

import chex
import jax
import jax.numpy as jnp


def expected_squared_difference(logits, labels, *, root=False, where=None):
    r"""How far confidence is from accuracy below each confidence, squared: unbiased, of no bins.

    .. math:: \mathrm{ESD} = \mathbb E_{z'} \big[ \mathbb E_{z, c} \big(
                  [z \le z'] (c - z) \big)^2 \big], \qquad
              \widehat{\mathrm{ESD}} = \frac1n \sum_i \Big( \bar g_i^2 - \frac{S_i^2}{n - 1} \Big)

    with the confidence :math:`z = \max_k \mathrm{softmax}(l)_k`, c whether that class is the
    label, and mean and variance of :math:`g_{ij} = [z_j \le z_i] (c_j - z_j)` over the others,
    :math:`j \ne i`. That is the mean of :math:`g_{ij} g_{ik}` over distinct i, j, k. ESD is 0 just
    where confidence is calibrated; its estimate may be negative. No gradient reaches the
    comparisons or c. Sorted, it takes n log n.

    Args:
      logits: Scores l, ``[n, classes]``, any float dtype; computed in float32 at least.
      labels: Class indices, ``[n]``, integers in [0, classes).
      root: Whether to give the square root of the estimate's positive part, which is what the
        authors' code trains with, as of a weight of 4 beside cross-entropy.
      where: Optional boolean ``[n]``; False rows do not count.

    Returns:
      A scalar, float32, squared probability, or probability with ``root``; 0 of fewer than three
      rows. Couples the batch.

    Source: ESD: Expected Squared Difference as a Tuning-Free Trainable Calibration Measure,
      ICLR 2023, arXiv:2303.02472, the unbiased estimator.
    """
    confidence, gap, where = _confidence_and_gap(logits, labels, where)
    order = jnp.argsort(jnp.where(where, confidence, jnp.inf))
    level = jax.lax.stop_gradient(confidence)
    below = jnp.searchsorted(jnp.where(where, level, jnp.inf)[order], level, side="right")
    sums = jnp.cumsum(jnp.stack([gap, gap**2])[:, order], 1)
    sums = sums[:, below - 1] - jnp.stack([gap, gap**2])  # over the others
    n = where.sum()
    pairs = jnp.where(where, sums[0] ** 2 - sums[1], 0.0)  # g_ij g_ik over j, k distinct
    found = pairs.sum() / jnp.maximum(n * (n - 1.0) * (n - 2.0), 1.0)
    return _root(found) if root else found


expected_squared_difference.batch_coupled = True


def mmce(logits, labels, *, bandwidth=0.4, where=None):
    r"""Maximum mean calibration error: gaps of confidence to accuracy, alike where close by.

    .. math:: \mathrm{MMCE} = \Big( \frac{1}{n^2} \sum_{i, j} (c_i - z_i) (c_j - z_j)\,
              e^{-|z_i - z_j| / \phi} \Big)^{1/2}

    with the confidence z and the correctness c of :func:`expected_squared_difference`.

    Args:
      logits: Scores, ``[n, classes]``, any float dtype; computed in float32 at least.
      labels: Class indices, ``[n]``, integers in [0, classes).
      bandwidth: :math:`\phi` > 0, of the Laplacian kernel.
      where: Optional boolean ``[n]``; False rows do not count.

    Returns:
      A scalar, probability, float32. Couples the batch; takes memory for n² numbers.

    Source: Trainable Calibration Measures For Neural Networks From Kernel Mean Embeddings,
      ICML 2018, the unweighted estimate and its kernel.
    """
    confidence, gap, where = _confidence_and_gap(logits, labels, where)
    kernel = jnp.exp(-jnp.abs(confidence[:, None] - confidence) / bandwidth)
    total = jnp.sum(gap[:, None] * gap * kernel)
    return _root(total / jnp.maximum(where.sum(), 1) ** 2)


mmce.batch_coupled = True


def soft_binned_ece(logits, labels, *, bins=15, temperature=0.01, where=None):
    r"""Expected calibration error in bins that an example is partly in.

    .. math:: \Big( \frac1n \sum_i \sum_m u_{im} (a_m - z_i)^2 \Big)^{1/2}, \qquad
              u_i = \mathrm{softmax}_m \big({-(z_i - \xi_m)^2} / T \big), \qquad
              a_m = \frac{\sum_i u_{im} c_i}{\sum_i u_{im}}

    with the confidence z and the correctness c of :func:`expected_squared_difference`, and
    :math:`\xi_m` the centres of bins of equal width.

    Args:
      logits: Scores, ``[n, classes]``, any float dtype; computed in float32 at least.
      labels: Class indices, ``[n]``, integers in [0, classes).
      bins: Their number, static.
      temperature: T > 0, squared probability; towards 0 the bins are hard.
      where: Optional boolean ``[n]``; False rows do not count.

    Returns:
      A scalar, probability, float32. Couples the batch.

    Source: Soft Calibration Objectives for Neural Networks, NeurIPS 2021, arXiv:2108.00106, of
      order 2 and with every example compared to its bins' accuracy, as in the code of ESD,
      arXiv:2303.02472.
    """
    confidence, gap, where = _confidence_and_gap(logits, labels, where)
    centres = (jnp.arange(bins) + 0.5) / bins
    member = jax.nn.softmax(-((confidence[:, None] - centres) ** 2) / temperature, -1)
    member = jnp.where(where[:, None], member, 0.0)
    mass = member.sum(0)
    right = jnp.dot(gap + confidence, member, precision="highest")
    accuracy = right / jnp.where(mass > 1e-12, mass, 1.0)  # mutate: equivalent, of no weight
    total = jnp.sum(member * jnp.square(accuracy - confidence[:, None]))
    return _root(total / jnp.maximum(where.sum(), 1))


soft_binned_ece.batch_coupled = True


def _confidence_and_gap(logits, labels, where):
    """Confidence z, correctness less confidence (0 where False), and where, ``[n]`` each."""
    chex.assert_rank([logits, labels], [2, 1])
    chex.assert_equal_shape_prefix([logits, labels], 1)
    p = jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    confidence = p.max(-1)
    gap = (jnp.argmax(logits, -1) == labels) - confidence
    where = jnp.ones(labels.shape, bool) if where is None else where
    return confidence, jnp.where(where, gap, 0.0), where


def _root(x):
    """The square root of the positive part, with a gradient of 0 where there is none."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
