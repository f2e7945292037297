"""Losses over pairs against loops."""

import jax
import jax.numpy as jnp
import numpy as np

from tinker import losses

RNG = np.random.default_rng(0)
Q = RNG.normal(size=(5, 3)).astype(np.float32)
K = RNG.normal(size=(5, 3)).astype(np.float32)


def looped(q, k, temperature):
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    out = []
    for i in range(len(q)):
        scores = [np.exp(cosine(q[i], k[j]) / temperature) for j in range(len(k))]
        out.append(-np.log(scores[i] / sum(scores)))
    return np.array(out)


def test_info_nce_is_the_loop_and_where_drops_rows():
    expected = looped(Q.astype(float), K.astype(float), 0.2)
    np.testing.assert_allclose(losses.info_nce(Q, K, temperature=0.2), expected, rtol=1e-5)
    where = np.array([True, True, False, True, False])
    kept = losses.info_nce(Q, K, temperature=0.2, where=where)
    np.testing.assert_allclose(kept[where], looped(Q[where], K[where], 0.2), rtol=1e-4)
    assert not kept[~where].any()
    order = RNG.permutation(5)
    np.testing.assert_allclose(
        losses.info_nce(Q[order], K[order], temperature=0.2), expected[order], rtol=1e-5
    )


def test_info_nce_corners():
    loss = jax.jit(jax.value_and_grad(lambda q, k: losses.info_nce(q, k).sum()))
    for q, k in ((Q * 0, K), (np.tile(Q[:1], (5, 1)), np.tile(Q[:1], (5, 1))), (Q * 1e4, K * 1e-4)):
        value, grad = loss(q, k)
        assert np.isfinite(value) and np.isfinite(grad).all()
    same = losses.info_nce(np.tile(Q[:1], (5, 1)), np.tile(Q[:1], (5, 1)))
    np.testing.assert_allclose(same, np.log(5), rtol=1e-5)
    np.testing.assert_allclose(losses.info_nce(Q[:1], K[:1]), 0, atol=1e-6)
    none = losses.info_nce(Q, K, where=np.zeros(5, bool))
    np.testing.assert_allclose(none, 0)
    half = losses.info_nce(jnp.asarray(Q, jnp.bfloat16), jnp.asarray(K, jnp.bfloat16))
    np.testing.assert_allclose(half, losses.info_nce(Q, K), atol=0.1)
