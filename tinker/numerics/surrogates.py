"""Values of one function with the gradients of another."""

import chex
import jax
import jax.numpy as jnp


@jax.custom_jvp
def _value_of_first(forward, backward):
    return forward


@_value_of_first.defjvp
def _slope_of_second(primals, tangents):
    return primals[0], tangents[1]


def straight_through(forward, backward):
    """The value of one array with the gradient of another.

    It is ``backward + stop_gradient(forward - backward)`` without that sum's rounding.

    Args:
      forward: The value, ``[...]``; no gradient passes to it.
      backward: What is differentiated in its place, of the same shape and dtype.

    Returns:
      ``forward``, bit for bit.

    Source: Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
      Computation, 2013, arXiv:1308.3432, Section 4.
    """
    chex.assert_equal_shape([forward, backward])
    chex.assert_equal(jnp.result_type(forward), jnp.result_type(backward))
    return _value_of_first(forward, backward)


def round_straight_through(x):
    """The nearest integer, with the gradient of the identity.

    Args:
      x: ``[...]``, of any float dtype.

    Returns:
      ``[...]``, like x; halves go to the even integer.
    """
    return straight_through(jnp.round(x), x)
