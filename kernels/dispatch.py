"""Which form of a kernel runs, and whether its blocks fit."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import mlir

from tinker.numerics.errors import UserError, check_choice, nearest

VMEM_BYTES = 16 * 2**20  # what a TPU program may use of it unless told otherwise
SMEM_BYTES = 227 * 2**10  # shared memory of a block on Hopper


def choose(implementation):
    """Returns "xla" or "pallas"; None is the fastest that was measured, on no platform Pallas yet.

    Args:
      implementation: What the caller asked for: None, "xla" or "pallas".

    Raises:
      UserError: Another name.
    """
    check_choice("implementation", implementation, (None, "xla", "pallas"))
    return implementation or "xla"


def mesh_with(name, axis, size, what):
    """The mesh that is traced for, and how many of its devices an axis, or several, have.

    Args:
      name: Of the keyword that named the axis.
      axis: An axis of the mesh or a tuple of them.
      size: What is split over it.
      what: That in words.

    Returns:
      ``(mesh, devices)``.

    Raises:
      UserError: There is no such axis, or the size does not divide.
    """
    mesh, devices = jax.sharding.get_abstract_mesh(), 1
    for one in (axis,) if isinstance(axis, str) else axis:
        if one not in mesh.axis_names:
            raise UserError(
                f"{name}={axis!r} is of no mesh here{nearest(one, mesh.axis_names)}: call under "
                f"`with jax.set_mesh(mesh)`, whose axes now are {mesh.axis_names}"
            )
        devices *= mesh.shape[one]
    if size % devices:
        raise UserError(
            f"{size} {what} do not divide among the {devices} devices of {name}={axis!r}"
        )
    return mesh, devices


def run_pallas(tpu, gpu, *arrays):
    """Runs the Pallas form of the platform that is compiled for.

    On a CPU the TPU's form runs in interpret mode, which is exact and slow.

    Args:
      tpu: ``tpu(*arrays, interpret=False)``.
      gpu: ``gpu(*arrays)``, for Hopper. A UserError of its own is raised where it is lowered for a
        GPU, and nowhere else, though all forms are traced everywhere.
      *arrays: Pytrees of arrays.

    Returns:
      What they return.
    """
    interpreted = functools.partial(tpu, interpret=True)

    def gpu_or_refusal(*arrays):
        try:
            return gpu(*arrays)
        except UserError as error:
            zero = _refused.bind(jnp.zeros(()), message=str(error))
            shapes = jax.eval_shape(interpreted, *arrays)
            return jax.tree.map(lambda x: jnp.full(x.shape, zero, x.dtype), shapes)

    return jax.lax.platform_dependent(*arrays, cpu=interpreted, tpu=tpu, cuda=gpu_or_refusal)


def _refuse(_, *__, message):
    raise UserError(message)


_refused = Primitive("refused")
_refused.def_abstract_eval(lambda x, *, message: x)
mlir.register_lowering(_refused, _refuse)


def check_vmem(name, blocks, scratch=(), limit=VMEM_BYTES):
    """Raises unless the blocks of a TPU kernel fit in VMEM, which lowering does not check.

    Args:
      name: Of the kernel.
      blocks: ``(shape, dtype)`` of each input's and output's block; each is held twice, as one is
        worked on while the next is copied.
      scratch: The same of what is held once.
      limit: Bytes.

    Returns:
      The bytes needed, the last two axes padded to whole tiles.

    Raises:
      ValueError: They do not fit.
    """
    needed = 2 * sum(_vmem_bytes(*b) for b in blocks) + sum(_vmem_bytes(*s) for s in scratch)
    if needed > limit:
        raise ValueError(f"{name} needs {needed:,} bytes of VMEM, of which there are {limit:,}")
    return needed


def smem_stages(name, fixed, ring, limit=SMEM_BYTES):
    """How many buffers of a ring fit in a Hopper block's shared memory, 4 at most.

    Args:
      name: Of the kernel.
      fixed: ``(shape, dtype)`` of each buffer that is there once.
      ring: Of each buffer that is there once a stage.
      limit: Bytes, of which 4 KiB are kept for barriers and the compiler's reductions.

    Raises:
      ValueError: Not one fits.
    """
    fixed, each = (sum(_smem_bytes(*b) for b in buffers) for buffers in (fixed, ring))
    stages = min(4, (limit - 4 * 2**10 - fixed) // each)
    if stages < 1:
        raise ValueError(f"{name} needs {fixed + each:,} bytes of shared memory, beyond {limit:,}")
    return stages


def _smem_bytes(shape, dtype):
    return math.ceil(math.prod(shape) * jnp.dtype(dtype).itemsize / 1024) * 1024


def _vmem_bytes(shape, dtype):
    size = jnp.dtype(dtype).itemsize
    *rest, rows, columns = (1, 1, *shape)
    rows_of_tile = 8 * max(1, 4 // size)
    rows = math.ceil(rows / rows_of_tile) * rows_of_tile
    return math.prod(rest) * rows * math.ceil(columns / 128) * 128 * size
