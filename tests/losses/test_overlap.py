"""Losses of overlap against loops, their authors' code, and where they are least."""

import functools
import json

import jax
import numpy as np
import pytest

from tests.conftest import ROOT
from tinker import losses
from tinker.configs.losses import overlap
from tinker.experiments import fit
from tinker.numerics import UserError

RNG = np.random.default_rng(0)
P, Y = RNG.uniform(size=(2, 3, 6))
PRODUCT = functools.partial(losses.jaccard_metric, intersection="product")
ALL = {
    "minimum": losses.jaccard_metric,
    "product": PRODUCT,
    "soft": losses.soft_jaccard,
    "dice": losses.dice_semimetric,
}


@jax.jit
def evaluated(p, y):
    return {name: loss(p, y) for name, loss in ALL.items()}


def by_loops(p, y):
    low, high, both, apart, total = 0.0, 0.0, 0.0, 0.0, 0.0
    for a, b in zip(p, y):
        low, high, both = low + min(a, b), high + max(a, b), both + a * b
        apart, total = apart + abs(a - b), total + a + b
    return {
        "minimum": 1 - low / high,
        "product": 1 - both / (both + apart),
        "soft": 1 - both / (total - both),
        "dice": 1 - 2 * low / total,
    }


def test_overlaps_are_the_loops_and_agree_on_hard_sets():
    found = evaluated(P, Y)
    for i in range(3):
        for name, expected in by_loops(P[i], Y[i]).items():
            np.testing.assert_allclose(found[name][i], expected, rtol=1e-5)
    hard = (Y > 0.5).astype(float)
    found = evaluated(P, hard)
    np.testing.assert_allclose(found["minimum"], found["soft"], rtol=1e-5)
    np.testing.assert_allclose(found["product"], found["soft"], rtol=1e-5)
    j = evaluated(P, Y)
    np.testing.assert_allclose(j["dice"], j["minimum"] / (2 - j["minimum"]), rtol=1e-5)


def test_jaccard_metrics_are_metrics_and_the_others_are_not():
    x, y, z = RNG.uniform(size=(3, 4000, 3)) * RNG.integers(0, 2, (3, 4000, 3))
    one, two, three = evaluated(x, z), evaluated(x, y), evaluated(y, z)
    for name in ("minimum", "product"):
        assert (one[name] <= two[name] + three[name] + 1e-5).all()
        np.testing.assert_allclose(evaluated(z, x)[name], one[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(evaluated(x, x)[name], 0, atol=1e-6)
        assert (one[name][np.abs(x - z).max(1) > 0.1] > 0.01).all()
    assert (one["dice"] > two["dice"] + three["dice"] + 1e-3).any()
    np.testing.assert_allclose(evaluated(P, P)["dice"], 0, atol=1e-6)
    assert (evaluated(P, P)["soft"] > 0.1).all()


def test_of_a_soft_set_the_metrics_are_least_at_it_and_soft_jaccard_at_a_hard_one():
    y = np.array([0.9, 0.6, 0.3])
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 11)] * 3), -1).reshape(-1, 3)
    found = evaluated(grid, np.broadcast_to(y, grid.shape))
    for name in ("minimum", "product", "dice"):
        np.testing.assert_allclose(grid[np.argmin(found[name])], y, atol=1e-9)
    best = grid[np.argmin(found["soft"])]
    np.testing.assert_array_equal(best, best.round())


def test_mean_over_classes_is_the_authors():
    (golden,) = json.loads((ROOT / "tests" / "golden" / "overlap.json").read_text())
    fns = {"jaccard": losses.jaccard_metric, "dice": losses.dice_semimetric}

    @functools.partial(jax.jit, static_argnums=(2, 3))
    def run(logits, targets, name, present, smooth):
        loss = functools.partial(fns[name], smooth=smooth)
        return losses.mean_over_classes(logits, targets, loss=loss, present=present)

    for case in golden["cases"]:
        logits, smooth = np.array(case["logits"]), case["smooth"]
        for name in fns:
            for kind in ("soft", "hard"):
                y = np.array(case[kind])
                found = run(logits, y, name, kind == "hard", smooth)
                np.testing.assert_allclose(found.mean(), case[name][f"image_{kind}"], rtol=1e-5)
                whole, y = logits.reshape(1, -1, logits.shape[-1]), y.reshape(1, -1, *y.shape[2:])
                found = run(whole, y, name, kind == "hard", smooth)
                np.testing.assert_allclose(found[0], case[name][f"batch_{kind}"], rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_corners_and_where(name):
    loss = ALL[name]
    where = np.array([True, False, True, True, False, True])

    @jax.jit
    def run(p, y, where):
        def total(p):
            value = loss(p, y, where=where)
            return value.sum(), value

        (_, value), slope = jax.value_and_grad(total, has_aux=True)(p)
        return value, slope, loss(p[:, ::2], y[:, ::2])

    value, slope, _ = run(np.float32(P), Y, where)
    np.testing.assert_allclose(value, jax.jit(loss)(P[:, where], Y[:, where]), rtol=1e-5)
    assert not slope[:, ~where].any() and slope[:, where].all()
    _, _, kept = run(np.float32(P), Y, where)
    every_other = np.arange(6) % 2 == 0
    np.testing.assert_allclose(run(np.float32(P), Y, every_other)[0], kept, rtol=1e-5)
    for p, y in ((P * 0, Y * 0), (P * 0, Y), (P * 0 + 1, Y * 0 + 1), (P, Y * 0)):
        for places in (where, ~where & where):
            value, slope, _ = run(np.float32(p), y, places)
            assert np.isfinite(value).all() and np.isfinite(slope).all()
            assert (value >= 0).all() and (value <= 1).all()
    np.testing.assert_array_equal(run(np.float32(P * 0), Y * 0, where)[0], 0)
    with pytest.raises(AssertionError):
        loss(P, Y[:, :4])


def test_an_unknown_intersection_is_told():
    with pytest.raises(UserError, match="intersection"):
        losses.jaccard_metric(P, Y, intersection="min")


def test_free_predictions_end_where_the_loss_is_least():
    config = overlap.base()
    config.steps, config.world.sets, config.world.places = 400, 3, 5
    config = {k: v for k, v in config.items() if k not in ("arms", "claims", "figure", "seeds")}
    found = fit.run(type(overlap.base())(config), jax.random.key(0))
    assert found["distance"] < 0.01 and found["loss"] < 0.02
    assert found["curve"].shape == found["step"].shape
    assert found["step"][0] == 1 and found["step"][-1] == 400
    assert (np.diff(found["step"]) > 0).all()
    assert found["curve"][0] > 0.2 and found["curve"][-1] < 0.02
