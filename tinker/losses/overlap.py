"""Losses of the overlap of two sets, whose members may be partly in."""

import chex
import jax
import jax.numpy as jnp

from tinker.numerics import check_choice


def jaccard_metric(p, y, *, intersection="minimum", smooth=0.0, where=None):
    r"""A Jaccard distance for soft sets, 0 just where they are the same.

    .. math:: 1 - \frac{\sum_i \min(p_i, y_i)}{\sum_i \max(p_i, y_i)}
              \quad\text{or}\quad
              1 - \frac{\langle p, y \rangle}{\langle p, y \rangle + \lVert p - y \rVert_1}

    the paper's JML 1 and JML 2. Both are metrics, and of a hard y both are :func:`soft_jaccard`.

    Args:
      p: Memberships in [0, 1], ``[..., places]``, any float dtype; computed in float32 at least.
      y: Memberships in [0, 1], ``[..., places]``.
      intersection: "minimum" or "product", how much of a place is in both.
      smooth: Added above and below the line, >= 0; the authors train with 1.
      where: Optional boolean ``[..., places]``; False places do not count.

    Returns:
      Distance in [0, 1], ``[...]``, float32; 0 of two empty sets.

    Raises:
      UserError: An unknown intersection.

    Source: Jaccard Metric Losses: Optimizing the Jaccard Index with Soft Labels, NeurIPS 2023,
      arXiv:2302.05666, the two Jaccard metric losses.
    """
    check_choice("intersection", intersection, ("minimum", "product"))
    p, y = _memberships(p, y, where)
    apart = jnp.sum(jnp.abs(p - y), -1)
    both = jnp.sum(jnp.minimum(p, y) if intersection == "minimum" else p * y, -1)
    return _share(apart, both + apart + smooth)


def soft_jaccard(p, y, *, smooth=0.0, where=None):
    r"""The Jaccard distance with products for intersections, for hard y.

    .. math:: 1 - \frac{\langle p, y \rangle}{\sum_i p_i + \sum_i y_i - \langle p, y \rangle}

    Of a soft y it is least not at y but at a hard set.

    Args:
      p: Memberships in [0, 1], ``[..., places]``, any float dtype; computed in float32 at least.
      y: Memberships in [0, 1], ``[..., places]``.
      smooth: Added above and below the line, >= 0.
      where: Optional boolean ``[..., places]``; False places do not count.

    Returns:
      In [0, 1], ``[...]``, float32; 0 of two empty sets.

    Source: Jaccard Metric Losses: Optimizing the Jaccard Index with Soft Labels, NeurIPS 2023,
      arXiv:2302.05666, its soft Jaccard loss.
    """
    p, y = _memberships(p, y, where)
    total, both = jnp.sum(p + y, -1), jnp.sum(p * y, -1)
    return _share(total - 2 * both, total - both + smooth)


def dice_semimetric(p, y, *, smooth=0.0, where=None):
    r"""A Dice distance for soft sets, 0 just where they are the same.

    .. math:: \frac{\lVert p - y \rVert_1}{\sum_i p_i + \sum_i y_i}

    which is j / (2 - j) of the :func:`jaccard_metric` j by minima, and no metric: the triangle
    inequality fails.

    Args:
      p: Memberships in [0, 1], ``[..., places]``, any float dtype; computed in float32 at least.
      y: Memberships in [0, 1], ``[..., places]``.
      smooth: Half of what is added above and below the line, >= 0.
      where: Optional boolean ``[..., places]``; False places do not count.

    Returns:
      In [0, 1], ``[...]``, float32; 0 of two empty sets.

    Source: Dice Semimetric Losses: Optimizing the Dice Score with Soft Labels, MICCAI 2023,
      arXiv:2303.16296.
    """
    p, y = _memberships(p, y, where)
    return _share(jnp.sum(jnp.abs(p - y), -1), jnp.sum(p + y, -1) + 2 * smooth)


def mean_over_classes(logits, targets, *, loss, present=False, where=None):
    r"""The mean over classes of a loss of overlap, image by image.

    .. math:: \frac1K \sum_k \ell\big(\mathrm{softmax}(z)_{\cdot k},\, y_{\cdot k}\big)

    Args:
      logits: Scores z, ``[batch, ..., classes]``, any float dtype; computed in float32 at least.
      targets: Class indices ``[batch, ...]`` or probabilities ``[batch, ..., classes]``.
      loss: ``loss(p, y, where=where) -> [batch, classes]`` of ``[batch, classes, places]``, such as
        :func:`jaccard_metric`; in a config a partial spec.
      present: Whether the mean is over the classes that an image has, as the authors do where
        targets are hard: those whose greatest target is above 0.01.
      where: Optional boolean ``[batch, ...]``; False places do not count.

    Returns:
      Loss per image, ``[batch]``, float32. The authors sum over a batch's images before they
      divide; for that, pass the batch as one image.

    Source: Jaccard Metric Losses: Optimizing the Jaccard Index with Soft Labels, NeurIPS 2023,
      arXiv:2302.05666; as in the authors' code.
    """
    chex.assert_equal_shape_prefix([logits, targets], logits.ndim - 1)
    classes = logits.shape[-1]
    p = jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    y = jax.nn.one_hot(targets, classes) if targets.ndim < logits.ndim else targets
    p, y = (jnp.moveaxis(x, -1, 1).reshape(len(x), classes, -1) for x in (p, y))
    if where is not None:
        where = jnp.broadcast_to(where.reshape(len(p), 1, -1), p.shape)
        y = jnp.where(where, y, 0.0)
    each = loss(p, y, where=where)
    if not present:
        return each.mean(1)
    here = y.max(-1) > 0.01
    return jnp.sum(each * here, 1) / jnp.maximum(here.sum(1), 1)


def _memberships(p, y, where):
    chex.assert_equal_shape([p, y])
    p = p.astype(jnp.promote_types(p.dtype, jnp.float32))
    return (p, y) if where is None else (jnp.where(where, p, 0.0), jnp.where(where, y, 0.0))


def _share(part, whole):
    """part / whole, and 0 of nothing."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), 0.0)
