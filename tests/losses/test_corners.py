"""What every loss of scores, values or overlaps has to stand; a new one joins by one line."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinker import losses

ROWS, CLASSES = 7, 4


class Kind(NamedTuple):
    """Arrays of a kind of loss; the first is what it is differentiated by."""

    draw: object  # (rng, rows, classes) -> arrays
    hard: tuple  # ROWS rows that a network might give at its worst


def scores(rng, rows, classes):
    return 2 * rng.normal(size=(rows, classes)), rng.integers(classes, size=rows)


_signs = np.array([[1, -1, 0, 0], [-1, 1, 0, 0], [1, 1, 1, -1], [-1, -1, -1, -1]])
HARD_SCORES = (
    np.concatenate([1e4 * _signs, np.zeros((1, 4)), 1e-4 * _signs[:2]]),
    np.array([0, 0, 3, 2, 1, 1, 1]),
)
SCORES = Kind(scores, HARD_SCORES)


def numbers(rng, rows, classes):
    return rng.normal(size=rows), rng.normal(size=rows)


VALUES = Kind(
    numbers,
    (np.array([1e4, -1e4, 1e4, -1e4, 0, 0, 3]), np.array([-1e4, -1e4, 1e4, 0, 1e4, 0, 3])),
)


def bags(rng, rows, classes):
    return rng.normal(size=(rows, classes)), rng.normal(size=rows)


BAGS = Kind(bags, (HARD_SCORES[0], VALUES.hard[1]))


def maps(rng, rows, classes):
    return 2 * rng.normal(size=(rows, 3, classes)), rng.dirichlet(np.ones(classes), (rows, 3))


_maps = np.stack([HARD_SCORES[0]] * 3, 1)
MAPS = Kind(maps, (_maps, np.eye(4)[np.stack([HARD_SCORES[1]] * 3, 1)]))


def of_images(logits, targets, *, loss, where=None):
    """``where`` of whole images, for all their places."""
    every = None if where is None else jnp.broadcast_to(where[:, None], logits.shape[:2])
    return losses.mean_over_classes(logits, targets, loss=loss, where=every)


CASES = {
    "cross_entropy": (losses.cross_entropy, SCORES),
    "focal": (losses.focal, SCORES),
    "poly1_cross_entropy": (losses.poly1_cross_entropy, SCORES),
    "comp_sum_exponential": (functools.partial(losses.comp_sum, tau=0.0), SCORES),
    "comp_sum_generalized": (functools.partial(losses.comp_sum, tau=1.7), SCORES),
    "comp_sum_absolute": (functools.partial(losses.comp_sum, tau=2.0), SCORES),
    "ldr": (losses.ldr, SCORES),
    "adaptive_ldr": (functools.partial(losses.adaptive_ldr, num_iterations=100), SCORES),
    "unit_mean_scores": (
        functools.partial(losses.unit_mean_scores, loss=losses.cross_entropy),
        SCORES,
    ),
    "normalized_cross_entropy": (
        functools.partial(losses.normalized_loss, loss=losses.cross_entropy),
        SCORES,
    ),
    "normalized_focal": (
        functools.partial(losses.normalized_loss, loss=functools.partial(losses.focal, gamma=0.5)),
        SCORES,
    ),
    "reverse_cross_entropy": (losses.reverse_cross_entropy, SCORES),
    "spherical_z_loss": (losses.spherical_z_loss, SCORES),
    "taylor_softmax_loss": (losses.taylor_softmax_loss, SCORES),
    "jaccard_metric": (functools.partial(of_images, loss=losses.jaccard_metric), MAPS),
    "soft_jaccard": (functools.partial(of_images, loss=losses.soft_jaccard), MAPS),
    "dice_semimetric": (functools.partial(of_images, loss=losses.dice_semimetric), MAPS),
    "squared_error": (losses.squared_error, VALUES),
    "absolute_error": (losses.absolute_error, VALUES),
    "quantile_error": (functools.partial(losses.quantile_error, quantile=0.2), VALUES),
    "percentage_error": (losses.percentage_error, VALUES),
    "squared_log_error": (losses.squared_log_error, VALUES),
    "root_mean_squared_error": (losses.root_mean_squared_error, VALUES),
    **{
        f"root_mean_squared_error_over_{over}": (
            functools.partial(losses.root_mean_squared_error, over=over),
            VALUES,
        )
        for over in ("deviation", "range", "mean", "predictions")
    },
    "relative_absolute_error": (losses.relative_absolute_error, VALUES),
    "smooth_directional_loss": (
        functools.partial(losses.smooth_directional_loss, slope=2.0, power=1.5),
        VALUES,
    ),
    "bag_loss": (functools.partial(losses.bag_loss, weight=0.3), BAGS),
    "expected_squared_difference": (losses.expected_squared_difference, SCORES),
    "its_root": (functools.partial(losses.expected_squared_difference, root=True), SCORES),
    "mmce": (losses.mmce, SCORES),
    "soft_binned_ece": (losses.soft_binned_ece, SCORES),
}

VARIANTS = ("comp_sum_absolute", "normalized_focal", "soft_jaccard", "dice_semimetric")
VARIANTS += ("root_mean_squared_error_over_deviation", "root_mean_squared_error_over_mean")
NAMES = [pytest.param(n, marks=pytest.mark.deep) if n in VARIANTS else n for n in CASES]


def evaluated(loss):
    """A jitted function of the loss's value and gradient, and of the value on half the rows, in
    bfloat16, and of a single row."""

    def at(arrays, where):
        def total(x):
            value = loss(x, *arrays[1:], where=where)
            return value.sum(), value

        (_, value), slope = jax.value_and_grad(total, has_aux=True)(arrays[0])
        return value, slope

    @jax.jit
    def run(arrays, where, single):
        half = arrays[0].astype(jnp.bfloat16)
        rounded = loss(half.astype(arrays[0].dtype), *arrays[1:], where=where)
        kept = [x[::2] for x in arrays]
        return {
            "all": at(arrays, where),
            "kept": loss(*kept),
            "half": loss(half, *arrays[1:], where=where),
            "rounded": rounded,
            "single": at(single, jnp.ones(1, bool)),
        }

    return run


def as_float32(arrays):
    return [np.float32(x) if x.dtype.kind == "f" else x for x in arrays]


@pytest.mark.parametrize("name", NAMES)
def test_corners(name):
    loss, kind = CASES[name]
    run, rng = evaluated(loss), np.random.default_rng(1)
    arrays, single = as_float32(kind.draw(rng, ROWS, CLASSES)), kind.draw(rng, 1, 1)
    everything, every_other = np.ones(ROWS, bool), np.arange(ROWS) % 2 == 0
    single = as_float32(single)
    found, some = run(arrays, everything, single), run(arrays, every_other, single)
    hard = run(as_float32(kind.hard), everything, single)
    none = run(arrays, ~everything, single)
    for which in (found, some, hard, none):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(which))
    coupled = np.ndim(found["all"][0]) == 0
    assert coupled == getattr(getattr(loss, "func", loss), "batch_coupled", False)

    # where is to leave rows out
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    value, slope = some["all"]
    close(value if coupled else value[every_other], some["kept"])
    assert not np.any(slope[~every_other]) and (coupled or not np.any(value[~every_other]))
    assert not np.any(none["all"][0]) and not np.any(none["all"][1])

    # the order of rows is of no consequence
    order = rng.permutation(ROWS)
    value, slope = run([x[order] for x in arrays], everything, single)["all"]
    close(value, found["all"][0] if coupled else found["all"][0][order])
    close(slope, found["all"][1][order])

    # bfloat16 is only what came in
    assert found["half"].dtype == found["all"][0].dtype == np.float32
    close(found["half"], found["rounded"])


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_a_central_difference(name):
    loss, kind = CASES[name]
    rng = np.random.default_rng(2)
    x, *others = kind.draw(rng, ROWS, CLASSES)
    ahead, weight = rng.normal(size=x.shape), rng.normal(size=ROWS)
    with jax.enable_x64(True):

        @jax.jit
        def total(x):
            value = loss(x, *others)
            return value if value.ndim == 0 else value @ weight

        slope = (total(x + 1e-6 * ahead) - total(x - 1e-6 * ahead)) / 2e-6
        along = jnp.vdot(jax.jit(jax.grad(total))(x), ahead)
        np.testing.assert_allclose(along, slope, rtol=1e-5, atol=1e-9)
        assert abs(slope) > 1e-4
