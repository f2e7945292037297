"""Agreement of partitions against scikit-learn."""

import jax
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from tinker import metrics

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 5, 200)
PAIRS = {
    "noisy": (LABELS, np.where(RNG.uniform(size=200) < 0.7, LABELS, RNG.integers(0, 7, 200))),
    "chance": (LABELS, RNG.integers(0, 5, 200)),
    "renamed": (LABELS, 1000 - 400 * LABELS),
    "one": (LABELS, np.full(200, 3)),
    "both one": (np.zeros(200, int), np.ones(200, int)),
    "all apart": (np.arange(200), -np.arange(200)),
    "apart, one": (np.arange(200), np.zeros(200, int)),
    "rare": (np.arange(200) == 3, np.arange(200) // 2 == 1),
    "crossed": (np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])),
    "single": (np.array([4]), np.array([-2])),
}
SCORES = {
    "nmi": (metrics.normalized_mutual_information, normalized_mutual_info_score),
    "ari": (metrics.adjusted_rand_index, adjusted_rand_score),
}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("pair", PAIRS)
def test_agreement_is_sklearns(score, pair):
    ours, theirs = SCORES[score]
    a, b = PAIRS[pair]
    np.testing.assert_allclose(jax.jit(ours)(a, b), theirs(a, b), atol=2e-6)
    np.testing.assert_allclose(jax.jit(ours)(b, a), theirs(a, b), atol=2e-6)


@pytest.mark.parametrize("score", SCORES)
def test_they_are_of_whole_splits_of_equal_length(score):
    ours, _ = SCORES[score]
    assert ours.whole_split
    with pytest.raises(AssertionError):
        ours(LABELS, LABELS[:5])
    with pytest.raises(AssertionError):
        ours(LABELS[:, None], LABELS[:, None])
