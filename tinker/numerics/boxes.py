"""Axis-aligned boxes: how much two overlap, and which of many to keep."""

import chex
import jax
import jax.numpy as jnp


def box_iou(a, b):
    r"""Intersection over union of boxes.

    .. math:: \mathrm{IoU} = \frac{|A \cap B|}{|A \cup B|}

    Args:
      a: Boxes ``[..., 4]``: left, top, right, bottom; any float dtype, computed in float32 at
        least. A side of negative length counts as 0.
      b: ``[..., 4]``, which broadcasts with a: ``a[:, None]`` and ``b[None]`` give all pairs.

    Returns:
      In [0, 1], ``[...]``; 0 where both are empty.
    """
    return _measure(a, b)[0]


def generalized_box_iou(a, b):
    r"""IoU less the share of the enclosing box C that belongs to neither.

    .. math:: \mathrm{GIoU} = \mathrm{IoU} - \frac{|C| - |A \cup B|}{|C|}

    Args:
      a: As for :func:`box_iou`.
      b: As for :func:`box_iou`.

    Returns:
      In (-1, 1], ``[...]``; IoU where C is empty.

    Source: Generalized Intersection over Union, CVPR 2019, arXiv:1902.09630, Algorithm 1.
    """
    iou, union, (width, height), _, _ = _measure(a, b)
    return iou - _ratio(width * height - union, width * height)


def distance_box_iou(a, b, *, power=1.0):
    r"""IoU less the squared distance of the centres, over the enclosing box's squared diagonal.

    .. math:: \mathrm{DIoU} = \mathrm{IoU} - \Big(\frac{\rho^2}{c^2}\Big)^\beta

    Args:
      a: As for :func:`box_iou`.
      b: As for :func:`box_iou`.
      power: :math:`\beta` > 0; other than 1 in the authors' suppression alone.

    Returns:
      In (-1, 1], ``[...]``; IoU where the enclosing box is a point.

    Source: Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression, AAAI 2020,
      arXiv:1911.08287, Eq. 7; the power is its authors' code's (Zzh-tju/DIoU-darknet).
    """
    iou, _, (width, height), square, _ = _measure(a, b)
    apart = _ratio(square, width**2 + height**2)
    if power != 1.0:  # whose slope at 0 may be infinite
        apart = jnp.where(apart > 0, jnp.where(apart > 0, apart, 1.0) ** power, 0.0)
    return iou - apart


def complete_box_iou(a, b):
    r"""DIoU less how much the aspect ratios differ.

    .. math:: \mathrm{CIoU} = \mathrm{DIoU} - \alpha v, \qquad
              v = \frac{4}{\pi^2} \Big(\arctan \frac{w_b}{h_b} - \arctan \frac{w_a}{h_a}\Big)^2,
              \qquad \alpha = \frac{v}{1 - \mathrm{IoU} + v}

    No gradient passes through :math:`\alpha`, and an angle's is multiplied by w² + h², so that it
    is (h, -w) however small the box.

    Args:
      a: As for :func:`box_iou`.
      b: As for :func:`box_iou`.

    Returns:
      In (-2, 1], ``[...]``.

    Source: Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression, AAAI 2020,
      arXiv:1911.08287, Eq. 8 to 12, of which the last gives the direction of descent.
    """
    iou, _, _, _, sizes = _measure(a, b)
    angle_a, angle_b = (_angle(width, height) for width, height in sizes)
    v = 4 / jnp.pi**2 * jnp.square(angle_b - angle_a)
    alpha = jax.lax.stop_gradient(_ratio(v, 1 - iou + v))
    return distance_box_iou(a, b) - alpha * v


def distance_nms(boxes, scores, *, threshold=0.5, power=1.0, where=None):
    """Of boxes that lie on one another keeps that of the highest score, by DIoU.

    From the highest score down, a box that is kept drops those of a lower score whose
    :func:`distance_box_iou` with it is above the threshold. Of equal scores the first comes first.
    Boxes far apart, though they overlap, are so taken for two objects. Time is O(n²), memory O(n).

    Args:
      boxes: ``[n, 4]``, as for :func:`box_iou`.
      scores: ``[n]``.
      threshold: In (-1, 1).
      power: See :func:`distance_box_iou`.
      where: Optional boolean ``[n]``; False boxes are neither kept nor drop any.

    Returns:
      Which are kept, boolean ``[n]``.

    Source: Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression, AAAI 2020,
      arXiv:1911.08287, Eq. 13.
    """
    boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
    chex.assert_shape(boxes, (*scores.shape, 4))
    kept = jnp.ones(scores.shape, bool) if where is None else where
    order = jnp.argsort(-scores, stable=True)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))

    def drop(at, kept):
        best = order[at]
        close = distance_box_iou(boxes[best], boxes, power=power) > threshold
        return kept & ~(kept[best] & close & (rank > at))

    return jax.lax.fori_loop(0, len(scores), drop, kept)


def _measure(a, b):
    """IoU, union, sizes of the enclosing box, squared distance of centres, sizes of both boxes."""
    chex.assert_axis_dimension(a, -1, 4)
    chex.assert_axis_dimension(b, -1, 4)
    dtype = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    a, b = jnp.broadcast_arrays(jnp.asarray(a, dtype), jnp.asarray(b, dtype))
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    inner = jnp.maximum(high - low, 0.0).prod(-1)
    sizes = [jnp.maximum(x[..., 2:] - x[..., :2], 0.0) for x in (a, b)]
    union = sizes[0].prod(-1) + sizes[1].prod(-1) - inner
    low, high = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
    outer = jnp.maximum(high - low, 0.0)
    between = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    square = jnp.square(between).sum(-1)
    sizes = [(x[..., 0], x[..., 1]) for x in sizes]
    return _ratio(inner, union), union, (outer[..., 0], outer[..., 1]), square, sizes


def _ratio(x, y):
    """x / y, and 0 where y is 0."""
    some = y > 0
    return jnp.where(some, x / jnp.where(some, y, 1.0), 0.0)


def _angle(width, height):
    """arctan(w / h), with the gradient (h, -w)."""
    held = jax.lax.stop_gradient
    value = jnp.arctan2(held(width), held(height))
    slope = width * held(height) - height * held(width)
    return value + slope - held(slope)
