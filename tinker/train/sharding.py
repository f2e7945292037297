"""Sharding: a mesh, and from a leaf's path to where it lives.

Arrays are placed by ``jax.sharding.NamedSharding`` and XLA inserts the communication (GSPMD), so
that the same program runs on one device and on many. Activations are placed by the models, see
:func:`tinker.nn.shard`.
"""

import functools
import math
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tinker.nn import BATCH_AXES
from tinker.nn.axes import STACKED
from tinker.numerics import UserError, nearest

AXES = (*BATCH_AXES, "tensor")

# Which axis of the zoo's transformers `tensor` splits where no rule of the config's says: what a
# block's first matrices write and its second ones read, so that it communicates once for the two.
TENSOR_RULES = (
    (r"(query|key|value)/kernel$", ("...", None, "tensor", None)),
    (r"(query|key|value)/bias$", ("...", "tensor", None)),
    (r"attention/out/kernel$", ("...", "tensor", None, None)),
    (r"mlp/up/kernel$", ("...", None, "tensor")),
    (r"mlp/up/bias$", ("...", "tensor")),
    (r"mlp/down/kernel$", ("...", "tensor", None)),
    (r"embed/embedding$", ("tensor", None)),
    (r"head/kernel$", (None, "tensor")),
)


def make_mesh(sizes=None, devices=None):
    """Arranges devices in a mesh.

    Args:
      sizes: Devices along each axis, ``{"data": -1, "fsdp": 1, "tensor": 1}`` by default. One of
        them may be -1: what is left. Batches are split over data and fsdp, parameters over fsdp,
        and over tensor where a rule says so.
      devices: The devices to use, by default all; the first ones where fewer are asked for.

    Returns:
      A ``jax.sharding.Mesh`` whose axes are Auto.

    Raises:
      UserError: The sizes do not fit the devices.
    """
    sizes = {"data": -1, "fsdp": 1, "tensor": 1} | dict(sizes or {})
    devices = jax.devices() if devices is None else list(devices)
    for axis, size in sizes.items():
        if axis not in AXES:
            raise UserError(f"config.mesh has no axis {axis!r}{nearest(axis, AXES)}")
        if size != -1 and size < 1:
            raise UserError(f"config.mesh.{axis}={size} must be at least 1, or -1 for what is left")
    free = [axis for axis in AXES if sizes[axis] == -1]
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(free) > 1:
        raise UserError(f"config.mesh leaves {' and '.join(free)} open; only one may be -1")
    if free:
        sizes[free[0]] = len(devices) // fixed
    shape = tuple(sizes[axis] for axis in AXES)
    needed = int(np.prod(shape))
    if not needed or needed > len(devices) or (free and needed != len(devices)):
        asked = " x ".join(f"{axis}={'?' if axis in free else sizes[axis]}" for axis in AXES)
        raise UserError(f"config.mesh asks for {asked}, which {len(devices)} devices do not fill")
    if needed < len(devices) and jax.process_count() > 1:
        raise UserError(f"config.mesh uses {needed} of {len(devices)} devices; give one axis as -1")
    auto = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(shape, AXES, axis_types=auto, devices=devices[:needed])


def replicated(mesh):
    """The sharding that puts a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh, leading=0):
    """The sharding of a batch: its axis number ``leading`` split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, BATCH_AXES))


def under(mesh, fn):
    """``fn`` as traced for a mesh: its losses may name axes, its models place activations."""

    @functools.wraps(fn)
    def call(*args, **kwargs):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return fn(*args, **kwargs)

    return call


def check_batch_size(size, mesh, name="config.batch_size"):
    """Raises a UserError for a batch that the mesh cannot split evenly."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if size % parts:
        raise UserError(f"{name}={size} does not divide among the mesh's {parts} (data x fsdp)")


def path_of(path):
    """A key path as a name: ``"opt_state/0/mu/model/Dense_0/kernel"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def tree_shardings(tree, mesh, rules=(), *, min_size=2**14):
    """Chooses a sharding for every leaf of a state.

    The first rule whose regular expression is found in the leaf's path decides. An expression such
    as ``"Dense_0/kernel$"`` also meets the optimizer's moments of that parameter. The others are
    split over ``tensor`` as :data:`TENSOR_RULES` say of the zoo's transformers, and those of at
    least ``min_size`` elements over ``fsdp``, along the largest axis that is left and divides. The
    axis along which layers are stacked, as for a scan, is never split; what does not divide is
    copied to all devices.

    Args:
      tree: Arrays or ``jax.ShapeDtypeStruct``.
      mesh: As :func:`make_mesh` gives.
      rules: Pairs of an expression and a spec, one entry per axis from the first on: a mesh axis,
        a tuple of them, or None. ``("kernel$", (None, "tensor"))``. After a first entry ``"..."``
        they are the last axes, of scanned and unrolled layers alike: ``("...", "fsdp", None)``.
      min_size: Elements below which a leaf is not worth splitting.

    Returns:
      A tree of ``NamedSharding``.

    Raises:
      UserError: A rule matches no leaf, names no mesh axis or does not fit the leaf.
    """
    rules = [(expression, _spec(expression, spec)) for expression, spec in rules]
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    used, shardings = set(), []
    for path, leaf in leaves:
        path, spec = path_of(path), None
        for expression, wanted in rules:
            if re.search(expression, path):
                used.add(expression)
                wanted = _aligned(wanted, leaf.shape)
                problem = _misfit(leaf.shape, wanted, mesh)
                # Only a factored moment or the like may miss: it has not its parameter's shape.
                if problem and path.startswith("trainable"):
                    raise UserError(f"sharding rule {expression!r}: {path} {problem}")
                spec = None if problem else wanted
                break
        if spec is None:
            spec = _automatic(path, leaf.shape, mesh, min_size)
        shardings.append(NamedSharding(mesh, PartitionSpec(*spec)))
    for expression, _ in rules:
        if expression not in used:
            paths = [path_of(path) for path, _ in leaves]
            raise UserError(
                f"sharding rule {expression!r} is found in no path{nearest(expression, paths)}"
            )
    return jax.tree_util.tree_unflatten(treedef, shardings)


def _spec(expression, spec):
    """A spec of a config, whose tuples may have become lists, as a tuple."""
    spec = tuple(tuple(s) if isinstance(s, list | tuple) else s for s in spec or ())
    axes = spec[1:] if spec[:1] == ("...",) else spec
    for axis in (a for s in axes for a in (s if isinstance(s, tuple) else (s,))):
        if axis is not None and axis not in AXES:
            raise UserError(f"sharding rule {expression!r}: no axis {axis!r}{nearest(axis, AXES)}")
    return spec


def _misfit(shape, spec, mesh):
    """Why a spec cannot split this shape, or None."""
    if len(spec) > len(shape):
        return f"has {len(shape)} axes, the rule names {len(spec)}"
    for size, axes in zip(shape, spec):
        axes = axes if isinstance(axes, tuple) else (axes,)
        parts = int(np.prod([mesh.shape[a] for a in axes if a is not None]))
        if size % parts:
            return f"of shape {tuple(shape)} does not divide by {parts} along {axes}"
    return None


def _aligned(spec, shape):
    """A spec whose entries are of the first axes."""
    if spec[:1] != ("...",):
        return spec
    return (None,) * (len(shape) - len(spec) + 1) + spec[1:]


def _automatic(path, shape, mesh, min_size):
    spec = [None] * len(shape)
    stacked = sum(module in STACKED for module in path.split("/")[:-1])
    if mesh.shape["tensor"] > 1:
        rules = (_aligned(spec, shape) for rule, spec in TENSOR_RULES if re.search(rule, path))
        wanted = next(rules, ())
        if wanted and not _misfit(shape, wanted, mesh):
            spec[wanted.index("tensor")] = "tensor"
    parts = mesh.shape["fsdp"]
    if parts > 1 and math.prod(shape) >= min_size:
        free = [i for i in range(stacked, len(shape)) if spec[i] is None and shape[i] % parts == 0]
        if free:
            spec[max(free, key=lambda i: shape[i])] = "fsdp"
    while spec and spec[-1] is None:
        spec.pop()
    return tuple(spec)


def local_rows(mesh, size):
    """Which rows of a batch of this size the devices of this process hold, ``[rows]`` in order.

    Processes that differ in their part of ``tensor`` alone hold the same ones.
    """
    places = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[place] for place in places]))


def to_global(mesh, array, size):
    """A batch of this size, of which ``array`` has the :func:`local_rows`, as a global array."""
    sharding, array = batch_sharding(mesh), np.asarray(array)
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    rows = local_rows(mesh, size)

    def part(index):
        return array[np.searchsorted(rows, np.arange(size)[index[0]])]

    return jax.make_array_from_callback((size, *array.shape[1:]), sharding, part)


def describe(mesh: Mesh):
    """The mesh's sizes as plain numbers, ``{"data": 8, "fsdp": 1, "tensor": 1}``."""
    return {axis: int(mesh.shape[axis]) for axis in AXES}
