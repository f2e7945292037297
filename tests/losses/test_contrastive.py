"""Contrastive losses against loops, their authors' code and their reductions."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from tests.conftest import ROOT
from tinker import losses
from tinker.numerics import UserError

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(6, 2, 4)).astype(np.float32)
LABELS = np.array([0, 2, 0, 1, 2, 0])
ALL = np.ones(6, bool)


@jax.jit
def evaluated(z, labels, temperature, where):
    """Both variants, and the loss without labels, with the gradients of their sums."""

    def both(labels, variant):
        def loss(z):
            options = {"temperature": temperature, "variant": variant, "where": where}
            return losses.supcon(z, labels, **options)

        return loss(z), jax.grad(lambda z: loss(z).sum())(z)

    return {"out": both(labels, "out"), "in": both(labels, "in"), "self": both(None, "in")}


def values(z, labels=LABELS, temperature=0.3, where=None):
    where = np.ones(len(z), bool) if where is None else where
    found = evaluated(np.float32(z), labels, temperature, where)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    return {name: np.asarray(value) for name, (value, _) in found.items()}


def unit(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def anchors(z, labels, temperature, variant):
    """Eq. 2 and 3 by loops over rows ``[n, dim]``; an anchor without a positive gives 0."""
    z, out = unit(z.astype(float)), []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [a for a in others if labels[a] == labels[i]]
        total = sum(np.exp(z[i] @ z[a] / temperature) for a in others)
        shares = [np.exp(z[i] @ z[p] / temperature) / total for p in positives]
        if not positives:
            out.append(0.0)
        elif variant == "out":
            out.append(-np.mean(np.log(shares)))
        else:
            out.append(-np.log(np.mean(shares)))
    return np.array(out)


def test_supcon_is_the_loop_and_where_drops_rows():
    order, found = RNG.permutation(6), values(Z)
    where = np.array([True, False, True, True, True, False])
    kept, permuted = values(Z, where=where), values(Z[order], LABELS[order])
    scaled = values(Z * 7, LABELS + 3)
    single = values(Z.reshape(12, 1, 4), np.arange(12) // 2 * 2 % 7)  # 0 0 2 2 4 4 6 6 1 1 3 3
    alone = values(Z.reshape(12, 1, 4), np.array([0, 1, 1, 2, 0, 0, 5, 1, 3, 3, 7, 1]))
    for variant in ("out", "in"):

        def loop(z, labels, variant=variant):
            flat = z.reshape(-1, z.shape[-1])
            return anchors(flat, np.repeat(labels, 2), 0.3, variant).reshape(-1, 2).mean(1)

        np.testing.assert_allclose(found[variant], loop(Z, LABELS), rtol=2e-5)
        np.testing.assert_allclose(kept[variant][where], loop(Z[where], LABELS[where]), rtol=2e-5)
        assert not kept[variant][~where].any()
        np.testing.assert_allclose(permuted[variant], found[variant][order], rtol=2e-5)
        np.testing.assert_allclose(scaled[variant], found[variant], rtol=2e-5)
        # one view with labels by pairs is two views without; anchors without a positive give 0
        np.testing.assert_allclose(single[variant].reshape(6, 2).mean(1), found["self"], rtol=2e-5)
        labels = np.array([0, 1, 1, 2, 0, 0, 5, 1, 3, 3, 7, 1])
        expected = anchors(Z.reshape(12, 4), labels, 0.3, variant)
        np.testing.assert_allclose(alone[variant], expected, rtol=2e-5)
        assert not alone[variant][[3, 6, 10]].any()
    assert losses.supcon.batch_coupled


def test_supcon_is_the_authors():
    hobbit, google = json.loads((ROOT / "tests" / "golden" / "supcon.json").read_text())
    for case in hobbit["cases"]:
        z, temperature = np.array(case["z"]), case["temperature"]
        labels = np.arange(len(z)) if case["labels"] is None else np.array(case["labels"])
        found = values(z, labels, temperature)["out"].mean()
        found = found * temperature / case["base_temperature"]
        np.testing.assert_allclose(found, case["loss"], rtol=2e-5)
    for case in google["cases"]:
        found = values(np.array(case["z"]), np.array(case["labels"]), case["temperature"])
        np.testing.assert_allclose(
            found[case["variant"]] * case["temperature"], case["loss"], rtol=2e-5
        )


def test_without_labels_it_is_nt_xent():
    """SimCLR's loss as its paper writes it, over rows 2k and 2k + 1."""
    z = unit(Z.astype(float)).reshape(-1, 4)
    scores = np.exp(z @ z.T / 0.5)
    expected = [
        -np.log(scores[i, i ^ 1] / sum(scores[i, k] for k in range(12) if k != i))
        for i in range(12)
    ]
    expected = np.reshape(expected, (6, 2)).mean(1)
    for value in values(Z, np.arange(6), 0.5).values():  # one positive: all are the same
        np.testing.assert_allclose(value, expected, rtol=2e-5)


def test_in_is_at_most_out():
    for temperature in (0.05, 0.5, 5.0):
        found = values(Z, LABELS, temperature)
        assert (found["in"] <= found["out"] + 1e-5).all()
        assert np.abs(found["in"] - found["out"]).max() > 1e-3


def test_one_positive_and_one_negative_are_the_triplet_loss_to_first_order():
    anchor, positive, negative = unit(Z[:3, 0].astype(float))
    rows = np.concatenate([[anchor, positive, negative], np.zeros((9, 4))])[:, None]
    margin = np.square(anchor - positive).sum() - np.square(anchor - negative).sum()
    labels = np.array([0, 0, 1] + [2] * 9)
    for temperature in (20.0, 200.0):
        slope = margin / (2 * temperature)
        found = values(rows, labels, temperature, np.arange(12) < 3)["out"][0]
        assert abs(found - np.log(2) - slope / 2) < slope**2 / 8 + 1e-6


def test_gradient_of_an_anchors_own_term_and_of_all():
    """The paper's closed form, where only the anchor moves; then a difference for the sum."""
    rows, labels, tau = Z.reshape(-1, 4).astype(float), np.repeat(LABELS, 2), 0.2
    z, i = unit(rows), 4
    share = np.exp(z @ z[i] / tau) * (np.arange(12) != i)
    share = share / share.sum()
    positive = (labels == labels[i]) & (np.arange(12) != i)
    direction = RNG.normal(size=rows.shape)
    for variant in ("out", "in"):

        @jax.jit
        def grads(rows, variant=variant):
            def loss(z):
                return losses.supcon(z, labels, temperature=tau, variant=variant)

            own = jax.grad(lambda row: loss(rows.at[i].set(row))[i])(rows[i])
            return own, *jax.value_and_grad(lambda z: loss(z).sum())(rows)

        pull = positive / positive.sum() if variant == "out" else positive * share
        of_unit = (share - pull / pull.sum()) @ z / tau
        expected = (of_unit - z[i] * (z[i] @ of_unit)) / np.linalg.norm(rows[i])
        with jax.enable_x64(True):
            own, _, grad = grads(jnp.asarray(rows))
            np.testing.assert_allclose(own, expected, rtol=1e-8)
            ahead, behind = (grads(jnp.asarray(rows + s * direction))[1] for s in (1e-5, -1e-5))
            np.testing.assert_allclose(np.vdot(grad, direction), (ahead - behind) / 2e-5, rtol=1e-6)


def test_corners():
    for z in (Z * 0, Z * 1e4, Z * 1e-12):
        values(z, LABELS, 0.1)
        values(z, np.zeros(6, int), 1e-3)
    assert not any(v.any() for v in values(Z, where=~ALL).values())
    for value in values(np.ones_like(Z)).values():
        np.testing.assert_allclose(value, np.log(11), rtol=1e-5)
    for value in values(Z, where=np.arange(6) == 2).values():  # one example of two views
        np.testing.assert_allclose(value, 0, atol=1e-5)
    for value in values(Z[:1, :1], LABELS[:1]).values():
        assert value == 0
    plain = jax.jit(losses.supcon)(Z, LABELS)
    np.testing.assert_allclose(plain, values(Z, LABELS, 0.1)["out"], rtol=1e-6)
    half = jax.eval_shape(losses.supcon, jnp.ones((6, 4), jnp.bfloat16), LABELS)
    assert half.dtype == jnp.float32 and half.shape == (6,)


def test_mistakes_are_told():
    with pytest.raises(UserError, match="it takes out, in"):
        losses.supcon(Z, LABELS, variant="outside")
    with pytest.raises(AssertionError):
        losses.supcon(Z, LABELS[:5])
    with pytest.raises(AssertionError):
        losses.supcon(Z[0, 0], LABELS)


def ratios(scores, positives, candidates, margin, decoupled):
    """The core's equation, row by row and positive by positive."""
    out = []
    for s, p, c in zip(scores.astype(float), positives, candidates, strict=True):
        each = []
        for i in np.flatnonzero(p):
            own = np.exp(s[i] - margin)
            others = [a for a in range(len(s)) if a != i and (c[a] or p[a])]
            others = [a for a in others if not (decoupled and p[a])]
            rest = sum(np.exp(s[a] - margin * p[a]) for a in others)
            each.append(-np.log(own / (own + rest)))
        out.append(np.mean(each) if each else 0.0)
    return np.array(out)


def test_of_many_positives_each_is_found_among_the_candidates():
    rng = np.random.default_rng(4)
    scores = rng.normal(size=(8, 6)).astype(np.float32)
    positives, candidates = rng.random((2, 8, 6)) < 0.4
    positives[0], positives[1], candidates[2] = False, True, False
    candidates[3] = positives[3] = np.arange(6) == 2  # found without any other

    @functools.partial(jax.jit, static_argnames="decoupled")
    def run(scores, margin, decoupled):
        def loss(scores):
            options = {"margin": margin, "decoupled": decoupled}
            every = losses.multi_positive_cross_entropy(scores, positives, **options)
            options["candidates"] = candidates
            return losses.multi_positive_cross_entropy(scores, positives, **options), every

        return loss(scores), jax.grad(lambda x: sum(x.sum() for x in loss(x)))(scores)

    direction = rng.normal(size=scores.shape)
    for decoupled in (False, True):
        (found, every), grad = run(scores, 0.7, decoupled)
        expected = ratios(scores, positives, candidates, 0.7, decoupled)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
        all_of_them = np.ones_like(candidates)
        expected = ratios(scores, positives, all_of_them, 0.7, decoupled)
        np.testing.assert_allclose(every, expected, rtol=2e-5, atol=1e-6)
        assert found[0] == 0 and abs(found[3]) < 1e-6
        for hard in (1e4 * np.sign(scores), 0 * scores):
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(run(hard, 0.7, decoupled)))
        with jax.enable_x64(True):
            x = jnp.asarray(scores, jnp.float64)
            _, grad = run(x, 0.7, decoupled)
            ahead, behind = (
                sum(y.sum() for y in run(x + s * direction, 0.7, decoupled)[0])
                for s in (1e-5, -1e-5)
            )
            slope = np.vdot(grad, direction)
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-6)
    # decoupled, positives that are found do not hold each other back
    both = np.array([[5.0, 5.0, -5.0]], np.float32), np.array([[True, True, False]])
    apart, coupled = (
        losses.multi_positive_cross_entropy(*both, decoupled=d) for d in (True, False)
    )
    assert apart[0] < 1e-4 and coupled[0] > np.log(2)


def test_a_margin_is_taken_from_the_positives_cosines():
    z = unit(Z.astype(float)).reshape(-1, 4)
    shifted = np.exp((z @ z.T - 0.2 * (np.arange(12) // 2 == np.arange(12)[:, None] // 2)) / 0.3)
    expected = [
        -np.log(shifted[i, i ^ 1] / sum(shifted[i, k] for k in range(12) if k != i))
        for i in range(12)
    ]
    for variant in ("in", "out"):  # one positive: both are NT-Xent-AM
        found = losses.supcon(Z, temperature=0.3, margin=0.2, variant=variant)
        np.testing.assert_allclose(found, np.reshape(expected, (6, 2)).mean(1), rtol=2e-5)


# Matching rows: info_nce and siglip.

X = RNG.normal(size=(5, 3)).astype(np.float32)
Y = RNG.normal(size=(5, 3)).astype(np.float32)
EVERY = np.ones(5, bool)


@jax.jit
def matched(x, y, temperature, bias, where):
    """All losses of matching rows."""
    options = {"temperature": temperature, "where": where}
    one = losses.info_nce(x, y, **options)
    both = losses.info_nce(x, y, symmetric=True, **options)
    return one, both, losses.siglip(x, y, bias=bias, **options)


@jax.jit
def matched_slopes(x, y, temperature, bias, where):
    """The gradients of their sums, for everything but ``where``."""
    jacobian = jax.jacrev(
        lambda *args: jnp.stack([loss.sum() for loss in matched(*args, where)]), (0, 1, 2, 3)
    )
    return jacobian(x, y, temperature, bias)


def shares(x, y, temperature):
    """-log of the share of the match among all, by loops over unit rows."""
    x, y = unit(x.astype(float)), unit(y.astype(float))
    out = []
    for i in range(len(x)):
        scores = [np.exp(x[i] @ y[j] / temperature) for j in range(len(y))]
        out.append(-np.log(scores[i] / sum(scores)))
    return np.array(out)


def coins(x, y, temperature, bias):
    """-log of the probability that of all pairs just the matching ones match, by loops."""
    x, y, out = unit(x.astype(float)), unit(y.astype(float)), np.zeros(len(x))
    for i in range(len(x)):
        for j in range(len(y)):
            match = 1 / (1 + np.exp(-(x[i] @ y[j] / temperature + bias)))
            out[i] -= np.log(match if i == j else 1 - match)
    return out


def test_losses_of_matching_rows_are_the_loops_and_where_drops_rows():
    order = RNG.permutation(5)
    for where in (EVERY, np.array([True, True, False, True, False])):
        one, both, pairs = matched(X, Y, 0.2, -1.5, where)
        x, y = X[where], Y[where]
        forth, back = shares(x, y, 0.2), shares(y, x, 0.2)
        np.testing.assert_allclose(one[where], forth, rtol=2e-5)
        np.testing.assert_allclose(both[where], (forth + back) / 2, rtol=2e-5)
        np.testing.assert_allclose(pairs[where], coins(x, y, 0.2, -1.5), rtol=2e-5)
        assert not any(np.any(loss[~where]) for loss in (one, both, pairs))
        again = matched(3 * X[order], Y[order] / 7, 0.2, -1.5, where[order])
        for a, b in zip(again, (one, both, pairs)):  # of no order, and of directions alone
            np.testing.assert_allclose(a, b[order], rtol=2e-5)
    assert losses.info_nce.batch_coupled and losses.siglip.batch_coupled


def test_losses_of_matching_rows_are_the_authors():
    big_vision, inf_clip = json.loads(
        (ROOT / "tests" / "golden" / "contrastive_pairs.json").read_text()
    )
    with jax.enable_x64(True):
        for case in big_vision["cases"]:
            scale = np.exp(case["log_scale"])
            args = np.array(case["x"]), np.array(case["y"]), 1 / scale, np.array(case["bias"])
            np.testing.assert_allclose(matched(*args, EVERY)[2].mean(), case["loss"], rtol=1e-6)
            of_x, _, of_temperature, of_bias = (s[2] / 5 for s in matched_slopes(*args, EVERY))
            close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
            close(of_x, case["grad_x"])
            close(-of_temperature / scale, case["grad_log_scale"])
            close(of_bias, case["grad_bias"])
        for case in inf_clip["cases"]:
            args = np.array(case["x"]), np.array(case["y"]), 1 / np.array(case["scale"])
            _, both, _ = matched(*args, np.array(0.0), EVERY)
            np.testing.assert_allclose(both.mean(), case["loss"], rtol=1e-6)


def test_gradients_of_losses_of_matching_rows():
    args = [np.float64(a) for a in (X, Y, 0.3, -2.0)]
    where = np.array([True, True, False, True, True])
    ahead = [RNG.normal(size=a.shape) for a in args]
    with jax.enable_x64(True):

        def sums(step):
            moved = [a + step * d for a, d in zip(args, ahead)]
            return np.array([loss.sum() for loss in matched(*moved, where)])

        slopes = matched_slopes(*args, where)
        for i, difference in enumerate((sums(1e-5) - sums(-1e-5)) / 2e-5):
            along = sum(np.vdot(slope[i], d) for slope, d in zip(slopes, ahead))
            np.testing.assert_allclose(along, difference, rtol=1e-6)


def test_corners_of_losses_of_matching_rows():
    alike, none = np.tile(X[:1], (5, 1)), np.zeros(5, bool)
    for x, y in ((X * 0, Y), (alike, alike), (X * 1e4, Y * 1e-4)):
        for temperature in (0.1, 1e-4):  # of scores up to 1e4
            for where in (EVERY, none):
                found = matched(x, y, temperature, -10.0, where)
                slopes = matched_slopes(x, y, temperature, -10.0, where)
                assert all(np.isfinite(a).all() for a in jax.tree.leaves((found, slopes)))
                assert where.any() or not any(np.any(a) for a in jax.tree.leaves((found, slopes)))
    one, both, pairs = matched(alike, alike, 0.1, -10.0, EVERY)
    np.testing.assert_allclose([one, both], np.log(5), rtol=1e-5)
    np.testing.assert_allclose(pairs, 5 * np.log(2), rtol=1e-4)  # scores of 10 less the bias
    single = matched(X, Y, 0.1, -10.0, np.arange(5) == 2)
    np.testing.assert_allclose(single[:2], 0, atol=1e-5)

    @jax.jit
    def alone(x):  # a batch of one, in bfloat16, and the numbers that are there by default
        return losses.info_nce(x, x), losses.siglip(x, x)

    softmax, sigmoid = alone(jnp.asarray(X[:1], jnp.bfloat16))
    assert softmax.dtype == sigmoid.dtype == jnp.float32 and softmax.shape == (1,)
    np.testing.assert_allclose([softmax[0], sigmoid[0]], [0, np.log(2)], atol=1e-3)


def test_mistakes_with_matching_rows_are_told():
    with pytest.raises(UserError, match="implementation"):
        losses.info_nce(X, Y, implementation="dense")
    with pytest.raises(UserError, match="axis='data' is of no mesh"):
        losses.siglip(X, Y, axis="data")
    with pytest.raises(AssertionError):
        losses.info_nce(X, Y[:4])


# Scores of queries and labels.


@jax.jit
def labelled(scores, positives, k, alpha):
    softmax = losses.multi_positive_cross_entropy(scores, positives)
    return {
        "topk": losses.soft_top_k_loss(scores, positives, k=k, alpha=alpha).mean(),
        "decoupled-softmax": losses.multi_positive_cross_entropy(
            scores, positives, decoupled=True
        ).mean(),
        # there the sum over positives, here their mean
        "softmax": jnp.mean(softmax * positives.sum(-1)),
    }


def test_losses_of_many_labels_are_the_authors():
    (golden,) = json.loads((ROOT / "tests" / "golden" / "dexml.json").read_text())
    for case in golden["cases"]:
        scores, positives = np.array(case["scores"]), np.array(case["positives"], bool)
        found = labelled(scores, positives, float(case["k"]), case["alpha"])
        for name, value in case["losses"].items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_only_decoupled_positives_never_lose_to_each_other():
    """Of two positives far above the rest, the better one is pushed down by the softmax alone."""
    scores, positives = np.array([6.0, 3.0, 0.0, -1.0]), np.array([True, True, False, False])

    @jax.jit
    def slopes(scores):
        softmax = losses.multi_positive_cross_entropy
        decoupled = functools.partial(softmax, decoupled=True)
        top = functools.partial(losses.soft_top_k_loss, k=2)
        return [jax.grad(loss)(scores, positives) for loss in (softmax, decoupled, top)]

    softmax, decoupled, top = slopes(scores)
    assert softmax[0] > 0.4 and decoupled[0] < 0
    assert (top[:2] < 0).all() and (top[2:] > 0).all()
    np.testing.assert_allclose(top.sum(), 0, atol=1e-6)


def test_soft_top_k_loss_by_root_finding_and_its_corners():
    def row(scores, positives, k, alpha):
        def excess(t):
            return np.sum(1 / (1 + np.exp(-alpha * (scores + t)))) - k

        t = brentq(excess, -100, 100)
        return np.mean(np.log1p(np.exp(-alpha * (scores[positives] + t))))

    scores = 3 * RNG.normal(size=(3, 8))
    positives = np.arange(8) % np.array([2, 3, 5])[:, None] == 0
    loss = jax.jit(losses.soft_top_k_loss)
    expected = [row(s, p, 5, 2.0) for s, p in zip(scores, positives)]  # k and alpha by default
    np.testing.assert_allclose(loss(scores, positives), expected, rtol=1e-4)
    found = loss(scores, positives, k=np.array([1.0, 2.5, 7.0]), alpha=0.5)
    expected = [row(s, p, k, 0.5) for s, p, k in zip(scores, positives, (1, 2.5, 7))]
    np.testing.assert_allclose(found, expected, rtol=1e-4)

    ahead = RNG.normal(size=scores.shape)
    with jax.enable_x64(True):
        total = jax.jit(lambda s: losses.soft_top_k_loss(s, positives).sum())
        difference = (total(scores + 1e-5 * ahead) - total(scores - 1e-5 * ahead)) / 2e-5
        np.testing.assert_allclose(
            np.vdot(jax.jit(jax.grad(total))(scores), ahead), difference, rtol=1e-6
        )
    value = jax.jit(jax.value_and_grad(lambda s, p: loss(s, p).sum()))
    extreme = 1e4 * np.sign(scores)
    for s in (extreme, 0 * scores, scores):
        for p in (positives, positives & False):
            found = value(s, p)
            assert all(np.isfinite(x).all() for x in found)
            assert p.any() or not np.any(found[0])
    assert loss(jnp.asarray(scores, jnp.bfloat16), positives).dtype == jnp.float32
