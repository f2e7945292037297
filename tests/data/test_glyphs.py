import functools

import numpy as np
import pytest

from tinker import data
from tinker.data import glyphs
from tinker.numerics import UserError

plain = functools.partial(
    glyphs.draw_glyphs, rotation=0.0, scale=(1, 1), shear=0.0, shift=0.0, stroke=(0, 0), noise=0.0
)


def test_images_are_grey_balanced_and_seeded():
    drawn = data.draw_glyphs(0, 205, classes=10)
    assert drawn["image"].shape == (205, 28, 28, 1) and drawn["image"].dtype == np.float32
    assert drawn["image"].min() >= 0 and drawn["image"].max() == 1
    counts = np.bincount(drawn["label"], minlength=10)
    assert set(counts) == {20, 21}
    assert set(drawn["font"]) <= set(range(len(glyphs.FONT_NAMES)))
    again, other = data.draw_glyphs(0, 205, classes=10), data.draw_glyphs(1, 205, classes=10)
    for key in drawn:
        np.testing.assert_array_equal(drawn[key], again[key])
    assert not np.array_equal(drawn["image"], other["image"])


def test_every_character_of_every_font_has_ink_inside_the_frame():
    for font in glyphs.FONT_NAMES:
        drawn = plain(0, 62, (font,), classes=62)
        ink = drawn["image"][..., 0]
        assert (ink.sum((1, 2)) > 8).all(), font
        border = ink.copy()
        border[:, 1:-1, 1:-1] = 0
        border = border.sum((1, 2)) / ink.sum((1, 2))
        assert border[drawn["label"] < 10].max() == 0, font
        assert border.max() < 0.02, font  # the serifs of a bold W


def test_undisturbed_glyph_is_the_rasterisers_own():
    """At the identity an image is FreeType's own at 24 pixels, but for antialiasing and hints."""
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    face = FT2Font(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf")
    face.set_size(24 * 8, 72)
    drawn = plain(0, 62, ("DejaVuSans",), classes=62)
    for image, label in zip(drawn["image"][..., 0], drawn["label"]):
        face.clear()
        face.set_text(glyphs.CHARACTERS[label], 0.0)
        face.draw_glyphs_to_bitmap(antialiased=True)
        fine = np.asarray(face.get_image()) / 255
        fine = fine[np.flatnonzero(fine.any(1))[0] :, np.flatnonzero(fine.any(0))[0] :]
        fine = fine[: np.flatnonzero(fine.any(1))[-1] + 1, : np.flatnonzero(fine.any(0))[-1] + 1]
        canvas = np.zeros((28 * 8, 28 * 8))
        top, left = (224 - fine.shape[0]) // 2, (224 - fine.shape[1]) // 2
        canvas[top : top + fine.shape[0], left : left + fine.shape[1]] = fine
        want = canvas.reshape(28, 8, 28, 8).mean((1, 3))
        assert np.corrcoef(image.ravel(), want.ravel())[0, 1] > 0.95, glyphs.CHARACTERS[label]
        np.testing.assert_allclose(image.sum(), want.sum(), rtol=0.1)


def moments(image):
    """Ink, centre and central second moments, rows before columns."""
    weight = image / image.sum()
    y, x = np.mgrid[:28, :28]
    cy, cx = (weight * y).sum(), (weight * x).sum()
    dy, dx = y - cy, x - cx
    second = np.array([(weight * a * b).sum() for a, b in ((dy, dy), (dy, dx), (dx, dx))])
    return image.sum(), np.array([cy, cx]), second


def test_the_map_does_what_its_parameters_say():
    """Moments of the ink under each parameter alone, against the moments of the plain glyph."""
    one = functools.partial(plain, 3, 1, ("DejaVuSans-Bold",))
    ink, centre, (yy, yx, xx) = moments(one()["image"][0, ..., 0])
    # The draws of an example with one label and one font, in the order that draw_glyphs makes them.
    rng = np.random.default_rng(3)
    rng.permutation(1), rng.integers(1, size=1)
    angle, zoom, slant = (rng.uniform(-1, 1), rng.uniform(), rng.uniform(-1, 1))
    offset = rng.uniform(-1, 1, (2, 1))[:, 0]

    _, moved, second = moments(one(shift=3.0)["image"][0, ..., 0])
    np.testing.assert_allclose(moved - centre, 3 * offset, atol=0.05)
    np.testing.assert_allclose(second, [yy, yx, xx], rtol=0.03, atol=0.1)

    grown, _, second = moments(one(scale=(0.7, 1.3))["image"][0, ..., 0])
    factor = (0.7 + 0.6 * zoom) ** 2
    np.testing.assert_allclose(grown / ink, factor, rtol=0.03)
    np.testing.assert_allclose(second / factor, [yy, yx, xx], rtol=0.05, atol=0.3)

    _, _, second = moments(one(shear=0.4)["image"][0, ..., 0])
    s = 0.4 * slant
    np.testing.assert_allclose(
        second, [yy, yx + s * yy, xx + 2 * s * yx + s * s * yy], rtol=0.05, atol=0.3
    )

    _, _, second = moments(one(rotation=30.0)["image"][0, ..., 0])
    c, s = np.cos(np.deg2rad(30 * angle)), np.sin(np.deg2rad(30 * angle))
    turn = np.array([[c, s], [-s, c]])
    want = turn @ np.array([[yy, yx], [yx, xx]]) @ turn.T
    np.testing.assert_allclose(second, [want[0, 0], want[0, 1], want[1, 1]], rtol=0.05, atol=0.3)

    thick = one(stroke=(0.5, 0.5))["image"].sum()
    thin = one(stroke=(-0.3, -0.3))["image"].sum()
    assert thin < 0.95 * ink and thick > 1.08 * ink


def test_noise_has_its_standard_deviation():
    clean, noisy = (data.draw_glyphs(5, 50, noise=s)["image"] for s in (0.0, 0.1))
    middle = (clean > 0.45) & (clean < 0.55)  # far from the clip
    np.testing.assert_allclose((noisy - clean)[middle].std(), 0.1, rtol=0.1)


def test_splits_share_no_image_and_sizes_are_the_users():
    options = {"size": 300, "validation_size": 100, "test_size": 200, "noise": 0.0}
    splits = {s: data.load("glyphs", s, **options) for s in ("train", "validation", "test")}
    assert [data.length_of(d) for d in splits.values()] == [300, 100, 200]
    images = np.concatenate([d.source["image"] for d in splits.values()]).reshape(600, -1)
    assert len(np.unique(images, axis=0)) == 600
    both = data.load("glyphs", "train+validation", **options)
    np.testing.assert_array_equal(both.source["image"].reshape(400, -1), images[:400])
    # A split does not depend on the others' sizes; it does on the seed.
    again = data.load("glyphs", "test", test_size=200, noise=0.0)
    np.testing.assert_array_equal(again.source["image"], splits["test"].source["image"])
    other = data.load("glyphs", "test", split_seed=1, **options)
    assert not np.array_equal(other.source["image"], again.source["image"])


@pytest.mark.parametrize("split_seed", range(4))
def test_disjoint_fonts(split_seed):
    options = {"size": 200, "validation_size": 200, "test_size": 200, "disjoint_fonts": True}
    used = {}
    for split in ("train", "validation", "test"):
        ds = data.load("glyphs", split, split_seed=split_seed, **options)
        used[split] = {glyphs.FONT_NAMES[i] for i in np.unique(ds.source["font"])}
        assert used[split] == set(ds.info["fonts"])
    assert used["train"] == used["validation"]
    assert used["train"] | used["test"] == set(glyphs.FONT_NAMES)
    for family in glyphs.FONTS.values():  # a family is on one side
        assert set(family) <= used["train"] or set(family) <= used["test"]


def test_disjoint_classes():
    options = {"classes": 14, "disjoint_classes": True, "rotation": 0.0, "noise": 0.0}
    options |= {"size": 70, "validation_size": 20, "test_size": 50, "split_seed": 3}
    splits = {s: data.load("glyphs", s, **options) for s in ("train", "validation", "test")}
    labels = {s: sorted(set(ds.source["label"].tolist())) for s, ds in splits.items()}
    assert list(labels.values()) == [list(range(7)), [7, 8], list(range(9, 14))]
    names = splits["test"].info["class_names"]
    assert sorted(names) == sorted(glyphs.CHARACTERS[:14]) and names != sorted(names)
    assert names != data.load("glyphs", "test", **options | {"split_seed": 4}).info["class_names"]
    # a label's name is what is drawn
    plain = {"rotation": 0.0, "noise": 0.0, "scale": (1, 1), "shear": 0.0, "shift": 0.0}
    plain |= {"stroke": (0, 0)}
    found = data.load("glyphs", "test", **options | plain).source
    for label in labels["test"]:
        one = glyphs.CHARACTERS.index(names[label])
        (row,) = np.flatnonzero(found["label"] == label)[:1]
        font = (glyphs.FONT_NAMES[found["font"][row]],)
        drawn = data.draw_glyphs(0, 2, font, classes=(one, 0), **plain)
        same = drawn["image"][np.flatnonzero(drawn["label"] == 0)[0]]
        np.testing.assert_allclose(found["image"][row], same, atol=1e-6)
    both = data.load("glyphs", "train+validation", **options).source
    assert sorted(set(both["label"].tolist())) == list(range(9))


def test_a_nearest_centroid_finds_structure():
    train, test = (
        data.load("glyphs", s, size=2000, test_size=500, shift=0.5).source
        for s in ("train", "test")
    )
    centroids = np.stack([train["image"][train["label"] == c].mean(0) for c in range(10)])
    gaps = ((test["image"][:, None] - centroids) ** 2).sum((2, 3, 4))
    assert (gaps.argmin(1) == test["label"]).mean() > 0.6


def test_mistakes():
    for classes in (1, 63):
        with pytest.raises(UserError, match=f"from 2 to 62, got {classes}"):
            data.load("glyphs", classes=classes)
    with pytest.raises(UserError, match=r"no option 'rotatoin' \(did you mean 'rotation'\?\)"):
        data.load("glyphs", rotatoin=3)
    assert data.load("glyphs", classes=62, size=62, rotation=0).info["class_names"][-1] == "z"
