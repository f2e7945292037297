"""Boxes that follow the gradient of a loss towards a target, from all around it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from tinker.losses import box_loss
from tinker.numerics import box_iou, fold_in
from tinker.train import instantiate

MIDDLE = (10.0, 10.0)
AREAS = (0.5, 0.67, 0.75, 1.0, 1.33, 1.5, 2.0)
ASPECTS = (1 / 4, 1 / 3, 1 / 2, 1.0, 2.0, 3.0, 4.0)  # width over height


def run(config, key):
    """Descends from anchors of 7 areas and 7 aspect ratios to targets of 7 aspect ratios.

    Args:
      config: ``loss``, a partial of predicted and target corners; ``points`` in a disc around the
        targets, at each of which all anchors start; ``radius`` of the disc; ``rates``, the step
        size of each iteration as pairs of (rate, iterations), of which each box has 2 - IoU times
        as much; ``record_every`` iterations.
      key: Of the points.

    Returns:
      ``error`` ``[records]`` at ``iteration``: the sum of the absolute errors of centre, width and
      height, on average over all cases; ``mean_error``, its mean over the records; ``final_error``;
      ``apart``, the share of cases that end without overlap.
    """
    distance, angle = jax.random.uniform(fold_in(key, "points"), (2, config.points))
    distance, angle = config.radius * jnp.sqrt(distance), 2 * jnp.pi * angle
    centres = jnp.stack([distance * jnp.cos(angle), distance * jnp.sin(angle)], -1)
    starts = jnp.concatenate(  # [points, areas, aspects, 4]
        jnp.broadcast_arrays(
            (centres + jnp.array(MIDDLE))[:, None, None],
            _sizes(np.array(AREAS)[:, None], np.array(ASPECTS)),
        ),
        -1,
    ).reshape(-1, 1, 4)
    target = np.concatenate([np.tile(MIDDLE, (len(ASPECTS), 1)), _sizes(1.0, np.array(ASPECTS))], 1)
    rates = np.concatenate([np.full(n, rate) for rate, n in config.rates])
    every = config.record_every
    spec = FrozenConfigDict(config.loss)
    errors, apart = _descend(spec, rates.reshape(-1, every), starts, np.float32(target))
    errors = np.asarray(errors)
    return {
        "error": errors,
        "iteration": every * np.arange(len(errors)),
        "mean_error": errors.mean(),
        "final_error": errors[-1],
        "apart": float(apart),
    }


def _sizes(area, aspect):
    """Widths and heights, ``[…, 2]``."""
    return np.stack(np.broadcast_arrays(np.sqrt(area * aspect), np.sqrt(area / aspect)), -1)


def corners(boxes):
    """Left, top, right and bottom of boxes given by centre, width and height, ``[…, 4]``."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([centre - size / 2, centre + size / 2], -1)


@functools.partial(jax.jit, static_argnums=0)  # the loss's spec: compiled once for all seeds
def _descend(spec, rates, starts, target):
    """Errors before the first and after each row of rates, and the share that end apart."""
    boxes = jnp.broadcast_to(starts, (len(starts), len(target), 4))
    loss = instantiate(spec, "loss")
    slope = jax.grad(lambda boxes: loss(corners(boxes), corners(target)).sum())

    def step(boxes, rate):
        overlap = box_iou(corners(boxes), corners(target))[..., None]
        return boxes - rate * (2 - overlap) * slope(boxes), None

    def error(boxes):
        return jnp.abs(boxes - target).sum(-1).mean()

    def record(boxes, rates):
        boxes, _ = jax.lax.scan(step, boxes, rates)
        return boxes, error(boxes)

    last, errors = jax.lax.scan(record, boxes, rates)
    apart = jnp.mean(box_iou(corners(last), corners(target)) == 0)
    return jnp.concatenate([error(boxes)[None], errors]), apart


def unclipped_giou_loss(predicted, target):
    """Generalized IoU's loss where the intersection of boxes that are apart is not 0.

    It is the product of the gaps, as in the scripts that came with Distance-IoU.
    """
    a, b = predicted, target
    inner = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    outer = jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2])
    union = sum((x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b)) - inner.prod(-1)
    return box_loss(a, b, kind="iou") + 1 - union / outer.prod(-1)
