"""Edit distance against the textbook's table, spans against a list of them."""

import jax
import numpy as np
import pytest

from tinker import metrics

RNG = np.random.default_rng(0)


def distance(a, b):
    """The textbook's table."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            replaced = table[i, j] + (x != y)
            table[i + 1, j + 1] = min(replaced, table[i, j + 1] + 1, table[i + 1, j] + 1)
    return table[-1, -1]


def test_edit_distance_is_the_table():
    a, b = RNG.integers(0, 3, (40, 7)), RNG.integers(0, 3, (40, 5))
    n, m = RNG.integers(0, 8, 40), RNG.integers(0, 6, 40)
    masks = {
        "predicted_mask": np.arange(7) < n[:, None],
        "label_mask": np.arange(5) < m[:, None],
    }
    found = jax.jit(metrics.edit_distance)(a, b, **masks)
    expected = [distance(x[:i], y[:j]) for x, y, i, j in zip(a, b, n, m, strict=True)]
    np.testing.assert_array_equal(found, expected)
    whole = jax.jit(metrics.edit_distance)(a, b)
    np.testing.assert_array_equal(whole, [distance(x, y) for x, y in zip(a, b, strict=True)])
    with pytest.raises(AssertionError):
        metrics.edit_distance(a[0], b)


TAGS = ("O", "B-X", "I-X", "E-X", "S-X", "B-Y", "I-Y", "E-Y", "S-Y")


def test_span_f1_counts_spans_whose_ends_and_kind_agree():
    def coded(*rows):
        return np.array([[TAGS.index(t) for t in row.split()] for row in rows])

    true = coded("S-X O B-Y I-Y E-Y O", "B-X E-X S-Y O O O")
    # one agrees; one is of the wrong kind, one ends early, one is torn: of 3 spans and of 4
    found = coded("S-Y O B-Y E-Y O O", "B-X E-X B-Y I-X E-Y O")
    assert metrics.span_f1(true, true, tags=TAGS) == 1
    np.testing.assert_allclose(metrics.span_f1(found, true, tags=TAGS), 2 / (3 + 4))
    np.testing.assert_allclose(metrics.span_f1(true, found, tags=TAGS), 2 / (3 + 4))
    nothing = coded("O O", "E-X I-Y")
    assert metrics.span_f1(nothing, nothing, tags=TAGS) == 0
    assert metrics.span_f1.host
