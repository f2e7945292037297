"""Characters out of tokens, against the enumeration of all texts of a chain."""

import collections
import functools
import itertools

import numpy as np
import pytest

from tinker.models import (
    branch_and_pass,
    byte_pair_encode,
    cover_probability,
    longest_prefix_encode,
)

CHAIN = {"a": {"a": 0.6, "b": 0.4}, "b": {"a": 0.3, "b": 0.7}}
LENGTH = 12
VOCABULARY = ["a", "b", "aa", "ab", "aab"]
MERGES = [("a", "b"), ("a", "ab"), ("b", "b"), ("aab", "a")]
PAIRED = ["a", "b", "ab", "aab", "bb", "aaba"]


def probability(text):
    """Of the chain, whose first letter is either."""
    steps = itertools.pairwise(text)
    return 0.5 * np.prod([CHAIN[x][y] for x, y in steps]) if text else 1.0


def exact_model(encode, size):
    """``next_probabilities`` by the encoding of every text of so many letters."""
    counts = collections.defaultdict(lambda: np.zeros(size))
    for letters in itertools.product("ab", repeat=LENGTH):
        text = "".join(letters)
        tokens = tuple(encode(text))
        for i, token in enumerate(tokens):
            counts[tokens[:i]][token] += probability(text)

    def next_probabilities(tokens):
        total = counts[tuple(tokens)].sum()
        return counts[tuple(tokens)] / (total or 1.0)

    return next_probabilities


def test_encodings_say_the_text_and_are_known_ones():
    assert longest_prefix_encode("aabaaab", VOCABULARY) == (4, 2, 3)
    assert byte_pair_encode("aabab", PAIRED, MERGES) == (3, 2)
    for encode, vocabulary in (
        (lambda t: longest_prefix_encode(t, VOCABULARY), VOCABULARY),
        (lambda t: byte_pair_encode(t, PAIRED, MERGES), PAIRED),
    ):
        for letters in itertools.product("ab", repeat=7):
            text = "".join(letters)
            assert "".join(vocabulary[i] for i in encode(text)) == text
    assert longest_prefix_encode("", VOCABULARY) == ()


def prompts(longest):
    sizes = (itertools.product("ab", repeat=n) for n in range(longest + 1))
    return ["".join(letters) for letters in itertools.chain(*sizes)]


def test_branch_and_pass_is_the_probability_of_the_letters():
    encode = functools.partial(longest_prefix_encode, vocabulary=VOCABULARY)
    model = exact_model(encode, len(VOCABULARY))
    for text in prompts(6):
        found = branch_and_pass(model, text, VOCABULARY)
        np.testing.assert_allclose(found, probability(text), rtol=1e-12)
        covered = cover_probability(model, text, VOCABULARY, encode)
        np.testing.assert_allclose(covered, probability(text), rtol=1e-12)
    # asked naively, what comes after "a" is never an "a": "aa" would be one token
    first = model(encode("a"))
    assert first[[0, 2, 3, 4]].sum() == 0 and CHAIN["a"]["a"] == 0.6


def test_cover_encodings_give_the_probability_of_the_letters():
    encode = functools.partial(byte_pair_encode, vocabulary=PAIRED, merges=MERGES)
    model = exact_model(encode, len(PAIRED))
    for text in prompts(6):
        found = cover_probability(model, text, PAIRED, encode)
        np.testing.assert_allclose(found, probability(text), rtol=1e-12)
    assert branch_and_pass.host and cover_probability.host


def test_branch_and_pass_asks_no_more_than_once_a_token():
    asked = []

    def counting(tokens):
        asked.append(tokens)
        return np.full(len(VOCABULARY), 0.2)

    branch_and_pass(counting, "aabaabaab", VOCABULARY)
    assert asked == [(), (4,), (4, 4)]


def test_what_is_in_no_vocabulary_is_told():
    with pytest.raises(StopIteration):
        longest_prefix_encode("abc", VOCABULARY)
