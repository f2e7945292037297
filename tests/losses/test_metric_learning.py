"""Margins, pairs and mining against loops, their authors' code and their limits."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT
from tinker import losses, optim
from tinker.numerics import UserError

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(8, 4))
LABELS = np.array([0, 2, 0, 1, 2, 0, 3, 1])  # 3 is alone
W = RNG.normal(size=(4, 4))
SOME = np.array([True, True, True, False, True, True, True, False])


margin_cosines = jax.jit(losses.margin_cosines)
margin_softmax = jax.jit(losses.margin_softmax)
adaface = jax.jit(losses.adaface)
norm_statistics = jax.jit(losses.norm_statistics)
mine = jax.jit(losses.mine, static_argnames=("positive", "negative"))
hardest_share = jax.jit(losses.hardest_share, static_argnames="largest")
of_prototypes = jax.jit(losses.of_prototypes, static_argnames=("loss", "similarity"))
of_pairs = jax.jit(losses.of_pairs, static_argnames=("loss", "similarity", "mining"))


def unit(z):
    return z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-30)


def cross_entropy(logits, label):
    shifted = logits - logits.max()
    return np.log(np.exp(shifted).sum()) - shifted[label]


# Margins.


def sphereface(theta, factor, angle):
    """Walks the angle up from 0, turn by turn, so that the curve never rises."""
    phi, turns = factor * theta + angle, 0
    while phi > np.pi * (turns + 1):
        turns += 1
    while phi < np.pi * turns:
        turns -= 1
    return (-1.0) ** turns * np.cos(phi) - 2 * turns


@pytest.mark.parametrize("margins", [(1, 0, 0), (4, 0, 0), (1, 0.5, 0), (1, 0, 0.35), (2, -3, 1)])
def test_margins_are_the_equations(margins):
    factor, angle, additive = margins
    options = {"factor": factor, "angle": angle, "additive": additive}
    cosines = unit(Z) @ unit(W).T
    expected = cosines.copy()
    for i, y in enumerate(LABELS):
        expected[i, y] = sphereface(np.arccos(cosines[i, y]), factor, angle) - additive
    found = margin_cosines(cosines, LABELS, **options)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    found = margin_softmax(Z, W, LABELS, temperature=1 / 9.0, **options)
    expected = [cross_entropy(9.0 * row, y) for row, y in zip(expected, LABELS)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_margins_make_the_target_harder_and_fall_with_the_angle():
    theta = np.linspace(0, np.pi, 400)
    cosines, labels = np.cos(theta)[:, None], np.zeros(400, int)
    plain = margin_cosines(cosines, labels)[:, 0]
    np.testing.assert_allclose(plain, cosines[:, 0], atol=2e-6)
    for options in ({"factor": 4}, {"angle": 0.5}, {"additive": 0.35}, {"angle": -0.4}):
        own = np.asarray(margin_cosines(cosines, labels, **options))[:, 0]
        assert (np.diff(own) < 1e-6).all()  # SphereFace's continuation
        assert options.get("angle", 1) < 0 or (own[1:] < plain[1:] + 1e-6).all()
    # each example may have its own
    angles = RNG.uniform(0, 1, 8)
    cosines = unit(Z) @ unit(W).T
    each = jax.vmap(lambda c, y, a: losses.margin_cosines(c, y, angle=a))(cosines, LABELS, angles)
    together = margin_cosines(cosines, LABELS, angle=angles)
    np.testing.assert_allclose(together, each, atol=1e-6)
    assert margin_softmax(Z, W, LABELS).mean() > 5  # a temperature of 1 / 64 by default


def test_adaface_is_the_authors():
    (golden,) = json.loads((ROOT / "tests" / "golden" / "adaface.json").read_text())
    for case in golden["cases"]:
        arrays = [np.array(case[n]) for n in ("embeddings", "prototypes", "labels")]
        temperature = 1 / case["scale"]
        arcface = margin_softmax(*arrays, temperature=temperature, angle=0.5)
        np.testing.assert_allclose(arcface, case["arcface"], rtol=2e-4, atol=1e-4)
        cosface = margin_softmax(*arrays, temperature=temperature, additive=0.4)
        np.testing.assert_allclose(cosface, case["cosface"], rtol=2e-4, atol=1e-4)
        statistics = losses.NormStatistics(np.float32(case["mean"]), np.float32(case["std"]))
        options = {n: case[n] for n in ("margin", "concentration", "decay")}
        found = adaface(*arrays, statistics, temperature=temperature, **options)
        np.testing.assert_allclose(found, case["loss"], rtol=2e-4, atol=1e-4)
        after, _ = norm_statistics(statistics, arrays[0], decay=case["decay"])
        np.testing.assert_allclose(after.mean, case["mean_after"], rtol=1e-5)
        np.testing.assert_allclose(after.std, case["std_after"], rtol=1e-4)


def test_adaface_between_its_neighbours():
    """The shortest embedding has ArcFace's margin, one of average length CosFace's."""
    lengths = np.array([0.01, 1.0, 50.0])
    z = unit(Z[:3]) * lengths[:, None]
    statistics = losses.NormStatistics(np.float32(1.0), np.float32(0.5))
    options = {"statistics": statistics, "decay": 1.0, "concentration": 1.0, "temperature": 1 / 8}
    found = adaface(z, W, LABELS[:3], **options)
    angles, additives = (0.4, 0, -0.4), (0, 0.4, 0.8)
    margin = functools.partial(margin_softmax, z, W, LABELS[:3], temperature=1 / 8)
    expected = [margin(angle=a, additive=b)[i] for i, (a, b) in enumerate(zip(angles, additives))]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert losses.adaface.batch_coupled


def test_norm_statistics_leave_rows_out_and_memory_keeps_them():
    old = losses.NormStatistics(np.float32(3.0), np.float32(2.0))
    new, lengths = norm_statistics(old, Z, decay=0.0, where=SOME)
    expected = np.linalg.norm(Z, axis=-1)
    np.testing.assert_allclose(lengths, expected, rtol=1e-5)
    np.testing.assert_allclose(new.mean, expected[SOME].mean(), rtol=1e-5)
    np.testing.assert_allclose(new.std, expected[SOME].std(ddof=1), rtol=1e-5)
    same, _ = norm_statistics(old, Z, where=SOME & False)
    assert same == old
    far, lengths = norm_statistics(old, np.array([[0.0, 0.0], [300.0, 400.0]]))
    np.testing.assert_allclose(lengths, [1e-3, 100], rtol=1e-6)
    np.testing.assert_allclose(far.mean, 0.99 * 3 + 0.01 * 50.0005, rtol=1e-5)
    one, _ = norm_statistics(old, Z[:1], decay=0.5)
    np.testing.assert_allclose(one.std, 1.0, rtol=1e-6)

    memory = optim.norm_memory(output="projections")
    kept = memory.init(None, {})
    assert kept == (20.0, 100.0)
    for mask in (SOME, None):
        ctx = {"projections": Z} | ({} if mask is None else {"mask": mask})
        expected, _ = norm_statistics(kept, Z, where=mask)
        np.testing.assert_allclose(memory.update(kept, ctx), expected, rtol=1e-6)
    none = adaface(Z, W, LABELS, old, where=SOME)
    assert (none[SOME] > 0).all() and not none[~SOME].any()


# Pairs.


def rows_of(labels, kept):
    """(positives, negatives) of each row, as lists of columns."""
    n = range(len(labels))
    for i in n:
        ok = [j for j in n if kept[i] and kept[j]]
        same = [j for j in ok if labels[j] == labels[i] and j != i]
        yield same, [j for j in ok if labels[j] != labels[i]]


def triplet_row(s, positives, negatives, margin):
    found = [max(0.0, s[n] - s[p] + margin) for p in positives for n in negatives]
    return np.mean(found) if found else 0.0


def unified_row(s, positives, negatives, margin, gamma):
    found = [np.exp(gamma * (s[n] - s[p] + margin)) for p in positives for n in negatives]
    return np.log(1 + np.sum(found))


def circle_row(s, positives, negatives, margin, gamma):
    """As a double sum over pairs, weights included, out of the paper's four constants."""
    best_p, best_n, edge_p, edge_n = 1 + margin, -margin, 1 - margin, margin
    total = 0.0
    for n in negatives:
        for p in positives:
            pull = max(best_p - s[p], 0.0) * (s[p] - edge_p)
            push = max(s[n] - best_n, 0.0) * (s[n] - edge_n)
            total += np.exp(gamma * (push - pull))
    return np.log(1 + total)


CASES = {
    "triplet_loss": (triplet_row, {"margin": 0.3}),
    "unified_pair_loss": (unified_row, {"margin": 0.2, "gamma": 6.0}),
    "circle_loss": (circle_row, {"margin": 0.15, "gamma": 12.0}),
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def paired(name, similarity, z, labels, where):
    fn, options = getattr(losses, name), CASES[name][1]
    loss = functools.partial(fn, **options)

    def total(z):
        value = of_pairs(z, labels, loss=loss, similarity=similarity, where=where)
        return value.sum(), value

    (_, value), slope = jax.value_and_grad(total, has_aux=True)(z)
    return value, slope


@pytest.mark.parametrize("name", CASES)
def test_losses_of_pairs_are_the_loops(name):
    row, options = CASES[name]
    distances = np.linalg.norm(Z[:, None] - Z, axis=-1)
    for similarity, scores in (("cosine", unit(Z) @ unit(Z).T), ("euclidean", -distances)):
        for kept in (SOME, SOME | True):
            expected = [row(s, p, n, **options) for s, (p, n) in zip(scores, rows_of(LABELS, kept))]
            value, slope = paired(name, similarity, np.float32(Z), LABELS, kept)
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
            assert not np.any(slope[~kept]) and not value[~kept].any()
        assert value[6] == 0  # its class is alone
    scores = unit(Z) @ unit(W).T
    expected = [
        row(s, [y], [c for c in range(4) if c != y], **options) for s, y in zip(scores, LABELS)
    ]
    loss = functools.partial(getattr(losses, name), **options)
    value = of_prototypes(Z, W, LABELS, loss=loss)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    euclidean = of_prototypes(Z, W, LABELS, loss=loss, similarity="euclidean")
    assert np.abs(euclidean - value).max() > 0.01
    assert losses.of_pairs.batch_coupled


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_corners_of_losses_of_pairs(name):
    ahead = RNG.normal(size=Z.shape)
    if name != "circle_loss":  # whose weights are held
        with jax.enable_x64(True):
            up, down = (
                paired(name, "cosine", Z + e * ahead, LABELS, SOME)[0] for e in (1e-6, -1e-6)
            )
            _, slope = paired(name, "cosine", Z, LABELS, SOME)
            difference = (up.sum() - down.sum()) / 2e-6
            np.testing.assert_allclose(np.vdot(slope, ahead), difference, rtol=1e-5)
    for z in (Z * 0, Z * 1e4, np.tile(Z[:1], (8, 1))):
        for labels in (LABELS, LABELS * 0, np.arange(8)):
            for similarity in ("cosine", "euclidean"):
                found = paired(name, similarity, np.float32(z), labels, SOME)
                assert all(np.isfinite(x).all() for x in found)
                assert len(set(labels)) == 4 or not np.any(found[0])  # no negatives, no positives
    value, slope = paired(name, "cosine", np.float32(Z), LABELS, SOME & False)
    assert not np.any(value) and not np.any(slope)
    half = of_pairs(jnp.asarray(Z, jnp.bfloat16), LABELS, loss=getattr(losses, name))
    assert half.dtype == jnp.float32
    scores = jnp.asarray([[1e4, -1e4]], jnp.bfloat16)
    loss = jax.jit(lambda s: getattr(losses, name)(s, s > 0, s < 0))(scores)
    assert loss.dtype == jnp.float32 and np.isfinite(loss).all()


def test_circle_loss_has_a_circle_and_its_own_slopes():
    masks = np.array([True, False]), np.array([False, True])
    circle = jax.jit(jax.value_and_grad(lambda s: losses.circle_loss(s, *masks)))
    for angle in np.linspace(0, np.pi / 2, 5):
        radius = np.sqrt(2) * 0.25
        scores = np.array([1 - radius * np.cos(angle), radius * np.sin(angle)])
        np.testing.assert_allclose(circle(scores)[0], np.log(2), rtol=1e-5)
    value, slope = circle(np.array([0.6, 0.5]))
    assert value > np.log(2)
    share = 80 * -np.expm1(-value)  # of the sigmoid, at the gamma of 80 that is the default
    np.testing.assert_allclose(slope, [-share * (1.25 - 0.6), share * (0.5 + 0.25)], rtol=1e-4)
    assert not np.any(circle(np.array([1.3, -0.3]))[1])  # beyond the optima nothing pulls


def test_unified_loss_has_its_limits():
    s, p, n = (
        unit(Z) @ unit(Z).T,
        *map(np.array, ([0, 0, 1, 0, 0, 1, 0, 0], [0, 1, 0, 1, 1, 0, 0, 0])),
    )
    p, n = p.astype(bool), n.astype(bool)
    hardest = max(0.0, s[0][n].max() - s[0][p].min() + 0.25)
    found = jax.jit(losses.unified_pair_loss)(s[0], p, n, gamma=1e4) / 1e4
    np.testing.assert_allclose(found, hardest, atol=1e-3)
    mined = mine(s[0], p, n, positive="hardest", negative="hardest")
    triplet = jax.jit(losses.triplet_loss)
    np.testing.assert_allclose(triplet(s[0], *mined, margin=0.25), hardest, rtol=1e-5)
    np.testing.assert_allclose(triplet(s[0], *mined), max(0, hardest - 0.05), rtol=1e-5)
    # over classes it is AM-Softmax
    loss = functools.partial(losses.unified_pair_loss, margin=0.35, gamma=7.0)
    softmax = margin_softmax(Z, W, LABELS, additive=0.35, temperature=1 / 7)
    np.testing.assert_allclose(of_prototypes(Z, W, LABELS, loss=loss), softmax, rtol=1e-4)


# Mining.


def test_mining_keeps_what_sorting_keeps():
    s = RNG.normal(size=(5, 12))
    p = RNG.random((5, 12)) < 0.4
    n = ~p & (RNG.random((5, 12)) < 0.8)
    p[4] = n[3] = False
    hard = mine(s, p, n, positive="hardest", negative="hardest")
    soft = mine(s, p, n, positive="easiest", negative="semi_hard", margin=0.7)
    semi = mine(s, p, n, negative="semi_hard")
    for i in range(5):
        positives, negatives = np.flatnonzero(p[i]), np.flatnonzero(n[i])
        assert list(np.flatnonzero(hard[0][i])) == sorted(positives, key=lambda j: s[i, j])[:1]
        assert list(np.flatnonzero(hard[1][i])) == sorted(negatives, key=lambda j: -s[i, j])[:1]
        easiest = sorted(positives, key=lambda j: -s[i, j])[:1]
        assert list(np.flatnonzero(soft[0][i])) == easiest
        for found, kept, margin in ((soft, easiest, 0.7), (semi, positives, 0.2)):
            last = min((s[i, j] for j in kept), default=np.inf)
            expected = [j for j in negatives if last - margin < s[i, j] < last]
            assert list(np.flatnonzero(found[1][i])) == expected
    assert (semi[0] == p).all()
    every = mine(s, p, n)
    assert (every[0] == p).all() and (every[1] == n).all()


def test_a_share_of_the_hardest():
    s = RNG.normal(size=(4, 10))
    candidates = np.arange(10) < np.array([10, 5, 1, 0])[:, None]
    for share, counts in ((0.2, [2, 1, 1, 0]), (0.41, [5, 3, 1, 0]), (1.0, [10, 5, 1, 0])):
        for largest in (True, False):
            found = hardest_share(s, candidates, share=share, largest=largest)
            for i, count in enumerate(counts):
                there = np.flatnonzero(candidates[i])
                order = sorted(there, key=lambda j, i=i: -s[i, j] if largest else s[i, j])
                assert set(np.flatnonzero(found[i])) == set(order[:count])
    assert hardest_share(s, candidates).sum() == 3  # a tenth by default
    assert hardest_share(s * 0, candidates).sum() == 16  # all are level with the last


def test_no_gradient_goes_through_mining():
    def mining(scores, positives, negatives):
        return positives & (scores > -2), negatives & (scores == jax.lax.stop_gradient(scores))

    def slope(**options):
        loss = functools.partial(losses.of_pairs, loss=losses.triplet_loss, **options)
        return jax.jit(jax.value_and_grad(lambda z: loss(z, LABELS).sum()))(Z)

    value, plain = slope()
    np.testing.assert_allclose(slope(mining=mining)[1], plain, rtol=1e-5)
    hardest = functools.partial(losses.mine, positive="hardest", negative="hardest")
    assert slope(mining=hardest)[0] > value


def test_gradients_and_corners_of_margins():
    statistics = losses.NormStatistics(np.float32(2.0), np.float32(0.5))

    @jax.jit
    def total(z, w):
        arcface = losses.margin_softmax(z, w, LABELS, angle=0.5, factor=1.5, temperature=0.2)
        return arcface.sum(), losses.adaface(z, w, LABELS, statistics, temperature=0.2).sum()

    slopes = jax.jit(lambda z, w: jax.jacrev(total, (0, 1))(z, w))
    ahead = RNG.normal(size=Z.shape), RNG.normal(size=W.shape)
    with jax.enable_x64(True):
        up, down = (total(Z + e * ahead[0], W + e * ahead[1]) for e in (1e-6, -1e-6))
        (of_z, of_w), (ada_z, ada_w) = slopes(Z, W)
        along = np.vdot(of_z, ahead[0]) + np.vdot(of_w, ahead[1])
        np.testing.assert_allclose(along, (up[0] - down[0]) / 2e-6, rtol=1e-5)
        # q is held: lengths alone change nothing
        np.testing.assert_allclose(np.sum(ada_z * Z, -1), 0, atol=1e-8)
    for z in (Z * 0, 1e4 * Z, W[LABELS], -W[LABELS]):  # on and opposite their class
        found = total(np.float32(z), np.float32(W)), slopes(np.float32(z), np.float32(W))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    half = jnp.asarray(Z[:1], jnp.bfloat16)
    one = adaface(half, W[:1], LABELS[:1], statistics)  # a batch of one, of one class
    assert one.dtype == jnp.float32 and np.isfinite(one).all()
    assert margin_softmax(half, W, LABELS[:1]).dtype == jnp.float32
    assert margin_cosines(half, LABELS[:1]).dtype == jnp.float32


def test_mistakes_are_told():
    with pytest.raises(UserError, match="similarity"):
        of_pairs(Z, LABELS, loss=losses.triplet_loss, similarity="cosin")
    with pytest.raises(UserError, match="negative"):
        mine(Z, Z > 0, Z < 0, negative="hard")
    with pytest.raises(UserError, match="positive"):
        mine(Z, Z > 0, Z < 0, positive="hard")
    for loss in (
        losses.margin_cosines,
        functools.partial(losses.of_pairs, loss=losses.triplet_loss),
    ):
        with pytest.raises(AssertionError):
            loss(Z, LABELS[:3])
