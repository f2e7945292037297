"""Times a kernel and its peers in one run, turn by turn, and asks the compiler for their memory."""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table


class Case(NamedTuple):
    """One comparison.

    Attributes:
      name: The kernel and what of it, such as "attention, causal, forward and backward".
      shape: What its arguments are, as text.
      ours: The kernel, a function of ``args``.
      peers: ``{name: function}`` of the same arguments and result. A function marked
        ``function.host = True`` is not JAX's: it is called as it is, and has no memory to tell.
      args: Arrays, or None where time is not measured but only memory, from ``shapes``.
      shapes: ``jax.ShapeDtypeStruct`` of each argument; by default those of ``args``.
    """

    name: str
    shape: str
    ours: Callable
    peers: dict[str, Callable]
    args: Any = None
    shapes: Any = None


def compare(case, *, rounds=10, seconds=0.2):
    """Runs the kernel and its peers in turns.

    Args:
      case: A :class:`Case`.
      rounds: Turns of each.
      seconds: How long a turn is, about: calls are repeated within it.

    Returns:
      A row for each peer: a dict of ``name``, ``shape``, ``peer``; ``ours_ms`` and ``peer_ms``,
      medians of the turns; ``ratio``, the median of peer over ours (above 1 ours is faster), and
      its 95 % interval ``low`` and ``high``; ``ours_bytes`` and ``peer_bytes``, the temporary
      memory of the compiled programs. Times are NaN where there are no ``args``, bytes are so of a
      peer that is not JAX's.
    """
    given = case.args if case.shapes is None else case.shapes
    shapes = [jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in given]
    functions = {"ours": case.ours, **case.peers}
    ready, temporary = {}, {}
    for name, fn in functions.items():
        if getattr(fn, "host", False):
            ready[name], temporary[name] = fn, np.nan
            continue
        compiled = jax.jit(fn).lower(*shapes).compile()
        ready[name], temporary[name] = compiled, compiled.memory_analysis().temp_size_in_bytes
    times = {name: np.full(1, np.nan) for name in functions}
    if case.args is not None:
        args = jax.device_put(case.args)
        repeats = {n: max(1, round(seconds / _time(f, args, 1))) for n, f in ready.items()}
        turns = [{n: _time(f, args, repeats[n]) for n, f in ready.items()} for _ in range(rounds)]
        times = {name: np.array([turn[name] for turn in turns]) for name in functions}
    rows = []
    for peer in case.peers:
        ratios = times[peer] / times["ours"]
        draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
        low, high = np.quantile(np.median(draws, 1), [0.025, 0.975])
        rows.append(
            {
                "name": case.name,
                "shape": case.shape,
                "peer": peer,
                "ours_ms": 1e3 * np.median(times["ours"]),
                "peer_ms": 1e3 * np.median(times[peer]),
                "ratio": np.median(ratios),
                "low": low,
                "high": high,
                "ours_bytes": temporary["ours"],
                "peer_bytes": temporary[peer],
            }
        )
    return rows


def _time(fn, args, repeats):
    """Seconds per call, after one that is not counted."""
    jax.block_until_ready(fn(*args))
    start = time.perf_counter()
    for _ in range(repeats):
        result = fn(*args)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / repeats


def main(cases, argv=None):
    """Prints a table of all cases.

    Args:
      cases: Functions without arguments that return :class:`Case`s; those whose name, shape or
        peer holds ``--only`` are run.
      argv: Of the command line; by default the process's own.
    """
    parser = argparse.ArgumentParser(description="Kernels against their peers, interleaved.")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each (10)")
    parser.add_argument("--seconds", type=float, default=0.2, help="of a turn, about (0.2)")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    options = parser.parse_args(argv)
    found = [case for make in cases for case in make() if options.only in case.name]
    rows = []
    for case in track(found, "cases", console=Console(stderr=True), transient=True):
        rows += compare(case, rounds=options.rounds, seconds=options.seconds)
    device = jax.devices()[0].device_kind
    title = f"on {device}: ratio of times, peer over ours, and temporary memory"
    table = Table(title=title, box=None, pad_edge=False, title_justify="left")
    for column in ("kernel", "shape", "peer", "ours", "peer's", "ratio", "ours", "peer's", "ratio"):
        table.add_column(
            column, justify="left" if column in ("kernel", "shape", "peer") else "right"
        )
    for row in rows:
        memory = row["peer_bytes"] / max(row["ours_bytes"], 1)
        cells = [row["name"], row["shape"], row["peer"]]
        if np.isnan(row["ratio"]):
            cells += ["", "", ""]
        else:
            cells += [f"{row['ours_ms']:.2f} ms", f"{row['peer_ms']:.2f} ms"]
            cells += [f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"]
        cells += [f"{row['ours_bytes'] / 2**20:,.1f} MiB"]
        if np.isnan(memory):
            cells += ["", ""]
        else:
            cells += [f"{row['peer_bytes'] / 2**20:,.1f} MiB", f"{memory:.1f}"]
        table.add_row(*cells)
    Console(width=None if Console().is_terminal else 180).print(table)
