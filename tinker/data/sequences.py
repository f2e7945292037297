"""Generated worlds of sequences: frames with labels at known times, and sentences with names."""

import numpy as np


def speech_like(
    seed,
    size,
    *,
    frames=64,
    tokens=16,
    most_labels=6,
    duration=(5, 9),
    pause=(0, 4),
    dimension=12,
    noise=0.6,
):
    """Sequences of feature frames in which tokens sound one after another, with pauses between.

    A token has a first and a second half, of as many sounds as the root of the number of tokens
    each: which token it is shows only when its second half comes. Halves go over into one another,
    and all of a sequence is shifted alike, as by a speaker.

    Args:
      seed: A non-negative integer, of which sounds and sequences are drawn.
      size: Number of sequences.
      frames: Frames of the arrays; what does not fit is not said.
      tokens: Number of different tokens, a square.
      most_labels: Tokens in a sequence at most; how many is uniform, from two on.
      duration: Least and greatest length of a token, in frames.
      pause: Least and greatest length of a pause before a token, in frames.
      dimension: Of a frame.
      noise: Standard deviation of the Gaussian noise of a feature; a sound's have 1.

    Returns:
      A dict of ``features`` float32 ``[size, frames, dimension]``; ``labels`` int32 ``[size,
      most_labels]`` in [1, tokens], 0 where there is none; ``frame_mask`` and ``label_mask``, bool,
      True where there is one; ``starts`` and ``ends`` int32 ``[size, most_labels]``, a token's
      first frame and that after its last; and ``alignment`` int32 ``[size, frames]``, the position
      in ``labels`` of the token of each frame, -1 in pauses and beyond the end.
    """
    rng = np.random.default_rng(seed)
    side = round(tokens**0.5)
    silence, *sounds = rng.standard_normal((1 + 2 * side, dimension))
    count = rng.integers(2, most_labels + 1, size)
    labels = rng.integers(1, tokens + 1, (size, most_labels))
    lasts = rng.integers(duration[0], duration[1] + 1, (size, most_labels))
    waits = rng.integers(pause[0], pause[1] + 1, (size, most_labels + 1))
    ends = np.cumsum(waits[:, :-1] + lasts, 1)
    starts = ends - lasts
    label_mask = (np.arange(most_labels) < count[:, None]) & (ends + waits[:, 1:] <= frames)
    count = label_mask.sum(1)
    rows = np.arange(size)
    length = np.where(count > 0, ends[rows, count - 1] + waits[rows, count], waits[:, 0])
    t = np.arange(frames)
    frame_mask = t < length[:, None]
    inside = (t >= starts[..., None]) & (t < ends[..., None]) & label_mask[..., None]
    alignment = np.where(inside.any(1), inside.argmax(1), -1)
    at = rows[:, None], np.maximum(alignment, 0)
    late = 2 * (t - starts[at]) >= lasts[at]
    first, second = np.divmod(labels[at] - 1, side)
    sound = np.where(late, side + second, first)
    clean = np.where((alignment >= 0)[..., None], np.array(sounds)[sound], silence)
    around = np.pad(clean, ((0, 0), (1, 1), (0, 0)), "edge")
    features = (around[:, :-2] + 2 * clean + around[:, 2:]) / 4
    features = features + 0.3 * rng.standard_normal((size, 1, dimension))
    features = features + noise * rng.standard_normal(features.shape)
    return {
        "features": (features * frame_mask[..., None]).astype(np.float32),
        "labels": np.where(label_mask, labels, 0).astype(np.int32),
        "frame_mask": frame_mask,
        "label_mask": label_mask,
        "starts": starts.astype(np.int32),
        "ends": ends.astype(np.int32),
        "alignment": alignment.astype(np.int32),
    }


NAME_TAGS = ("O", *(f"{place}-{kind}" for kind in ("PER", "LOC", "ORG") for place in "BIES"))


def named_entities(
    seed, size, *, length=16, spelling=6, words=60, names=40, known=0.5, ambiguous=0.3
):
    """Sentences of ordinary words and of names of three kinds, one to three words long.

    Half of the names are preceded by a word that tells their kind. Of a name's words some are in
    the dictionary, where many belong to more than one kind; the others, and rare ordinary words,
    are not, and only their spelling tells: each kind has endings of its own.

    Args:
      seed: A non-negative integer, of which dictionary and sentences are drawn.
      size: Number of sentences.
      length: Words in a sentence, the last name cut off.
      spelling: Letters of a word.
      words: Ordinary words in the dictionary; how frequent one is falls as one over its rank.
      names: Words of names in the dictionary, of each kind.
      known: Probability that a word of a name is in the dictionary.
      ambiguous: Probability that it is then one of another kind.

    Returns:
      A dict of ``words`` int32 ``[size, length]``, 0 for words that are not in the dictionary, else
      in [1, words + 3 names]; ``letters`` int32 ``[size, length, spelling]`` in [0, 26); and
      ``label`` int32 ``[size, length]``, indices into ``NAME_TAGS``: outside, or the kind of name
      and whether the word begins it, is inside, ends it or is all of it.
    """
    rng = np.random.default_rng(seed)
    endings = rng.integers(26, size=(4, 4, 2))  # of kinds, the last for ordinary words
    entries = rng.integers(26, size=(1 + words + 3 * names, spelling))
    share = 1 / np.arange(1, words + 1)
    share /= share.sum()
    found = {
        "words": np.zeros((size, length), np.int32),
        "letters": np.zeros((size, length, spelling), np.int32),
        "label": np.zeros((size, length), np.int32),
    }

    def new_word(kind):
        letters = rng.integers(26, size=spelling)
        letters[-2:] = endings[kind, rng.integers(4)]
        return 0, letters

    def ordinary():
        if rng.random() < 0.15:
            return new_word(3)
        word = 1 + rng.choice(words, p=share)
        return word, entries[word]

    for i in range(size):
        sentence = []
        while len(sentence) < length:
            if rng.random() < 0.7:
                sentence.append((*ordinary(), 0))
                continue
            kind, count = rng.integers(3), rng.integers(1, 4)
            if rng.random() < 0.5:  # announced by one of the kind's own words
                word = words - 3 * rng.integers(3) - kind
                sentence.append((word, entries[word], 0))
            for j in range(count):
                word, letters = new_word(kind)
                if rng.random() < known:
                    of = rng.integers(3) if rng.random() < ambiguous else kind
                    word = 1 + words + of * names + rng.integers(names)
                    letters = entries[word]
                place = 3 if count == 1 else 0 if j == 0 else 2 if j == count - 1 else 1
                sentence.append((word, letters, 1 + 4 * kind + place))
        for name, values in zip(found, zip(*sentence[:length], strict=True), strict=True):
            found[name][i] = values
    return found


def arithmetic(seed, size, *, digits=2):
    """Sums and products written digit by digit, such as 37*04=0148.

    Args:
      seed: A non-negative integer, of which the problems are drawn.
      size: Number of problems.
      digits: Of both operands; the answer has twice as many.

    Returns:
      A dict of ``tokens`` and ``targets`` int32 ``[size, 4 * digits + 1]``, the digits as
      themselves and 10, 11 and 12 for +, * and =, the targets one place on; ``where`` bool, of the
      same shape, True where the target is a digit of the answer; and ``answer`` int32 ``[size]``.
    """
    rng = np.random.default_rng(seed)
    a, b = rng.integers(10**digits, size=(2, size))
    product = rng.random(size) < 0.5
    answer = np.where(product, a * b, a + b)

    def written(number, count):
        return number[:, None] // 10 ** np.arange(count)[::-1] % 10

    sign, equals = np.where(product, 11, 10)[:, None], np.full((size, 1), 12)
    parts = written(a, digits), sign, written(b, digits), equals, written(answer, 2 * digits)
    text = np.concatenate(parts, 1).astype(np.int32)
    where = np.broadcast_to(np.arange(text.shape[1] - 1) > 2 * digits, (size, text.shape[1] - 1))
    return {
        "tokens": text[:, :-1],
        "targets": text[:, 1:],
        "where": where,
        "answer": answer.astype(np.int32),
    }


def boxed_images(seed, size, *, side=16, bins=32, noise=0.3):
    """Images of one bright rectangle each, whose edges are numbers of so many steps.

    Args:
      seed: A non-negative integer, of which everything is drawn.
      size: Number of images.
      side: Of an image, pixels.
      bins: Steps of a coordinate, from edge to edge of the image.
      noise: Standard deviation of the Gaussian pixel noise; the rectangle has 1 on 0.

    Returns:
      A dict of ``image`` float32 ``[size, side, side]`` and ``label`` int32 ``[size, 4]`` in [0,
      bins): left, top, right and bottom, the latter two above the former by a quarter at least.
    """
    rng = np.random.default_rng(seed)
    low = rng.integers(0, bins * 3 // 4, (size, 2))
    high = low + rng.integers(bins // 4, bins, (size, 2))
    label = np.concatenate([low, np.minimum(high, bins - 1)], 1)
    edge = (label + 0.5) * side / bins
    pixel = np.arange(side)
    # The share of each pixel between the edges, along either axis.
    share = [
        np.clip(
            np.minimum(pixel + 1, edge[:, 2 + i, None]) - np.maximum(pixel, edge[:, i, None]), 0, 1
        )
        for i in (0, 1)
    ]
    image = share[1][:, :, None] * share[0][:, None, :]
    image = image + noise * rng.standard_normal(image.shape)
    return {"image": image.astype(np.float32), "label": label.astype(np.int32)}


def noisy_translation(seed, size, *, words=24, length=8, noise=0.3):
    """Sentences and their translations word by word, of which some words go astray.

    Each word has one translation; a word of the first third changes places with the one before it,
    unless that is of the first third too. Of the translations as they are found, a word is missing
    with half of the noise's probability, and is there twice with the other half.

    Args:
      seed: A non-negative integer, of which dictionary and sentences are drawn.
      size: Number of sentences.
      words: In either language.
      length: Words in a sentence.
      noise: Probability that something happened to a word, in [0, 1].

    Returns:
      A dict of ``source`` and ``target`` int32 ``[size, length]`` in [0, words), the true
      translation; ``labels`` int32 ``[size, length]``, the translation as it is found, cut off at
      the sentence's length; and ``label_mask`` bool, where it has a word.
    """
    rng = np.random.default_rng(seed)
    dictionary = rng.permutation(words)
    source = rng.integers(words, size=(size, length))
    target = dictionary[source]
    mover = source < words // 3
    moves = mover[:, 1:] & ~mover[:, :-1]
    ahead, behind = np.zeros_like(mover), np.zeros_like(mover)
    ahead[:, 1:], behind[:, :-1] = moves, moves
    places = np.arange(length) - ahead + behind
    target = np.take_along_axis(target, places, 1)
    u = rng.random((size, length))
    times = np.where(u < noise / 2, 0, np.where(u < noise, 2, 1))
    labels, label_mask = np.zeros((size, length), np.int32), np.zeros((size, length), bool)
    for i in range(size):
        found = np.repeat(target[i], times[i])[:length]
        labels[i, : len(found)], label_mask[i, : len(found)] = found, True
    found = {"source": source.astype(np.int32), "target": target.astype(np.int32)}
    return found | {"labels": labels, "label_mask": label_mask}
