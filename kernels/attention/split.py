"""Attention of a mesh's devices, each of its own examples and heads."""

import functools

import jax
from jax.sharding import PartitionSpec

from tinker.kernels.attention.api import flash_attention
from tinker.kernels.dispatch import mesh_with

POSITIONS = ("query_positions", "key_positions")


def split_attention(
    query,
    key,
    value,
    bias=None,
    mask=None,
    *,
    batch_axis=("data", "fsdp"),
    heads_axis="tensor",
    return_lse=False,
    **options,
):
    """:func:`flash_attention` on each device of a mesh, of the examples and heads it has.

    XLA splits its own form of attention by itself. A Pallas form it cannot look into, and refuses
    to split; this does.

    Args:
      query: As for :func:`flash_attention`, as are the next four.
      key: k.
      value: v.
      bias: b.
      mask: Boolean.
      batch_axis: The axis (or axes) over which the batch is split, of the mesh of a training
        program or of ``with jax.set_mesh(mesh)``; static.
      heads_axis: The same of the heads.
      return_lse: See :func:`flash_attention`.
      **options: Further keywords of :func:`flash_attention`.

    Returns:
      As :func:`flash_attention`.

    Raises:
      UserError: What :func:`flash_attention` raises, or an axis that the mesh lacks or that does
        not divide.
    """
    mesh, _ = mesh_with("batch_axis", batch_axis, len(key), "examples")
    mesh_with("heads_axis", heads_axis, key.shape[2], "heads of keys")
    arrays = dict(query=query, key=key, value=value, bias=bias, mask=mask)
    arrays |= {name: x for name, x in options.items() if isinstance(x, jax.Array)}
    static = {name: x for name, x in options.items() if name not in arrays}

    def spec(name, x):
        if name in POSITIONS:
            axes = (batch_axis,) if x.ndim == 2 else ()
        elif name in ("query", "key", "value"):
            axes = (batch_axis, None, heads_axis)
        else:
            axes = (batch_axis, heads_axis)
        # An axis of one broadcasts, and is whole everywhere.
        return PartitionSpec(*(None if n == 1 else axis for n, axis in zip(x.shape, axes)))

    specs = {name: None if x is None else spec(name, x) for name, x in arrays.items()}
    output = PartitionSpec(batch_axis, None, heads_axis)
    if return_lse:
        output = output, PartitionSpec(batch_axis, heads_axis)
    attend = functools.partial(flash_attention, return_lse=return_lse, **static)
    return jax.shard_map(
        lambda arrays: attend(**arrays),
        mesh=mesh,
        in_specs=(specs,),
        out_specs=output,
        check_vma=False,
    )(arrays)
