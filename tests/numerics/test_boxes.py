"""Overlaps of boxes against their authors' code, areas by counting, and suppression by a loop."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT
from tinker import numerics

GOLDEN = json.loads((ROOT / "tests" / "golden" / "diou.json").read_text())
KINDS = {
    "iou": numerics.box_iou,
    "giou": numerics.generalized_box_iou,
    "diou": numerics.distance_box_iou,
    "ciou": numerics.complete_box_iou,
}


def corners(boxes):
    """Left, top, right and bottom of boxes given by centre, width and height."""
    centre, size = np.split(np.array(boxes), 2, axis=-1)
    return np.concatenate([centre - size / 2, centre + size / 2], -1)


PREDICTED, TARGET = corners(GOLDEN["predicted"]), corners(GOLDEN["target"])


@jax.jit
def all_kinds(a, b):
    return {name: fn(a, b) for name, fn in KINDS.items()}


def test_they_are_the_authors():
    found = all_kinds(np.float32(PREDICTED), np.float32(TARGET))
    for name, value in found.items():
        np.testing.assert_allclose(value, GOLDEN[name], atol=5e-6)
    found = numerics.distance_box_iou(PREDICTED, TARGET, power=0.6)
    np.testing.assert_allclose(found, GOLDEN["diou_power_0.6"], atol=5e-6)
    for case in GOLDEN["nms"]:
        boxes, scores = corners(case["boxes"]), np.array(case["scores"])
        if case["kind"] == "diounms":
            options = {"threshold": case["threshold"], "power": case["power"]}
            kept = jax.jit(lambda *x, o=options: numerics.distance_nms(*x, **o))(boxes, scores)
            np.testing.assert_array_equal(kept, np.array(case["kept"], bool))
            # the others alone keep the same, and left out they drop none
            some = scores < scores.max()
            kept = numerics.distance_nms(boxes, scores, **options, where=some)
            alone = numerics.distance_nms(boxes[some], scores[some], **options)
            np.testing.assert_array_equal(kept[some], alone)
            assert not kept[~some].any()


def test_areas_are_counted():
    """Boxes on a grid of unit squares, as sets."""
    rng = np.random.default_rng(0)
    low = rng.integers(0, 5, (40, 2, 2))
    high = low + rng.integers(0, 5, (40, 2, 2))
    boxes = np.concatenate([low, high], -1)

    def squares(box):
        left, top, right, bottom = box
        return {(x, y) for x in range(left, right) for y in range(top, bottom)}

    for a, b in boxes:
        union, inner = squares(a) | squares(b), squares(a) & squares(b)
        hull = squares([*np.minimum(a[:2], b[:2]), *np.maximum(a[2:], b[2:])])
        iou = len(inner) / len(union) if union else 0.0
        np.testing.assert_allclose(numerics.box_iou(a, b), iou, rtol=1e-6)
        giou = iou - ((len(hull) - len(union)) / len(hull) if hull else 0.0)
        np.testing.assert_allclose(numerics.generalized_box_iou(a, b), giou, atol=1e-6)


def test_invariances_and_bounds():
    a, b = np.float32(PREDICTED), np.float32(TARGET)
    found, swapped = all_kinds(a, b), all_kinds(b, a)
    moved = all_kinds(a * 7 + 3, b * 7 + 3)
    turned = all_kinds(a[:, [1, 0, 3, 2]], b[:, [1, 0, 3, 2]])
    for name, least in {"iou": 0, "giou": -1, "diou": -1, "ciou": -2}.items():
        for other in (swapped, moved, turned):
            np.testing.assert_allclose(other[name], found[name], atol=3e-5)
        assert (found[name] >= least).all() and (found[name] < 1 + 1e-6).all()
        np.testing.assert_allclose(all_kinds(a, a)[name], 1.0, atol=1e-6)
    assert (found["giou"] <= found["iou"] + 1e-6).all()
    assert (found["ciou"] <= found["diou"] + 1e-6).all()
    pairs = numerics.box_iou(a[:, None], b[None])
    np.testing.assert_allclose(jnp.diagonal(pairs), found["iou"], atol=1e-6)


def test_gradients():
    """Differences in float64; of the aspect ratio's term the direction that the paper prints."""
    target = np.array([0.0, 0.0, 2.0, 1.0])
    direction = np.random.default_rng(1).normal(size=4)
    for box in ([0.3, 0.2, 1.7, 1.9], [3.0, 3.0, 4.0, 5.0], [0.5, 0.25, 1.0, 0.5]):
        box = np.array(box)
        with jax.enable_x64(True):
            for name in ("iou", "giou", "diou"):
                slope = jax.grad(KINDS[name])(jnp.asarray(box), target) @ direction
                ahead, behind = (KINDS[name](box + s * direction, target) for s in (1e-6, -1e-6))
                np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-8)

            def by_size(size, fn, at=box):
                middle = (at[:2] + at[2:]) / 2
                return fn(jnp.concatenate([middle - size / 2, middle + size / 2]), target)

            size = jnp.asarray(box[2:] - box[:2])
            complete, distance = (jax.grad(by_size)(size, KINDS[name]) for name in ("ciou", "diou"))
        w, h = box[2:] - box[:2]
        gap = np.arctan(2.0) - np.arctan(w / h)
        v = 4 / np.pi**2 * gap**2
        alpha = v / (1 - numerics.box_iou(box, target) + v)
        expected = alpha * 8 / np.pi**2 * gap * np.array([h, -w])
        np.testing.assert_allclose(complete - distance, expected, rtol=1e-5)


@pytest.mark.parametrize("a", [[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], [-1e4, -1e4, 1e4, 1e4]])
def test_corners(a):
    a = jnp.array(a, jnp.float32)
    for b in (a, jnp.zeros(4), jnp.array([0.0, 0.0, 1.0, 2.0])):
        for fn in KINDS.values():
            value, slope = jax.value_and_grad(fn)(a, b)
            assert jnp.isfinite(value) and jnp.isfinite(slope).all()
    assert numerics.box_iou(a.astype(jnp.bfloat16), a).dtype == jnp.float32
    one = numerics.distance_nms(a[None], jnp.ones(1), threshold=0.5)
    assert one.shape == (1,) and one.all()


def test_shapes_are_told():
    with pytest.raises(AssertionError):
        numerics.box_iou(np.ones((3, 5)), np.ones((3, 4)))
    with pytest.raises(AssertionError):
        numerics.distance_nms(np.ones((3, 4)), np.ones(4))
