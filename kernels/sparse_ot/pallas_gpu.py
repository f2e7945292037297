"""No form for GPUs yet: the kernel says so when it is lowered for one."""

import functools

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import mlir

from tinker.numerics import UserError

_refused = Primitive("sparse_ot_refused")
_refused.def_abstract_eval(lambda x: x)


def refuse(tpu, *arrays):
    """Stands for what ``tpu`` returns of the arrays until it is lowered."""
    shapes = jax.eval_shape(functools.partial(tpu, interpret=True), *arrays)
    zero = _refused.bind(jnp.zeros(()))
    return jax.tree.map(lambda s: jnp.full(s.shape, zero, s.dtype), shapes)


def _lower(*_):
    raise UserError(
        "implementation='pallas': sparse transport has no GPU form; it takes None or 'xla'"
    )


mlir.register_lowering(_refused, _lower)
