"""Losses of detection: boxes."""

import jax.numpy as jnp

from tinker.numerics import (
    box_iou,
    check_choice,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
)

KINDS = {
    "iou": box_iou,
    "giou": generalized_box_iou,
    "diou": distance_box_iou,
    "ciou": complete_box_iou,
}


def box_loss(predicted, target, *, kind="diou", where=None):
    r"""One less the overlap of a predicted box with its target.

    .. math:: \ell = 1 - \mathrm{IoU}(B, B^{gt})

    or of generalized, distance or complete IoU. Plain IoU has no gradient where boxes do not
    overlap, and generalized IoU little where one lies in the other.

    Args:
      predicted: B, ``[..., 4]``: left, top, right, bottom; any float dtype, computed in float32.
      target: ``[..., 4]``, of the same shape.
      kind: "iou", "giou", "diou" or "ciou": :func:`tinker.numerics.box_iou`,
        :func:`tinker.numerics.generalized_box_iou`, :func:`tinker.numerics.distance_box_iou`,
        :func:`tinker.numerics.complete_box_iou`.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per box, ``[...]``, float32, >= 0 and 0 only for equal boxes: at most 1, 2, 2 or 3.

    Raises:
      UserError: An unknown kind.

    Source: Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression, AAAI 2020,
      arXiv:1911.08287, Eq. 2, 3, 7 and 10.
    """
    check_choice("kind", kind, tuple(KINDS))
    loss = 1 - KINDS[kind](predicted, target)
    return loss if where is None else jnp.where(where, loss, 0.0)
