"""CTC and transducers against the enumeration of all alignments, and against other code."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

from tests.conftest import ROOT
from tinker import losses

RNG = np.random.default_rng(0)
CLASSES, BLANK = 3, 0
FRAMES, LENGTHS = np.array([4, 3, 4, 1]), np.array([2, 2, 1, 0])
FRAME_MASK, LABEL_MASK = np.arange(4) < FRAMES[:, None], np.arange(2) < LENGTHS[:, None]
LABELS = np.array([[1, 1], [2, 1], [2, 0], [0, 0]], np.int32)
MASKS = {"frame_mask": FRAME_MASK, "label_mask": LABEL_MASK}
EVERY = np.ones(4, bool)
CTC_LOGITS = RNG.normal(size=(4, 4, CLASSES)) * 2
PRIOR = log_softmax(RNG.normal(size=CLASSES))
GRID = RNG.normal(size=(4, 4, 3, CLASSES)) * 2
DURATIONS = (0, 1, 3)
DURATION_LOGITS = RNG.normal(size=(4, 4, 3, 3))
FRAME_LOGITS, LABEL_LOGITS = RNG.normal(size=(4, 4, CLASSES)), RNG.normal(size=(4, 3, CLASSES))


def with_slope(function):
    """Jitted value and gradient of the sum, for the first argument."""

    @jax.jit
    def both(x, *rest):
        value, pull = jax.vjp(lambda x: function(x, *rest), jnp.asarray(x))
        return value, pull(jnp.ones_like(value))[0]

    return both


@with_slope
def ctc(logits, labels, frame_mask, label_mask, penalty, prior, where):
    options = {"frame_mask": frame_mask, "label_mask": label_mask, "where": where}
    return losses.ctc_loss(logits, labels, delay_penalty=penalty, log_prior=prior, **options)


@with_slope
def rnnt(logits, penalty, where):
    return losses.rnnt_loss(logits, LABELS, delay_penalty=penalty, where=where, **MASKS)


@with_slope
def tdt(logits, sigma, where):
    tokens, lasting = logits[..., :CLASSES], logits[..., CLASSES:]
    options = {"durations": DURATIONS, "sigma": sigma, "where": where}
    return losses.tdt_loss(tokens, lasting, LABELS, **options, **MASKS)


@functools.partial(jax.jit, static_argnames="size")
def pruned(x, y, lm_scale, am_scale, size):
    """The simple loss, windows, and the loss in them of tanh'd sums."""
    scales = {"lm_scale": lm_scale, "am_scale": am_scale}
    simple = losses.simple_rnnt_loss(x, y, LABELS, **scales, **MASKS)
    starts = losses.rnnt_windows(x, y, LABELS, size=size, **scales, **MASKS)
    joint = jnp.tanh(x[:, :, None] + losses.take_windows(y, starts, size=size))
    return simple, starts, losses.pruned_rnnt_loss(joint, LABELS, starts, **MASKS)


# Every loss by the enumeration of its alignments.


def alignments(frames, labels):
    """Every sequence over classes of so many frames that becomes the labels, with their frames."""
    for path in itertools.product(range(CLASSES), repeat=frames):
        runs = [(c, len(list(run))) for c, run in itertools.groupby(path)]
        starts = np.cumsum([0] + [n for _, n in runs])[:-1]
        kept = [(c, t) for (c, _), t in zip(runs, starts, strict=True) if c != BLANK]
        if [c for c, _ in kept] == list(labels):
            yield path, [t for _, t in kept]


def walk(score, frames, labels, arcs, t=0, u=0):
    """Log-probabilities of all ways through a grid; ``arcs(t, u)`` yields (t', u', score)."""
    if (t, u) == (frames, labels):
        yield score
    for t2, u2, s in arcs(t, u) if t < frames else ():
        if t2 < frames or (t2, u2) == (frames, labels):
            yield from walk(score + s, frames, labels, arcs, t2, u2)


def total(scores):
    return np.logaddexp.reduce(list(scores))


def test_ctc_is_the_sum_over_alignments():
    log_p = log_softmax(CTC_LOGITS, axis=-1)
    for penalty, prior in ((0.0, PRIOR * 0), (0.3, PRIOR * 0), (0.3, PRIOR)):
        found, _ = ctc(CTC_LOGITS, LABELS, FRAME_MASK, LABEL_MASK, penalty, prior, EVERY)
        for i, (frames, length) in enumerate(zip(FRAMES, LENGTHS, strict=True)):
            scores = [
                sum(log_p[i, t, c] - prior[c] for t, c in enumerate(path))
                + penalty * sum((frames - 1) / 2 - t for t in first)
                for path, first in alignments(frames, LABELS[i, :length])
            ]
            np.testing.assert_allclose(found[i], -total(scores), rtol=2e-5)


def test_ctc_is_optaxs_and_its_best_alignment_is_the_best():
    logits, labels = RNG.normal(size=(3, 20, 6)) * 3, RNG.integers(1, 6, (3, 7))
    frames, lengths = np.array([20, 15, 9]), np.array([7, 4, 0])
    frame_mask, label_mask = (np.arange(n) < x[:, None] for n, x in ((20, frames), (7, lengths)))
    found, slope = ctc(logits, labels, frame_mask, label_mask, 0.0, np.zeros(6), EVERY[:3])

    optaxs = with_slope(lambda z: optax.ctc_loss(z, ~frame_mask, labels, ~label_mask))
    value, expected = optaxs(logits)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(slope, expected, atol=1e-5)
    log_p = log_softmax(CTC_LOGITS, axis=-1)
    align = jax.jit(functools.partial(losses.ctc_align, **MASKS))
    found = align(CTC_LOGITS, LABELS)
    for i, (frames, length) in enumerate(zip(FRAMES, LENGTHS, strict=True)):
        paths = [path for path, _ in alignments(frames, LABELS[i, :length])]
        best = max(paths, key=lambda path: sum(log_p[i, t, c] for t, c in enumerate(path)))
        position, row = -1, []
        for t, c in enumerate(best):
            position += c != BLANK and (t == 0 or best[t - 1] != c)
            row.append(position if c != BLANK else -1)
        np.testing.assert_array_equal(found[i], row + [-1] * (4 - frames))


def test_transducer_is_the_sum_over_alignments():
    log_p = log_softmax(GRID, axis=-1)
    for penalty in (0.0, 0.3):
        found, _ = rnnt(GRID, penalty, EVERY)
        for i, (frames, length) in enumerate(zip(FRAMES, LENGTHS, strict=True)):

            def arcs(t, u, i=i, frames=frames, length=length, penalty=penalty):
                yield t + 1, u, log_p[i, t, u, BLANK]
                if u < length:
                    early = penalty * ((frames - 1) / 2 - t)
                    yield t, u + 1, log_p[i, t, u, LABELS[i, u]] + early

            np.testing.assert_allclose(found[i], -total(walk(0.0, frames, length, arcs)), rtol=2e-5)


def test_tdt_is_the_sum_over_alignments():
    log_p, log_q = log_softmax(GRID, axis=-1), log_softmax(DURATION_LOGITS, axis=-1)
    both = np.concatenate([GRID, DURATION_LOGITS], -1)
    for sigma in (0.0, 0.2):
        found, _ = tdt(both, sigma, EVERY)
        for i, (frames, length) in enumerate(zip(FRAMES, LENGTHS, strict=True)):

            def arcs(t, u, i=i, frames=frames, length=length, sigma=sigma):
                for k, d in enumerate(DURATIONS):
                    if d:
                        yield t + d, u, log_p[i, t, u, BLANK] - sigma + log_q[i, t, u, k]
                    if u < length and t + d < frames:
                        label = log_p[i, t, u, LABELS[i, u]]
                        yield t + d, u + 1, label - sigma + log_q[i, t, u, k]

            np.testing.assert_allclose(found[i], -total(walk(0.0, frames, length, arcs)), rtol=2e-5)


def test_simple_transducer_is_that_of_mixed_scores():
    for lm_scale, am_scale in ((0.0, 0.0), (0.25, 0.0), (0.1, 0.2)):
        simple, _, _ = pruned(FRAME_LOGITS, LABEL_LOGITS, lm_scale, am_scale, size=2)
        joint = log_softmax(FRAME_LOGITS[:, :, None] + LABEL_LOGITS[:, None], axis=-1)
        alone = log_softmax(LABEL_LOGITS, axis=-1)
        there = np.arange(3) <= LENGTHS[:, None]
        unigram = np.log(np.exp(alone)[there].mean(0))
        frames_alone = log_softmax(FRAME_LOGITS + unigram, axis=-1)
        log_p = (1 - lm_scale - am_scale) * joint
        log_p = log_p + lm_scale * alone[:, None] + am_scale * frames_alone[:, :, None]
        for i, (frames, length) in enumerate(zip(FRAMES, LENGTHS, strict=True)):

            def arcs(t, u, i=i, length=length, log_p=log_p):
                yield t + 1, u, log_p[i, t, u, BLANK]
                if u < length:
                    yield t, u + 1, log_p[i, t, u, LABELS[i, u]]

            expected = -total(walk(0.0, frames, length, arcs))
            np.testing.assert_allclose(simple[i], expected, rtol=2e-5)


def test_pruned_transducer_is_the_sum_over_alignments_inside_windows():
    for size in (2, 3, 9):
        _, starts, found = pruned(FRAME_LOGITS, LABEL_LOGITS, 0.1, 0.0, size=size)
        joint = np.tanh(FRAME_LOGITS[:, :, None] + LABEL_LOGITS[:, None])
        log_p = log_softmax(joint, axis=-1)
        for i, (frames, length) in enumerate(zip(FRAMES, LENGTHS, strict=True)):

            def arcs(t, u, i=i, length=length, starts=starts, size=size, log_p=log_p):
                if starts[i, t] <= u < starts[i, t] + size:
                    yield t + 1, u, log_p[i, t, u, BLANK]
                    if u < length:
                        yield t, u + 1, log_p[i, t, u, LABELS[i, u]]

            expected = -total(walk(0.0, frames, length, arcs))
            np.testing.assert_allclose(found[i], expected, rtol=2e-5)
        if size >= 3:  # windows of all labels: nothing is pruned
            assert not starts.any()
            np.testing.assert_allclose(found, rnnt(joint, 0.0, EVERY)[0], rtol=2e-5)


def test_windows_never_go_back_nor_skip_a_label():
    x, y = RNG.normal(size=(6, 30, 9)) * 4, RNG.normal(size=(6, 13, 9)) * 4
    labels, lengths = RNG.integers(1, 9, (6, 12)), np.array([12, 12, 7, 3, 1, 0])
    frames = np.array([30, 14, 30, 9, 5, 30])
    masks = np.arange(30) < frames[:, None], np.arange(12) < lengths[:, None]

    @functools.partial(jax.jit, static_argnames="size")
    def windows(x, y, size):
        masked = {"frame_mask": masks[0], "label_mask": masks[1]}
        return losses.rnnt_windows(x, y, labels, size=size, **masked)

    for size in (2, 4):
        starts = np.asarray(windows(x, y, size=size))
        steps = np.diff(starts, axis=1)
        assert (steps >= 0).all() and (steps < size).all() and not starts[:, 0].any()
        last = np.take_along_axis(starts, frames[:, None] - 1, 1)[:, 0]
        np.testing.assert_array_equal(last, np.maximum(lengths - size + 1, 0))


# Other code.


def test_transducers_are_the_authors():
    fast_rnnt, nemo = json.loads((ROOT / "tests" / "golden" / "transducers.json").read_text())

    @jax.jit
    def simple(x, y, labels, lm_scale, am_scale):
        options = {"lm_scale": lm_scale, "am_scale": am_scale}
        loss = losses.simple_rnnt_loss(x, y, labels, **options)
        return loss, losses.rnnt_windows(x, y, labels, size=3, **options)

    for case in fast_rnnt["cases"]:
        args = (np.array(case[k]) for k in ("am", "lm", "symbols", "lm_scale", "am_scale"))
        loss, starts = simple(*args)
        np.testing.assert_allclose(loss, case["loss"], rtol=2e-5)
        np.testing.assert_array_equal(starts, case["starts"])

    @jax.jit
    def of_durations(acts, labels, frames, lengths, sigma):
        masks = {"frame_mask": jnp.arange(6) < frames, "label_mask": jnp.arange(3) < lengths}
        options = {"durations": (0, 1, 2, 4), "sigma": sigma, "blank": 3, **masks}
        return losses.tdt_loss(acts[..., :-4], acts[..., -4:], labels, **options)

    for case in nemo["cases"]:
        lengths = (np.array(case[k])[:, None] for k in ("frames", "lengths"))
        found = of_durations(
            *map(np.array, (case["acts"], case["labels"])), *lengths, case["sigma"]
        )
        np.testing.assert_allclose(found, case["loss"], rtol=2e-5)


# What holds for all.

CASES = {
    "ctc": (
        lambda z, where: ctc(z, LABELS, FRAME_MASK, LABEL_MASK, 0.1, PRIOR, where),
        CTC_LOGITS,
    ),
    "rnnt": (lambda z, where: rnnt(z, 0.1, where), GRID),
    "tdt": (
        lambda z, where: tdt(z, 0.1, where),
        np.concatenate([GRID, DURATION_LOGITS], -1),
    ),
    "pruned": (
        with_slope(
            lambda z, where: losses.pruned_rnnt_loss(
                z[..., :2, :], LABELS, np.minimum(np.arange(4), 1) * np.ones((4, 1), int),
                where=where, **MASKS,
            )
        ),
        GRID,
    ),
    "simple": (
        with_slope(
            lambda z, where: losses.simple_rnnt_loss(
                z, 2 * LABEL_LOGITS, LABELS, am_scale=0.2, where=where, **MASKS
            )
        ),
        FRAME_LOGITS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_gradients_rows_and_corners(name):
    loss, logits = CASES[name]
    found, _ = loss(logits, EVERY)
    where = np.array([True, False, True, False])
    kept, slope = loss(logits, where)
    if name != "simple":  # its unigram is of the rows that count
        np.testing.assert_allclose(kept, np.where(where, found, 0), rtol=1e-6)
    assert not np.any(kept[~where]) and not np.any(slope[~where])
    none, slope = loss(logits, ~EVERY)
    assert not none.any() and not slope.any()
    for hard in (logits * 1e4, logits * 0, np.sign(logits) * 1e4):
        value, slope = loss(hard, EVERY)
        assert np.isfinite(value).all() and np.isfinite(slope).all()
    half, slope = jax.eval_shape(loss, jnp.asarray(logits, jnp.bfloat16), EVERY)
    assert half.dtype == jnp.float32 and slope.dtype == jnp.bfloat16
    direction = RNG.normal(size=logits.shape)
    ahead, behind = (loss(logits + s * direction, EVERY)[0].sum() for s in (1e-2, -1e-2))
    along = np.vdot(loss(logits, EVERY)[1], direction)
    np.testing.assert_allclose(along, (ahead - behind) / 2e-2, rtol=1e-2, atol=1e-3)


@pytest.mark.deep
@pytest.mark.parametrize("name", CASES)
def test_gradients_in_double_and_values_of_halves(name):
    loss, logits = CASES[name]
    coarse = jnp.asarray(logits, jnp.bfloat16)
    half, rounded = loss(coarse, EVERY)[0], loss(coarse.astype(jnp.float32), EVERY)[0]
    np.testing.assert_allclose(half, rounded, rtol=1e-2)
    direction = RNG.normal(size=logits.shape)
    with jax.enable_x64(True):
        ahead, behind = (loss(logits + s * direction, EVERY)[0].sum() for s in (1e-5, -1e-5))
        along = np.vdot(loss(jnp.asarray(logits), EVERY)[1], direction)
        np.testing.assert_allclose(along, (ahead - behind) / 2e-5, rtol=1e-6)


def test_without_an_alignment_the_loss_is_nothing():
    """More labels than frames; a repeated one that needs a blank between; a window too small."""
    short = np.arange(4) < np.array([1, 2, 2, 0])[:, None]
    labels, there = np.array([[1, 2], [1, 1], [1, 2], [1, 2]]), np.ones((4, 2), bool)
    loss, slope = ctc(CTC_LOGITS, labels, short, there, 0.0, PRIOR * 0, EVERY)
    np.testing.assert_array_equal(loss == 0, [True, True, False, True])
    assert not np.any(slope[:2]) and np.any(slope[2]) and np.isfinite(slope).all()
    aligned = jax.jit(losses.ctc_align)(CTC_LOGITS, labels, frame_mask=short, label_mask=there)
    np.testing.assert_array_equal(aligned[:, :2], [[-1, -1], [-1, -1], [0, 1], [-1, -1]])
    # labels take no frame of their own from a transducer, but at least one must be there
    none = np.zeros((4, 4), bool)
    value, slope = with_slope(lambda z: losses.rnnt_loss(z, LABELS, frame_mask=none))(GRID)
    assert not value.any() and not slope.any()


def test_a_price_on_late_labels_moves_them_forward():
    """The paper's argument: the gradient of a flat lattice favours earlier frames."""
    flat, labels = np.zeros((1, 9, CLASSES)), np.array([[1]])
    masks = np.ones((1, 9), bool), np.ones((1, 1), bool)
    late = []
    for penalty in (0.0, 0.1, 0.5):
        _, slope = ctc(flat, labels, *masks, penalty, PRIOR * 0, EVERY[:1])
        occupancy = np.exp(log_softmax(flat, axis=-1))[0, :, 1] - slope[0, :, 1]
        late.append((occupancy * np.arange(9)).sum() / occupancy.sum())
    np.testing.assert_allclose(late[0], 4.0, atol=1e-4)  # in the middle, by symmetry
    assert late[0] > late[1] > late[2]


def test_from_uniform_scores_ctc_turns_to_the_blank_and_with_a_prior_to_the_labels():
    """The peaky paper's example: frames of two symbols, and one row of scores for each."""
    half, labels = 20, np.array([[1, 2]], np.int32)

    @functools.partial(jax.jit, static_argnames="prior")
    def descended(prior):
        def loss(scores):
            logits = jnp.repeat(scores, half, axis=0)
            share = jax.nn.softmax(jax.lax.stop_gradient(logits)).mean(0)
            log_prior = jnp.log(share) if prior else None
            return losses.ctc_loss(logits[None], labels, log_prior=log_prior).sum()

        def step(scores, _):
            scores = scores - 0.01 * jax.grad(loss)(scores)
            return scores, scores

        return jax.lax.scan(step, jnp.zeros((2, CLASSES)), length=100)[1]

    without, found = np.asarray(descended(False)), np.asarray(descended(True))
    assert (without.argmax(-1) == BLANK).all()  # every output is wrong
    assert np.exp(log_softmax(without[-1], axis=-1))[:, BLANK].min() > 0.8
    np.testing.assert_array_equal(found[-1].argmax(-1), [1, 2])  # every one is right


def test_mistakes_are_told():
    with pytest.raises(AssertionError):
        losses.ctc_loss(CTC_LOGITS, LABELS[:3])
    with pytest.raises(AssertionError):
        losses.ctc_loss(CTC_LOGITS, LABELS, frame_mask=FRAME_MASK[:, :3])
    with pytest.raises(AssertionError):
        losses.rnnt_loss(GRID[:, :, :2], LABELS)
    with pytest.raises(AssertionError):
        losses.tdt_loss(GRID, DURATION_LOGITS, LABELS)
    with pytest.raises(AssertionError):
        losses.pruned_rnnt_loss(GRID, LABELS, np.zeros((4, 3), int))
