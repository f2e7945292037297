import numpy as np
import pytest

from tinker import data


@pytest.mark.parametrize("fn", [data.gaussian_blobs, data.two_moons, data.linear_regression])
def test_seeded_finite_and_typed(fn):
    first, again, other = fn(3, 40), fn(3, 40), fn(4, 40)
    for key, value in first.items():
        assert len(value) == 40 and np.isfinite(value).all()
        assert value.dtype == (np.int32 if key == "label" else np.float32)
        np.testing.assert_array_equal(value, again[key])
    assert not np.array_equal(first["features"], other["features"])


def test_blobs_have_their_spread():
    world = data.gaussian_blobs(0, 40000, classes=4, dimension=3, separation=10.0, spread=0.5)
    for c in range(4):
        mine = world["features"][world["label"] == c]
        assert abs(len(mine) - 10000) < 500
        np.testing.assert_allclose(np.cov(mine.T), 0.25 * np.eye(3), atol=0.02)
    centres = np.concatenate(
        [data.gaussian_blobs(s, 1, dimension=1, spread=0.0)["features"][0] for s in range(2000)]
    )
    np.testing.assert_allclose(centres.std(), 4.0, rtol=0.08)


def test_moons_are_half_circles():
    world = data.two_moons(1, 2000, noise=0.0)
    x, y = world["features"].T
    upper = world["label"] == 0
    np.testing.assert_allclose(np.hypot(x[upper], y[upper]), 1, rtol=1e-5)
    np.testing.assert_allclose(np.hypot(x[~upper] - 1, y[~upper] - 0.5), 1, rtol=1e-5)
    assert y[upper].min() >= 0 and y[~upper].max() <= 0.5
    noisy = data.two_moons(1, 2000, noise=0.2)["features"] - world["features"]
    np.testing.assert_allclose(noisy.std(), 0.2, rtol=0.05)


def test_linear_target_is_linear_of_unit_weight():
    world = data.linear_regression(2, 5000, dimension=6, noise=0.3, condition=100.0)
    x, y = world["features"].astype(np.float64), world["target"]
    weights, residual, *_ = np.linalg.lstsq(x, y, rcond=None)
    np.testing.assert_allclose(np.linalg.norm(weights), 1, rtol=0.02)
    np.testing.assert_allclose(np.sqrt(residual / 5000), 0.3, rtol=0.05)
    variances = x.var(0)
    np.testing.assert_allclose(variances.mean(), 1, rtol=0.05)
    np.testing.assert_allclose(variances[0] / variances[-1], 100, rtol=0.15)
    np.testing.assert_allclose(variances[:-1] / variances[1:], 100 ** (1 / 5), rtol=0.15)
