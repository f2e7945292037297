"""Hessian-vector products, and the extreme eigenvalues that they give."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


def hvp(fn, x, v):
    r"""The product of a function's Hessian and a vector, :math:`\nabla^2 f(x)\, v`.

    Forward over reverse: it costs about two gradients and makes no matrix.

    Args:
      fn: A function of one pytree that returns a scalar.
      x: The pytree where the Hessian is taken.
      v: A pytree of x's structure, shapes and dtypes.

    Returns:
      A pytree like x.

    Source: Fast Exact Multiplication by the Hessian, Neural Computation 1994.
    """
    return jax.jvp(jax.grad(fn), (x,), (v,))[1]


class Tridiagonal(NamedTuple):
    """What :func:`lanczos` returns."""

    alphas: jax.Array
    betas: jax.Array
    residual: jax.Array
    basis: Any


def _wide(tree):
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)


def _orthogonalise(w, basis):
    """w less its part in the span of the basis, whose unused rows are zero."""

    def dots(b, x):
        return jnp.tensordot(b, x, x.ndim, precision="highest")

    def less(x, b):
        return x - jnp.tensordot(parts, b, 1, precision="highest")

    parts = sum(jax.tree.leaves(jax.tree.map(dots, basis, w)))
    return jax.tree.map(less, w, basis)


def _start(v0, steps):
    size = optax.tree.size(v0)
    if not 0 < steps <= size:
        raise ValueError(f"{steps} steps in a space of {size} dimensions")
    w = _wide(v0)
    basis = jax.tree.map(lambda x: jnp.zeros((steps, *x.shape), x.dtype), w)
    norm = optax.tree.norm(w)
    zeros = jnp.zeros(steps, norm.dtype)
    return zeros, zeros, basis, w, norm


def _step(matvec, v0, row, state):
    """Adds the direction of w to the basis, and leaves in w what is new in its product."""
    alphas, betas, basis, w, norm = state

    def another(w):
        key = jax.random.fold_in(jax.random.key(0), row)
        return _orthogonalise(optax.tree.random_like(key, w), basis)

    w = jax.lax.cond(norm > 0, lambda w: w, another, w)
    w = optax.tree.scale(1.0 / optax.tree.norm(w), w)
    w = _orthogonalise(w, basis)  # for the second time
    w = optax.tree.scale(1.0 / optax.tree.norm(w), w)
    basis = jax.tree.map(lambda b, x: b.at[row].set(x), basis, w)
    product = _wide(matvec(jax.tree.map(lambda x, like: x.astype(like.dtype), w, v0)))
    alpha = optax.tree.vdot(w, product)
    w = _orthogonalise(product, basis)
    norm = optax.tree.norm(w)
    spent = norm <= 8 * jnp.finfo(norm.dtype).eps * optax.tree.norm(product)
    norm = jnp.where(spent, 0.0, norm)
    return alphas.at[row].set(alpha), betas.at[row].set(norm), basis, w, norm


def lanczos(matvec, v0, steps):
    r"""Tridiagonalises a symmetric operator on the Krylov space of a vector.

    .. math:: A Q = Q T + \beta_m q_{m+1} e_m^\top, \qquad Q^\top Q = I, \qquad
              T = \mathrm{tridiag}(\beta, \alpha, \beta)

    with full reorthogonalisation, twice. Where the Krylov space ends early, it goes on from a
    fixed random direction outside it, and T falls into blocks.

    Args:
      matvec: A function of a pytree like v0 that returns A v, for a symmetric A.
      v0: The starting vector, a pytree; a random one is ``optax.tree.random_like(key, params)``.
        Zero gives a fixed random one. Leaves of bfloat16 are kept in float32 between products.
      steps: m, at most the number of dimensions; static. The basis takes m times v0's memory.

    Returns:
      :class:`Tridiagonal` of ``alphas [m]``, T's diagonal; ``betas [m - 1]``, those beside it;
      ``residual []``, :math:`\beta_m`; and ``basis``, a pytree of Q's columns as ``[m, ...]``.

    Source: An iteration method for the solution of the eigenvalue problem of linear differential
      and integral operators, J. Res. Nat. Bur. Standards 1950.
    """
    state = jax.lax.fori_loop(
        0, steps, lambda row, state: _step(matvec, v0, row, state), _start(v0, steps)
    )
    alphas, betas, basis, *_ = state
    return Tridiagonal(alphas, betas[:-1], betas[-1], basis)


class TopEigenvalues(NamedTuple):
    """What :func:`top_eigenvalues` returns."""

    solution: jax.Array
    vectors: Any
    converged: jax.Array
    num_iterations: jax.Array
    error: jax.Array


def _ritz(alphas, betas, done, k):
    """The top k eigenvalues of T's first rows, their vectors, and the largest relative residual."""
    steps = len(alphas)
    rows = jnp.arange(steps)
    scale = jnp.max(jnp.abs(alphas)) + jnp.max(jnp.abs(betas))
    scale = jnp.where(scale > 0, scale, 1.0)
    # Rows to come stand apart below the rest, whose eigenvalues are in [-3, 3] by Gershgorin.
    diagonal = jnp.where(rows < done, alphas / scale, -4.0)  # mutate: equivalent, below -3
    beside = jnp.where(rows < done - 1, betas / scale, 0.0)[:-1]
    t = jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
    values, vectors = jnp.linalg.eigh(t)
    values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
    left = jnp.abs(betas[done - 1] * vectors[done - 1]) / scale
    return values * scale, vectors, jnp.max(left)


def top_eigenvalues(matvec, v0, k=1, *, max_iterations=50, tolerance=1e-4):
    r"""The largest eigenvalues of a symmetric operator, by Lanczos' method.

    A Ritz pair :math:`(\theta, Q s)` of :math:`T = Q^\top A Q` has the residual
    :math:`\lVert A Q s - \theta Q s \rVert = \beta_m |s_m|`, and an eigenvalue of A is within it.
    Largest is by value, not magnitude: for the smallest, negate matvec. Of an eigenvalue that A has
    several times one copy may be missing until the space is exhausted.

    Args:
      matvec: A function of a pytree like v0 that returns A v, for a symmetric A: the Hessian is
        ``lambda v: hvp(loss, params, v)``.
      v0: The starting vector, a pytree with a part along the eigenvectors sought; a random one is
        ``optax.tree.random_like(key, params)``.
      k: How many eigenvalues; static.
      max_iterations: Products with A at most, no more than there are dimensions; static. The basis
        takes so many times v0's memory.
      tolerance: The largest residual of the k pairs, relative to T's largest entries, to stop at.

    Returns:
      :class:`TopEigenvalues` of ``solution [k]``, descending; ``vectors``, a pytree of unit
      eigenvectors ``[k, ...]``; ``converged []``; ``num_iterations []``, products with A; and
      ``error []``, what was held against the tolerance. Not differentiable in reverse.
    """
    steps = min(max_iterations, optax.tree.size(v0))
    if not 0 < k <= steps:
        raise ValueError(f"k={k} eigenvalues of {steps} iterations")

    def unfinished(carry):
        done, state, (_, _, error) = carry
        return (done < steps) & ((done < k) | (error > tolerance))

    def body(carry):
        done, state, _ = carry
        state = _step(matvec, v0, done, state)
        return done + 1, state, _ritz(*state[:2], done + 1, k)

    state = _start(v0, steps)
    kind = state[0].dtype
    pairs = (jnp.zeros(k, kind), jnp.zeros((steps, k), kind), jnp.full((), jnp.inf, kind))
    done, state, pairs = jax.lax.while_loop(
        unfinished, body, (jnp.zeros((), jnp.int32), state, pairs)
    )
    values, vectors, error = pairs
    vectors = jax.tree.map(lambda b: jnp.tensordot(vectors.T, b, 1, precision="highest"), state[2])
    return TopEigenvalues(values, vectors, error <= tolerance, done, error)
