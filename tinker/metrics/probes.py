"""What a frozen representation holds, read by simple classifiers."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from tinker.metrics.prediction import accuracy
from tinker.numerics import nearest_neighbors


def knn_accuracy(train_x, train_y, test_x, test_y, *, k=20, temperature=0.07):
    r"""Accuracy of the vote of the nearest training examples, weighted by similarity.

    .. math:: \hat y(x) = \arg\max_c \sum_{i \in N_k(x)} [y_i = c]\, \exp(\cos(x, x_i) / \tau)

    Args:
      train_x: Embeddings, ``[n, dim]``, of any length.
      train_y: Labels, ``[n]``, integers.
      test_x: ``[m, dim]``.
      test_y: ``[m]``.
      k: Voters, at most n; static.
      temperature: :math:`\tau` > 0.

    Returns:
      A scalar in [0, 1], float32. Of equal votes that of the nearest neighbour counts.

    Source: Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018,
      arXiv:1805.01978, Section 3.4.
    """
    chex.assert_equal_shape_prefix([train_x, train_y], 1)
    chex.assert_equal_shape_prefix([test_x, test_y], 1)
    near = nearest_neighbors(test_x, train_x, k, metric="cosine")
    voters = jnp.asarray(train_y)[near.indices]
    # Relative to the nearest, so that no temperature underflows them all.
    weights = jnp.exp((near.distances[:, :1] - near.distances) / temperature)

    def elect(voters, weights):
        return voters[jnp.argmax((voters[:, None] == voters) @ weights)]

    elected = jax.lax.map(lambda x: elect(*x), (voters, weights), batch_size=256)
    return jnp.mean(elected == test_y)


class LinearProbe(NamedTuple):
    """What :func:`linear_probe` returns."""

    accuracy: jax.Array
    solution: dict
    converged: jax.Array
    num_iterations: jax.Array
    error: jax.Array


def linear_probe(
    train_x,
    train_y,
    test_x,
    test_y,
    *,
    l2=1e-3,
    classes=None,
    max_iterations=1000,
    tolerance=1e-4,
):
    r"""Accuracy of a multinomial logistic regression, fitted by L-BFGS.

    .. math:: \min_{W, b} \frac1n \sum_i -\log \mathrm{softmax}(W^\top x_i + b)_{y_i}
              + \frac{\lambda}{2} \lVert W \rVert^2

    which is scikit-learn's ``LogisticRegression(C=1 / (l2 * n))``.

    Args:
      train_x: Embeddings, ``[n, dim]``, any float dtype; computed in float32 at least. They are
        not scaled, so the penalty is in their units.
      train_y: Class indices, ``[n]``, integers in [0, classes).
      test_x: ``[m, dim]``.
      test_y: ``[m]``.
      l2: :math:`\lambda` >= 0; at 0, separable classes have no minimum.
      classes: How many; static. By default one more than the largest training label, which must
        then be concrete.
      max_iterations: L-BFGS steps at most.
      tolerance: The largest absolute entry of the gradient to stop at.

    Returns:
      :class:`LinearProbe` of ``accuracy []`` on the test set; ``solution``, a dict of
      ``kernel [dim, classes]`` and ``bias [classes]``; ``converged []``; ``num_iterations []``;
      and ``error []``, the gradient's largest entry.
    """
    chex.assert_equal_shape_prefix([train_x, train_y], 1)
    chex.assert_equal_shape_prefix([test_x, test_y], 1)
    chex.assert_axis_dimension(test_x, -1, train_x.shape[-1])
    if classes is None:
        classes = int(jnp.max(train_y)) + 1
    dtype = jnp.promote_types(train_x.dtype, jnp.float32)
    train_x, test_x = jnp.asarray(train_x, dtype), jnp.asarray(test_x, dtype)
    fitted = _fit(train_x, train_y, l2, max_iterations, tolerance, classes=classes)
    return LinearProbe(jnp.mean(accuracy(_scores(fitted[0], test_x), test_y)), *fitted)


def _scores(params, x):
    return jnp.dot(x, params["kernel"], precision="highest") + params["bias"]


@functools.partial(jax.jit, static_argnames="classes")
def _fit(x, y, l2, max_iterations, tolerance, *, classes):
    centre = jnp.mean(x, 0)  # the bias takes it up, and the problem is rounder
    x = x - centre

    def objective(params):
        nll = optax.softmax_cross_entropy_with_integer_labels(_scores(params, x), y)
        return jnp.mean(nll) + 0.5 * l2 * jnp.sum(jnp.square(params["kernel"]))

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def unfinished(carry):
        _, _, done, error = carry
        return (done < max_iterations) & (error > tolerance)

    def body(carry):
        params, state, done, _ = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(
            grad, state, params, value=value, grad=grad, value_fn=objective
        )
        params = optax.apply_updates(params, updates)
        # the line search has left the gradient at the new params in its state
        error = optax.tree.norm(optax.tree.get(state, "grad"), ord=jnp.inf)
        return params, state, done + 1, error

    params = {
        "kernel": jnp.zeros((x.shape[1], classes), x.dtype),  # mutate: equivalent, it is convex
        "bias": jnp.zeros(classes, x.dtype),  # mutate: equivalent, it is convex
    }
    start = (params, solver.init(params), jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, x.dtype))
    params, _, done, error = jax.lax.while_loop(unfinished, body, start)
    bias = params["bias"] - jnp.dot(centre, params["kernel"], precision="highest")
    return params | {"bias": bias}, error <= tolerance, done, error


def of_views(apply, key, inputs, *, metric, augment, views=2, output="embeddings"):
    """A metric of what a network makes of random views of a batch, such as how far they lie apart.

    Outside training a program's views are the untouched input. As a metric of a program this reads
    ``("apply", "key", "image")``; every batch of a split is given the same draws.

    Args:
      apply: The networks as functions, ``apply(*views, train=False) -> outputs``, of which
        ``output`` is ``[batch, views, dim]``, as :class:`tinker.models.Siamese` has it.
      key: Of the views.
      inputs: ``[batch, …]``.
      metric: ``metric(embeddings [batch, views, dim]) -> [batch]``; in a config a partial spec.
      augment: ``augment(key, inputs) -> inputs``; in a config a partial spec.
      views: How many.
      output: Name of the output.

    Returns:
      What ``metric`` returns.
    """
    drawn = [augment(k, inputs) for k in jax.random.split(key, views)]
    return metric(apply(*drawn, train=False)[output])
