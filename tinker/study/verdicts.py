"""Verdicts: what paired differences over seeds say of a claim."""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from tinker.numerics import UserError

SUPPORTED, CONTRADICTED = "supported", "contradicted"
EQUAL, INCONCLUSIVE, UNTESTED = "equal", "inconclusive", "not tested here"


class Verdict(NamedTuple):
    """What the seeds say of one claim.

    Attributes:
      verdict: "supported", "contradicted", "equal" or "inconclusive".
      estimate: Mean over the seeds.
      low: Lower end of the 95 % interval of the mean.
      high: Its upper end.
      p: Of the two-sided test that the mean is at the threshold, before any adjustment; of the
        two one-sided tests for a range.
      detectable: The smallest effect beyond the threshold that as many seeds with this spread
        would have found with probability 0.8.
      n: Number of seeds.
    """

    verdict: str
    estimate: float
    low: float
    high: float
    p: float
    detectable: float
    n: int


def judge(values, *, at_least=None, at_most=None, within=None, margin=None, deterministic=False):
    r"""Judges a claim from one number per seed.

    With mean :math:`\bar d`, standard deviation s and n seeds, the interval is
    :math:`\bar d \pm t_{0.975, n-1}\, s / \sqrt n`. The claim is supported if the interval lies on
    its side of the threshold, contradicted if it lies wholly on the other, equal if neither and it
    lies within ``margin`` of the threshold, and else inconclusive. The detectable effect is
    :math:`(t_{0.975, n-1} + t_{0.8, n-1})\, s / \sqrt n`.

    Args:
      values: One number per seed, ``[n]``, n >= 2 unless deterministic; a paired difference, or
        what a claim function gave.
      at_least: Threshold of a claim that the mean is at least this.
      at_most: Threshold of a claim that the mean is at most this.
      within: ``(low, high)`` of a claim that the mean lies between; just one of the three is given.
      margin: What counts as no difference, in units of the values.
      deterministic: Whether the claim is an identity or a bound: it must hold in every seed, and
        one seed outside contradicts it.

    Returns:
      A :class:`Verdict`.

    Raises:
      UserError: Not exactly one of the thresholds is given, or too few seeds.
    """
    values = np.asarray(values, np.float64).reshape(-1)
    given = [t for t in (at_least, at_most, within) if t is not None]
    if len(given) != 1:
        raise UserError("a claim states exactly one of at_least, at_most and within")
    n = len(values)
    if n < (1 if deterministic else 2):
        raise UserError(f"{n} seeds are too few for a verdict")
    low, high = within if within is not None else (at_least, at_most)
    low = -math.inf if low is None else low
    high = math.inf if high is None else high
    mean = float(values.mean())
    if not np.isfinite(values).all():
        return Verdict(INCONCLUSIVE, mean, math.nan, math.nan, math.nan, math.inf, n)
    if deterministic:
        holds = bool(((values >= low) & (values <= high)).all())
        ends = float(values.min()), float(values.max())
        return Verdict(SUPPORTED if holds else CONTRADICTED, mean, *ends, math.nan, 0.0, n)
    error = float(values.std(ddof=1)) / math.sqrt(n)
    half = stats.t.ppf(0.975, n - 1) * error
    bottom, top = mean - half, mean + half
    detectable = (stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1)) * error
    if bottom >= low and top <= high:
        verdict = SUPPORTED
    elif top < low or bottom > high:
        verdict = CONTRADICTED
    elif (
        margin is not None
        and bottom > _near(low, high) - margin
        and top < _near(low, high) + margin
    ):
        verdict = EQUAL
    else:
        verdict = INCONCLUSIVE
    return Verdict(verdict, mean, bottom, top, _p_value(mean, error, low, high, n), detectable, n)


def _near(low, high):
    if math.isfinite(low) and math.isfinite(high):
        raise UserError("a claim with `within` states its own margin; it takes no `margin`")
    return low if math.isfinite(low) else high


def _p_value(mean, error, low, high, n):
    def one(threshold):
        if error == 0:
            return 1.0 if mean == threshold else 0.0
        return float(2 * stats.t.sf(abs(mean - threshold) / error, n - 1))

    ends = [one(t) for t in (low, high) if math.isfinite(t)]
    return max(ends) if low <= mean <= high else min(ends)


def holm(p_values):
    """Holm's step-down adjustment for several claims.

    Args:
      p_values: ``[claims]``.

    Returns:
      Adjusted p-values, ``[claims]``, at most 1.

    Source: A simple sequentially rejective multiple test procedure, Scandinavian Journal of
      Statistics 1979.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)
    scaled = p[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def adjust(verdicts):
    """Withdraws from a family of claims what Holm's adjustment does not let stand at 5 %.

    Args:
      verdicts: :class:`Verdict` of each claim. Deterministic ones (p is NaN) are left alone.

    Returns:
      The verdicts; a "supported" or "contradicted" that does not survive is "inconclusive".
    """
    tested = [i for i, v in enumerate(verdicts) if not math.isnan(v.p)]
    adjusted = dict(zip(tested, holm([verdicts[i].p for i in tested]), strict=True))
    out = []
    for i, v in enumerate(verdicts):
        weak = i in adjusted and adjusted[i] >= 0.05 and v.verdict in (SUPPORTED, CONTRADICTED)
        out.append(v._replace(verdict=INCONCLUSIVE) if weak else v)
    return out
