"""Linear regression of which only the mean response of each bag of examples is known."""

import functools

import jax
import jax.numpy as jnp

from tinker.numerics import fold_in


def run(config, key):
    """Draws a linear world, fits by the interpolated loss of bags in closed form, and measures.

    Args:
      config: ``dimension`` d, ``bags`` their number, ``size`` of a bag, ``noise`` (the responses'
        standard deviation around a function of standard deviation 1) and ``weight`` (of the
        instance-level loss, see :func:`tinker.losses.bag_loss`).
      key: Of features, noise and the true coefficients.

    Returns:
      ``risk``, the squared distance of the coefficients to the true ones, which is the excess error
      on a new example, and its two parts, ``squared_bias`` and ``variance``: of the expected
      coefficients over the noise to the true ones, and around them.
    """
    found = _fit(key, config.noise, config.weight, config.dimension, config.bags, config.size)
    return jax.device_get(found)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _fit(key, noise, weight, dimension, bags, size):
    true = jax.random.normal(fold_in(key, "true"), (dimension,))
    true = true / jnp.linalg.norm(true)
    features = jax.random.normal(fold_in(key, "features"), (bags, size, dimension))
    error = noise * jax.random.normal(fold_in(key, "noise"), (bags, size)).mean(1)
    signal = (features @ true).mean(1)
    solve = functools.partial(bag_regression, features, weight=weight)
    expected, around = solve(signal), solve(error)
    square = lambda x: jnp.sum(jnp.square(x))  # noqa: E731
    return {
        "risk": square(expected + around - true),
        "squared_bias": square(expected - true),
        "variance": square(around),
    }


def bag_regression(features, bag_means, *, weight=0.0):
    r"""The coefficients at which the mean :func:`tinker.losses.bag_loss` is least.

    .. math:: \hat\theta = \Big((1 - \rho) \bar X^\top \bar X
              + \rho\, \overline{X^\top X} \Big)^{+} \bar X^\top \bar y

    with :math:`\bar X` the bags' mean features and the second term the mean over bags of the mean
    over examples; the shortest of them, where there are many.

    Args:
      features: X, ``[bags, m, d]``.
      bag_means: :math:`\bar y`, ``[bags]``.
      weight: :math:`\rho` in [0, 1].

    Returns:
      Coefficients, ``[d]``.

    Source: Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions,
      ICLR 2024, arXiv:2401.11081, the interpolating estimator of linear regression.
    """
    middle = features.mean(1)
    size, dimension = features.shape[1:]
    within = (features - middle[:, None]).reshape(-1, dimension) / jnp.sqrt(size)
    rows = jnp.concatenate([middle, jnp.sqrt(weight) * within])
    targets = jnp.concatenate([bag_means, jnp.zeros(len(within))])
    return jnp.linalg.lstsq(rows, targets)[0]
