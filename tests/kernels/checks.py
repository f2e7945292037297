"""What the kernels' tests ask of the compiler."""

import jax
import numpy as np


def as_shapes(*args):
    """Shapes and dtypes of arrays, in whatever they are nested."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), args)


def lowered_for(platform, fn, *args):
    """The StableHLO of ``fn(*args)`` for "tpu" or "cuda", as text; args may be shapes.

    That it lowers is no proof that it works: neither a missing wait nor a block beyond VMEM shows.
    """
    exported = jax.export.export(jax.jit(fn), platforms=[platform])(*as_shapes(*args))
    return exported.mlir_module()


def temporary_bytes(fn, *args):
    """Temporary memory of the compiled ``fn(*args)``; args may be shapes."""
    compiled = jax.jit(fn).lower(*as_shapes(*args)).compile()
    return compiled.memory_analysis().temp_size_in_bytes
