"""Lattices against the enumeration of all their paths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinker import losses
from tinker.losses.lattices import LOG_ZERO

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 5, 3)) * 2
TRANSITIONS, START, END = RNG.normal(size=(3, 3)), RNG.normal(size=3), RNG.normal(size=3)
LABELS = RNG.integers(0, 3, (4, 5))
LENGTHS = np.array([5, 3, 1, 0])
MASK = np.arange(5) < LENGTHS[:, None]


def sequences(logits, transitions, start, end):
    """The score of every label sequence, ``{labels: score}``."""
    scores = {}
    for y in itertools.product(range(len(start)), repeat=len(logits)):
        score = start[y[0]] + end[y[-1]]
        score += sum(row[k] for row, k in zip(logits, y, strict=True))
        score += sum(transitions[j, k] for j, k in itertools.pairwise(y))
        scores[y] = score
    return scores


@jax.jit
def evaluated(logits, labels, transitions, start, end, mask):
    options = {"start": start, "end": end, "mask": mask}

    def loss(logits, transitions, start, end):
        ends = {"start": start, "end": end, "mask": mask}
        return losses.crf_loss(logits, labels, transitions, **ends)

    parts = logits, transitions, start, end
    marginals = jax.grad(lambda z: losses.crf_log_partition(z, transitions, **options).sum())(
        logits
    )
    slopes = jax.grad(lambda *p: loss(*p).sum(), (0, 1, 2, 3))(*parts)
    path = losses.crf_decode(logits, transitions, **options)
    return loss(*parts), marginals, path, slopes


def test_crf_is_the_enumeration_of_its_sequences():
    args = LOGITS, LABELS, TRANSITIONS, START, END, MASK
    loss, marginals, path, _ = evaluated(*map(jnp.asarray, args))
    for i, length in enumerate(LENGTHS[:3]):
        scores = sequences(LOGITS[i, :length], TRANSITIONS, START, END)
        log_z = np.log(sum(np.exp(s) for s in scores.values()))
        np.testing.assert_allclose(loss[i], log_z - scores[tuple(LABELS[i, :length])], rtol=2e-5)
        expected = np.zeros((length, 3))
        for y, score in scores.items():
            expected[np.arange(length), list(y)] += np.exp(score - log_z)
        np.testing.assert_allclose(marginals[i, :length], expected, atol=2e-6)
        assert tuple(path[i, :length]) == max(scores, key=scores.get)
    assert loss[3] == 0 and not path[3].any()
    assert not np.any(marginals[~MASK]) and not path[~MASK].any()


def test_without_transitions_a_crf_is_a_softmax_at_each_place():
    zero = np.zeros((3, 3))
    loss, marginals, path, _ = evaluated(LOGITS, LABELS, zero, zero[0], zero[0], MASK)
    each = losses.cross_entropy(LOGITS, LABELS, where=MASK)
    np.testing.assert_allclose(loss, each.sum(-1), rtol=1e-5)
    np.testing.assert_allclose(marginals, jax.nn.softmax(LOGITS) * MASK[..., None], atol=1e-6)
    np.testing.assert_array_equal(path, LOGITS.argmax(-1) * MASK)


def test_gradient_of_crf():
    parts = [LOGITS, TRANSITIONS, START, END]
    ahead = [RNG.normal(size=x.shape) for x in parts]
    with jax.enable_x64(True):

        def at(step):
            z, *rest = (jnp.asarray(x + step * d) for x, d in zip(parts, ahead, strict=True))
            return evaluated(z, LABELS, *rest, MASK)

        slope = sum(np.vdot(g, d) for g, d in zip(at(0.0)[3], ahead, strict=True))
        difference = (at(1e-5)[0].sum() - at(-1e-5)[0].sum()) / 2e-5
        np.testing.assert_allclose(slope, difference, rtol=1e-7)


def test_corners_of_crf():
    one = np.zeros((1, 1))
    args = LOGITS[..., :1], LABELS * 0, one, one[0], one[0], MASK
    np.testing.assert_allclose(evaluated(*args)[0], 0, atol=1e-5)  # one label
    forbidden = np.where(np.eye(3, k=1) > 0, TRANSITIONS, -np.inf)  # only 0 -> 1 -> 2
    for transitions in (TRANSITIONS * 1e4, forbidden):
        for logits in (LOGITS * 0, LOGITS * 1e4):
            labels = np.broadcast_to(np.arange(5) % 3, (4, 5))
            mask = MASK & (np.arange(5) < 3)
            loss, marginals, path, slopes = evaluated(logits, labels, transitions, START, END, mask)
            found = jax.tree.leaves((loss, marginals, slopes))
            assert all(np.isfinite(x).all() for x in found)
            if transitions is forbidden:  # nothing but the one sequence of three
                np.testing.assert_allclose(loss[:2], 0, atol=1e-2)
                np.testing.assert_array_equal(path[:2, :3], labels[:2, :3])


@jax.jit
def told(logits, where):
    """With a mask and ``where``, and of one place alone."""
    options = {"start": START, "end": END, "mask": MASK, "where": where}
    several = losses.crf_loss(logits, LABELS, TRANSITIONS, **options)
    return several, losses.crf_loss(logits[:1, :1], LABELS[:1, :1], TRANSITIONS)


def test_crf_of_rows_of_one_place_and_of_halves():
    where = np.array([True, False, True, False])
    several, alone = told(LOGITS, where)
    everything = evaluated(LOGITS, LABELS, TRANSITIONS, START, END, MASK)[0]
    np.testing.assert_allclose(several, np.where(where, everything, 0))
    np.testing.assert_allclose(alone, losses.cross_entropy(LOGITS[:1, 0], LABELS[:1, 0]), rtol=1e-5)
    coarse = jnp.asarray(LOGITS, jnp.bfloat16)
    half = jax.eval_shape(told, coarse, where)
    assert half[0].dtype == jnp.float32
    rounded = told(coarse.astype(jnp.float32), where)
    np.testing.assert_allclose(told(coarse, where)[0], rounded[0], rtol=1e-2)
    with pytest.raises(AssertionError):
        losses.crf_loss(LOGITS, LABELS[:, :4], TRANSITIONS)
    with pytest.raises(AssertionError):
        losses.crf_loss(LOGITS, LABELS, TRANSITIONS[:2])


def test_the_recursion_takes_arcs_of_several_steps():
    """Arcs of one and of three steps between two states: all ways to go seven steps."""
    short, long = RNG.normal(size=(2, 7, 2, 2)).astype(np.float32)  # [step, source, target]

    def arrive(history, x):
        one, three = x
        return jnp.concatenate(
            [history[0].T[:, :, None] + one[:, None], history[2].T[:, :, None] + three[:, None]]
        )

    def ways(n, state):
        """Scores of all ways that end in a state after n steps."""
        if n == 0:
            return [0.0] if state == 0 else []
        found = []
        for source in (0, 1):
            found += [s + short[n - 1, source, state] for s in ways(n - 1, source)]
            if n >= 3:
                found += [s + long[n - 1, source, state] for s in ways(n - 3, source)]
        return found

    start = jnp.full((3, 2, 2), LOG_ZERO).at[0, :, 0].set(0.0)
    on = np.arange(7)[:, None] < np.array([7, 5])
    for plus, total in ((jax.nn.logsumexp, np.logaddexp.reduce), (losses.best_score, np.max)):
        found = losses.forward_scores(arrive, start, (short, long), where=on, plus=plus)
        expected = [[total(ways(n, state)) for state in (0, 1)] for n in (7, 5)]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_of_equals_the_best_path_is_one():
    scores = np.zeros((3, 4), np.float32)
    slope = jax.grad(lambda s: losses.best_score(s, axis=0).sum())(scores)
    np.testing.assert_array_equal(slope, np.eye(3)[0][:, None] * np.ones(4))


def test_long_chains_keep_their_digits():
    """Marginals of 2,000 steps in float32, to those in float64."""
    logits = RNG.normal(size=(1, 2000, 3)) * 20

    def marginals(z):
        z = jnp.asarray(z)
        return jax.grad(lambda z: losses.crf_log_partition(z, TRANSITIONS.astype(z.dtype)).sum())(z)

    found = jax.jit(marginals)(logits.astype(np.float32))
    with jax.enable_x64(True):
        expected = jax.jit(marginals)(logits.astype(np.float32).astype(np.float64))
    np.testing.assert_allclose(found, expected, atol=1e-4)
