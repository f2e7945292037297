"""Random changes to a batch: ``fn(key, *arrays, **hyper)``, drawn for each example by itself.

All are pure and keep shapes static, so they run inside a jitted step.
"""

import math

import chex
import jax
import jax.numpy as jnp
from jax.scipy import ndimage

from tinker.numerics.errors import UserError


def random_crop(key, images, *, padding=4, size=None, mode="constant"):
    """Pads the images and cuts a window at a uniformly random place.

    Args:
      key: A jax random key.
      images: ``[batch, height, width, channels]``.
      padding: Pixels added on every side.
      size: ``(height, width)`` of the window; None is the image's own.
      mode: How ``jnp.pad`` fills: "constant" (zeros), "reflect", "edge", …

    Returns:
      The windows, ``[batch, *size, channels]``.

    Raises:
      UserError: If the window is larger than the padded image.
    """
    chex.assert_rank(images, 4)
    window = (*(size or images.shape[1:3]), images.shape[3])
    padded = jnp.pad(images, [(0, 0), (padding, padding), (padding, padding), (0, 0)], mode=mode)
    room = [padded.shape[1] - window[0], padded.shape[2] - window[1]]
    if min(room) < 0:
        raise UserError(f"size {window[:2]} is larger than the padded image {padded.shape[1:3]}")
    corners = jax.random.randint(key, (len(images), 2), 0, jnp.array(room) + 1)

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, 0), window)

    return jax.vmap(crop)(padded, corners)


def random_shift(key, images, *, pixels=2):
    """Translates each image by whole pixels, uniform on each axis, zeros moving in.

    Args:
      key: A jax random key.
      images: ``[batch, height, width, channels]``.
      pixels: Largest shift either way.

    Returns:
      The shifted images, ``[batch, height, width, channels]``.
    """
    return random_crop(key, images, padding=pixels)


def random_flip(key, images, *, probability=0.5):
    """Mirrors images left to right.

    Args:
      key: A jax random key.
      images: ``[batch, height, width, channels]``.
      probability: Of each image to be mirrored.

    Returns:
      The images, ``[batch, height, width, channels]``.
    """
    chex.assert_rank(images, 4)
    flip = jax.random.bernoulli(key, probability, (len(images), 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


def affine(images, matrices):
    r"""Samples images under affine maps, bilinearly, zero outside.

    .. math:: \mathrm{out}(p) = \mathrm{in}(A\,(p - c) + t + c), \qquad c = \text{the centre}

    Args:
      images: ``[batch, height, width, channels]``.
      matrices: ``(A | t)`` per image, ``[batch, 2, 3]``: from (row, column) of the output to (row,
        column) of the input, both in pixels from the centre.

    Returns:
      The images, ``[batch, height, width, channels]``.
    """
    chex.assert_rank(images, 4)
    chex.assert_shape(matrices, (len(images), 2, 3))
    height, width = images.shape[1:3]
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    grid = jnp.mgrid[:height, :width] - centre

    def sample(image, matrix):
        places = jnp.einsum("ij,jyx->iyx", matrix[:, :2], grid) + matrix[:, 2, None, None] + centre

        def channel(plane):
            return ndimage.map_coordinates(plane, places, order=1, mode="constant")

        return jax.vmap(channel, in_axes=-1, out_axes=-1)(image)

    return jax.vmap(sample)(images, matrices)


def random_affine(key, images, *, rotation=15.0, scale=(0.9, 1.1), translation=2.0, shear=0.0):
    """Rotates, scales, shears and translates each image about its centre.

    Every parameter is uniform over its range.

    Args:
      key: A jax random key.
      images: ``[batch, height, width, channels]``.
      rotation: Largest angle either way, degrees.
      scale: Least and greatest magnification, positive.
      translation: Largest shift either way on each axis, pixels.
      shear: Largest horizontal shear either way, pixels per pixel of height.

    Returns:
      The images, bilinear and zero outside, ``[batch, height, width, channels]``.
    """
    low = jnp.array([-rotation, scale[0], -shear, -translation, -translation], jnp.float32)
    high = jnp.array([rotation, scale[1], shear, translation, translation], jnp.float32)
    draws = jax.random.uniform(key, (len(images), 5), minval=low, maxval=high)

    def inverse(draw):
        angle, zoom, slant, shift = jnp.deg2rad(draw[0]), draw[1], draw[2], draw[3:]
        turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
        matrix = jnp.array([[1.0, 0.0], [-slant, 1.0]]) @ turn / zoom
        return jnp.concatenate([matrix, -(matrix @ shift)[:, None]], 1)

    return affine(images, jax.vmap(inverse)(draws))


def random_resized_crop(key, images, *, area=(0.2, 1.0), aspect=(3 / 4, 4 / 3)):
    """Cuts a random rectangle out of each image and stretches it over the whole.

    The area is uniform over its range, the logarithm of the aspect too, the place where the
    rectangle fits. A side longer than the image's is cut to it, where torchvision draws again; the
    sampling is bilinear.

    Args:
      key: A jax random key.
      images: ``[batch, height, width, channels]``.
      area: Least and greatest share of the image's area.
      aspect: Least and greatest height over width, relative to the image's.

    Returns:
      The images, ``[batch, height, width, channels]``.

    Source: Going Deeper with Convolutions, CVPR 2015, arXiv:1409.4842, its training; the ranges are
      those of contrastive learning.
    """
    chex.assert_rank(images, 4)
    height, width = images.shape[1:3]
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    rows = (len(images),)
    share = jax.random.uniform(area_key, rows, minval=area[0], maxval=area[1])
    low, high = (math.log(a) for a in aspect)
    ratio = jnp.exp(jax.random.uniform(aspect_key, rows, minval=low, maxval=high))
    sides = jnp.minimum(jnp.sqrt(jnp.stack([share * ratio, share / ratio], 1)), 1.0)
    room = (1 - sides) * jnp.array([height - 1, width - 1]) / 2
    shift = room * jax.random.uniform(place_key, room.shape, minval=-1.0)
    return affine(images, jnp.concatenate([jax.vmap(jnp.diag)(sides), shift[:, :, None]], 2))


def color_jitter(
    key, images, *, brightness=0.4, contrast=0.4, saturation=0.4, probability=0.8, gray=0.2
):
    """Changes brightness, contrast and saturation of some images, and turns some of them grey.

    Each multiplies by a factor uniform in ``[1 - strength, 1 + strength]``: all values, the
    distance to the image's mean grey, the distance to each pixel's grey, in this order. The
    authors' code draws the order too, and turns the hue.

    Args:
      key: A jax random key.
      images: ``[batch, height, width, 3]`` in [0, 1], red, green and blue.
      brightness: Strength, in [0, 1].
      contrast: Strength, in [0, 1].
      saturation: Strength, in [0, 1].
      probability: Of each image to be changed.
      gray: Probability of each image to lose its colour after that.

    Returns:
      The images, ``[batch, height, width, 3]``, cut to [0, 1].

    Source: A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020,
      arXiv:2002.05709, Appendix A.
    """
    chex.assert_shape(images, (None, None, None, 3))
    strength = jnp.array([brightness, contrast, saturation, 0, 0])
    draws = jax.random.uniform(key, (len(images), 5), minval=-1.0)
    factors = (1 + strength * draws).astype(images.dtype)[:, :3, None, None, None]
    chosen, greyed = ((draws[:, 3:] + 1) / 2 < jnp.array([probability, gray])).T

    def grey(x):
        return (x @ jnp.array([0.299, 0.587, 0.114], x.dtype))[..., None]

    x = jnp.clip(images * factors[:, 0], 0, 1)
    mean = grey(x).mean((1, 2), keepdims=True)
    x = jnp.clip(mean + (x - mean) * factors[:, 1], 0, 1)
    x = jnp.clip(grey(x) + (x - grey(x)) * factors[:, 2], 0, 1)
    x = jnp.where(chosen[:, None, None, None], x, images)
    return jnp.where(greyed[:, None, None, None], jnp.broadcast_to(grey(x), x.shape), x)


def random_erasing(
    key, images, *, probability=0.5, area=(0.02, 0.4), aspect=(0.3, 1 / 0.3), fill=None
):
    """Overwrites a random rectangle of some of the images.

    Area and aspect (height over width) are uniform over their ranges, the place uniform where the
    rectangle fits. A side longer than the image's is cut to it; the paper draws again.

    Args:
      key: A jax random key.
      images: ``[batch, height, width, channels]``.
      probability: Of each image to lose a rectangle.
      area: Least and greatest share of the image's area.
      aspect: Least and greatest height over width.
      fill: What to write: a number, or None for uniform noise in [0, 1) per value.

    Returns:
      The images, ``[batch, height, width, channels]``.

    Source: Random Erasing Data Augmentation, AAAI 2020, arXiv:1708.04896, Algorithm 1.
    """
    chex.assert_rank(images, 4)
    height, width = images.shape[1:3]
    size = jnp.array([height, width])
    draw_key, noise_key = jax.random.split(key)
    draws = jax.random.uniform(draw_key, (len(images), 5))
    pixels = (area[0] + (area[1] - area[0]) * draws[:, 0]) * height * width
    ratio = aspect[0] + (aspect[1] - aspect[0]) * draws[:, 1]
    sides = jnp.round(jnp.sqrt(jnp.stack([pixels * ratio, pixels / ratio], 1)))
    sides = jnp.clip(sides, 1, size)
    start = jnp.floor(draws[:, 2:4] * (size - sides + 1))
    inside = jax.vmap(_box, (0, 0, None, None))(start, start + sides, height, width)
    inside &= (draws[:, 4] < probability)[:, None, None]
    noise = jax.random.uniform(noise_key, images.shape, images.dtype) if fill is None else fill
    return jnp.where(inside[..., None], noise, images).astype(images.dtype)


def _box(start, stop, height, width):
    """Whether each pixel is in ``[start, stop)``, bool ``[height, width]``."""
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    inside = (start[0] <= rows) & (rows < stop[0])
    return inside & (start[1] <= columns) & (columns < stop[1])


def gaussian_noise(key, values, *, std=0.1):
    """Adds independent Gaussian noise to every value.

    Args:
      key: A jax random key.
      values: ``[batch, …]``, floating.
      std: The noise's standard deviation, in the values' units.

    Returns:
      The noisy values, ``[batch, …]``; nothing is clipped.
    """
    return values + std * jax.random.normal(key, values.shape, values.dtype)


def mixup(key, inputs, targets, *, alpha=0.2, classes=None):
    r"""Mixes every example, and its target, with another of the batch.

    .. math:: \tilde x = \lambda x_i + (1 - \lambda) x_j, \quad
      \tilde y = \lambda y_i + (1 - \lambda) y_j, \quad \lambda \sim \mathrm{Beta}(\alpha, \alpha)

    λ is drawn per example, where the authors' code draws one per batch; j is a random permutation
    of the batch.

    Args:
      key: A jax random key.
      inputs: x, ``[batch, …]``, floating.
      targets: y, ``[batch, classes]``, one-hot or any distribution; integers ``[batch]`` where
        ``classes`` is given.
      alpha: Concentration of λ, positive: small leaves most examples nearly as they are.
      classes: Number of classes, to make integer targets one-hot.

    Returns:
      ``(inputs, targets)``, ``[batch, …]`` and ``[batch, classes]``.

    Raises:
      UserError: If alpha is not positive.

    Source: mixup: Beyond Empirical Risk Minimization, ICLR 2018, arXiv:1710.09412, Section 1.
    """
    _check_positive(alpha)
    targets = _one_hot(inputs, targets, classes)
    partner_key, weight_key = jax.random.split(key)
    partner = jax.random.permutation(partner_key, len(inputs))
    weight = jax.random.beta(weight_key, alpha, alpha, (len(inputs),))
    return _blend(weight, inputs, jnp.take(inputs, partner, 0)), _blend(
        weight, targets, jnp.take(targets, partner, 0)
    )


def cutmix(key, images, targets, *, alpha=1.0, classes=None):
    r"""Pastes a rectangle of another image of the batch, and mixes the targets by area.

    .. math:: \tilde x = M \odot x_i + (1 - M) \odot x_j, \qquad
      \tilde y = \lambda y_i + (1 - \lambda) y_j

    With λ of Beta(α, α), the rectangle has sides √(1-λ) of the image's and a uniform centre; it is
    cut at the border, and λ becomes the share that x_i keeps. All is drawn per example, where the
    authors' code draws one rectangle per batch; j is a random permutation of the batch.

    Args:
      key: A jax random key.
      images: x, ``[batch, height, width, channels]``.
      targets: y, ``[batch, classes]``, one-hot or any distribution; integers ``[batch]`` where
        ``classes`` is given.
      alpha: Concentration of λ, positive; 1 is uniform.
      classes: Number of classes, to make integer targets one-hot.

    Returns:
      ``(images, targets)``, ``[batch, height, width, channels]`` and ``[batch, classes]``.

    Raises:
      UserError: If alpha is not positive.

    Source: CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features,
      ICCV 2019, arXiv:1905.04899, Eqs. 1 and 2.
    """
    chex.assert_rank(images, 4)
    _check_positive(alpha)
    targets = _one_hot(images, targets, classes)
    height, width = images.shape[1:3]
    partner_key, weight_key, centre_key = jax.random.split(key, 3)
    partner = jax.random.permutation(partner_key, len(images))
    size = jnp.array([height, width])
    cut = jnp.sqrt(1 - jax.random.beta(weight_key, alpha, alpha, (len(images), 1)))
    sides = (cut * size).astype(jnp.int32)
    start = jax.random.randint(centre_key, sides.shape, 0, size) - sides // 2
    pasted = jax.vmap(_box, (0, 0, None, None))(start, start + sides, height, width)
    mixed = jnp.where(pasted[..., None], jnp.take(images, partner, 0), images)
    kept = 1 - pasted.mean((1, 2), dtype=jnp.float32)
    return mixed, _blend(kept, targets, jnp.take(targets, partner, 0))


def _check_positive(alpha):
    if alpha <= 0:
        raise UserError(f"alpha must be positive, got {alpha}")


def _one_hot(inputs, targets, classes):
    """The targets as distributions, ``[batch, classes]``."""
    targets = targets if classes is None else jax.nn.one_hot(targets, classes)
    chex.assert_rank(targets, 2)
    chex.assert_equal_shape_prefix([inputs, targets], 1)
    return targets


def _blend(weight, one, other):
    """``weight·one + (1 - weight)·other`` by example."""
    weight = weight.astype(one.dtype).reshape(-1, *[1] * (one.ndim - 1))
    return weight * one + (1 - weight) * other


def resample(series, places):
    """Reads series at fractional times, linearly, the ends holding.

    Args:
      series: ``[batch, time, channels]``.
      places: Times to read at, in steps, ``[batch, new_time]``.

    Returns:
      The values there, ``[batch, new_time, channels]``.
    """
    chex.assert_rank([series, places], [3, 2])
    steps = jnp.arange(series.shape[1], dtype=places.dtype)
    channel = jax.vmap(lambda at, values: jnp.interp(at, steps, values), (None, 1), 1)
    return jax.vmap(channel)(places, series)


def time_jitter(key, series, *, shift=2.0, stretch=0.1):
    """Shifts and stretches each series in time about its middle, the ends holding.

    Args:
      key: A jax random key.
      series: ``[batch, time, channels]``.
      shift: Largest shift either way, in steps, uniform.
      stretch: Largest relative change of speed either way, uniform, below 1.

    Returns:
      The series, linearly interpolated, ``[batch, time, channels]``.
    """
    shift_key, speed_key = jax.random.split(key)
    rows, steps = series.shape[:2]
    moved = jax.random.uniform(shift_key, (rows, 1), minval=-shift, maxval=shift)
    speed = 1 + jax.random.uniform(speed_key, (rows, 1), minval=-stretch, maxval=stretch)
    middle = (steps - 1) / 2
    return resample(series, (jnp.arange(steps) - middle) * speed + moved + middle)


def amplitude_jitter(key, series, *, std=0.1):
    """Multiplies each channel of each series by a factor of mean 1.

    Args:
      key: A jax random key.
      series: ``[batch, time, channels]``.
      std: Standard deviation of the Gaussian factors.

    Returns:
      The series, ``[batch, time, channels]``.

    Source: Data Augmentation of Wearable Sensor Data for Parkinson's Disease Monitoring using
      Convolutional Neural Networks, ICMI 2017, arXiv:1706.00527 ("scaling").
    """
    chex.assert_rank(series, 3)
    noise = jax.random.normal(key, (len(series), 1, series.shape[2]), series.dtype)
    return series * (1 + std * noise)


def feature_noise(key, features, *, scale=0.1, where=None):
    """Adds Gaussian noise in proportion to each feature's spread over the batch.

    Args:
      key: A jax random key.
      features: A table, ``[batch, features]``, in any units.
      scale: The noise's standard deviation over the feature's.
      where: Optional boolean ``[batch]``; False rows do not count in the spread (padding).

    Returns:
      The noisy table, ``[batch, features]``.
    """
    chex.assert_rank(features, 2)
    spread = jnp.std(features, 0, where=None if where is None else where[:, None])
    return features + scale * spread * jax.random.normal(key, features.shape, features.dtype)


def feature_mask(key, features, *, probability=0.2, fill=0.0):
    """Overwrites features at random, each independently.

    Args:
      key: A jax random key.
      features: A table, ``[batch, features]``.
      probability: Of each value to be overwritten.
      fill: What with; 0 is the mean of a standardised feature.

    Returns:
      The table, ``[batch, features]``.
    """
    chex.assert_rank(features, 2)
    masked = jax.random.bernoulli(key, probability, features.shape)
    return jnp.where(masked, jnp.asarray(fill, features.dtype), features)


def shuffle_share(key, x, *, share):
    """Exchanges a share of the rows of a batch, so that they no longer match another array's.

    Args:
      key: A jax random key.
      x: ``[batch, …]``.
      share: Of rows that get another's place, in [0, 1]; a single row cannot be moved.

    Returns:
      The batch, ``[batch, …]``.

    Source: Sigmoid Loss for Language Image Pre-Training, ICCV 2023, arXiv:2303.15343 ("batch
      alignment").
    """
    moved = jax.random.permutation(key, len(x))[: round(share * len(x))]
    return x.at[moved].set(x[jnp.roll(moved, 1)])


def diluted_labels(key, labels, *, copies, classes):
    r"""Labels as if every example were there once more for each of its copies, labelled at random.

    .. math:: P(\tilde y = y) = \frac{1}{1 + \alpha} + \frac{\alpha}{(1 + \alpha) K}, \qquad
              P(\tilde y = k) = \frac{\alpha}{(1 + \alpha) K} \;\text{ for } k \ne y

    Args:
      key: A jax random key.
      labels: y, integers ``[...]`` in [0, classes).
      copies: :math:`\alpha` >= 0, of each example, their labels uniform over all classes.
      classes: K.

    Returns:
      Labels, ``[...]``, drawn anew at each call.

    Source: Deep Learning is Robust to Massive Label Noise, 2017, arXiv:1705.10694, uniform label
      noise; of copies without number, where the paper keeps a fixed set of them.
    """
    kept, drawn = jax.random.split(key)
    keeps = jax.random.bernoulli(kept, 1 / (1 + copies), labels.shape)
    return jnp.where(keeps, labels, jax.random.randint(drawn, labels.shape, 0, classes))
