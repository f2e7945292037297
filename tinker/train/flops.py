"""FLOPs of a program, counted in what it traces to, and what devices could do."""

import math
from typing import NamedTuple

import jax
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval

from tinker.numerics import UserError, check_choice
from tinker.train.building import build
from tinker.train.specs import override


class Device(NamedTuple):
    """An accelerator as its vendor describes it, of one of JAX's devices."""

    kinds: tuple  # beginnings of ``jax.Device.device_kind``
    memory: int  # bytes
    peak: float  # FLOP/s of dense bfloat16 matrix products


GIB = 2**30
DEVICES = {
    "v4": Device(("TPU v4",), 32 * GIB, 275e12),
    "v5e": Device(("TPU v5 lite", "TPU v5e"), 16 * GIB, 197e12),
    "v5p": Device(("TPU v5p", "TPU v5"), 95 * GIB, 459e12),
    "v6e": Device(("TPU v6 lite", "TPU v6e"), 32 * GIB, 918e12),
    "a100-40": Device(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"), 40 * 10**9, 312e12),
    "a100-80": Device(("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"), 80 * 10**9, 312e12),
    "h100": Device(("NVIDIA H100 80GB HBM3",), 80 * 10**9, 989e12),
    "h200": Device(("NVIDIA H200",), 141 * 10**9, 989e12),
}


def peak_flops(config, device):
    """FLOP/s that a device of the mesh could do: ``config.peak_flops``, or its vendor's figure.

    None where neither is known.
    """
    if config.peak_flops is not None:
        if not config.peak_flops > 0:
            raise UserError(f"config.peak_flops={config.peak_flops} must be positive, or None")
        return float(config.peak_flops)
    known = [d for d in DEVICES.values() if device.device_kind in d.kinds]
    return known[0].peak if known else None


def named_device(name):
    """The :class:`Device` of a name such as ``"v5e"``."""
    check_choice("device", name, tuple(DEVICES))
    return DEVICES[name]


class Flops(NamedTuple):
    """FLOPs that were counted, and how many loops were of unknown length and counted once."""

    total: float
    unknown_loops: int = 0


def count_flops(fn, *args):
    """Counts the FLOPs of a function's matrix products and convolutions.

    A product ``[m, k] x [k, n]`` is 2 m k n. The function is traced, not compiled: what its result
    does not need is left out, a scan counts as often as it turns, of a ``lax.cond`` the branch
    that does most, of a Pallas kernel its body at each point of the grid, and a ``shard_map`` on
    all its devices.

    Args:
      fn: The function.
      *args: Arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      :class:`Flops`, of all devices together. A ``while_loop`` is of unknown length.
    """
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(jaxpr)


def _count(jaxpr):
    total, unknown = 0.0, 0
    for eqn in jaxpr.eqns:
        counted = [_count(inner) for inner in jaxprs_in_params(eqn.params)]
        name, times = eqn.primitive.name, 1
        if name == "dot_general":
            total += _dot(eqn)
        elif name == "conv_general_dilated":
            total += _convolution(eqn)
        elif name == "scan":
            times = eqn.params["length"]
        elif name == "cond":
            counted = [max(counted)]
        elif name == "pallas_call":
            times = math.prod(eqn.params["grid_mapping"].grid)
        elif name == "shard_map":
            mesh, axes = eqn.params["mesh"], eqn.params["newly_manual_axes"]
            times = math.prod(mesh.shape[axis] for axis in axes)
        inside = sum(c.total for c in counted)
        total += times * inside
        unknown += sum(c.unknown_loops for c in counted) + (name == "while" and inside > 0)
    return Flops(total, unknown)


def _dot(eqn):
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2.0 * eqn.outvars[0].aval.size * math.prod(shape[i] for i in contracted)


def _convolution(eqn):
    kernel, out, p = eqn.invars[1].aval, eqn.outvars[0].aval, eqn.params
    features = kernel.shape[p["dimension_numbers"].rhs_spec[0]]
    # Zeros between the rows of a dilated input, as in a gradient's, are not multiplied.
    return 2.0 * out.size * kernel.size / features / math.prod(p["lhs_dilation"])


def model_flops(config, made):
    """FLOPs of a step that the model itself asks for: without what remat computes twice.

    Args:
      config: The config.
      made: What :func:`tinker.train.compiling.compiled` gave for it.

    Returns:
      :class:`Flops`, of all devices together.
    """
    nets = {"model": config.model, **{f"nets.{n}": spec for n, spec in config.nets.items()}}
    remat = {f"{where}.remat": None for where, spec in nets.items() if spec.get("remat")}
    config = override(config, remat)
    program = build(config, made.batch, made.mesh) if remat else made.program
    return count_flops(program.train_step, made.abstract, made.batch)
