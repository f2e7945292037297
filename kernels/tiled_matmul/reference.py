"""The reductions as their equations say, with the product."""

import jax
import jax.numpy as jnp


def scores(x, y, *, bias=None, softcap=None, exclude=None, precision=None):
    """The product, ``[n, m]``, in float32 at least, as :func:`matmul_logsumexp` means it."""
    dtype = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
    z = jnp.einsum("nd,md->nm", x, y, precision=precision, preferred_element_type=dtype)
    if bias is not None:
        z += bias
    if softcap is not None:
        z = softcap * jnp.tanh(z / softcap)
    if bias is not None:
        z = jnp.where(bias > -jnp.inf, z, -jnp.inf)  # which the softcap would make finite
    if exclude is not None:
        z = jnp.where(jnp.arange(len(y)) == exclude[:, None], -jnp.inf, z)
    return z


def logsumexp(x, y, **options):
    """What :func:`tinker.kernels.matmul_logsumexp` computes."""
    return jax.nn.logsumexp(scores(x, y, **options), -1)


def softplus_sum(x, y, **options):
    """What :func:`tinker.kernels.matmul_softplus_sum` computes."""
    return jax.nn.softplus(scores(x, y, **options)).sum(-1)
