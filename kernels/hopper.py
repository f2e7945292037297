"""Hopper kernels in which two warpgroups compute while a third one loads.

The third one copies tiles into rings of buffers, by TMA, as far ahead as the rings are long.
Barriers tell when a buffer is full, and when it is empty again.
"""

import types

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from tinker.kernels.dispatch import smem_stages
from tinker.numerics.errors import UserError

ROWS = 64  # of a warpgroup: the height of a wgmma
WARPGROUPS = 2  # that compute


def check_dtype(**arrays):
    """Raises unless wgmma multiplies such arrays, both ways round and from registers."""
    for name, x in arrays.items():
        if x.dtype not in (jnp.bfloat16, jnp.float16):
            raise UserError(
                f"implementation='pallas' on a GPU: {name} is {x.dtype}; it takes bfloat16 and "
                "float16, and None and 'xla' take any"
            )


def product(a, b, total=None, *, transposed=False, meanwhile=None, interpret=False):
    """``total + a b``, or b transposed, in registers.

    Args:
      a, b: References of tiles; or lists of them, whose products are summed; or a in registers.
      total: In registers; None is 0.
      transposed: Whether b is.
      meanwhile: What to call before the product is awaited.
      interpret: Whether this is interpreted. The interpreter multiplies nothing transposed and
        nothing in registers, so there it is ``jnp.dot``.
    """
    pairs = list(zip(a, b, strict=True)) if isinstance(a, list) else [(a, b)]
    if interpret:
        for a, b in pairs:
            a = a if isinstance(a, jax.Array) else a[...]
            b = b[...].T if transposed else b[...]
            part = jnp.dot(a, b, preferred_element_type=jnp.float32)
            total = part if total is None else total + part
        if meanwhile is not None:
            meanwhile()
        return total
    pairs = [(a, b.transpose((1, 0)) if transposed else b) for a, b in pairs]

    def multiply(sum_):
        for a, b in pairs:
            plgpu.wgmma(sum_, a, b)
        if meanwhile is not None:
            meanwhile()
        return sum_[...] if total is None else None

    if total is not None:
        return pl.run_state(multiply)(plgpu.ACC.init(total))
    (rows, _), (_, columns) = pairs[0][0].shape, pairs[0][1].shape
    return pl.run_scoped(multiply, plgpu.ACC((rows, columns), jnp.float32))


def walk(
    name,
    compute,
    load,
    *,
    grid,
    inputs,
    outputs,
    standing,
    passing,
    scratch=(),
    halves=1,
    reverse=(),
    interpret=False,
):
    """Calls a kernel.

    Args:
      name: Its name.
      compute, load: ``f(r, s, at)``, of the warpgroups that compute and of the one that loads. In
        r are the references of inputs and outputs by name; in s buffers by name, and functions
        to fill, await and release them; in ``at`` the place in the grid by axis, and which rows
        (part) and columns (half) of a tile are the warpgroup's.
      grid: Sizes by axis, the last one the fastest.
      inputs: Arrays by name, or None.
      outputs: Shapes and dtypes by name.
      standing: For each group that is awaited together, by name the shape of a part's buffers for
        the inputs that are there: ``(n,)``, ``(n, m)``, or ``(halves, n, m)``, filled by columns.
      passing: The same of a stage of the rings.
      scratch: Shapes and dtypes by name of a part's further buffers.
      halves: Into how many warpgroups columns are split, rather than rows.
      reverse: Axes along which the last comes first.
      interpret: False, or the parameters of the interpreter.

    Returns:
      The outputs.

    Raises:
      ValueError: The buffers do not fit in shared memory.
    """
    standing, passing = (
        [{n: shape for n, shape in group.items() if inputs[n] is not None} for group in groups]
        for groups in (standing, passing)
    )
    parts, scratch = WARPGROUPS // halves, dict(scratch)
    fixed = {n: (shape, inputs[n].dtype) for group in standing for n, shape in group.items()}
    fixed = {n: ((parts, *shape), dtype) for n, (shape, dtype) in (fixed | scratch).items()}
    ring = {n: (shape, inputs[n].dtype) for group in passing for n, shape in group.items()}
    stages = smem_stages(name, fixed.values(), ring.values())
    ring = {n: ((stages, *shape), dtype) for n, (shape, dtype) in ring.items()}
    buffers = {n: plgpu.SMEM(*x) for n, x in (fixed | ring).items()}
    buffers["meeting"] = plgpu.Barrier(num_arrivals=WARPGROUPS)
    for kind, groups, count in ("stood", standing, parts), ("full", passing, stages):
        for index, group in enumerate(groups):
            copies = sum(shape[0] if len(shape) == 3 else 1 for shape in group.values())
            if copies:
                barrier = plgpu.Barrier(num_arrivals=copies, num_barriers=count)
                buffers[f"{kind}{index}"] = barrier
    for index, _ in enumerate(passing):
        barrier = plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages)
        buffers[f"empty{index}"] = barrier

    def kernel(inputs, *results, **s):
        r = types.SimpleNamespace(**inputs | dict(zip(outputs, results, strict=True)))
        at = {axis: lax.axis_index(axis) for axis in grid}
        at |= {axis: grid[axis] - 1 - at[axis] for axis in reverse}
        at = types.SimpleNamespace(**at)
        at.warpgroup = lax.axis_index("warpgroup")
        at.part, at.half = lax.div(at.warpgroup, halves), lax.rem(at.warpgroup, halves)

        def copy(sources, to, barrier):
            for n, source in sources.items():
                buffer = s[n].at[to]
                if len(buffer.shape) < 3:
                    plgpu.copy_gmem_to_smem(source, buffer, barrier)
                    continue
                for half in range(buffer.shape[0]):
                    columns = pl.ds(half * buffer.shape[2], buffer.shape[2])
                    plgpu.copy_gmem_to_smem(source.at[:, columns], buffer.at[half], barrier)

        def stand(group, **sources):
            if standing[group]:
                barrier = s[f"stood{group}"].at[at.part]
                sources = {n: sources[n] for n in standing[group]}
                pl.when(at.half == 0)(lambda: copy(sources, at.part, barrier))
                plgpu.barrier_wait(barrier)

        def meet():
            plgpu.barrier_arrive(s["meeting"])
            plgpu.barrier_wait(s["meeting"])

        def await_full(group, step):
            slot = lax.rem(step, stages)
            plgpu.barrier_wait(s[f"full{group}"].at[slot])
            return slot

        def await_empty(group, step):
            plgpu.barrier_wait(s[f"empty{group}"].at[lax.rem(step, stages)])

        def release(group, slot):
            plgpu.barrier_arrive(s[f"empty{group}"].at[slot])

        def fill(done, count, tiles):
            def fetch(t, _):
                step, sources = done + t, tiles(t)
                for group, names in enumerate(passing):
                    pl.when(step >= stages)(lambda group=group: await_empty(group, step))
                    found, slot = {n: sources[n] for n in names}, lax.rem(step, stages)
                    copy(found, slot, s[f"full{group}"].at[slot])

            lax.fori_loop(0, count, fetch, None)

        def drain(done):
            def await_all(step, _):
                for group in range(len(passing)):
                    await_empty(group, step)

            lax.fori_loop(jnp.maximum(done - stages, 0), done, await_all, None)

        functions = dict(stand=stand, meet=meet, await_full=await_full, release=release)
        functions |= dict(fill=fill, drain=drain)
        buffers = types.SimpleNamespace(**dict.fromkeys(inputs) | s | functions)

        @pl.when(at.warpgroup < WARPGROUPS)
        def _():
            plgpu.set_max_registers(240, action="increase")
            compute(r, buffers, at)

        @pl.when(at.warpgroup == WARPGROUPS)
        def _():
            plgpu.set_max_registers(24, action="decrease")
            load(r, buffers, at)

    return plgpu.kernel(
        kernel,
        out_type=[jax.ShapeDtypeStruct(*x) for x in outputs.values()],
        scratch_types=buffers,
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        kernel_name=name,
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup
        ),
        interpret=interpret or None,
    )(inputs)
