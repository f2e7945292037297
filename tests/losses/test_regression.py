"""Losses of numbers against scikit-learn, NumPy and what they are least at."""

import functools

import jax
import numpy as np
import optax
import pytest
from sklearn import linear_model, metrics

from tinker import losses
from tinker.configs.losses import directions
from tinker.experiments import bags, walk_forward
from tinker.numerics import UserError

RNG = np.random.default_rng(0)
Y = RNG.gamma(2.0, size=12)
P = np.abs(Y + RNG.normal(size=12) * 0.3)


@jax.jit
def evaluated(predictions, targets):
    found = {
        "absolute": losses.absolute_error(predictions, targets).mean(),
        "percentage": losses.percentage_error(predictions, targets).mean(),
        "squared_log": losses.squared_log_error(predictions, targets).mean(),
        "quantile": losses.quantile_error(predictions, targets, quantile=0.2).mean(),
        "relative": losses.relative_absolute_error(predictions, targets),
    }
    for over in (None, "deviation", "range", "mean", "predictions"):
        found[f"rmse_{over}"] = losses.root_mean_squared_error(predictions, targets, over=over)
    return found


def test_errors_are_scikit_learns():
    rmse = metrics.root_mean_squared_error(Y, P)
    expected = {
        "absolute": metrics.mean_absolute_error(Y, P),
        "percentage": metrics.mean_absolute_percentage_error(Y, P),
        "squared_log": metrics.mean_squared_log_error(Y, P),
        "quantile": metrics.mean_pinball_loss(Y, P, alpha=0.2),
        "relative": sum(abs(Y - P)) / sum(abs(Y - Y.mean())),
        "rmse_None": rmse,
        "rmse_deviation": np.sqrt(1 - metrics.r2_score(Y, P)),
        "rmse_range": rmse / np.ptp(Y),
        "rmse_mean": rmse / Y.mean(),
        "rmse_predictions": np.sqrt(sum((Y - P) ** 2) / sum(P**2)),
    }
    for name, value in evaluated(P, Y).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5)


def test_a_last_axis_of_one_is_dropped_and_other_shapes_are_told():
    np.testing.assert_allclose(losses.absolute_error(P[:, None], Y), abs(P - Y), rtol=1e-5)
    for loss in (losses.absolute_error, losses.quantile_error, losses.relative_absolute_error):
        with pytest.raises(AssertionError):
            loss(P[:4], Y)
    with pytest.raises(UserError, match="deviation"):
        losses.root_mean_squared_error(P, Y, over="deviations")


def test_each_is_least_at_its_statistic_of_a_sample():
    sample = np.sort(RNG.gamma(1.0, size=101))
    grid = np.linspace(0.01, 4, 2000)
    targets = np.broadcast_to(sample, (2000, 101))

    @jax.jit
    def means(constant):
        predictions = np.ones((1, 101)) * constant[:, None]
        fns = {
            "mean": losses.squared_error,
            "median": losses.absolute_error,
            "quantile": functools.partial(losses.quantile_error, quantile=0.8),
            "log_mean": losses.squared_log_error,
            "between": functools.partial(optax.huber_loss, delta=0.5),
            "weighted_median": losses.percentage_error,
        }
        return {name: fn(predictions, targets).mean(1) for name, fn in fns.items()}

    best = {name: grid[np.argmin(value)] for name, value in means(grid).items()}
    np.testing.assert_allclose(best["mean"], sample.mean(), atol=3e-3)
    np.testing.assert_allclose(best["median"], np.median(sample), atol=3e-3)
    np.testing.assert_allclose(best["quantile"], np.quantile(sample, 0.8), atol=3e-3)
    np.testing.assert_allclose(best["log_mean"], np.expm1(np.log1p(sample).mean()), atol=3e-3)
    assert best["weighted_median"] < best["median"] < best["between"] < best["mean"]


def test_negative_predictions_of_a_logarithm_count_as_zero():
    value, slope = jax.value_and_grad(lambda p: losses.squared_log_error(p, Y).sum())(-P)
    np.testing.assert_allclose(value, sum(np.log1p(Y) ** 2), rtol=1e-5)
    assert not slope.any()


def test_directional_losses_are_minus_the_return_of_the_strategy():
    returns, forecasts = RNG.normal(size=(2, 50)) * 0.02
    returns[0] = forecasts[1] = 0.0
    earned = [r if f > 0 else -r if f < 0 else 0.0 for r, f in zip(returns, forecasts)]
    found = losses.directional_loss(forecasts, returns)
    np.testing.assert_allclose(found, np.negative(earned), rtol=1e-5)
    np.testing.assert_allclose(losses.directional_loss(forecasts[:, None], returns), found)
    where = RNG.integers(0, 2, 50).astype(bool)
    kept = losses.directional_loss(forecasts, returns, where=where)
    np.testing.assert_allclose(kept, np.where(where, found, 0))
    # the smooth one by the paper's sigmoid, and half of the sharp one where it is steep
    sigmoid = 1 / (1 + np.exp(-100 * returns * forecasts))
    smooth = losses.smooth_directional_loss(forecasts, returns, power=2.0)
    np.testing.assert_allclose(smooth, -(sigmoid - 0.5) * returns**2, rtol=1e-4, atol=1e-10)
    steep = losses.smooth_directional_loss(forecasts, returns, slope=1e12)
    np.testing.assert_allclose(steep, found / 2, atol=1e-6)


def test_the_loss_of_instances_is_that_of_bags_and_the_variance_within():
    predictions, means = RNG.normal(size=(5, 4)), RNG.normal(size=5)
    bags = [(y - p.mean()) ** 2 for p, y in zip(predictions, means)]
    instances = [np.mean([(y - q) ** 2 for q in p]) for p, y in zip(predictions, means)]
    for weight in (0.0, 0.3, 1.0):
        found = losses.bag_loss(predictions, means, weight=weight)
        expected = (1 - weight) * np.array(bags) + weight * np.array(instances)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    three = losses.bag_loss(predictions[..., None], means)
    np.testing.assert_allclose(three, bags, rtol=1e-5)
    with pytest.raises(AssertionError):
        losses.bag_loss(predictions, means[:3])


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_the_regression_of_bags_is_where_their_loss_is_least(weight):
    x, means = RNG.normal(size=(9, 3, 4)), RNG.normal(size=9)

    @jax.jit
    def run(x, means):
        found = bags.bag_regression(x, means, weight=weight)
        slope = jax.grad(lambda w: losses.bag_loss(x @ w, means, weight=weight).mean())(found)
        return found, slope

    with jax.enable_x64(True):
        found, slope = run(x, means)
        np.testing.assert_allclose(slope, 0, atol=1e-10)
        if weight == 1:  # least squares of every example on its bag's mean
            expected = np.linalg.lstsq(x.reshape(-1, 4), np.repeat(means, 3))[0]
            np.testing.assert_allclose(found, expected, rtol=1e-9)
        few, _ = run(x[:2], means[:2])  # more coefficients than bags: the shortest that fits
        if weight == 0:
            np.testing.assert_allclose(few, np.linalg.pinv(x[:2].mean(1)) @ means[:2], rtol=1e-9)


def test_walking_forward_trades_what_the_last_window_chose():
    config = directions.base()
    config.update(windows=4, lags=(1, 5), penalties=(1.0,), train=200)
    config.world = {"drift": 3.0, "persistence": 0.98, "tails": 5.0}
    found = walk_forward.run(config, jax.random.key(1))
    assert found["right"] > 0.9 and found["information_ratio"] > 10
    config.world.drift = 0.0
    found = walk_forward.run(config, jax.random.key(1))
    assert 0.4 < found["right"] < 0.6 and abs(found["information_ratio"]) < 4
    x = RNG.normal(size=(30, 3))
    y = x @ [1.0, -2.0, 0.5] + 3 + RNG.normal(size=30)
    ours, theirs = walk_forward._ridge(x, y, 2.0), linear_model.Ridge(2.0).fit(x, y)
    np.testing.assert_allclose(ours(x[:4] + 1), theirs.predict(x[:4] + 1), rtol=1e-9)
    world = walk_forward.regime_returns(0, 50_000, drift=0.5, persistence=0.9, scale=2.0)
    np.testing.assert_allclose(world.var(), 4 * 1.25, rtol=0.1)
    signs = np.sign(walk_forward.regime_returns(0, 50_000, drift=1e6, persistence=0.9))
    np.testing.assert_allclose(np.mean(signs[1:] == signs[:-1]), 0.9, atol=0.01)
