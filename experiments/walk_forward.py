"""Forecasts of returns, walking forward: by which error to choose among models."""

import numpy as np

from tinker.numerics import fold_in, integer_seed
from tinker.train.specs import resolve


def regime_returns(seed, size, *, drift=0.1, persistence=0.98, tails=3.0, scale=0.01):
    r"""Returns that rise for a while, then fall for a while, in much heavier noise.

    .. math:: r_t = \sigma (\mu s_t + \varepsilon_t), \qquad P(s_{t+1} = s_t) = p

    Args:
      seed: A non-negative integer, of which everything is drawn.
      size: Number of steps.
      drift: :math:`\mu`, in standard deviations of the noise.
      persistence: p, that a rise or fall goes on.
      tails: Degrees of freedom of the noise, Student's, above 2; it has variance 1.
      scale: :math:`\sigma`, a share of the price.

    Returns:
      Returns, ``[size]``, float64.
    """
    rng = np.random.default_rng(seed)
    turns = np.where(rng.random(size) < persistence, 1, -1)
    signs = rng.choice([-1, 1]) * np.cumprod(turns)
    noise = rng.standard_t(tails, size) / np.sqrt(tails / (tails - 2))
    return scale * (drift * signs + noise)


def run(config, key):
    """Refits every candidate on each window, chooses on the next, and trades on the one after.

    A candidate is a ridge regression of the next return on the last few.

    Args:
      config: ``world`` (keywords of :func:`regime_returns`), ``criterion`` (the import path of
        ``loss(forecasts, returns)``, whose mean is to be least), ``lags`` and ``penalties`` of the
        candidates, and ``train``, ``validation`` and ``windows``: steps, steps, and how many times
        a window moves on by the latter.
      key: Of the returns.

    Returns:
      Of all traded steps, long where the forecast is above 0 and short where it is below:
      ``mean_return``, ``information_ratio``, the mean over the standard deviation of a year of 252
      steps, ``right``, the share of steps whose sign was forecast, and ``squared_error``. Nothing
      is deducted for trading.
    """
    train, validation = config.train, config.validation
    most = max(config.lags)
    size = most + train + validation * (config.windows + 1)
    returns = regime_returns(integer_seed(fold_in(key, "returns"), "path"), size, **config.world)
    past = np.stack([returns[most - 1 - lag : size - 1 - lag] for lag in range(most)], 1)
    past, now = past / returns.std(), returns[most:]
    criterion, forecasts = resolve(config.criterion, "criterion"), []
    for start in range(0, validation * config.windows, validation):
        fit = slice(start, start + train)
        choose = slice(start + train, start + train + validation)
        trade = slice(choose.stop, choose.stop + validation)
        found = []
        for lag in config.lags:
            for penalty in config.penalties:
                predict = _ridge(past[fit, :lag], now[fit], penalty)
                found.append([predict(past[s, :lag]) for s in (choose, trade)])
        chosen, traded = (np.stack(x) for x in zip(*found))
        scores = criterion(chosen, np.broadcast_to(now[choose], chosen.shape)).mean(1)
        forecasts.append(traded[np.argmin(scores)])
    forecasts, came = np.concatenate(forecasts), now[train + validation :]
    earned = np.sign(forecasts) * came
    return {
        "mean_return": earned.mean(),
        "information_ratio": np.sqrt(252) * earned.mean() / earned.std(),
        "right": np.mean(np.sign(forecasts) == np.sign(came)),
        "squared_error": np.mean((forecasts - came) ** 2),
    }


def _ridge(x, y, penalty):
    """A ridge regression with a free intercept, as a function of new rows."""
    x_mean, y_mean = x.mean(0), y.mean()
    x = x - x_mean
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (y - y_mean))
    return lambda new: (new - x_mean) @ weights + y_mean
