"""Generated worlds: ``fn(seed, size, **options) -> {key: array}``, examples drawn independently."""

import numpy as np


def gaussian_blobs(seed, size, *, classes=3, dimension=2, separation=4.0, spread=1.0):
    """Isotropic Gaussian clusters, one per class, around random centres.

    Args:
      seed: A non-negative integer, of which centres and examples are drawn.
      size: Number of examples.
      classes: Number of clusters; each example's is uniform.
      dimension: Number of features.
      separation: Standard deviation of a centre's coordinates.
      spread: Standard deviation of a feature within its cluster.

    Returns:
      A dict of ``features`` float32 ``[size, dimension]`` and ``label`` int32 ``[size]``.
    """
    rng = np.random.default_rng(seed)
    centres = separation * rng.standard_normal((classes, dimension))
    label = rng.integers(classes, size=size)
    features = centres[label] + spread * rng.standard_normal((size, dimension))
    return {"features": features.astype(np.float32), "label": label.astype(np.int32)}


def two_moons(seed, size, *, noise=0.1):
    """Two interleaved half circles of radius 1 in the plane.

    Args:
      seed: A non-negative integer, of which the examples are drawn.
      size: Number of examples; each one's moon is uniform, its angle uniform along it.
      noise: Standard deviation of the Gaussian noise on both coordinates.

    Returns:
      A dict of ``features`` float32 ``[size, 2]`` and ``label`` int32 ``[size]``, 0 or 1.
    """
    rng = np.random.default_rng(seed)
    label = rng.integers(2, size=size)
    angle = rng.uniform(0, np.pi, size)
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], 1)
    features = np.where(label[:, None] == 0, upper, lower)
    features = features + noise * rng.standard_normal((size, 2))
    return {"features": features.astype(np.float32), "label": label.astype(np.int32)}


def linear_regression(seed, size, *, dimension=16, noise=0.1, condition=1.0):
    r"""A noisy linear target of Gaussian features.

    .. math:: y = \langle w, x \rangle + \sigma\varepsilon, \qquad \lVert w \rVert = 1

    Args:
      seed: A non-negative integer, of which w and the examples are drawn.
      size: Number of examples.
      dimension: Number of features.
      noise: Standard deviation σ of the target's noise.
      condition: Condition number of the features' diagonal covariance, at least 1; its
        eigenvalues are geometrically spaced and have mean 1.

    Returns:
      A dict of ``features`` float32 ``[size, dimension]`` and ``target`` float32 ``[size]``.
    """
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(dimension)
    weights /= np.linalg.norm(weights)
    variance = np.geomspace(condition, 1.0, dimension)
    features = np.sqrt(variance / variance.mean()) * rng.standard_normal((size, dimension))
    target = features @ weights + noise * rng.standard_normal(size)
    return {"features": features.astype(np.float32), "target": target.astype(np.float32)}


def seasonal_series(seed, size, *, length=32, horizon=8, noise=0.3, tails=None):
    r"""Windows of seasons, each of its own, and what follows them.

    .. math:: x_t = a \sin(2 \pi t / p + \phi) + \sigma \varepsilon_t

    Args:
      seed: A non-negative integer, of which the examples are drawn.
      size: Number of examples.
      length: Steps of a window.
      horizon: Steps that follow.
      noise: :math:`\sigma`.
      tails: Degrees of freedom of Student's distribution of the noise; None is a Gaussian.

    Returns:
      A dict of float32 ``series`` ``[size, length, 1]``, ``target`` ``[size, horizon]``, what
      follows, and ``truth`` ``[size, horizon]``, the same without noise. The amplitude a is uniform
      in [0.5, 1.5], the period p in [8, 16], the phase all round.
    """
    rng = np.random.default_rng(seed)
    amplitude, period = rng.uniform(0.5, 1.5, (size, 1)), rng.uniform(8, 16, (size, 1))
    phase = rng.uniform(0, 2 * np.pi, (size, 1))
    clean = amplitude * np.sin(2 * np.pi * np.arange(length + horizon) / period + phase)
    shape = clean.shape
    errors = rng.standard_normal(shape) if tails is None else rng.standard_t(tails, shape)
    seen = clean + noise * errors
    found = {
        "series": seen[:, :length, None],
        "target": seen[:, length:],
        "truth": clean[:, length:],
    }
    return {name: x.astype(np.float32) for name, x in found.items()}


def delayed_recall(seed, size, *, length=128, cues=8, noise=16, ask=0.0625):
    """Corridors with a sign somewhere in their first half, and doors at which to remember it.

    Args:
      seed: A non-negative integer, of which the examples are drawn.
      size: Number of examples.
      length: Tokens of a corridor.
      cues: Number of signs, tokens 1 to ``cues``; each corridor has one.
      noise: Number of tokens that mean nothing, which follow.
      ask: Probability that a place after the sign is a door, token 0; the last place always is.

    Returns:
      A dict of ``tokens`` int32 ``[size, length]``, ``targets`` int32 ``[size, length]``, the sign
      at every place, ``where`` bool ``[size, length]``, the doors, and ``distance`` int32 ``[size,
      length]``, places since the sign; negative before it.
    """
    rng = np.random.default_rng(seed)
    places, sign = np.arange(length), rng.integers(1, cues + 1, (size, 1))
    distance = places - rng.integers(length // 2, size=(size, 1))
    tokens = rng.integers(cues + 1, cues + 1 + noise, (size, length))
    where = (distance > 0) & ((rng.random((size, length)) < ask) | (places == length - 1))
    tokens = np.where(where, 0, np.where(distance == 0, sign, tokens))
    targets = np.broadcast_to(sign, tokens.shape)
    found = {"tokens": tokens, "targets": targets, "distance": distance}
    return {k: x.astype(np.int32) for k, x in found.items()} | {"where": where}


_SIZES = ("small", "medium", "large")
_COLORS = {
    "red": (0.9, 0.15, 0.15),
    "green": (0.15, 0.75, 0.2),
    "blue": (0.2, 0.3, 0.95),
    "yellow": (0.95, 0.9, 0.15),
    "purple": (0.6, 0.2, 0.8),
    "orange": (1.0, 0.55, 0.1),
    "cyan": (0.2, 0.85, 0.9),
    "white": (1.0, 1.0, 1.0),
}
# Signed distance to the outline of a figure of radius 1 about the middle; x to the right, y down.
_FIGURES = {
    "circle": lambda x, y: np.hypot(x, y) - 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) - 0.85,
    "triangle": lambda x, y: np.maximum(0.866 * abs(x) - 0.5 * y, y) - 0.55,
    "diamond": lambda x, y: 0.707 * (abs(x) + abs(y)) - 0.75,
    "cross": lambda x, y: np.maximum(
        np.minimum(abs(x), abs(y)) - 0.3, np.maximum(abs(x), abs(y)) - 1
    ),
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.75) - 0.22,
}
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
CAPTION_WORDS = (*_SIZES, *_COLORS, *_FIGURES, *_ROWS, *_COLUMNS)


def captioned_shapes(seed, size, *, objects=1, side=24, noise=0.05):
    """Images of coloured shapes with captions such as "small red circle top left".

    Objects stand in different cells of a grid of three by three. Where in its cell, just how large
    and of what shade an object is, and how dark the background, is nowhere in the caption.

    Args:
      seed: A non-negative integer, of which everything is drawn.
      size: Number of images.
      objects: In each image, 1 to 9; all that the caption tells of them is uniform.
      side: Of an image, pixels.
      noise: Standard deviation of the Gaussian pixel noise, before clipping to [0, 1].

    Returns:
      A dict of ``image`` float32 ``[size, side, side, 3]`` in [0, 1] and ``caption`` int32
      ``[size, 5 * objects]``, indices into ``CAPTION_WORDS``: of an object its size, color, shape,
      row and column, of all objects in an order of no meaning.
    """
    rng = np.random.default_rng(seed)
    kinds = [
        rng.integers(len(words), size=(size, objects)) for words in (_SIZES, _COLORS, _FIGURES)
    ]
    cell = rng.permuted(np.tile(np.arange(9), (size, 1)), axis=1)[:, :objects]
    kinds += [cell // 3, cell % 3]
    starts = np.cumsum([0, len(_SIZES), len(_COLORS), len(_FIGURES), len(_ROWS)])
    caption = np.stack([kind + start for kind, start in zip(kinds, starts)], -1)

    def uniform(least, most, *shape):
        return rng.uniform(least, most, shape).astype(np.float32)

    unit = np.float32(side / 24)  # of all lengths: a cell is 8 wide
    radius = unit * (1.9 + kinds[0] + uniform(-0.25, 0.25, size, objects))
    row, column = (unit * (4 + 8 * kind + uniform(-1, 1, size, objects)) for kind in kinds[3:])
    shade = np.array(list(_COLORS.values()), np.float32)[kinds[1]]
    shade = np.clip(shade + uniform(-0.08, 0.08, *shade.shape), 0, 1)
    pixel = np.arange(side, dtype=np.float32) + 0.5
    image = np.tile(uniform(0, 0.25, size, 1, 1, 1), (side, side, 3))
    for i in range(objects):
        for figure, distance in enumerate(_FIGURES.values()):
            chosen = np.flatnonzero(kinds[2][:, i] == figure)
            r = np.float32(radius[chosen, i, None, None])
            y = (pixel[:, None] - np.float32(row[chosen, i, None, None])) / r
            x = (pixel - np.float32(column[chosen, i, None, None])) / r
            ink = np.clip(0.5 - distance(x, y) * r, 0, 1)[..., None]
            image[chosen] += ink * (shade[chosen, i, None, None] - image[chosen])
    image += np.float32(noise) * rng.standard_normal(image.shape, np.float32)
    return {
        "image": np.clip(image, 0, 1),
        "caption": caption.reshape(size, -1).astype(np.int32),
    }
