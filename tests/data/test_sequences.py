"""Worlds of sequences: what they say of themselves is so."""

import numpy as np

from tinker import data, metrics


def test_speech_like_tells_where_tokens_are():
    world = data.speech_like(3, 50, frames=40, noise=0.0, pause=(2, 4))
    again = data.speech_like(3, 50, frames=40, noise=0.0, pause=(2, 4))
    for name, x in world.items():
        np.testing.assert_array_equal(x, again[name])
    for i in range(50):
        inside = np.full(40, -1)
        count = world["label_mask"][i].sum()
        assert count > 0 and (world["labels"][i, :count] > 0).all()
        assert not world["labels"][i, count:].any()
        for j in range(count):
            start, end = world["starts"][i, j], world["ends"][i, j]
            assert 5 <= end - start <= 9 and (inside[start:end] == -1).all()
            inside[start:end] = j
        np.testing.assert_array_equal(world["alignment"][i], inside)
        assert world["frame_mask"][i][inside >= 0].all()
        assert not world["features"][i][~world["frame_mask"][i]].any()
    # tokens of one row of the square begin alike, of one column end alike
    middles = {}
    for i, j in np.argwhere(world["label_mask"]):
        start, end = world["starts"][i, j], world["ends"][i, j]
        quiet = world["features"][i, 0]  # the first frame is a pause: the same but for the speaker
        first, second = np.divmod(world["labels"][i, j] - 1, 4)
        half = start + (end - start + 1) // 2
        middles.setdefault(("first", first), []).append(world["features"][i, start + 1] - quiet)
        if end - half > 2:
            middles.setdefault(("second", second), []).append(
                world["features"][i, half + 1] - quiet
            )
    for frames in middles.values():
        np.testing.assert_allclose(frames, np.broadcast_to(frames[0], np.shape(frames)), atol=1e-4)


def test_names_have_tags_that_fit_and_words_a_spelling():
    world = data.named_entities(0, 200)
    assert world["words"].max() <= 60 + 3 * 40 and world["letters"].max() < 26
    spelled = {}
    for word, letters in zip(world["words"].ravel(), world["letters"].reshape(-1, 6), strict=True):
        if word:
            assert spelled.setdefault(word, tuple(letters)) == tuple(letters)
    tags = [[data.NAME_TAGS[t] for t in row] for row in world["label"]]
    for row in tags:
        for a, b in zip(row, row[1:], strict=False):
            opened = a[0] in "BI"
            assert opened == (b[0] in "IE") and (not opened or a[2:] == b[2:])
    assert metrics.span_f1(world["label"], world["label"], tags=data.NAME_TAGS) == 1
    share = np.bincount(world["label"].ravel(), minlength=13) / world["label"].size
    assert (share > 0.005).all() and 0.3 < share[0] < 0.7
    np.testing.assert_array_equal(world["words"], data.named_entities(0, 200)["words"])


def test_arithmetic_says_what_it_is():
    world = data.arithmetic(0, 300)
    text = np.concatenate([world["tokens"][:, :1], world["targets"]], 1)
    symbols = np.array([*"0123456789", "+", "*", "="])
    for row, answer in zip(text, world["answer"], strict=True):
        problem, equals, result = "".join(symbols[row]).partition("=")
        a, b = problem[:2], problem[3:]
        expected = int(a) + int(b) if problem[2] == "+" else int(a) * int(b)
        assert equals and len(result) == 4 and int(result) == expected == answer
    np.testing.assert_array_equal(world["tokens"][:, 1:], world["targets"][:, :-1])
    np.testing.assert_array_equal(world["where"], (np.arange(9) >= 5) & np.ones((300, 1), bool))


def test_boxed_images_are_bright_inside_their_box():
    world = data.boxed_images(0, 50, noise=0.0)
    left, top, right, bottom = world["label"].T
    assert (right - left >= 1).all() and (bottom - top >= 1).all() and world["label"].max() < 32
    area = (right - left) * (bottom - top) / 4  # steps are half a pixel
    np.testing.assert_allclose(world["image"].sum((1, 2)), area, rtol=1e-5)
    pixel = np.arange(16) + 0.5
    mass = world["image"] / world["image"].sum((1, 2), keepdims=True)
    middle = (left + right + 1) / 4
    np.testing.assert_allclose((mass.sum(1) * pixel).sum(-1), middle, rtol=1e-5)
    middle = (top + bottom + 1) / 4
    np.testing.assert_allclose((mass.sum(2) * pixel).sum(-1), middle, rtol=1e-5)


def test_translations_are_of_a_dictionary_and_words_go_astray():
    world = data.noisy_translation(0, 400, words=12, length=6, noise=0.5)
    dictionary = {}
    for source, target in zip(world["source"], world["target"], strict=True):
        expected = list(source)
        for i in range(1, 6):  # a word of the first third goes before one that is not
            if source[i] < 4 <= source[i - 1]:
                expected[i - 1], expected[i] = source[i], source[i - 1]
        for word, said in zip(expected, target, strict=True):
            assert dictionary.setdefault(word, said) == said
    assert len(set(dictionary.values())) == 12
    for target, labels, mask in zip(
        *(world[k] for k in ("target", "labels", "label_mask")), strict=True
    ):
        count = mask.sum()
        assert mask[:count].all() and not labels[count:].any()
        runs = [x for i, x in enumerate(labels[:count]) if i == 0 or labels[i - 1] != x]
        rest = iter(target)
        assert all(word in rest for word in runs)  # in their order
    shorter = world["label_mask"].sum(1) < 6
    assert 0.2 < shorter.mean() < 0.8
    clean = data.noisy_translation(0, 400, words=12, length=6, noise=0.0)
    np.testing.assert_array_equal(clean["labels"], clean["target"])
