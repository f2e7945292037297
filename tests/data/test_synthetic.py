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


def test_seasons_go_on_as_they_began():
    world = data.seasonal_series(0, 2000, length=40, noise=0.0)
    whole = np.concatenate([world["series"][..., 0], world["target"]], 1)
    np.testing.assert_array_equal(world["target"], world["truth"])
    # a sine of any phase: x[t-1] + x[t+1] is 2 cos(2 pi / period) x[t]
    middle, sides = whole[:, 1:-1], whole[:, :-2] + whole[:, 2:]
    cosine = (sides * middle).sum(1) / (middle * middle).sum(1) / 2
    np.testing.assert_allclose(sides, 2 * cosine[:, None] * middle, atol=1e-4)
    period = 2 * np.pi / np.arccos(cosine)
    assert 8 <= period.min() < 8.1 and 15.9 < period.max() <= 16.001
    amplitude = np.abs(whole).max(1)
    assert 0.45 < amplitude.min() < 0.52 and 1.48 < amplitude.max() < 1.5001
    for tails, kurtosis in ((None, 3.0), (10.0, 4.0)):
        noisy = data.seasonal_series(0, 2000, length=40, noise=0.5, tails=tails)
        error = (noisy["target"] - noisy["truth"]).ravel()
        assert noisy["target"].shape == (2000, 8) and noisy["series"].shape == (2000, 40, 1)
        np.testing.assert_allclose(np.mean(error**4) / np.var(error) ** 2, kurtosis, rtol=0.15)
        spread = 0.5 if tails is None else 0.5 * np.sqrt(10 / 8)
        np.testing.assert_allclose(error.std(), spread, rtol=0.03)


def test_delayed_recall_hides_one_sign_and_asks_for_it():
    world = data.delayed_recall(0, 500, length=40, cues=3, noise=5, ask=0.25)
    tokens, where, distance = (world[k] for k in ("tokens", "where", "distance"))
    sign = (1 <= tokens) & (tokens <= 3)
    assert (sign.sum(1) == 1).all() and (sign == (distance == 0)).all()
    np.testing.assert_array_equal(world["targets"][:, 0], tokens[sign])
    assert (world["targets"] == world["targets"][:, :1]).all()
    assert (where == (tokens == 0)).all() and where[:, -1].all() and not where[distance <= 0].any()
    assert tokens.max() == 8 and sign[:, :20].sum() == 500 and sign[:, 19].any()
    np.testing.assert_allclose(where[:, :-1][distance[:, :-1] > 0].mean(), 0.25, atol=0.02)
    assert len(np.unique(world["targets"])) == 3 and where.dtype == bool


AREAS = {  # of figures of radius 1, by hand
    "circle": np.pi,
    "square": 1.7**2,
    "triangle": 1.65**2 / np.sqrt(3),
    "diamond": 2 * (0.75 / 0.707) ** 2,
    "cross": 2 * 0.6 * 2 - 0.36,
    "ring": np.pi * (0.97**2 - 0.53**2),
}
SHADES = {
    "red": "100",
    "green": "010",
    "blue": "001",
    "yellow": "110",
    "cyan": "011",
    "white": "111",
}


def test_shapes_are_as_their_captions_say():
    world = data.captioned_shapes(5, 900, side=48, noise=0.0)
    ink = world["image"] - np.median(world["image"], (1, 2), keepdims=True)
    there = np.abs(ink).max(-1) / np.abs(ink).max((1, 2, 3))[:, None, None]
    words = np.array(data.CAPTION_WORDS)[world["caption"]]
    assert len(set(data.CAPTION_WORDS)) == len(data.CAPTION_WORDS) == world["caption"].max() + 1
    place = (np.arange(48) + 0.5) / 16
    for axis, names in ((1, ("top", "middle", "bottom")), (2, ("left", "centre", "right"))):
        weight = there.sum(3 - axis)
        found = np.array(names)[(weight @ place / weight.sum(1)).astype(int)]
        np.testing.assert_array_equal(found, words[:, 2 + axis])
    brightest = there.reshape(900, -1).argmax(1)
    shade = world["image"].reshape(900, -1, 3)[np.arange(900), brightest]
    for name, bits in SHADES.items():
        mine = shade[words[:, 1] == name] > 0.5
        np.testing.assert_array_equal(mine, np.broadcast_to([b == "1" for b in bits], mine.shape))
    for i, size in enumerate(("small", "medium", "large")):
        for figure, area in AREAS.items():
            mine = there[(words[:, 0] == size) & (words[:, 2] == figure)].sum((1, 2))
            radii = np.sqrt(mine / area) / 2  # pixels of an image of 24
            assert abs(radii.mean() - 1.9 - i) < 0.12 and np.ptp(radii) < 0.75, (size, figure)


def test_several_shapes_stand_in_different_cells():
    world = data.captioned_shapes(2, 300, objects=3, side=16)
    tokens = world["caption"].reshape(300, 3, 5)
    cells = np.sort(tokens[..., 3] * 100 + tokens[..., 4], 1)
    assert (np.diff(cells, axis=1) > 0).all()
    again = data.captioned_shapes(2, 300, objects=3, side=16)
    np.testing.assert_array_equal(world["image"], again["image"])
    assert world["image"].shape == (300, 16, 16, 3) and world["image"].dtype == np.float32
    assert world["caption"].dtype == np.int32 and world["caption"].max() < len(data.CAPTION_WORDS)
