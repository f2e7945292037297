"""Losses of numbers, distances and n-grams against scipy, loops and their reductions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import entropy, norm, wasserstein_distance

from tinker import losses
from tinker.numerics import UserError

RNG = np.random.default_rng(0)
VALUES = np.array([np.nan, 3.0, 0.0, 10.0, np.nan, 1.5])
LOGITS = RNG.normal(size=(5, 4, 6)) * 2
LABELS = RNG.integers(0, 6, (5, 4)).astype(np.int32)
TOKENS = np.array([1, 2, 3, 5])
DISTANCES = np.abs(VALUES[TOKENS] - VALUES[TOKENS][:, None])
EVERY = np.ones(5, bool)
EACH = np.ones((5, 4), bool)


def with_slope(function):
    """Jitted value and gradient of the sum, for the first argument."""

    @jax.jit
    def both(x, *rest):
        value, pull = jax.vjp(lambda x: function(x, *rest), jnp.asarray(x))
        return value, pull(jnp.ones_like(value))[0]

    return both


@with_slope
def absolute(z, where):
    return losses.number_token_loss(z, LABELS, VALUES, where=where)


@with_slope
def squared(z, where):
    return losses.number_token_loss(z, LABELS, VALUES, error="squared", where=where)


@with_slope
def distant(z, where):
    options = {"tokens": TOKENS, "temperature": 0.7, "where": where}
    return losses.distance_target_loss(z, LABELS, DISTANCES, **options)


LENGTHS, COUNTS = np.array([4, 3, 4, 2, 1]), np.array([4, 4, 2, 1, 0])
MASKS = {
    "position_mask": np.arange(4) < LENGTHS[:, None],
    "label_mask": np.arange(4) < COUNTS[:, None],
}


@with_slope
def edits(z, where):
    return losses.edit_invariant_loss(z, LABELS, ngrams=(1, 2), where=where, **MASKS)


def test_number_losses_are_scipys_distance_and_the_error_of_the_mean():
    was, mse = absolute(LOGITS, EACH)[0], squared(LOGITS, EACH)[0]
    p = softmax(LOGITS[..., TOKENS], axis=-1)
    for at in np.ndindex(5, 4):
        value = VALUES[LABELS[at]]
        if np.isnan(value):
            assert was[at] == mse[at] == 0
            continue
        expected = wasserstein_distance(VALUES[TOKENS], [value], p[at], [1.0])
        np.testing.assert_allclose(was[at], expected, rtol=1e-5)
        np.testing.assert_allclose(mse[at], (p[at] @ VALUES[TOKENS] - value) ** 2, rtol=1e-4)


def test_only_the_mean_has_to_be_right_for_the_squared_error():
    """The paper's example: half on 3 and half on 5, where the label is 4."""
    logits = np.full(10, -1e4)
    logits[[3, 5]] = 0.0
    options = {"labels": np.array(4), "values": np.arange(10.0)}
    squared = losses.number_token_loss(logits, error="squared", **options)
    np.testing.assert_allclose([squared, losses.number_token_loss(logits, **options)], [0, 1])


def test_distance_targets_are_the_divergence_and_at_their_ends_known_losses():
    found = distant(LOGITS, EACH)[0]
    q = softmax(LOGITS[..., TOKENS], axis=-1)
    for at in np.ndindex(5, 4):
        place = np.flatnonzero(TOKENS == LABELS[at])
        expected = 0.0
        if len(place):
            target = np.exp(-DISTANCES[place[0]] / 0.7)
            expected = entropy(target / target.sum(), q[at])
        np.testing.assert_allclose(found[at], expected, rtol=1e-4, atol=1e-6)

    @jax.jit
    def at_temperature(temperature):
        numbers = np.arange(6.0)
        apart = (numbers - numbers[:, None]) ** 2
        return losses.distance_target_loss(LOGITS, LABELS, apart, temperature=temperature)

    np.testing.assert_allclose(
        at_temperature(1e-4), losses.cross_entropy(LOGITS, LABELS), rtol=1e-5
    )
    even = np.full(6, 1 / 6)
    np.testing.assert_allclose(
        at_temperature(1e9), entropy(even, softmax(LOGITS, axis=-1), axis=-1), rtol=1e-4
    )
    gaussian = norm.pdf(np.arange(6), LABELS[..., None], np.sqrt(1.5))  # temperature / 2
    gaussian /= gaussian.sum(-1, keepdims=True)
    expected = entropy(gaussian, softmax(LOGITS, axis=-1), axis=-1)
    np.testing.assert_allclose(at_temperature(3.0), expected, rtol=1e-4)


def placed(log_p, labels, n):
    """The loss of one n by loops over n-grams and places."""
    grams = [labels[j : j + n] for j in range(len(labels) - n + 1)]
    places = range(len(log_p) - n + 1)
    if not grams or not places:
        return 0.0
    out = []
    for gram in grams:
        g = np.array([np.mean([log_p[i + k, y] for k, y in enumerate(gram)]) for i in places])
        out.append(-softmax(g) @ g)
    return np.mean(out)


def test_edit_invariant_loss_is_the_loop():
    found = edits(LOGITS, EVERY)[0]
    log_p = log_softmax(LOGITS, axis=-1)
    for i, (length, count) in enumerate(zip(LENGTHS, COUNTS, strict=True)):
        expected = np.mean([placed(log_p[i, :length], LABELS[i, :count], n) for n in (1, 2)])
        np.testing.assert_allclose(found[i], expected, rtol=1e-5)


def test_edit_invariant_loss_of_the_whole_is_cross_entropy_and_of_parts_knows_no_place():
    def of(n):
        return jax.jit(lambda z, y: losses.edit_invariant_loss(z, y, ngrams=(n,)))

    whole = of(4)(LOGITS, LABELS)
    np.testing.assert_allclose(whole, losses.cross_entropy(LOGITS, LABELS).mean(-1), rtol=1e-5)
    # whichever way the words go round, a cyclic shift leaves single words what they are
    word = of(1)
    turned = np.roll(LABELS, 1, axis=1)
    np.testing.assert_allclose(word(LOGITS, LABELS), word(LOGITS, turned), rtol=1e-5)
    assert np.abs(whole - of(4)(LOGITS, turned)).min() > 1e-3
    # an output that is sure of the labels, with a word before them, says all pairs but at cost 0
    labels = np.array([[1, 2, 3, 4]], np.int32)
    sure = 30.0 * np.eye(6)[np.array([[5, 1, 2, 3, 4]])]
    late = jax.jit(lambda z, y: losses.edit_invariant_loss(z, y, ngrams=(2,)))(sure, labels)
    np.testing.assert_allclose(late, 0, atol=1e-3)
    assert losses.cross_entropy(sure[:, :4], labels).mean() > 10


def test_gumbel_noise_is_a_sample_of_the_place():
    """With noise the best place for a gram is drawn as often as the softmax says."""
    logits, labels = LOGITS[:1, :, :], LABELS[:1, :1]
    g = log_softmax(logits, axis=-1)[0, :, labels[0, 0]]
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(
        jax.vmap(lambda key: losses.edit_invariant_loss(logits, labels, ngrams=(1,), key=key)[0])
    )
    found = np.asarray(draw(keys))
    noise = np.random.default_rng(1).gumbel(size=(4000, 4))
    expected = -(softmax(g + noise, axis=1) * g).sum(1)
    np.testing.assert_allclose(found.mean(), expected.mean(), rtol=0.05)
    np.testing.assert_allclose(found.std(), expected.std(), rtol=0.1)


CASES = {"absolute": absolute, "squared": squared, "distant": distant, "edits": edits}


@pytest.mark.parametrize("name", CASES)
def test_gradients_rows_and_corners(name):
    loss = CASES[name]
    every = EVERY if name == "edits" else EACH
    found, _ = loss(LOGITS, every)
    where = RNG.random(every.shape) < 0.5
    kept, slope = loss(LOGITS, where)
    np.testing.assert_allclose(kept, np.where(where, found, 0), rtol=1e-6)
    assert not np.any(slope[~where]) and np.any(slope[where])
    for hard in (LOGITS * 1e4, LOGITS * 0, np.sign(LOGITS) * 1e4):
        value, slope = loss(hard, every)
        assert np.isfinite(value).all() and np.isfinite(slope).all()
    coarse = jnp.asarray(LOGITS, jnp.bfloat16)
    half, slope = loss(coarse, every)
    assert half.dtype == jnp.float32 and slope.dtype == jnp.bfloat16
    np.testing.assert_allclose(half, loss(coarse.astype(jnp.float32), every)[0], rtol=1e-2)
    direction = RNG.normal(size=LOGITS.shape)
    ahead, behind = (loss(LOGITS + s * direction, every)[0].sum() for s in (1e-2, -1e-2))
    along = np.vdot(loss(LOGITS, every)[1], direction)
    np.testing.assert_allclose(along, (ahead - behind) / 2e-2, rtol=1e-2, atol=1e-3)


def test_mistakes_are_told():
    with pytest.raises(UserError, match="it takes absolute, squared"):
        losses.number_token_loss(LOGITS, LABELS, VALUES, error="mse")
    with pytest.raises(AssertionError):
        losses.number_token_loss(LOGITS, LABELS, VALUES[:5])
    with pytest.raises(AssertionError):
        losses.distance_target_loss(LOGITS, LABELS, DISTANCES)
    with pytest.raises(AssertionError):
        losses.edit_invariant_loss(LOGITS, LABELS[:3])
    sizes = itertools.product((1, 2), (9,))
    assert not any(losses.edit_invariant_loss(LOGITS[:1], LABELS[:1], ngrams=n[1:]) for n in sizes)
