"""Sinkhorn iterations against OTT-JAX, POT and the plain form.

Run it as ``python -m tinker.kernels.sinkhorn.bench``.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

from tinker.kernels.benchmarking import Case, main
from tinker.kernels.costs import squared_euclidean_factors
from tinker.kernels.sinkhorn import api, reference

EPSILON = 0.05
ITERATIONS = 20  # of either potential


def cases():
    """Twenty iterations from zero between two clouds, and an update's slopes; time and memory."""
    missing = [name for name in ("ott", "ot") if importlib.util.find_spec(name) is None]
    made = []
    for n, d in ((2048, 3), (2048, 64)):
        note = f" (without {', '.join(missing)})" if missing else ""
        args = _clouds(n, d)
        peers = {"plain": _iterate(reference.update)}
        if "ott" not in missing:
            peers["OTT-JAX"] = _of_ott(None)
            if _traces(_of_ott(256), args):
                peers["OTT-JAX, batches of 256"] = _of_ott(256)
            else:
                note += " (OTT-JAX's batches fail under this JAX)"
        if "ot" not in missing and d == 3:
            peers["POT"] = _of_pot
        name = f"sinkhorn, {ITERATIONS} iterations"
        ours = _iterate(api.sinkhorn_update)
        made.append(Case(name, f"{n} x {n} x {d}{note}", ours, peers, args))
        shapes = [jax.ShapeDtypeStruct((8192, d), x.dtype) for x in args]
        peers = {name: fn for name, fn in peers.items() if name != "POT"}
        made.append(Case(f"{name}, memory", f"8192 x 8192 x {d}", ours, peers, shapes=shapes))
    slopes, plain = _slopes(api.sinkhorn_update), {"plain": _slopes(reference.update)}
    made.append(Case("sinkhorn, update and slopes", f"{n} x {n} x {d}", slopes, plain, args))
    made.append(
        Case("sinkhorn, slopes, memory", f"8192 x 8192 x {d}", slopes, plain, shapes=shapes)
    )
    return made


def _clouds(n, d):
    """Points whose squared distances are about 1."""
    rng = np.random.default_rng(0)
    return tuple(np.float32(x) for x in rng.normal(size=(2, n, d)) / np.sqrt(2 * d))


def _iterate(update):
    def fn(x, y):
        cost = squared_euclidean_factors(x, y)
        a, b = jnp.full(len(x), 1 / len(x)), jnp.full(len(y), 1 / len(y))
        step = functools.partial(update, epsilon=EPSILON)

        def body(_, state):
            g = step(state[0], cost.T, a)
            return step(g, cost, b), g

        return jax.lax.fori_loop(0, ITERATIONS, body, (jnp.zeros(len(x)), jnp.zeros(len(y))))

    return fn


def _slopes(update):
    def fn(x, y):
        def value(x, y):
            cost, b = squared_euclidean_factors(x, y), jnp.full(len(y), 1 / len(y))
            return update(jnp.zeros(len(y)), cost, b, epsilon=EPSILON).mean()

        return jax.value_and_grad(value, (0, 1))(x, y)

    return fn


def _of_ott(batch):
    from ott.geometry import pointcloud
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    def fn(x, y):
        cloud = pointcloud.PointCloud(x, y, epsilon=EPSILON, batch_size=batch)
        # the marginals are looked at once, at the end
        limits = {"min_iterations": ITERATIONS, "max_iterations": ITERATIONS}
        solve = sinkhorn.Sinkhorn(inner_iterations=ITERATIONS, **limits)
        out = solve(linear_problem.LinearProblem(cloud))
        return out.f, out.g

    return fn


def _traces(fn, args):
    """Whether it can run at all: the batches of OTT-JAX 0.6.0 ask JAX for what 0.10 has not."""
    try:
        jax.eval_shape(fn, *args)
    except AttributeError:
        return False
    return True


def _of_pot(x, y):
    from ot import bregman, dist

    mass, cost = np.full(len(x), 1 / len(x)), dist(np.float64(x), np.float64(y))
    options = {"numItermax": ITERATIONS, "stopThr": 0.0, "warn": False, "log": True}
    log = bregman.sinkhorn_log(mass, mass, cost, EPSILON, **options)[1]
    return EPSILON * log["log_u"], EPSILON * log["log_v"]


_of_pot.host = True

if __name__ == "__main__":
    main([cases])
