"""Claims: what is measured of the arms, one number per seed.

A claim compares a metric of one arm over another's, ``dict(metric=…, arm=…, over=…, at_least=…)``,
or applies one of the functions below (or any function by import path) to the values of all arms,
``dict(fn="slope", …)``. Functions take ``values``, ``{arm: {metric: array [seeds, …]}}``, and the
claim's other keywords; they return ``[seeds]``.
"""

import numpy as np
from scipy import stats

from tinker.numerics import UserError, nearest


def metric_of(values, arm, metric):
    """The values of a metric of an arm, ``[seeds, …]`` float64; names the nearest if absent."""
    if arm not in values:
        raise UserError(
            f"claim: there is no arm {arm!r}: {', '.join(values)}{nearest(arm, values)}"
        )
    if metric not in values[arm]:
        there = ", ".join(values[arm])
        hint = nearest(metric, values[arm])
        raise UserError(f"claim: arm {arm!r} has no metric {metric!r}: {there}{hint}")
    return np.asarray(values[arm][metric], np.float64)


def difference(values, *, metric, arm, over):
    """The metric of an arm minus that of another, seed by seed."""
    return metric_of(values, arm, metric) - metric_of(values, over, metric)


def ratio(values, *, metric, arm, over):
    """The metric of an arm over that of another, seed by seed."""
    return metric_of(values, arm, metric) / metric_of(values, over, metric)


def value(values, *, metric, arm):
    """The metric itself."""
    return metric_of(values, arm, metric)


def _table(values, metric, arms):
    """``[seeds, arms]``, and the arms' positions."""
    names = list(arms)
    x = np.asarray(list(arms.values()) if isinstance(arms, dict) else range(len(names)), np.float64)
    return np.stack([metric_of(values, arm, metric) for arm in names], 1), x


def slope(values, *, metric, arms, log=False):
    """The least-squares slope of a metric along arms.

    ``arms`` is a list, or a mapping from arm to position; with ``log`` both axes are logarithmic.
    """
    y, x = _table(values, metric, arms)
    y, x = (np.log(y), np.log(x)) if log else (y, x)
    x = x - x.mean()
    return (y - y.mean(1, keepdims=True)) @ x / (x @ x)


def spearman(values, *, metric, arms=None, with_metric=None, arm=None):
    """The rank correlation of a metric with the arms' order, or of two array metrics of an arm."""
    if with_metric is not None:
        a, b = metric_of(values, arm, metric), metric_of(values, arm, with_metric)
        return np.array([stats.spearmanr(u, v).statistic for u, v in zip(a, b, strict=True)])
    y, x = _table(values, metric, arms)
    return np.array([stats.spearmanr(row, x).statistic for row in y])


def steps_to(values, *, metric, arm, over, minimize=True):
    """Steps an arm needs to reach the other's final value, as a share of the other's steps.

    ``metric`` is a curve ``[seeds, points]``, evenly spaced and equally long in both arms. An arm
    that never gets there counts as 1 step more than all, the value is then above 1.
    """
    curve, target = metric_of(values, arm, metric), metric_of(values, over, metric)[:, -1:]
    reached = curve <= target if minimize else curve >= target
    points = curve.shape[1]
    first = np.where(reached.any(1), reached.argmax(1) + 1, points + 1)
    return first / points


def argmax_inside(values, *, metric, arms, minimize=False):
    """1 where the best of an ordered row of arms is neither its first nor its last, else 0."""
    y, _ = _table(values, metric, arms)
    best = (y.argmin if minimize else y.argmax)(1)
    return ((best > 0) & (best < y.shape[1] - 1)).astype(np.float64)


def dominates(values, *, metric, arm, over, minimize=False):
    """The share of a curve's points at which an arm is at least as good as another."""
    a, b = metric_of(values, arm, metric), metric_of(values, over, metric)
    better = a <= b if minimize else a >= b
    return better.reshape(len(a), -1).mean(1)
