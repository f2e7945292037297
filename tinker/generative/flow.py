"""Rectified flow: a velocity field regressed on straight lines, and the ODE that follows it.

A velocity is any function ``velocity(x, t)`` of points ``[batch, ...]`` and times ``[batch]``. Time
runs from 0, where the points x0 of the source are, to 1, where the points x1 of the target are.
"""

import chex
import jax
import jax.numpy as jnp

from tinker.numerics import check_choice, straight_through

# Explicit Runge-Kutta methods whose every stage starts from the slope of the one before it: where
# the stages lie in a step, and how their slopes are weighted.
METHODS = {
    "euler": ((0.0,), (1.0,)),
    "heun": ((0.0, 1.0), (1 / 2, 1 / 2)),
    "rk4": ((0.0, 1 / 2, 1 / 2, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


def linear_interpolation(t):
    """The weights of x1 and x0 on the straight line between them, t and 1 - t.

    Args:
      t: Times in [0, 1], ``[...]``.

    Returns:
      ``(alpha, beta)``, each ``[...]``.

    Source: Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow,
      ICLR 2023, arXiv:2209.03003, the linear interpolation.
    """
    return t, 1.0 - t


def vp_interpolation(t, *, a=19.9, b=0.1):
    r"""The weights of x1 and x0 that make a rectified flow the VP probability flow ODE.

    .. math:: \alpha_t = \exp\!\big(-\tfrac14 a (1 - t)^2 - \tfrac12 b (1 - t)\big),
              \qquad \beta_t = \sqrt{1 - \alpha_t^2}

    The slope of :math:`\beta` is unbounded at t = 1, and is held from 1 - t = 1e-5 on.

    Args:
      t: Times in [0, 1], ``[...]``.
      a: Growth of the diffusion's rate.
      b: The diffusion's rate at the target.

    Returns:
      ``(alpha, beta)``, each ``[...]``.

    Source: Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow,
      ICLR 2023, arXiv:2209.03003, the nonlinear extension, whose time runs against
      the diffusion's.
    """
    log_alpha = _vp_log_alpha(t, a, b)
    return jnp.exp(log_alpha), jnp.sqrt(-jnp.expm1(2.0 * log_alpha))


def sub_vp_interpolation(t, *, a=19.9, b=0.1):
    r"""The weights of x1 and x0 that make a rectified flow the sub-VP probability flow ODE.

    .. math:: \alpha_t = \exp\!\big(-\tfrac14 a (1 - t)^2 - \tfrac12 b (1 - t)\big),
              \qquad \beta_t = 1 - \alpha_t^2

    Args:
      t: Times in [0, 1], ``[...]``.
      a: Growth of the diffusion's rate.
      b: The diffusion's rate at the target.

    Returns:
      ``(alpha, beta)``, each ``[...]``.

    Source: Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow,
      ICLR 2023, arXiv:2209.03003, the nonlinear extension.
    """
    log_alpha = _vp_log_alpha(t, a, b)
    return jnp.exp(log_alpha), -jnp.expm1(2.0 * log_alpha)


def _vp_log_alpha(t, a, b):
    left = 1.0 - t
    left = straight_through(jnp.maximum(left, 1e-5), left)
    return -0.25 * a * left**2 - 0.5 * b * left


def rectified_flow_loss(velocity, x0, x1, t, *, interpolation=linear_interpolation):
    r"""The squared distance of a velocity to the line from x0 to x1, at a point of that line.

    .. math:: \ell = \lVert \dot X_t - v(X_t, t) \rVert^2, \qquad
              X_t = \alpha_t x_1 + \beta_t x_0, \qquad
              \dot X_t = \dot\alpha_t x_1 + \dot\beta_t x_0

    With the linear interpolation :math:`\dot X_t = x_1 - x_0`. For a rectified flow t is uniform
    on [0, 1]. For the k-rectified flow (reflow) x0 are points of the source and x1 where
    :func:`ode_sample` takes them; with those pairs and t = 0 this is distillation into one step.

    Args:
      velocity: ``velocity(x, t)``, of ``[batch, ...]`` and ``[batch]``, giving ``[batch, ...]``.
      x0: Points of the source, ``[batch, ...]``, any float dtype; computed in float32 at least.
      x1: Points of the target that they are coupled with, ``[batch, ...]``.
      t: Times in [0, 1], ``[batch]``.
      interpolation: ``interpolation(t) -> (alpha, beta)``, differentiable.

    Returns:
      Loss per pair, ``[batch]``, in squared units of the points, float32. As in the paper it is the
      whole squared norm: the authors' code takes half of it, or its mean over the features; it
      also draws t from [0.001, 1] and gives the network 999 t.

    Source: Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow,
      ICLR 2023, arXiv:2209.03003, the least-squares problem and its nonlinear extension.
    """
    chex.assert_equal_shape([x0, x1])
    chex.assert_shape(t, x0.shape[:1])
    dtype = jnp.promote_types(jnp.result_type(x0, x1), jnp.float32)
    x0, x1, t = (jnp.asarray(x, dtype) for x in (x0, x1, t))
    weights, slopes = jax.jvp(interpolation, (t,), (jnp.ones_like(t),))
    each = t.shape + (1,) * (x0.ndim - 1)
    (alpha, beta), (d_alpha, d_beta) = jax.tree.map(lambda w: w.reshape(each), (weights, slopes))
    target = d_alpha * x1 + d_beta * x0
    error = target - velocity(alpha * x1 + beta * x0, t)
    return jnp.square(error).reshape(len(t), -1).sum(-1)


def _integrate(slope, state, start, stop, steps, method):
    """The last state and those after each step; ``slope(state, t)`` has the state's structure."""
    check_choice("method", method, METHODS)
    size = (stop - start) / steps

    def step(state, i):
        change = total = jax.tree.map(jnp.zeros_like, state)
        for at, weight in zip(*METHODS[method], strict=True):
            here = jax.tree.map(lambda x, d, at=at: x + at * size * d, state, change)
            change = slope(here, start + (i + at) * size)
            total = jax.tree.map(lambda a, d, weight=weight: a + weight * d, total, change)
        state = jax.tree.map(lambda x, d: x + size * d, state, total)
        return state, state

    return jax.lax.scan(step, state, jnp.arange(steps))


def ode_sample(velocity, x, *, steps=100, method="euler", start=0.0, stop=1.0, trajectory=False):
    r"""Follows a velocity: solves :math:`\dot Z_t = v(Z_t, t)` in equal steps.

    From 0 to 1 it takes points of the source to the target, from 1 to 0 back. Pairs for a reflow
    are ``(x0, ode_sample(velocity, x0))``.

    Args:
      velocity: ``velocity(x, t)``, of ``[batch, ...]`` and ``[batch]``, giving ``[batch, ...]``.
      x: Points at time ``start``, ``[batch, ...]``.
      steps: Number of steps; static.
      method: "euler" asks for the velocity once a step, "heun" twice, "rk4" four times; static.
      start: Time in [0, 1]; the authors' code starts at 0.001.
      stop: Time in [0, 1].
      trajectory: Whether all steps are returned; static.

    Returns:
      Points at time ``stop``, ``[batch, ...]``; with ``trajectory`` those of all steps, the first
      included, ``[steps + 1, batch, ...]``.

    Raises:
      UserError: The method is unknown.

    Source: Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow,
      ICLR 2023, arXiv:2209.03003, Algorithm 1. Its full simulation is an adaptive RK45 of
      tolerance 1e-5; here are fixed steps.
    """
    slope = lambda x, t: velocity(x, jnp.full(x.shape[:1], t, x.dtype))  # noqa: E731
    last, later = _integrate(slope, x, start, stop, steps, method)
    return jnp.concatenate([x[None], later]) if trajectory else last


def straightness(trajectory):
    r"""How far a flow is from straight lines at constant speed; 0 if it is there in one step.

    .. math:: S(Z) = \int_0^1 \mathbb{E}\,
              \big\lVert (Z_1 - Z_0) - \dot Z_t \big\rVert^2 \, dt

    Args:
      trajectory: Points at equally spaced times from 0 to 1, ``[steps + 1, batch, ...]``, as
        :func:`ode_sample` gives them; between them the velocity counts as constant.

    Returns:
      The integral for each point, ``[batch]``, in squared units of the points; S is the mean.

    Source: Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow,
      ICLR 2023, arXiv:2209.03003, the straightness S(Z).
    """
    slopes = jnp.diff(trajectory, axis=0) * (len(trajectory) - 1)
    gaps = jnp.square(trajectory[-1] - trajectory[0] - slopes)
    return gaps.reshape(*gaps.shape[:2], -1).sum(-1).mean(0)


def transport_cost(x0, x1, *, power=2.0):
    r"""The cost :math:`\lVert x_1 - x_0 \rVert^p` of taking x0 to x1.

    Rectification lowers the mean of this, and of any other convex function of x1 - x0.

    Args:
      x0: ``[batch, ...]``, any float dtype; computed in float32 at least.
      x1: ``[batch, ...]``.
      power: p >= 1.

    Returns:
      Cost per pair, ``[batch]``, float32; its gradient where x0 = x1 is 0.

    Source: Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow,
      ICLR 2023, arXiv:2209.03003, Section 3.2, with this convex cost.
    """
    chex.assert_equal_shape([x0, x1])
    dtype = jnp.promote_types(jnp.result_type(x0, x1), jnp.float32)
    squared = jnp.square(x1.astype(dtype) - x0.astype(dtype)).reshape(len(x0), -1).sum(-1)
    moved = squared > 0
    return jnp.where(moved, jnp.where(moved, squared, 1.0) ** (power / 2), 0.0)


def flow_log_likelihood(velocity, x1, log_prior, *, key=None, steps=100, method="rk4"):
    r"""The log density that a flow gives to points of the target.

    .. math:: \log p_1(x_1) = \log p_0(Z_0) - \int_0^1 \nabla \cdot v(Z_t, t)\, dt,
              \qquad Z_1 = x_1

    solved backwards along with the ODE. The divergence is exact, by one derivative per feature, or
    with a key :math:`\varepsilon^\top (\partial v / \partial x)\, \varepsilon` for one sign vector
    per point (Hutchinson), which is unbiased.

    Args:
      velocity: ``velocity(x, t)``, of ``[batch, ...]`` and ``[batch]``, giving ``[batch, ...]``;
        each point's velocity depends on that point alone.
      x1: Points at time 1, ``[batch, ...]``.
      log_prior: Log density of the source, of ``[batch, ...]``, giving ``[batch]``, in nats.
      key: Of which the sign vectors are drawn; None for the exact divergence.
      steps: Number of steps; static.
      method: As for :func:`ode_sample`.

    Returns:
      Log density in nats, ``[batch]``.

    Source: FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models,
      ICLR 2019, arXiv:1810.01367, Algorithm 1.
    """
    if key is None:
        features = x1[0].size
        probes = jnp.eye(features, dtype=x1.dtype).reshape(features, 1, *x1.shape[1:])
        probes = jnp.broadcast_to(probes, (features, *x1.shape))
    else:
        probes = jax.random.rademacher(key, (1, *x1.shape), x1.dtype)

    def slope(state, t):
        x, _ = state
        field = lambda x: velocity(x, jnp.full(x.shape[:1], t, x.dtype))  # noqa: E731
        v, linear = jax.linearize(field, x)
        products = probes * jax.vmap(linear)(probes)
        return v, products.reshape(*products.shape[:2], -1).sum((0, 2))

    state = x1, jnp.zeros(len(x1), x1.dtype)
    (z0, change), _ = _integrate(slope, state, 1.0, 0.0, steps, method)
    return log_prior(z0) + change
