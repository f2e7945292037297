"""Losses of predicted numbers.

``optax:huber_loss`` and ``optax:log_cosh`` are of this family, for predictions that have the shape
of the targets.
"""

import chex
import jax.numpy as jnp

from tinker.numerics import check_choice

SCALES = (None, "deviation", "range", "mean", "predictions")


def absolute_error(predictions, targets, *, where=None):
    r"""The absolute error, least at the median.

    .. math:: \ell = |\hat y - y|

    Args:
      predictions: :math:`\hat y`, ``[...]``, or ``[..., 1]`` for targets ``[...]``, any float
        dtype; computed in float32 at least.
      targets: y, ``[...]``.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per entry, ``[...]``, in units of the target, float32.

    Source: A Comprehensive Survey of Regression Based Loss Functions for Time Series Forecasting,
      2022, arXiv:2211.02989, the mean absolute error.
    """
    predictions, targets = _aligned(predictions, targets)
    return _kept(jnp.abs(predictions - targets), where)


def quantile_error(predictions, targets, *, quantile=0.5, where=None):
    r"""The pinball loss, least at a quantile: below it an error costs q, above it 1 - q.

    .. math:: \ell = \max\big(q\,(y - \hat y),\; (q - 1)(y - \hat y)\big)

    Args:
      predictions: :math:`\hat y`, ``[...]``, or ``[..., 1]`` for targets ``[...]``, any float
        dtype; computed in float32 at least.
      targets: y, ``[...]``.
      quantile: q in (0, 1); 0.5 is half the absolute error.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per entry, ``[...]``, in units of the target, float32.

    Source: A Comprehensive Survey of Regression Based Loss Functions for Time Series Forecasting,
      2022, arXiv:2211.02989, the quantile loss.
    """
    predictions, targets = _aligned(predictions, targets)
    short = targets - predictions
    return _kept(jnp.maximum(quantile * short, (quantile - 1) * short), where)


def percentage_error(predictions, targets, *, least=1e-6, where=None):
    r"""The absolute error as a share of the target.

    .. math:: \ell = \frac{|\hat y - y|}{|y|}

    Args:
      predictions: :math:`\hat y`, ``[...]``, or ``[..., 1]`` for targets ``[...]``, any float
        dtype; computed in float32 at least.
      targets: y, ``[...]``.
      least: What :math:`|y|` counts as at least, > 0.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per entry, ``[...]``, a share rather than percent, float32.

    Source: A Comprehensive Survey of Regression Based Loss Functions for Time Series Forecasting,
      2022, arXiv:2211.02989, the mean absolute percentage error.
    """
    predictions, targets = _aligned(predictions, targets)
    return _kept(jnp.abs(predictions - targets) / jnp.maximum(jnp.abs(targets), least), where)


def squared_log_error(predictions, targets, *, where=None):
    r"""The squared error of logarithms, for targets that are not negative.

    .. math:: \ell = \big(\log(1 + \hat y) - \log(1 + y)\big)^2

    Args:
      predictions: :math:`\hat y`, ``[...]``, or ``[..., 1]`` for targets ``[...]``, any float
        dtype; computed in float32 at least. Negative ones count as 0, with no gradient.
      targets: y >= 0, ``[...]``.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per entry, ``[...]``, float32.

    Source: A Comprehensive Survey of Regression Based Loss Functions for Time Series Forecasting,
      2022, arXiv:2211.02989, the mean squared logarithmic error.
    """
    predictions, targets = (jnp.maximum(x, 0.0) for x in _aligned(predictions, targets))
    return _kept(jnp.square(jnp.log1p(predictions) - jnp.log1p(targets)), where)


def root_mean_squared_error(predictions, targets, *, over=None, where=None):
    r"""The root of the mean squared error, or a share of the scale of what is predicted.

    .. math:: \ell = \frac1s \sqrt{\frac1n \sum_i (\hat y_i - y_i)^2}

    Args:
      predictions: :math:`\hat y`, ``[...]``, or ``[..., 1]`` for targets ``[...]``, any float
        dtype; computed in float32 at least.
      targets: y, ``[...]``.
      over: What s is. None: 1, RMSE. "deviation": the targets' standard deviation, which makes the
        square of the loss the relative squared error. "range" and "mean": of the targets, NRMSE.
        "predictions": the root of their mean square, RRMSE. A scale of 0 counts as 1.
      where: Optional boolean ``[...]``; False entries do not count.

    Returns:
      A scalar, in units of the target or a share, float32; its gradient at no error at all is 0.
      Couples the batch.

    Raises:
      UserError: An unknown scale.

    Source: A Comprehensive Survey of Regression Based Loss Functions for Time Series Forecasting,
      2022, arXiv:2211.02989, RMSE, NRMSE, RRMSE and RSE. Its authors' code normalises NRMSE by the
      deviation of the predictions.
    """
    check_choice("over", over, SCALES)
    predictions, targets = _aligned(predictions, targets)
    where = jnp.ones(targets.shape, bool) if where is None else where

    def mean(x):
        return jnp.sum(x, where=where) / jnp.maximum(where.sum(), 1)

    scale = 1.0
    if over == "deviation":
        scale = _root(mean(jnp.square(targets - mean(targets))))
    elif over == "range":
        high = jnp.max(targets, where=where, initial=-jnp.inf)
        scale = high - jnp.min(targets, where=where, initial=jnp.inf)
        scale = jnp.where(where.any(), scale, 0.0)
    elif over == "mean":
        scale = jnp.abs(mean(targets))
    elif over == "predictions":
        scale = _root(mean(jnp.square(predictions)))
    return _root(mean(jnp.square(predictions - targets))) / jnp.where(scale > 0, scale, 1.0)


root_mean_squared_error.batch_coupled = True


def relative_absolute_error(predictions, targets, *, where=None):
    r"""The absolute error as a share of that of predicting the mean.

    .. math:: \ell = \frac{\sum_i |\hat y_i - y_i|}{\sum_i |\bar y - y_i|}

    Args:
      predictions: :math:`\hat y`, ``[...]``, or ``[..., 1]`` for targets ``[...]``, any float
        dtype; computed in float32 at least.
      targets: y, ``[...]``.
      where: Optional boolean ``[...]``; False entries do not count.

    Returns:
      A scalar share, float32; of equal targets the sum of absolute errors. Couples the batch.

    Source: A Comprehensive Survey of Regression Based Loss Functions for Time Series Forecasting,
      2022, arXiv:2211.02989, the relative absolute error.
    """
    predictions, targets = _aligned(predictions, targets)
    where = jnp.ones(targets.shape, bool) if where is None else where
    middle = jnp.sum(targets, where=where) / jnp.maximum(where.sum(), 1)
    spread = jnp.sum(jnp.abs(targets - middle), where=where)
    error = jnp.sum(jnp.abs(predictions - targets), where=where)
    return error / jnp.where(spread > 0, spread, 1.0)


relative_absolute_error.batch_coupled = True


def directional_loss(forecasts, returns, *, where=None):
    r"""Minus the return of going long where a rise is forecast and short where a fall is.

    .. math:: \ell = -\operatorname{sign}(\hat r\, r)\,|r|

    Its mean is MADL. The gradient is 0 everywhere: it is for choosing between models, and
    :func:`smooth_directional_loss` for training them.

    Args:
      forecasts: :math:`\hat r`, ``[...]``, or ``[..., 1]`` for returns ``[...]``, any float dtype;
        computed in float32 at least.
      returns: r, ``[...]``, what came, such as a share of the price.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per entry, ``[...]``, in units of a return, float32.

    Source: Mean Absolute Directional Loss as a New Loss Function for Machine Learning Problems in
      Algorithmic Investment Strategies, Journal of Computational Science 2024, arXiv:2309.10546,
      the equation of MADL.
    """
    forecasts, returns = _aligned(forecasts, returns)
    return _kept(-jnp.sign(forecasts * returns) * jnp.abs(returns), where)


def smooth_directional_loss(forecasts, returns, *, slope=100.0, power=1.0, where=None):
    r"""The directional loss with a sigmoid for its sign, and a power of the return for its weight.

    .. math:: \ell = -\big(\sigma(a\, \hat r\, r) - \tfrac12\big)\,|r|^b

    which is GMADL; as a grows it becomes half of :func:`directional_loss`.

    Args:
      forecasts: :math:`\hat r`, ``[...]``, or ``[..., 1]`` for returns ``[...]``, any float dtype;
        computed in float32 at least.
      returns: r, ``[...]``, what came, such as a share of the price.
      slope: a > 0, per square of a return.
      power: b >= 1, static; above 1 large returns count for more.
      where: Optional boolean ``[...]``; False entries return 0.

    Returns:
      Loss per entry, ``[...]``, in units of a return to the b, float32.

    Source: Generalized Mean Absolute Directional Loss as a Solution to Overfitting and High
      Transaction Costs in Machine Learning Models Used in High-Frequency Algorithmic Investment
      Strategies, 2024, arXiv:2412.18405, the equation of GMADL.
    """
    forecasts, returns = _aligned(forecasts, returns)
    half = jnp.tanh(slope * forecasts * returns / 2) / 2
    return _kept(-half * jnp.abs(returns) ** power, where)


def bag_loss(predictions, bag_means, *, weight=0.0, where=None):
    r"""Squared error of bags of examples of which only the mean target is known.

    .. math:: \ell = (1 - \rho)\,\Big(\bar y - \frac1m \sum_i \hat y_i\Big)^2
              + \rho\, \frac1m \sum_i (\bar y - \hat y_i)^2

    the bag-level loss at :math:`\rho = 0`, the instance-level loss at 1. The second is the first
    and the variance of the predictions within a bag, so that

    .. math:: \ell = \Big(\bar y - \frac1m \sum_i \hat y_i\Big)^2
              + \rho \operatorname{Var}_i \hat y_i

    Args:
      predictions: :math:`\hat y`, ``[bags, m]`` or ``[bags, m, 1]``, any float dtype; computed in
        float32 at least.
      bag_means: :math:`\bar y`, the mean target of each bag, ``[bags]``.
      weight: :math:`\rho` in [0, 1].
      where: Optional boolean ``[bags]``; False bags return 0.

    Returns:
      Loss per bag, ``[bags]``, in squared units of the target, float32.

    Source: Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions,
      ICLR 2024, arXiv:2401.11081, the interpolation of its two losses.
    """
    predictions = predictions[..., 0] if predictions.ndim == 3 else predictions
    chex.assert_rank([predictions, bag_means], [2, 1])
    chex.assert_equal_shape_prefix([predictions, bag_means], 1)
    predictions = predictions.astype(jnp.promote_types(predictions.dtype, jnp.float32))
    middle = predictions.mean(1)
    spread = jnp.square(predictions - middle[:, None]).mean(1)
    return _kept(jnp.square(bag_means - middle) + weight * spread, where)


def _aligned(predictions, targets):
    """Both in one shape and in float32 at least."""
    if predictions.ndim == targets.ndim + 1 and predictions.shape[-1] == 1:
        predictions = predictions[..., 0]
    chex.assert_equal_shape([predictions, targets])
    predictions = jnp.asarray(predictions)
    dtype = jnp.promote_types(predictions.dtype, jnp.float32)
    return predictions.astype(dtype), jnp.asarray(targets).astype(dtype)


def _kept(loss, where):
    return loss if where is None else jnp.where(where, loss, 0.0)


def _root(x):
    """The square root, with a gradient of 0 at 0."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)
