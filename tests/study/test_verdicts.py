"""The verdict code on simulated data of known effect, and against scipy and statsmodels' rules."""

import math

import numpy as np
import pytest
from scipy import stats

from tinker.numerics import UserError
from tinker.study import verdicts

RNG = np.random.default_rng(0)


def rates(mean, n, draws=2000, spread=1.0, **claim):
    found = [verdicts.judge(RNG.normal(mean, spread, n), **claim).verdict for _ in range(draws)]
    return {v: found.count(v) / draws for v in set(found)}


@pytest.mark.parametrize("n", [3, 10])
def test_no_effect_is_rarely_called_one(n):
    for claim in ({"at_least": 0.0}, {"at_most": 0.0}):
        found = rates(0.0, n, **claim)
        assert found.get("supported", 0) <= 0.05
        assert found.get("contradicted", 0) <= 0.05
        assert 0.015 <= found["supported"] <= 0.035  # 2.5 % on either side


@pytest.mark.parametrize("n", [4, 10])
def test_the_detectable_effect_is_detected_four_times_in_five(n):
    # known spread: the effect that the average report calls detectable
    effect = (stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1)) / math.sqrt(n)
    found = rates(effect, n, at_least=0.0)
    assert 0.74 <= found["supported"] <= 0.88
    found = rates(effect, n, at_most=0.0)
    assert 0.74 <= found["contradicted"] <= 0.88


def test_detectable_effect_is_in_units_of_the_spread():
    values = RNG.normal(size=8)
    one, ten = (verdicts.judge(k * values, at_least=0.0) for k in (1, 10))
    np.testing.assert_allclose(ten.detectable, 10 * one.detectable)
    error = values.std(ddof=1) / math.sqrt(8)
    np.testing.assert_allclose(
        one.detectable, (stats.t.ppf(0.975, 7) + stats.t.ppf(0.8, 7)) * error
    )


def test_interval_and_p_are_scipys():
    values = RNG.normal(0.3, 1, 12)
    found = verdicts.judge(values, at_least=0.1)
    test = stats.ttest_1samp(values, 0.1)
    interval = test.confidence_interval(0.95)
    np.testing.assert_allclose([found.low, found.high], [interval.low, interval.high])
    np.testing.assert_allclose(found.p, test.pvalue)


@pytest.mark.parametrize(
    "values, claim, verdict",
    [
        ([1.0, 1.1, 0.9], {"at_least": 0.0}, "supported"),
        ([1.0, 1.1, 0.9], {"at_most": 0.0}, "contradicted"),
        ([-1.0, -1.1, -0.9], {"at_least": 0.0}, "contradicted"),
        ([-1.0, -1.1, -0.9], {"at_most": 0.0}, "supported"),
        ([0.01, -0.01, 0.0], {"at_least": 0.0, "margin": 0.1}, "equal"),
        ([0.01, -0.01, 0.0], {"at_least": 0.0, "margin": 0.01}, "inconclusive"),
        ([0.01, -0.01, 0.0], {"at_most": 0.0}, "inconclusive"),
        ([0.5, 0.52, 0.48], {"within": (0.3, 0.7)}, "supported"),
        ([0.9, 0.92, 0.88], {"within": (0.3, 0.7)}, "contradicted"),
        ([0.7, 0.72, 0.68], {"within": (0.3, 0.7)}, "inconclusive"),
        ([2.0, 2.0, 2.0], {"at_least": 2.0}, "supported"),
        ([1.0, math.nan, 1.0], {"at_least": 0.0}, "inconclusive"),
        ([1e-9], {"at_most": 1e-6, "deterministic": True}, "supported"),
        ([1e-9, 1e-5], {"at_most": 1e-6, "deterministic": True}, "contradicted"),
    ],
)
def test_each_verdict(values, claim, verdict):
    assert verdicts.judge(values, **claim).verdict == verdict


@pytest.mark.parametrize(
    "claim", [{}, {"at_least": 0, "at_most": 1}, {"within": (0, 1), "margin": 0.1}]
)
def test_a_claim_states_one_threshold(claim):
    with pytest.raises(UserError):
        verdicts.judge([0.5, 2.0, 0.4], **claim)
    with pytest.raises(UserError, match="too few"):
        verdicts.judge([1.0], at_least=0.0)


def test_holm_is_the_step_down_procedure():
    p = [0.01, 0.04, 0.03, 0.005]
    np.testing.assert_allclose(verdicts.holm(p), [0.03, 0.06, 0.06, 0.02])

    # of ten claims with no effect, rarely is any supported
    def family():
        found = [verdicts.judge(RNG.normal(size=6), at_least=0.0) for _ in range(10)]
        return any(v.verdict != "inconclusive" for v in verdicts.adjust(found))

    assert np.mean([family() for _ in range(400)]) <= 0.09  # 5 % and three standard errors
    sure = verdicts.judge([1e-9], at_most=1e-6, deterministic=True)
    assert verdicts.adjust([sure])[0].verdict == "supported"
