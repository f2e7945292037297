import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from tinker import data
from tinker.numerics import UserError

KEY = jax.random.key(0)


def run(fn, *arrays, key=KEY, **hyper):
    """The augmentation, jitted as a training step would."""
    out = jax.jit(lambda key, *arrays: fn(key, *arrays, **hyper))(key, *arrays)
    return jax.tree.map(np.asarray, out)


def images(batch=16, height=9, width=8, channels=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 1, (batch, height, width, channels)).astype(np.float32)


def indexed(batch, height, width):
    """Images whose every pixel tells its row and column, none of them zero."""
    grid = np.stack(np.mgrid[1 : height + 1, 1 : width + 1], -1).astype(np.float32)
    return np.repeat(grid[None], batch, 0)


IDENTITIES = [
    (data.random_crop, {"padding": 0}),
    (data.random_shift, {"pixels": 0}),
    (data.random_flip, {"probability": 0.0}),
    (data.random_affine, {"rotation": 0.0, "scale": (1.0, 1.0), "translation": 0.0}),
    (data.random_resized_crop, {"area": (1.0, 1.0), "aspect": (1.0, 1.0)}),
    (data.random_erasing, {"probability": 0.0}),
    (data.gaussian_noise, {"std": 0.0}),
]


@pytest.mark.parametrize("fn,hyper", IDENTITIES, ids=lambda x: getattr(x, "__name__", ""))
def test_zero_strength_is_the_identity(fn, hyper):
    x = images()
    np.testing.assert_allclose(run(fn, x, **hyper), x, atol=1e-5)


def test_zero_strength_is_the_identity_for_series_and_tables():
    series, table = images()[:, :, 0], images()[:, 0, :, 0]

    @jax.jit
    def changed(key):
        return (
            data.time_jitter(key, series, shift=0.0, stretch=0.0),
            data.amplitude_jitter(key, series, std=0.0),
            data.feature_noise(key, table, scale=0.0),
            data.feature_mask(key, table, probability=0.0),
        )

    for got, want in zip(changed(KEY), (series, series, table, table), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("fn", [f for f, _ in IDENTITIES], ids=lambda f: f.__name__)
def test_key_decides_and_dtype_stays(fn):
    x = images()
    jitted = jax.jit(fn)
    one, again, other = jitted(KEY, x), jitted(KEY, x), jitted(jax.random.key(1), x)
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert one.shape == x.shape and one.dtype == x.dtype
    assert np.isfinite(one).all()
    half = jax.eval_shape(fn, KEY, jax.ShapeDtypeStruct(x.shape, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_shift_moves_each_image_uniformly_and_zeros_move_in():
    x = indexed(4000, 7, 6)
    moved = run(data.random_shift, x, pixels=2)
    counts = np.zeros((5, 5))
    for image in moved:
        row, column = np.argwhere((image == [4, 3]).all(-1))[0]  # where pixel (3, 2) went
        dy, dx = row - 3, column - 2
        counts[dy + 2, dx + 2] += 1
        want = np.zeros_like(image)
        for y in range(7):
            for z in range(6):
                if 0 <= y - dy < 7 and 0 <= z - dx < 6:
                    want[y, z] = x[0, y - dy, z - dx]
        np.testing.assert_array_equal(image, want)
    assert np.abs(counts - 160).max() < 65  # five standard deviations


def test_crop_cuts_a_window_of_the_padded_image():
    x = images(200, 5, 4, 1)
    out = run(data.random_crop, x, padding=2, size=(6, 3), mode="reflect")
    assert out.shape == (200, 6, 3, 1)
    padded = np.pad(x, [(0, 0), (2, 2), (2, 2), (0, 0)], mode="reflect")
    places = set()
    for image, window in zip(padded, out):
        fits = [
            (i, j)
            for i in range(4)
            for j in range(6)
            if np.array_equal(image[i : i + 6, j : j + 3], window)
        ]
        places.update(fits[:1])
        assert fits
    assert len(places) > 20
    with pytest.raises(UserError, match="larger than the padded image"):
        data.random_crop(KEY, x, padding=0, size=(6, 3))


def test_flip_mirrors_its_share():
    x = images(2000)
    out = run(data.random_flip, x, probability=0.3)
    flipped = np.array([np.array_equal(o, i[:, ::-1]) for o, i in zip(out, x)])
    kept = np.array([np.array_equal(o, i) for o, i in zip(out, x)])
    assert (flipped ^ kept).all()
    assert abs(flipped.mean() - 0.3) < 0.05


def test_affine_agrees_with_scipy():
    x = images(6, 9, 7, 2)
    rng = np.random.default_rng(1)
    matrices = np.concatenate([np.eye(2) + 0.4 * rng.normal(size=(6, 2, 2))], 0)
    offsets = rng.normal(size=(6, 2, 1))
    out = jax.jit(data.affine)(x, np.concatenate([matrices, offsets], 2).astype(np.float32))
    centre = np.array([4.0, 3.0])
    for image, matrix, offset, got in zip(x, matrices, offsets[..., 0], np.asarray(out)):
        for channel in range(2):
            want = ndimage.affine_transform(
                image[..., channel].astype(np.float64),
                matrix,
                offset + centre - matrix @ centre,
                order=1,
                mode="grid-constant",  # interpolates with the zeros outside, as affine does
            )
            np.testing.assert_allclose(got[..., channel], want, atol=2e-5)


def blob(batch, side=41):
    """A Gaussian bump off the centre, and a fainter, wide one there."""
    y, x = np.mgrid[:side, :side] - side // 2
    bump = np.exp(-((y + 6) ** 2 + (x - 3) ** 2) / 8)
    return np.repeat(bump[None, ..., None], batch, 0).astype(np.float32)


def centroids(x):
    side = x.shape[1]
    weight = x[..., 0] / x[..., 0].sum((1, 2), keepdims=True)
    y, z = np.mgrid[:side, :side] - side // 2
    return np.stack([(weight * y).sum((1, 2)), (weight * z).sum((1, 2))], 1), x.sum((1, 2, 3))


def test_random_affine_draws_what_it_says():
    x, start = blob(400), np.array([-6.0, 3.0])
    still = {"rotation": 0.0, "scale": (1.0, 1.0), "translation": 0.0, "shear": 0.0}
    jitted = jax.jit(data.random_affine)  # hyperparameters are traced: one compile for all

    def draw(**hyper):
        return centroids(np.asarray(jitted(KEY, x, **still | hyper)))

    moved, _ = draw(translation=3.0)
    offset = moved - start
    assert np.abs(offset).max() <= 3.01
    np.testing.assert_allclose(offset.mean(0), 0, atol=0.35)
    np.testing.assert_allclose(offset.std(0), 3 / np.sqrt(3), rtol=0.12)

    moved, _ = draw(rotation=40.0)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), np.linalg.norm(start), atol=0.05)
    angle = np.angle((moved @ [1, 1j]) / (start @ [1, 1j]), deg=True)
    assert np.abs(angle).max() < 40.5 and abs(angle.mean()) < 6
    np.testing.assert_allclose(angle.std(), 40 / np.sqrt(3), rtol=0.12)

    moved, ink = draw(scale=(0.5, 1.5))
    zoom = (moved @ start) / (start @ start)
    np.testing.assert_allclose(moved, zoom[:, None] * start, atol=0.03)
    np.testing.assert_allclose(ink / x[0].sum(), zoom**2, rtol=0.03)
    assert zoom.min() < 0.55 and zoom.max() > 1.45 and abs(zoom.mean() - 1) < 0.08

    moved, _ = draw(shear=0.5)
    np.testing.assert_allclose(moved[:, 0], -6, atol=0.02)
    slant = (moved[:, 1] - 3) / -6
    assert np.abs(slant).max() < 0.51 and slant.std() > 0.25


def test_resized_crop_stretches_a_rectangle_that_fits():
    """A ramp stays a ramp: its ends and slopes tell the rectangle."""
    x = indexed(400, 9, 13)
    out = run(data.random_resized_crop, x, area=(0.2, 0.8), aspect=(0.5, 2.0))
    first, last = out[:, 0, 0] - 1, out[:, -1, -1] - 1
    assert (first > -1e-4).all() and (last < [8 + 1e-4, 12 + 1e-4]).all()
    middle = (out[:, 0, 0] + out[:, -1, -1]) / 2
    np.testing.assert_allclose(out[:, 4, 6], middle, atol=1e-4)
    sides = (last - first) / [8, 12]
    area, ratio = sides.prod(1), np.log(sides[:, 0] / sides[:, 1])
    whole = sides.max(1) < 0.999  # the others were cut
    assert 0.19 < area[whole].min() < 0.25 and 0.7 < area[whole].max() < 0.81
    assert abs(ratio).max() < np.log(2) + 1e-4 and abs(ratio[whole].mean()) < 0.1
    # the place is uniform where the rectangle fits
    place = first[whole] / ((1 - sides[whole]) * [8, 12])
    np.testing.assert_allclose(
        np.quantile(place, [0.25, 0.5, 0.75], 0)[:, 0], [0.25, 0.5, 0.75], atol=0.1
    )
    assert 0 <= place.min() < 0.05 and 0.95 < place.max() <= 1 + 1e-4


def test_color_jitter_scales_in_turn_and_greys_its_share():
    x = images(400, 3, 2, channels=3)
    weights = np.array([0.299, 0.587, 0.114])
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "gray": 0.0, "probability": 1.0}
    kept = run(data.color_jitter, x, **off)
    np.testing.assert_allclose(kept, x, atol=1e-5)
    assert (run(data.color_jitter, x, probability=0.0, gray=0.0) == x).all()

    dim = x / 2  # nothing is cut at 1
    factor = run(data.color_jitter, dim, **{**off, "brightness": 0.5}) / dim
    np.testing.assert_allclose(
        factor, factor[:, :1, :1, :1].repeat(3, 1).repeat(2, 2).repeat(3, 3), rtol=1e-4
    )
    np.testing.assert_allclose(
        np.quantile(factor[:, 0, 0, 0], [0, 0.5, 1]), [0.5, 1, 1.5], atol=0.05
    )
    inner = 0.5 + (x - 0.5) / 8
    for name, centre in (
        ("contrast", (inner @ weights).mean((1, 2))[:, None, None, None]),
        ("saturation", (inner @ weights)[..., None]),
    ):
        out = run(data.color_jitter, inner, **{**off, name: 0.4})
        slope = ((out - centre) * (inner - centre)).sum((1, 2, 3)) / np.square(inner - centre).sum(
            (1, 2, 3)
        )
        np.testing.assert_allclose(
            out - centre, slope[:, None, None, None] * (inner - centre), atol=1e-4
        )
        np.testing.assert_allclose(np.quantile(slope, [0, 0.5, 1]), [0.6, 1, 1.4], atol=0.06)
    mixed = run(data.color_jitter, x, probability=0.5, gray=0.25)
    assert 0.4 < np.mean((mixed == x).all((1, 2, 3)) / 0.75) < 0.6
    grey = np.ptp(mixed, -1).max((1, 2)) < 1e-6
    assert 0.18 < grey.mean() < 0.32
    assert mixed.min() >= 0 and mixed.max() <= 1


def test_erasing_overwrites_one_rectangle_of_the_asked_size():
    x = images(600, 30, 20, 1)
    jitted = jax.jit(data.random_erasing)
    out = jitted(KEY, x, probability=0.7, area=(0.05, 0.2), aspect=(0.5, 2.0), fill=-1.0)
    out = np.asarray(out)
    erased = (out == -1)[..., 0]
    np.testing.assert_array_equal(out[..., 0][~erased], x[..., 0][~erased])
    touched = erased.any((1, 2))
    assert abs(touched.mean() - 0.7) < 0.08
    centres = []
    for mask in erased[touched]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert mask.sum() == height * width
        assert 0.05 * 600 * 0.8 < height * width < 0.2 * 600 * 1.2
        assert 0.4 < height / width < 2.5
        centres.append([rows.mean() / 29, columns.mean() / 19])
    np.testing.assert_allclose(np.mean(centres, 0), 0.5, atol=0.06)
    noise = run(data.random_erasing, x, probability=1.0)
    fresh = noise[noise != x]
    assert fresh.min() >= 0 and fresh.max() < 1 and abs(fresh.mean() - 0.5) < 0.02
    # A rectangle that would not fit is cut to the image.
    tall = jitted(KEY, x, probability=1.0, area=(0.4, 0.4), aspect=(9.0, 9.0), fill=-1.0)
    assert ((np.asarray(tall) == -1)[..., 0].any(2).sum(1) == 30).all()


def test_gaussian_noise_has_its_standard_deviation():
    noise = run(data.gaussian_noise, np.zeros((100, 9, 9, 3), np.float32), std=0.3)
    np.testing.assert_allclose(noise.std(), 0.3, rtol=0.02)
    np.testing.assert_allclose(noise.mean(), 0, atol=0.01)


def test_mixup_is_a_convex_combination_of_pairs():
    x, y = images(64, 4, 4, 1), np.eye(64, dtype=np.float32)
    mixed, targets = run(data.mixup, x, y)
    assert (targets >= 0).all()
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    # One-hot rows over the batch name both partners and their weights.
    np.testing.assert_allclose(mixed, np.einsum("ij,jhwc->ihwc", targets, x), atol=1e-5)
    assert ((targets > 0).sum(1) <= 2).all()
    partner = (targets - np.diag(np.diag(targets))).argmax(1)
    assert len(np.unique(partner)) > 48


def test_mixup_weights_are_beta():
    rows = 4000
    x, labels = np.arange(rows, dtype=np.float32)[:, None], np.arange(rows) % 2
    _, targets = run(data.mixup, x, labels, classes=2, alpha=2.0)
    weight = targets[np.arange(rows), labels]
    weight = weight[weight < 1]  # those whose partner is of the other class
    assert abs(len(weight) - rows / 2) < 160
    np.testing.assert_allclose(weight.mean(), 0.5, atol=0.03)
    np.testing.assert_allclose(weight.var(), 1 / (4 * (2 * 2.0 + 1)), rtol=0.08)


@pytest.mark.parametrize("fn", [data.mixup, data.cutmix])
def test_integer_targets_and_mistakes(fn):
    x, labels = images(12), np.arange(12) % 3
    one_hot = np.eye(3, dtype=np.float32)[labels]
    want, got = jax.jit(lambda k: (fn(k, x, one_hot), fn(k, x, labels, classes=3)))(KEY)
    for one, other in zip(want, got):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(UserError, match="alpha must be positive, got 0"):
        fn(KEY, x, labels, classes=3, alpha=0)
    with pytest.raises(AssertionError):
        fn(KEY, x, labels)


def test_cutmix_pastes_a_box_and_weighs_by_area():
    rows = 300
    x = np.broadcast_to(np.arange(rows, dtype=np.float32)[:, None, None, None], (rows, 12, 10, 1))
    mixed, targets = run(data.cutmix, x, np.eye(rows, dtype=np.float32))
    mixed = mixed[..., 0]
    areas = []
    for row in range(rows):
        pasted = mixed[row] != row
        areas.append(pasted.mean())
        np.testing.assert_allclose(targets[row, row], 1 - areas[-1], atol=1e-6)
        if pasted.any():
            inside = np.argwhere(pasted)
            (top, left), (bottom, right) = inside.min(0), inside.max(0)
            assert pasted.sum() == (bottom - top + 1) * (right - left + 1)
            partner = int(mixed[row][pasted][0])
            assert (mixed[row][pasted] == partner).all()
            np.testing.assert_allclose(targets[row, partner], areas[-1], atol=1e-6)
    # Uniform λ and centre: the share before cutting has mean 1/2; cutting leaves about 0.3.
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(4000):
        cut = np.sqrt(1 - rng.uniform())
        share = 1.0
        for side in (12, 10):
            length, centre = int(cut * side), rng.integers(side)
            start = centre - length // 2
            share *= (min(start + length, side) - max(start, 0)) / side
        shares.append(share)
    np.testing.assert_allclose(np.mean(areas), np.mean(shares), atol=0.05)


def test_resample_reads_linearly():
    series = np.asarray(images(5, 11, 3, 1))[..., 0]
    places = np.random.default_rng(2).uniform(-3, 13, (5, 7)).astype(np.float32)
    got = np.asarray(data.resample(series, places))
    assert got.shape == (5, 7, 3)
    for b in range(5):
        for c in range(3):
            want = np.interp(places[b], np.arange(11), series[b, :, c])
            np.testing.assert_allclose(got[b, :, c], want, atol=1e-5)


def test_time_jitter_shifts_and_stretches():
    ramp = np.repeat(np.arange(50, dtype=np.float32)[None, :, None], 500, 0)
    out = run(data.time_jitter, ramp, shift=3.0, stretch=0.2)[:, 10:40, 0]
    speed = np.diff(out, axis=1)
    np.testing.assert_allclose(speed, np.repeat(speed[:, :1], 29, 1), atol=1e-3)
    speed, moved = speed[:, 0] - 1, out[:, 14:16].mean(1) - 24.5
    for draws, most in ((speed, 0.2), (moved, 3.0)):
        assert np.abs(draws).max() < most * 1.02
        np.testing.assert_allclose(draws.std(), most / np.sqrt(3), rtol=0.12)
    assert abs(np.corrcoef(speed, moved)[0, 1]) < 0.2


def test_amplitude_jitter_scales_each_channel():
    series = images(800, 6, 3, 1)[..., 0]
    factor = run(data.amplitude_jitter, series, std=0.2) / series
    np.testing.assert_allclose(factor, np.repeat(factor[:, :1], 6, 1), rtol=1e-4)
    np.testing.assert_allclose(factor[:, 0].mean(), 1, atol=0.02)
    np.testing.assert_allclose(factor[:, 0].std(), 0.2, rtol=0.06)


def test_feature_noise_is_in_each_features_units():
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(5000, 3)) * [1, 100, 0]).astype(np.float32)
    noise = run(data.feature_noise, table, scale=0.1) - table
    np.testing.assert_allclose(noise.std(0), [0.1, 10, 0], rtol=0.06)
    table[2500:] = 1e6  # padding
    where = np.arange(5000) < 2500
    kept = run(data.feature_noise, table, scale=0.1, where=where) - table
    np.testing.assert_allclose(kept[:2500].std(0), [0.1, 10, 0], rtol=0.06)


def test_feature_mask_overwrites_its_share():
    table = images(500, 20, 1, 1)[..., 0, 0]
    out = run(data.feature_mask, table, probability=0.25, fill=-2.0)
    masked = out == -2
    np.testing.assert_array_equal(out[~masked], table[~masked])
    assert abs(masked.mean() - 0.25) < 0.02
    assert 0.1 < masked.mean(0).min() and masked.mean(1).std() > 0.05  # not whole columns or rows


def test_shuffle_share_moves_its_share_and_loses_no_row():
    rows = np.arange(200)[:, None] * np.ones((1, 3), int)
    for share in (0.0, 0.25, 1.0):
        moved = run(data.shuffle_share, rows, share=share)
        np.testing.assert_array_equal(np.sort(moved[:, 0]), np.arange(200))
        assert (moved[:, 0] != np.arange(200)).sum() == 200 * share
    other = run(data.shuffle_share, rows, share=1.0, key=jax.random.key(9))
    assert (other != moved).any()


def test_diluted_labels_are_drawn_as_if_of_copies():
    labels = np.repeat(np.arange(4), 5000)
    for copies in (0, 3):
        out = run(data.diluted_labels, labels, copies=copies, classes=4)
        counts = np.histogram2d(labels, out, bins=4)[0] / 5000
        expected = np.full((4, 4), copies / (1 + copies) / 4) + np.eye(4) / (1 + copies)
        np.testing.assert_allclose(counts, expected, atol=0.03)
