"""Planning: what a training step needs of each device, from its compiled program."""

import math
import re
from collections import defaultdict

import jax
import numpy as np

from tinker import data
from tinker.train import feeding, sharding
from tinker.train.building import load_streams
from tinker.train.compiling import compiled
from tinker.train.flops import count_flops, model_flops

# What XLA's compiler for CPUs does otherwise than that for the devices of the job.
CAVEAT = (
    "compiled for a CPU: a TPU or GPU pads and fuses otherwise, keeps bfloat16 where a CPU widens "
    "it, and makes reduce-scatters of all-reduces; kernels are in their XLA form"
)


def plan(config):
    """Compiles the training step of a config for the devices there are, and says what it needs.

    Nothing is computed and no state is allocated, so that the devices may be virtual ones:
    ``jax.config.update("jax_num_cpu_devices", 256)``, before anything else, gives 256 of them.

    Args:
      config: A config; ``config.mesh`` says how many of the devices it takes.

    Returns:
      A dict of plain data:

      - ``mesh``, ``devices`` and ``batch`` ``{name: shape}`` of all devices together;
      - ``parameters``: rows of ``path``, ``count`` (of unrolled layers that are alike), ``shape``,
        ``dtype``, ``spec`` (the mesh's axes that split each axis) and ``bytes``, of one device and
        of all the layers alike;
      - ``number_of_parameters``;
      - ``bytes`` of one device: ``parameters``, ``optimizer``, ``other`` state, ``batch``, ``data``
        (a set held whole, as a single process does up to 1 GiB), ``temporaries`` (activations,
        gradients and all else the compiled program needs), and their ``total``;
      - ``flops`` of a step, of matrix products and convolutions: ``model``, without what remat
        computes twice; ``step``, with it; ``device``, the products of the program of one device,
        which are more than its share of them where the mesh makes devices do the same; and
        ``xla``, the compiler's own count for one device, in which a loop's body counts once;
        ``unknown_loops`` are loops whose turns are not known, counted once;
      - ``collectives``: rows of ``kind``, ``axes`` of the mesh, ``count`` in a step, and ``bytes``
        of the whole arrays gathered or reduced on a device in a step;
      - ``caveat``: what is not known before it runs.

    Raises:
      UserError: The config cannot work on these devices.
    """
    streams = load_streams(config, "train")
    made = compiled(config, streams)
    mesh = made.mesh
    feeding.check_batches(streams, mesh)
    program = _compile(made)
    memory, text = program.memory_analysis(), program.as_text()
    state = made.abstract
    held = _bytes_of(made.abstract, made.shardings)
    in_batch = _bytes_of(made.batch, dict.fromkeys(made.batch, sharding.batch_sharding(mesh)))
    parameters = sum(held[name] for name in ("trainable", "base", "frozen"))
    optimizer = held["opt_state"] + held["gradient_state"]
    needs = {
        "parameters": parameters,
        "optimizer": optimizer,
        "other": sum(held.values()) - parameters - optimizer,
        "batch": sum(in_batch.values()),
        "data": _resident_bytes(streams),
        # What is returned in the place of the state, which is donated, is no further memory.
        "temporaries": memory.temp_size_in_bytes
        + max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0),
    }
    step = count_flops(made.program.train_step, made.abstract, made.batch)
    cost = program.cost_analysis()
    leaves = jax.tree.leaves((state.trainable, state.base, state.frozen))
    return {
        "mesh": sharding.describe(mesh),
        "devices": int(mesh.size),
        "batch": {name: list(x.shape) for name, x in made.batch.items()},
        "parameters": _rows(made),
        "number_of_parameters": int(sum(x.size for x in leaves)),
        "bytes": needs | {"total": sum(needs.values())},
        "flops": {
            "model": model_flops(config, made).total,
            "step": step.total,
            "device": _device_flops(text),
            "xla": float(cost.get("flops", 0.0)),
            "unknown_loops": step.unknown_loops,
        },
        "collectives": collectives(text, mesh),
        "caveat": CAVEAT,
    }


def _compile(made):
    def placed(tree, shardings):
        struct = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
        return jax.tree.map(struct, tree, shardings)

    split = dict.fromkeys(made.batch, sharding.batch_sharding(made.mesh))
    lowered = made.step.lower(placed(made.abstract, made.shardings), placed(made.batch, split))
    # The code itself is never run: what is asked of it is decided before it is optimized.
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0})


def _bytes_of(tree, shardings):
    """Bytes on one device below each of a tree's first keys."""
    total = defaultdict(int)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for (path, leaf), where in zip(leaves, jax.tree.leaves(shardings), strict=True):
        total[sharding.path_of(path[:1])] += _shard_bytes(leaf, where)
    return total


def _shard_bytes(leaf, where):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
        return leaf.size * leaf.dtype.itemsize
    return math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _resident_bytes(streams):
    if not all(data.in_memory(s.dataset) for s in streams):
        return 0
    size = sum(v.nbytes for s in streams for v in s.dataset.source.values())
    return size if size <= feeding.RESIDENT_BYTES else 0


def _rows(made):
    """The parameters, of unrolled layers that are alike only one."""
    rows = {}
    parts = ("trainable", "base", "frozen")
    tree = {name: getattr(made.abstract, name) for name in parts}
    places = {name: getattr(made.shardings, name) for name in parts}
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for (path, leaf), where in zip(leaves, jax.tree.leaves(places), strict=True):
        name = sharding.path_of(path).removeprefix("trainable/")
        name = re.sub(r"\b(blocks_)\d+\b", r"\1*", name)
        spec = [list(a) if isinstance(a, tuple) else a for a in where.spec]
        row = (name, tuple(leaf.shape), str(leaf.dtype), str(spec))
        known = rows.setdefault(row, {"path": name, "count": 0, "shape": list(leaf.shape)})
        known["count"] += 1
        known |= {"dtype": str(leaf.dtype), "spec": spec}
        known["bytes"] = known.get("bytes", 0) + _shard_bytes(leaf, where)
    return list(rows.values())


# What stands in the text of an optimized program.

_COLLECTIVE = re.compile(
    r"^(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
    r"|ragged-all-to-all)(-start)?$"
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(")
_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")


def _instructions(text):
    """``(name, shape, op, line, times)`` of all that a step executes, times its loops' turns."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        begins = _COMPUTATION.match(line)
        if begins:
            current = computations.setdefault(begins[2], [])
            entry = begins[2] if begins[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append((found[1], found[2], found[3], line))
    times = defaultdict(int)

    def visit(name, count):
        times[name] += count
        for _, _, op, line in computations.get(name, ()):
            turns = re.search(r'known_trip_count":\{"n":"(\d+)"', line) if op == "while" else None
            for how, called in _CALLED.findall(line):
                # A reduction's function is applied to elements: nothing of it is counted.
                if how != "to_apply" or op in ("call", "async-start"):
                    visit(called, count * (int(turns[1]) if turns else 1))
            for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
                for called in branches.split(","):
                    visit(called.strip().lstrip("%"), count)

    visit(entry, 1)
    for name, instructions in computations.items():
        for instruction in instructions if times[name] else ():
            yield name, *instruction, times[name]


def _sizes(shape):
    """``(itemsize, dimensions)`` of each array of a shape such as ``(f32[8,2]{1,0}, s32[])``."""
    for dtype, dimensions in _ARRAY.findall(shape):
        bits = re.search(r"\d+", dtype)
        size = 1 if dtype == "pred" or not bits else max(int(bits[0]) // 8, 1)
        yield size, [int(n) for n in dimensions.split(",") if n]


def collectives(text, mesh):
    """The communication of a step, from the text of its optimized program.

    Args:
      text: ``compiled.as_text()``.
      mesh: The mesh it was compiled for.

    Returns:
      Rows of ``kind``, ``axes``, ``count`` and ``bytes``, the largest first; see :func:`plan`.
    """
    found = defaultdict(lambda: [0, 0])
    for _, _, shape, op, line, times in _instructions(text):
        kind = _COLLECTIVE.match(op)
        if not kind:
            continue
        arrays = [size * math.prod(dimensions) for size, dimensions in _sizes(shape)]
        if kind[2] and kind[1] != "all-reduce":  # what starts has its operand in its shape, too
            arrays = arrays[len(arrays) // 2 :] if len(arrays) < 4 else [arrays[1]]
        group, axes = _group(line, mesh)
        size = sum(arrays) * (group if kind[1] == "reduce-scatter" else 1)
        total = found[kind[1], axes]
        total[0] += times
        total[1] += times * size
    rows = [
        {"kind": kind, "axes": list(axes), "count": count, "bytes": size}
        for (kind, axes), (count, size) in found.items()
    ]
    return sorted(rows, key=lambda row: -row["bytes"])


def _group(line, mesh):
    """(devices that communicate, the mesh's axes along which they do)."""
    ids = _groups(line, mesh.size)
    if ids is None:
        return mesh.size, ("unknown",)
    places = np.stack(np.unravel_index(ids, tuple(mesh.shape.values())), -1)  # [groups, n, axes]
    differ = (places != places[:, :1]).any((0, 1))
    return ids.shape[1], tuple(name for name, d in zip(mesh.axis_names, differ) if d)


def _groups(line, size):
    """The devices of each group that communicates, ``[groups, devices]``, in XLA's four ways."""
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        return _arranged(*iota.group(2, 3)).reshape(_numbers(iota[1]))
    # A mesh of its own: mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b':(2)2}, the last being 2 of
    # the 4 along b, after 2.
    devices = r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    own = re.search(rf"replica_groups=mesh\[([^\]]*)\]{devices} \{{(.*?)\}}", line)
    if own:
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", own[1])}
        shape, chosen = [], []
        parts = {name: (before, n) for name, before, n in re.findall(_PART, own[4])}
        for name, n in sizes.items():
            before, taken = parts.get(name, ("1", "1"))
            before, taken = int(before or 1), int(taken or n)
            chosen.append(len(shape) + 1)
            shape += [before, taken, n // (before * taken)]
        ids = np.arange(size) if own[2] is None else _arranged(*own.group(2, 3))
        ids = np.moveaxis(ids.reshape(shape), chosen, range(-len(chosen), 0))
        return ids.reshape(-1, math.prod(shape[i] for i in chosen))
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", line)
    if listed:
        return np.array([_numbers(g) for g in re.findall(r"\{([\d, ]+)\}", listed[1])])
    return np.arange(size)[None] if "replica_groups={}" in line else None


_PART = r"'([^']+)'(?::\((\d+)\)(\d+))?"


def _numbers(text):
    return [int(n) for n in text.split(",")]


def _arranged(dims, order):
    """All devices along axes of these sizes, transposed."""
    ids = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    return (ids if order is None else ids.transpose(_numbers(order))).reshape(-1)


def _device_flops(text):
    """FLOPs of the matrix products in an optimized program of one device."""
    shapes, total = {}, 0.0
    found = list(_instructions(text))
    for where, name, shape, _, _, _ in found:
        shapes[where, name] = shape
    for where, _, shape, op, line, times in found:
        if op == "dot":
            operand = re.search(r" dot\((?:\S+\[[\d,]*\]\S* )?%?([\w.\-]+)", line)[1]
            (_, left), *_ = _sizes(shapes[where, operand])
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)
            inner = math.prod(left[int(i)] for i in contracted[1].split(",") if i)
            (_, out), *_ = _sizes(shape)
            total += 2.0 * times * math.prod(out) * inner
    return total
