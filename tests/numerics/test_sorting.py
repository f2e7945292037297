"""The smooth top-k against root finding, the authors' code and its Jacobian."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from tests.conftest import ROOT
from tinker import numerics

RNG = np.random.default_rng(0)
X = 2 * RNG.normal(size=(3, 7))
top = jax.jit(numerics.soft_top_k, static_argnames="log")


def rooted(x, k, alpha):
    t = brentq(lambda t: expit(alpha * (x + t)).sum() - k, -200, 200, xtol=1e-13)
    return expit(alpha * (x + t))


def test_soft_top_k_is_root_finding():
    for k, alpha in ((2, 1.0), (np.array([1.0, 3.5, 6.0]), 2.5)):
        expected = [rooted(x, n, alpha) for x, n in zip(X, np.broadcast_to(k, 3))]
        found = top(X, k, alpha=alpha)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_allclose(found.sum(-1), np.broadcast_to(k, 3), rtol=1e-6)
        np.testing.assert_allclose(top(X, k, alpha=alpha, log=True), np.log(expected), atol=1e-5)
        np.testing.assert_allclose(top(X + 9, k, alpha=alpha), found, rtol=1e-5)
    np.testing.assert_allclose(top(X, 2), top(X, 2, alpha=1.0))
    many = RNG.normal(size=300_000).astype(np.float32)  # the first bracket is wide enough
    np.testing.assert_allclose(top(many, 5).sum(), 5, rtol=1e-3)


def test_soft_top_k_tends_to_the_indicator():
    best = np.argsort(-X, -1)[:, :3]
    indicator = np.zeros(X.shape)
    np.put_along_axis(indicator, best, 1.0, -1)
    np.testing.assert_allclose(top(X, 3, alpha=1e3), indicator, atol=1e-3)
    np.testing.assert_allclose(top(X, 3, alpha=1e-4), 3 / 7, atol=1e-3)


def test_soft_top_k_and_its_gradient_are_the_authors():
    (golden,) = json.loads((ROOT / "tests" / "golden" / "dexml.json").read_text())
    with jax.enable_x64(True):
        for case in golden["cases"]:
            for name, kept in case["soft_top_k"].items():

                def fn(x, case=case, name=name):
                    return top(x, case["k"], alpha=case["alpha"], log=name == "log")

                value, pull = jax.vjp(fn, np.array(case["scores"]))
                np.testing.assert_allclose(value, kept["value"], atol=1e-6)
                (slope,) = pull(np.array(case["cotangent"]))
                np.testing.assert_allclose(slope, kept["cotangent_times_jacobian"], atol=1e-6)


def test_jacobian_of_soft_top_k():
    with jax.enable_x64(True):
        zeta = np.asarray(top(X[0], 2, alpha=1.5))
        v = 1.5 * zeta * (1 - zeta)
        expected = np.diag(v) - np.outer(v, v) / v.sum()
        for mode in (jax.jacrev, jax.jacfwd):
            found = mode(lambda x: top(x, 2, alpha=1.5))(X[0])
            np.testing.assert_allclose(found, expected, atol=1e-8)


def test_corners_of_soft_top_k():
    for log in (False, True):
        both = jax.jit(jax.value_and_grad(lambda x, log=log: top(x, 1, log=log)[0]))
        for x in (np.zeros(4), np.array([1e4, -1e4, 1e4, 0.0]), np.array([-1e4, 1e4, 0, 0])):
            value, slope = both(x)
            assert np.isfinite(value) and np.isfinite(slope).all()
    np.testing.assert_allclose(top(np.zeros(4), 1), 0.25, rtol=1e-6)
    np.testing.assert_allclose(top(np.array([5.0, -1e4]), 1), [1, 0], atol=1e-6)
    assert top(jnp.zeros(4, jnp.bfloat16), 1).dtype == jnp.float32
