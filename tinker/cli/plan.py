"""``tinker plan``: whether a job fits its devices, before paying for them."""

import json
import math
import re

from tinker.cli.printing import console, table
from tinker.numerics.errors import UserError, nearest

AXES = ("data", "fsdp", "tensor")
UNITS = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6}


def plan(args, overrides):
    """Compiles a config's step for virtual devices and prints what it needs of each.

    Returns:
      1 if it needs more memory than ``--hbm`` or ``--device`` have, else 0.
    """
    import jax

    from tinker.cli.jobs import job_of
    from tinker.train import override
    from tinker.train.flops import named_device
    from tinker.train.locating import load_config
    from tinker.train.planning import plan

    config = job_of(override(load_config(args.config), overrides))
    mesh = dict(config.mesh) if args.mesh is None else parse_mesh(args.mesh)
    if -1 in mesh.values():
        raise UserError("`tinker plan` needs --mesh=data=N,fsdp=N,tensor=N, the devices along each")
    config.mesh = mesh
    device = named_device(args.device) if args.device else None
    memory = parse_bytes(args.hbm) if args.hbm else device and device.memory
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", math.prod(mesh.values()))
    except RuntimeError:  # this process has computed already, on the devices that it has
        pass
    found = plan(config) | {"config": args.config, "memory": memory}
    if device is not None:
        found["device"], found["seconds_at_peak"] = args.device, _seconds(found, device)
    if memory is not None:
        found["fits"] = found["bytes"]["total"] <= memory
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    return 0 if found.get("fits", True) else 1


def parse_mesh(text):
    """``"data=64,fsdp=4"`` as ``{"data": 64, "fsdp": 4, "tensor": 1}``."""
    mesh = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in AXES:
            raise UserError(f"--mesh={text}: no axis {axis!r}{nearest(axis, AXES)}; see --help")
        if not size.isdigit() or int(size) < 1:
            raise UserError(f"--mesh={text}: {part!r} is not of the form AXIS=NUMBER")
        mesh[axis] = int(size)
    return mesh


def parse_bytes(text):
    """``"16GiB"`` in bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(\w+)", text)
    if not found or found[2] not in UNITS:
        raise UserError(f"--hbm={text} is not of the form 16GiB; units are {', '.join(UNITS)}")
    return int(float(found[1]) * UNITS[found[2]])


def show(found):
    """Prints a plan as tables."""
    out, flops, needs = console(), found["flops"], found["bytes"]
    mesh = " x ".join(f"{axis}={n}" for axis, n in found["mesh"].items())
    columns = ("parameter", "shape", "spec", "per device")
    rows = [
        (
            row["path"] + (f"  ×{row['count']}" if row["count"] > 1 else ""),
            f"{_short(row['dtype'])}[{', '.join(map(str, row['shape']))}]",
            ", ".join(_axes(axes) for axes in row["spec"]) or "–",
            human(row["bytes"]),
        )
        for row in found["parameters"]
    ]
    title = f"{found['config']} on {mesh}: {found['number_of_parameters']:,} parameters"
    out.print(table(*columns, rows=rows, right=["per device"], title=title))
    names = {
        "parameters": "parameters",
        "optimizer": "optimizer",
        "other": "other state",
        "batch": "batch",
        "data": "data, held whole by a single process",
        "temporaries": "activations, gradients, temporaries",
        "total": "in all",
    }
    rows = [(text, human(needs[name])) for name, text in names.items() if needs[name]]
    out.print(table("memory", "per device", rows=rows, right=["per device"]))
    rows = [
        (row["kind"], ", ".join(row["axes"]), f"{row['count']:,}", human(row["bytes"]))
        for row in found["collectives"]
    ]
    columns = ("collective", "along", "per step", "bytes per step")
    if rows:
        out.print(table(*columns, rows=rows, right=columns[2:]))
    out.print(f"{flops['model']:.4g} FLOPs per step, of matrix products and convolutions", end="")
    again = flops["step"] - flops["model"]
    out.print(f"; {again:.4g} more that remat computes again" if again > 0 else "")
    if flops["device"]:
        share = flops["device"] * found["devices"] / flops["step"]
        out.print(f"{flops['device']:.4g} of products on each device, {share:.2f} of its share")
    xla = f"{flops['xla']:.4g} on a device is XLA's own count, which takes the body of a loop once"
    out.print(f"{xla}, and kernels of their own not at all")
    if flops["unknown_loops"]:
        out.print(f"{flops['unknown_loops']} loops of unknown length are counted as one turn")
    if "seconds_at_peak" in found:
        out.print(
            f"{found['seconds_at_peak'] * 1e3:.4g} ms per step at the peak of a {found['device']}"
        )
    if found["memory"] is not None:
        verdict = "fits in" if found["fits"] else "does not fit in"
        out.print(f"{human(needs['total'])} {verdict} {human(found['memory'])} of each device")
    out.print(found["caveat"], soft_wrap=True)


def _seconds(found, device):
    """Of a step in which a device does nothing but its products, at its peak."""
    flops = found["flops"]
    return max(flops["device"], flops["step"] / found["devices"]) / device.peak


def _axes(axes):
    return "–" if axes is None else " x ".join(axes) if isinstance(axes, list) else axes


def _short(dtype):
    return dtype.replace("float", "f").replace("uint", "u").replace("int", "i")


def human(size):
    """Bytes in the unit that fits: ``"1.50 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.2f} {unit}" if unit != "B" else f"{size} B"
        size /= 1024
