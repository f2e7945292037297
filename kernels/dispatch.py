"""Which form of a kernel runs, and whether its blocks fit."""

import functools
import math

import jax
import jax.numpy as jnp

from tinker.numerics.errors import check_choice

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


def run_pallas(tpu, gpu, *arrays):
    """Runs the Pallas form of the platform that is compiled for.

    On a CPU the TPU's form runs in interpret mode, which is exact and slow.

    Args:
      tpu: ``tpu(*arrays, interpret=False)``.
      gpu: ``gpu(*arrays)``, for Hopper.
      *arrays: Pytrees of arrays.

    Returns:
      What they return.
    """
    return jax.lax.platform_dependent(
        *arrays, cpu=functools.partial(tpu, interpret=True), tpu=tpu, cuda=gpu
    )


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


def _vmem_bytes(shape, dtype):
    size = jnp.dtype(dtype).itemsize
    *rest, rows, columns = (1, 1, *shape)
    rows_of_tile = 8 * max(1, 4 // size)
    rows = math.ceil(rows / rows_of_tile) * rows_of_tile
    return math.prod(rest) * rows * math.ceil(columns / 128) * 128 * size
