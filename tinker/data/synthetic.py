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
