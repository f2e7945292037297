"""What a model of tokens says of characters.

A model is asked by ``next_probabilities(tokens)``, a sequence ``[vocabulary]`` of the probabilities
of the token that follows a tuple of tokens, indices into ``vocabulary``, a list of strings. All
here is of one string at a time, and runs on the host.
"""


def longest_prefix_encode(text, vocabulary):
    """Splits a text into tokens by taking the longest that fits, from the left.

    Args:
      text: A string.
      vocabulary: A list of strings, every character of the text among them.

    Returns:
      A tuple of indices into the vocabulary.
    """
    index, tokens, at = {token: i for i, token in enumerate(vocabulary)}, [], 0
    longest = max(map(len, vocabulary))
    while at < len(text):
        fits = (text[at : at + n] for n in range(longest, 0, -1))
        token = next(piece for piece in fits if piece in index)
        tokens.append(index[token])
        at += len(token)
    return tuple(tokens)


def byte_pair_encode(text, vocabulary, merges):
    """Splits a text into characters, and merges pairs of tokens, one kind after another.

    Args:
      text: A string.
      vocabulary: A list of strings, all characters and what merges make.
      merges: A list of pairs of strings, in the order in which they are merged.

    Returns:
      A tuple of indices into the vocabulary.
    """
    tokens = list(text)
    for left, right in merges:
        merged, at = [], 0
        while at < len(tokens):
            pair = tokens[at : at + 2] == [left, right]
            merged.append(left + right if pair else tokens[at])
            at += 1 + pair
        tokens = merged
    index = {token: i for i, token in enumerate(vocabulary)}
    return tuple(index[token] for token in tokens)


def branch_and_pass(next_probabilities, text, vocabulary):
    r"""The probability that a text begins with these characters, by a model of tokens.

    .. math:: P(r \mid t) = \sum_{v \text{ begins with } r} P(v \mid t)
                            + P(v^* \mid t)\, P(r \text{ without } v^* \mid t, v^*)

    where v* is the longest token that r begins with; the second term is there only if it is shorter
    than r. Exact for :func:`longest_prefix_encode`, and linear in the number of tokens.

    Args:
      next_probabilities: The model, asked from the empty tuple on.
      text: A string.
      vocabulary: A list of strings.

    Returns:
      In [0, 1], a float.

    Source: Understanding and Mitigating Tokenization Bias in Language Models, 2024,
      arXiv:2406.16829, the Branch and Pass algorithm.
    """
    found, passed, tokens = 0.0, 1.0, ()
    while text:
        p = next_probabilities(tokens)
        found += passed * sum(p[i] for i, token in enumerate(vocabulary) if token.startswith(text))
        best = longest_prefix_encode(text, vocabulary)[0]
        if len(vocabulary[best]) == len(text):
            return float(found)
        passed, tokens = passed * p[best], (*tokens, best)
        text = text[len(vocabulary[best]) :]
    return 1.0


branch_and_pass.host = True


def cover_probability(next_probabilities, text, vocabulary, encode):
    r"""The probability that a text begins with these characters, over its cover encodings.

    .. math:: P(x) = \sum_{t \in \mathrm{cover}(x)} \prod_i P(t_i \mid t_{<i})

    A cover encoding is a sequence of tokens that says x, of which only the last token goes on
    beyond, and that is how its own text is encoded.

    Args:
      next_probabilities: The model, asked from the empty tuple on.
      text: A string.
      vocabulary: A list of strings.
      encode: ``encode(text) -> tokens``, such as :func:`byte_pair_encode` of some merges.

    Returns:
      In [0, 1], a float.

    Source: Understanding and Mitigating Tokenization Bias in Language Models, 2024,
      arXiv:2406.16829, the extension to byte-pair encoding. What the model gives to encodings that
      never occur is not counted.
    """
    total = 0.0 if text else 1.0
    for at in range(len(text)):
        before, rest = tuple(encode(text[:at])), text[at:]
        ends = [
            i
            for i, token in enumerate(vocabulary)
            if token.startswith(rest) and tuple(encode(text[:at] + token)) == (*before, i)
        ]
        if ends:
            reached = 1.0
            for i, token in enumerate(before):
                reached *= next_probabilities(before[:i])[token]
            p = next_probabilities(before)
            total += reached * sum(p[i] for i in ends)
    return float(total)


cover_probability.host = True
