"""Heads that end: the papers' products by loops, the bounds they prove, and decoding that ends."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from tinker.nn import non_monotonic_log_probs, self_terminating_log_probs

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 6, 5)) * 2
EOS, EPSILON = 2, 0.05
POSITIONS = np.array([[1, 2, 3, 4, 5, 6], [-1, 0, 1, 2, 3, 4], [0, 0, 0, 0, 0, 1]])
HEADS = {"non_monotonic": non_monotonic_log_probs, "self_terminating": self_terminating_log_probs}


@functools.partial(jax.jit, static_argnames="name")
def both(name, logits, direction=LOGITS):
    """Log-probabilities, and the gradient of their inner product with a direction."""

    def weighed(logits):
        found = HEADS[name](logits, eos=EOS, epsilon=EPSILON, positions=POSITIONS)
        return (jnp.maximum(found, -1e5) * direction).sum(), found

    grad, found = jax.grad(weighed, has_aux=True)(jnp.asarray(logits))
    return found, grad


def ends(name, a, positions):
    """The probability of the end at each place of one sequence, by the papers' products."""
    out, product = [], 1.0
    for logit, t in zip(a, positions, strict=True):
        if t <= 0:
            out.append(0.0)
        elif name == "non_monotonic":
            below = 1 - (1 - EPSILON) ** int(t)
            out.append((1 - expit(logit)) * below + expit(logit))
        else:
            product *= (1 - EPSILON) * expit(logit)
            out.append(1 - product)
    return np.array(out)


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_the_products_and_sum_to_one(name):
    p = np.exp(both(name, LOGITS)[0])
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
    others = np.delete(LOGITS, EOS, -1)
    for row in range(3):
        expected = ends(name, LOGITS[row, :, EOS], POSITIONS[row])
        np.testing.assert_allclose(p[row, :, EOS], expected, rtol=2e-5)
        shares = (1 - expected)[:, None] * softmax(others[row], axis=-1)
        np.testing.assert_allclose(np.delete(p[row], EOS, -1), shares, rtol=2e-5)


@pytest.mark.parametrize("name", HEADS)
def test_gradient_and_corners(name):
    direction = RNG.normal(size=LOGITS.shape)
    weights = np.where((POSITIONS > 0)[..., None], LOGITS, 0)
    with jax.enable_x64(True):
        ahead, behind = (
            (both(name, LOGITS + s * direction, weights)[0] * weights).sum() for s in (1e-5, -1e-5)
        )
        along = np.vdot(both(name, LOGITS, weights)[1], direction)
        np.testing.assert_allclose(along, (ahead - behind) / 2e-5, rtol=1e-6)
    for hard in (LOGITS * 0, np.sign(LOGITS) * 1e4, LOGITS * 1e4):
        found, grad = both(name, hard)
        assert np.isfinite(found).all() and np.isfinite(grad).all()
        np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-4)
    half = jax.eval_shape(functools.partial(both, name), jnp.zeros(LOGITS.shape, jnp.bfloat16))[0]
    assert half.dtype == jnp.float32
    with pytest.raises(AssertionError):
        HEADS[name](LOGITS, eos=EOS, positions=POSITIONS[:, :4])


def test_far_out_the_bounds_are_exact():
    """Where (1 - epsilon)^t is all but 1 or 0, in float32."""
    t, epsilon = np.array([1, 10, 1000, 10**6]), 1e-6
    unwilling = np.array([-1e4, 0.0])[None].repeat(4, 0)
    head = jax.jit(functools.partial(non_monotonic_log_probs, eos=0, epsilon=epsilon, positions=t))
    found = np.asarray(head(unwilling))[:, 0]
    np.testing.assert_allclose(
        found, [math.log(-math.expm1(k * math.log1p(-epsilon))) for k in t], rtol=1e-4
    )


def test_whatever_the_logits_greedy_decoding_ends_in_time():
    """The theorem: the end wins by the time (1 - epsilon)^t < 1/2; and need not be monotonic."""
    never = np.zeros((400, 3))
    never[:, EOS] = -1e4
    greedy = jax.jit(
        lambda z: (
            jnp.argmax(non_monotonic_log_probs(z, eos=EOS, epsilon=EPSILON), -1) == EOS,
            jnp.argmax(z, -1) == EOS,
        )
    )
    found, plain = greedy(never)
    first = int(np.argmax(found))
    assert (
        not plain.any()
        and found.any()
        and first + 1 <= math.ceil(math.log(0.5) / math.log1p(-EPSILON))
    )
    wavering = np.zeros((20, 3))
    wavering[::2, EOS] = 4.0
    wavering[1::2, EOS] = -4.0
    p = {k: np.exp(f(wavering, eos=EOS, epsilon=1e-4))[:, EOS] for k, f in HEADS.items()}
    assert (np.diff(p["self_terminating"]) >= 0).all()
    assert (np.diff(p["non_monotonic"]) < 0).any()
