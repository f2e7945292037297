"""Sparse transport against the plain form and POT: ``python -m tinker.kernels.sparse_ot.bench``.

OTT-JAX has no semi-dual of these problems.
"""

import contextlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

from tinker.kernels.benchmarking import Case, main
from tinker.kernels.costs import squared_euclidean_factors
from tinker.kernels.sparse_ot import api, reference

DIM = 16


def cases():
    """Value and slopes in the potentials and the points, of two clouds at their best gamma."""
    pot = importlib.util.find_spec("ot") is not None
    note = "" if pot else " (POT is not installed)"
    made = []
    for k, name in ((4, "4 nonzeros"), (32, "32 nonzeros"), (None, "quadratic")):
        args = _clouds(2048)
        peers = {"plain": _from_points(reference.semi_dual, k)}
        if pot:
            peers["POT, potentials only"] = _of_pot(k)
        ours = _from_points(api.point_semi_dual, k)
        made.append(Case(f"sparse_ot, {name}", f"2048 x 2048 x {DIM}{note}", ours, peers, args))
        shapes = [jax.ShapeDtypeStruct((8192, *x.shape[1:]), x.dtype) for x in args]
        plain = {"plain": peers["plain"]}
        made.append(
            Case(f"sparse_ot, {name}, memory", f"8192 x 8192 x {DIM}", ours, plain, shapes=shapes)
        )
    return made


def _clouds(n):
    """Potentials of the right size, and two clouds of n points in the unit cube."""
    rng = np.random.default_rng(0)
    alpha = 0.1 * rng.normal(size=n)
    return tuple(np.float32(x) for x in (alpha, *rng.uniform(size=(2, n, DIM))))


def _from_points(semi_dual, k):
    def fn(alpha, x, y):
        mass = jnp.full(len(x), 1 / len(x))

        def value(alpha, x, y):
            cost = squared_euclidean_factors(x, y)
            return semi_dual(alpha, cost, mass, mass, k=k, gamma=len(x) / 8)

        return jax.value_and_grad(value, (0, 1, 2))(alpha, x, y)

    return fn


def _of_pot(k):
    from ot import dist, smooth

    def fn(alpha, x, y):
        n = len(x)
        mass, cost = np.full(n, 1 / n), dist(np.float64(x), np.float64(y))
        regul = smooth.SquaredL2(n / 8) if k is None else smooth.SparsityConstrained(k, n / 8)
        with contextlib.redirect_stdout(None):  # it prints as it goes
            return smooth.semi_dual_obj_grad(np.float64(alpha), mass, mass, cost, regul)

    fn.host = True
    return fn


if __name__ == "__main__":
    main([cases])
