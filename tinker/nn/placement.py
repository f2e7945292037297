"""Placement: how activations are split over the devices of a mesh.

XLA decides the sharding of whatever it is not told. Left alone with parameters split over ``fsdp``
it gathers activations instead of parameters, and every device computes the whole batch; so the
zoo's models tell it at the places that matter.
"""

import math

import jax
from jax.sharding import AxisType, PartitionSpec

BATCH_AXES = ("data", "fsdp")  # of a mesh: those that split the examples


def shard(x, *axes):
    """Splits an array over the mesh of the program that is traced: a hint that changes no value.

    Args:
      x: An array, ``[batch, …]``.
      *axes: For each axis of x from the first on, the mesh's axis or axes that split it, or None
        for none; axes not named are whole. ``BATCH_AXES`` by default. An axis that does not
        divide is whole, and nothing is told if none does.

    Returns:
      x. Unchanged where there is no mesh (see ``jax.set_mesh``), or where the mesh has not these
      axes or leaves them to the program (inside ``jax.shard_map``).
    """
    mesh = jax.sharding.get_abstract_mesh()
    automatic = {n for n, t in zip(mesh.axis_names, mesh.axis_types) if t == AxisType.Auto}
    if math.prod(mesh.shape[n] for n in automatic) == 1:
        return x

    def fitting(size, names):
        names = names if isinstance(names, tuple) else (names,)
        names = tuple(n for n in names if n in automatic)
        return names if names and size % math.prod(mesh.shape[n] for n in names) == 0 else None

    axes = axes or (BATCH_AXES,)
    spec = [fitting(size, names) for size, names in zip(x.shape, axes)]
    if any(axes) and not any(spec):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))
