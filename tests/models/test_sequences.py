"""Taggers and transducers: shapes, and decoding against a loop over frames."""

import functools

import jax
import numpy as np

from tinker.models import LSTMLM, BiLSTMTagger, FrameEncoder, Transducer, transducer_greedy

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(3, 9, 4)).astype(np.float32)
LABELS = RNG.integers(1, 5, (3, 3)).astype(np.int32)


def random_params(model, *inputs, scale=0.5):
    """Of the model's shapes, without compiling its initialisation."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.float32(scale * rng.normal(size=x.shape)), shapes)


def test_a_tagger_reads_words_and_letters_in_both_directions():
    words, letters = RNG.integers(0, 7, (2, 5)), RNG.integers(0, 26, (2, 5, 4))
    model = BiLSTMTagger(vocabulary=7, classes=3, width=4, word_width=4, letter_width=3)

    applied = jax.jit(functools.partial(model.apply, random_params(model, words, letters)))
    found = applied(words, letters)
    assert found["logits"].shape == (2, 5, 3) and found["transitions"].shape == (3, 3)
    assert found["start"].shape == found["end"].shape == (3,)
    word, letter = words.copy(), letters.copy()
    word[:, 2], letter[:, 2, 1] = (word[:, 2] + 1) % 7, (letter[:, 2, 1] + 1) % 26
    for changed in (applied(word, letters), applied(words, letter)):  # seen from everywhere
        assert np.abs(changed["logits"] - found["logits"]).max(-1).min() > 1e-6
    without = BiLSTMTagger(vocabulary=7, classes=3, width=4, letters=0, crf=False)
    shapes = jax.eval_shape(without.init_with_output, jax.random.key(0), words, letters)[0]
    assert set(shapes) == {"logits", "embeddings"}


def test_an_encoder_sees_so_many_frames_ahead():
    for ahead, reach in ((0, 0), (1, 2), (None, 4)):
        model = FrameEncoder(classes=None, width=5, kernel=5, depth=2, ahead=ahead)

        changed = np.concatenate([FEATURES[:1], FEATURES[:1] + np.eye(9)[..., None]])
        apply = jax.jit(functools.partial(model.apply, random_params(model, changed)))
        outputs = apply(changed.astype(np.float32))["embeddings"][:, 4]
        touched = np.abs(outputs[1:] - outputs[0]).max(-1) > 1e-5
        back = 2 * (4 - (2 if ahead is None else ahead))
        expected = (np.arange(9) >= 4 - back) & (np.arange(9) <= 4 + reach)
        np.testing.assert_array_equal(touched, expected)


def decoded(decide, frames, durations, most, limit=3):
    """The transcript of one sequence by a loop, and how often it asked."""
    t, labels, at, asked, here = 0, [], [], 0, 0
    while t < len(frames) and len(labels) < most:
        last = ([0, 0] + labels)[-2:]
        logits, lasting = decide(frames[None, t], np.array([last], np.int32))
        asked, label = asked + 1, int(np.argmax(logits))
        ahead = 0 if label else 1
        if durations is not None:
            ahead = durations[int(np.argmax(lasting))]
            ahead = ahead if label else max(ahead, 1)
        if label:
            labels, at, here = [*labels, label], [*at, t], here + 1
        if here >= limit:
            ahead = max(ahead, 1)
        if ahead:
            here = 0
        t += ahead
    return labels, at, asked


def test_greedy_decoding_is_the_loop():
    frame_mask = np.arange(9) < np.array([9, 5, 0])[:, None]
    for durations in (None, (0, 1, 2, 4)):
        model = Transducer(classes=5, width=8, durations=len(durations or ()))
        params = random_params(model, FEATURES, LABELS, scale=0.7)
        encoded = jax.jit(functools.partial(model.apply, method="encode"))(params, FEATURES)
        decide = jax.jit(functools.partial(model.apply, params, method="decide"))

        @jax.jit
        def found(encoded, decide=decide, durations=durations):
            options = {"most_labels": 12, "durations": durations, "max_symbols": 3}
            return transducer_greedy(decide, encoded, frame_mask=frame_mask, **options)

        found = found(encoded)
        for i, length in enumerate((9, 5, 0)):
            labels, at, asked = decoded(decide, encoded[i, :length], durations, 12)
            count = len(labels)
            assert list(found.labels[i, :count]) == labels and not found.labels[i, count:].any()
            assert list(found.frames[i, :count]) == at and found.evaluations[i] == asked
            np.testing.assert_array_equal(found.mask[i], np.arange(12) < count)
        assert found.mask[:2].any() and (found.evaluations[:2] > 0).all()


def test_a_window_of_all_labels_joins_what_a_transducer_joins():
    whole = Transducer(classes=5, width=8)
    windowed = Transducer(classes=5, width=8, window=9)

    params = random_params(windowed, FEATURES, LABELS)
    shapes = jax.eval_shape(whole.init, jax.random.key(0), FEATURES, LABELS)["params"]
    mine = {"params": {name: params["params"][name] for name in shapes}}

    @jax.jit
    def both(features, labels):
        return windowed.apply(params, features, labels), whole.apply(mine, features, labels)

    some, all_of_them = both(FEATURES, LABELS)
    assert not some["starts"].any() and some["label_logits"].shape == (3, 4, 5)
    np.testing.assert_allclose(some["logits"], all_of_them["logits"], atol=1e-5)


def test_an_lstm_goes_on_where_it_stopped():
    tokens = RNG.integers(0, 7, (2, 6)).astype(np.int32)
    model = LSTMLM(vocab=7, width=4)
    params = random_params(model, tokens)

    @jax.jit
    def both(tokens):
        first = model.apply(params, tokens[:, :4])
        rest = model.apply(params, tokens[:, 4:], first["carry"])
        return model.apply(params, tokens)["logits"], first["logits"], rest["logits"]

    whole, *parts = both(tokens)
    assert whole.shape == (2, 6, 7)
    np.testing.assert_allclose(whole, np.concatenate(parts, 1), atol=1e-5)
