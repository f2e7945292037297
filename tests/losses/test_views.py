"""Losses of views against loops, their authors' code and known configurations."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT
from tinker import losses
from tinker.numerics import UserError

RNG = np.random.default_rng(0)


def unit(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


VIEWS = RNG.normal(size=(7, 3, 4)).astype(np.float32)
SOME = np.array([True, False, True, True, True, False, True])


@jax.jit
def spread(z, where, options):
    """Values of all losses, and the gradients of their sums."""
    alpha, t, temperature, share = options

    def every(z):
        hard = losses.hard_info_nce(z[:, :2], temperature=temperature, share=share, where=where)
        return {
            "alignment": losses.view_alignment(z, alpha=alpha),
            "uniformity": losses.uniformity(z, t=t, where=where),
            "of one view": losses.uniformity(z[:, 0], t=t, where=where),
            "hard": hard,
        }

    return every(z), jax.jacrev(lambda z: jax.tree.map(jnp.sum, every(z)))(z)


@jax.jit
def aligned(z, alpha, t):
    return losses.view_alignment(z, alpha=alpha).mean(), losses.uniformity(z, t=t)


def hard_rows(z, temperature, share):
    """The hard contrastive loss by loops: sort the negatives, keep the first ones."""
    first, second = unit(z[:, 0].astype(float)), unit(z[:, 1].astype(float))
    out = []
    for i in range(len(z)):
        drawn = np.exp(first[i] @ second[i] / temperature)
        others = sorted((first[i] @ second[k] for k in range(len(z)) if k != i), reverse=True)
        kept = others[: int(np.ceil(share * len(others)))]
        out.append(-np.log(drawn / (drawn + sum(np.exp(s / temperature) for s in kept))))
    return np.array(out)


@pytest.mark.parametrize("options", [(2.0, 2.0, 0.2, 0.5), (1.0, 3.0, 1.0, 1.0)])
def test_views_on_the_sphere_are_the_loops(options):
    alpha, t, temperature, share = options
    every, _ = spread(VIEWS, np.ones(7, bool), options)
    some, slopes = spread(VIEWS, SOME, options)
    z = unit(VIEWS.astype(float))
    gaps = [
        np.mean([np.linalg.norm(v[a] - v[b]) ** alpha for a, b in ((0, 1), (0, 2), (1, 2))])
        for v in z
    ]
    np.testing.assert_allclose(every["alignment"], gaps, rtol=1e-5)
    for found, kept in ((every, np.arange(7)), (some, np.flatnonzero(SOME))):
        potentials = [
            np.log(
                np.mean(
                    [
                        np.exp(-t * np.sum((z[i, v] - z[j, v]) ** 2))
                        for n, i in enumerate(kept)
                        for j in kept[:n]
                    ]
                )
            )
            for v in range(3)
        ]
        np.testing.assert_allclose(found["uniformity"], np.mean(potentials), rtol=1e-5)
        np.testing.assert_allclose(found["of one view"], potentials[0], rtol=1e-5)
        expected = hard_rows(VIEWS[kept], temperature, share)
        np.testing.assert_allclose(found["hard"][kept], expected, rtol=1e-5)
    assert not np.any(some["hard"][~SOME]) and not np.any(slopes["uniformity"][~SOME])
    if share == 1:
        both = losses.info_nce(VIEWS[:, 0], VIEWS[:, 1], temperature=temperature)
        np.testing.assert_allclose(every["hard"], both, rtol=1e-5)


def test_alignment_and_uniformity_are_the_authors():
    (golden,) = json.loads((ROOT / "tests" / "golden" / "align_uniform.json").read_text())
    for case in golden["cases"]:
        z = np.stack([case["x"], case["y"]], 1)
        gap, uneven = aligned(z, float(case["alpha"]), float(case["t"]))
        np.testing.assert_allclose(gap, case["align"], rtol=1e-5)
        np.testing.assert_allclose(uneven, np.mean(case["uniform"]), rtol=1e-5)


def test_uniformity_of_known_configurations():
    angles = np.arange(3) * 2 * np.pi / 3  # a triangle's sides have a square of 3
    triangle = np.stack([np.cos(angles), np.sin(angles)], -1)
    uniformity = jax.jit(losses.uniformity)
    np.testing.assert_allclose(uniformity(triangle), -6.0, rtol=1e-5)
    np.testing.assert_allclose(uniformity(np.eye(5) * 4), -4.0, rtol=1e-5)
    # many uniform points: on the sphere E exp(-t |x - y|²) = (1 - exp(-4 t)) / (4 t)
    many = np.random.default_rng(1).normal(size=(1500, 3))
    expected = np.log((1 - np.exp(-8)) / 8)
    np.testing.assert_allclose(uniformity(many), expected, atol=0.01)
    assert losses.uniformity.batch_coupled and losses.uniformity.whole_split
    assert losses.hard_info_nce.batch_coupled


def test_gradients_and_corners_of_views_on_the_sphere():
    options = (1.5, 2.0, 0.3, 0.4)
    ahead = RNG.normal(size=VIEWS.shape)
    with jax.enable_x64(True):
        z = VIEWS.astype(float)
        (up, _), (down, _) = (spread(z + e * ahead, SOME, options) for e in (1e-6, -1e-6))
        _, slopes = spread(z, SOME, options)
        for name, slope in slopes.items():
            difference = (up[name].sum() - down[name].sum()) / 2e-6
            np.testing.assert_allclose(np.vdot(slope, ahead), difference, rtol=1e-5)
    alike = np.tile(VIEWS[:1, :1], (7, 3, 1))
    for z in (VIEWS * 0, alike, VIEWS * 1e4):
        for where in (SOME, ~SOME & False):
            found = spread(z, where, options)
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    found, _ = spread(alike, SOME, options)
    assert abs(found["uniformity"]) < 1e-6 and not np.any(found["alignment"])
    found, slopes = spread(VIEWS, ~SOME & False, options)
    assert found["uniformity"] == 0 and not np.any(slopes["hard"])
    half = jnp.asarray(VIEWS[:1, :2], jnp.bfloat16)  # a batch of one
    for loss in (losses.view_alignment, losses.uniformity, losses.hard_info_nce):
        value = jax.jit(loss)(half)
        assert value.dtype == jnp.float32 and np.isfinite(value).all()
    for loss in (losses.view_alignment, losses.hard_info_nce):
        with pytest.raises(AssertionError):
            loss(VIEWS[:, :1])


# Contrasts of rows and of columns.


@functools.partial(jax.jit, static_argnums=2)
def contrasts(z, where, normalize="none"):
    def both(z):
        found = losses.sample_contrast, losses.dimension_contrast
        return jnp.stack([loss(z, normalize=normalize, where=where) for loss in found])

    return both(z), jax.jacrev(both)(z)


def off_diagonal(views):
    """The sum over pairs of rows, and that over pairs of columns, the mean over views."""
    found = []
    for z in views.swapaxes(0, 1):
        for vectors in (z, z.T):
            pairs = [(u, v) for i, u in enumerate(vectors) for j, v in enumerate(vectors) if i != j]
            found.append(sum(np.dot(u, v) ** 2 for u, v in pairs))
    return np.reshape(found, (-1, 2)).mean(0)


PAIRS = np.random.default_rng(1).normal(size=(6, 2, 3))
KEPT = np.arange(6) != 2


def test_contrasts_are_the_loops_and_differ_by_their_lengths():
    for kept in (KEPT, KEPT | True):
        found, (of_samples, of_dimensions) = contrasts(np.float32(PAIRS), kept)
        rows = PAIRS[kept]
        np.testing.assert_allclose(found, off_diagonal(rows), rtol=1e-5)
        of_rows, of_columns = (np.sum(rows**2, axis, keepdims=True) for axis in (2, 0))
        gap = np.sum(of_rows**2, (0, 2)).mean() - np.sum(of_columns**2, (0, 2)).mean()
        np.testing.assert_allclose(found[1] - found[0], gap, rtol=1e-4)
        along = 4 * rows * (of_rows - of_columns) / 2  # of a mean over two views
        np.testing.assert_allclose((of_dimensions - of_samples)[kept], along, rtol=1e-3, atol=1e-4)
        assert not np.any(of_samples[~kept]) and not np.any(of_dimensions[~kept])


def test_contrasts_of_given_lengths_are_one():
    rows = PAIRS[KEPT]
    by_row = off_diagonal(unit(rows))
    by_column = off_diagonal(rows / np.sqrt(np.mean(rows**2, 0) * 3))
    for normalize, expected in (("rows", by_row), ("columns", by_column)):
        found, _ = contrasts(np.float32(PAIRS), KEPT, normalize)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    # of both in turn rows have a length of 1, columns of sqrt(5 / 3): the fourth powers are known
    found, (of_samples, of_dimensions) = contrasts(np.float32(PAIRS), KEPT, "both")
    np.testing.assert_allclose(found[1] + 3 * (5 / 3) ** 2, found[0] + 5, rtol=1e-3)
    gap = np.linalg.norm(of_samples - of_dimensions)
    assert gap < 0.05 * np.linalg.norm(of_samples) and np.linalg.norm(of_samples) > 0.1

    @jax.jit
    def defaults(z):
        found = losses.sample_contrast, losses.dimension_contrast
        return [loss(z, where=KEPT) for loss in found]

    np.testing.assert_allclose(defaults(PAIRS), (by_row[0], by_column[1]), rtol=1e-5)
    single = defaults(PAIRS[:, 0])
    np.testing.assert_allclose(single[0], off_diagonal(unit(rows[:, :1]))[0], rtol=1e-5)


def test_gradients_and_corners_of_contrasts():
    ahead = np.random.default_rng(2).normal(size=PAIRS.shape)
    with jax.enable_x64(True):
        (up, _), (down, _) = (contrasts(PAIRS + e * ahead, KEPT, "both") for e in (1e-6, -1e-6))
        _, slopes = contrasts(PAIRS, KEPT, "both")
        along = np.sum(slopes * ahead, (1, 2, 3))
        np.testing.assert_allclose(along, (up - down) / 2e-6, rtol=1e-5, atol=1e-8)
    for normalize in ("none", "both"):
        for z, kept in ((PAIRS * 0, KEPT), (PAIRS * 1e4, KEPT), (PAIRS, KEPT & False)):
            found = contrasts(np.float32(z), kept, normalize)
            assert all(np.isfinite(x).all() for x in found)
        assert not np.any(found[0]) and not np.any(found[1])
    one = jnp.ones((1, 3), jnp.bfloat16)
    for loss, expected in ((losses.sample_contrast, 0), (losses.dimension_contrast, 6)):
        found = jax.jit(lambda z, loss=loss: loss(z, normalize="none"))(one)
        assert found == expected and found.dtype == jnp.float32 and loss.batch_coupled
        with pytest.raises(UserError, match="normalize"):
            loss(one, normalize="row")
