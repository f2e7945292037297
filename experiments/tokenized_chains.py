"""A chain of letters, read as tokens: what a model of the tokens says of the next letter."""

import collections
import itertools

import numpy as np

from tinker.models import (
    branch_and_pass,
    byte_pair_encode,
    cover_probability,
    longest_prefix_encode,
)
from tinker.numerics import integer_seed

PIECE = 16  # letters of a text that the model is counted on


def run(config, key):
    """Counts tokens of a long text, and asks for the next letter after every short text.

    Args:
      config: ``letters`` of the alphabet; ``order`` of the chain; ``tokens`` of more than one
        letter; ``encoding``, "longest" or "pairs"; ``length`` of the text; ``context``, tokens of
        which the model counts what follows; ``prompt``, letters of the texts asked about.
      key: Of the chain, the text and the vocabulary.

    Returns:
      The largest and the mean absolute error of the next letter's probability, over prompts and
      letters: ``naive`` and ``naive_mean`` of the first letter of the next token, ``corrected`` and
      ``corrected_mean``.
    """
    rng = np.random.default_rng(integer_seed(key, "chain"))
    alphabet = "abcdefgh"[: config.letters]
    even = 0.3 / config.letters  # so that every prompt is in the text
    chain = {
        "".join(past): 0.7 * rng.dirichlet(np.ones(config.letters)) + even
        for past in itertools.product(alphabet, repeat=config.order)
    }
    text = _sample(rng, chain, alphabet, config.order, config.length)
    merges = _merges(text[:20_000], config.tokens)
    vocabulary = [*alphabet, *dict.fromkeys(a + b for a, b in merges)]

    def encode(text):
        if config.encoding == "pairs":
            return byte_pair_encode(text, vocabulary, merges)
        return longest_prefix_encode(text, vocabulary)

    # Prompts begin where a text does, so the model is to see many beginnings.
    pieces = [encode(text[at : at + PIECE]) for at in range(0, len(text) - PIECE, PIECE // 4)]
    model = _counted(pieces, vocabulary, config.context)

    def probability(text):
        if config.encoding == "pairs":
            return cover_probability(model, text, vocabulary, encode)
        return branch_and_pass(model, text, vocabulary)

    naive, corrected = [], []
    for prompt in map("".join, itertools.product(alphabet, repeat=config.prompt)):
        true = chain[prompt[-config.order :]]
        p = model(encode(prompt))
        first = [sum(q for q, t in zip(p, vocabulary, strict=True) if t[0] == c) for c in alphabet]
        naive.append(np.abs(first - true))
        whole = [probability(prompt + c) for c in alphabet]
        corrected.append(np.abs(np.array(whole) / probability(prompt) - true))
    results = {"naive": naive, "corrected": corrected}
    found = {name: np.max(errors) for name, errors in results.items()}
    return found | {f"{name}_mean": np.mean(errors) for name, errors in results.items()}


def _sample(rng, chain, alphabet, order, length):
    """A text of the chain."""
    total = {past: np.cumsum(p) for past, p in chain.items()}
    text, past = [], next(iter(chain))
    for u in rng.random(length):
        letter = alphabet[min(np.searchsorted(total[past], u), len(alphabet) - 1)]
        text.append(letter)
        past = (past + letter)[-order:]
    return "".join(text)


def _merges(text, count):
    """The most frequent pairs, each of the text in which those before are merged."""
    tokens, merges = list(text), []
    for _ in range(count):
        pairs = collections.Counter(itertools.pairwise(tokens))
        (a, b), _ = pairs.most_common(1)[0]
        merges.append((a, b))
        merged, at = [], 0
        while at < len(tokens):
            pair = tokens[at : at + 2] == [a, b]
            merged.append(a + b if pair else tokens[at])
            at += 1 + pair
        tokens = merged
    return merges


def _counted(pieces, vocabulary, context):
    """``next_probabilities`` of counts after the last tokens; no token is a text's start."""
    counts = collections.defaultdict(lambda: np.zeros(len(vocabulary)))
    sizes = [len(token) for token in vocabulary]
    # A token counts by where it begins, far enough from the piece's end to be what it would be in
    # a longer text: to leave out the last tokens instead would prefer short ones.
    last = PIECE - 2 * max(sizes)
    for tokens in pieces:
        start = 0
        for at, token in enumerate(tokens):
            if start > last:
                break
            counts[tokens[max(at - context, 0) : at]][token] += 1
            start += sizes[token]

    def next_probabilities(tokens):
        found = counts[tuple(tokens[-context:])]
        return found / max(found.sum(), 1)

    return next_probabilities
