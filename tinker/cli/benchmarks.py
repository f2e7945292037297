"""``tinker bench``: the benchmarks of the checkout and of the kernels."""

import ast
import importlib.util
import runpy
import sys
from pathlib import Path

from tinker.numerics.errors import UserError, nearest


def bench(name=None, argv=()):
    """Runs a benchmark with its own flags, or lists what there is."""
    found = benchmarks()
    if name is not None:
        if name not in found:
            listed = f"; there are {', '.join(found)}" if found else f"; {ABSENT}"
            raise UserError(f"there is no benchmark {name!r}{nearest(name, found)}{listed}")
        before, sys.argv = sys.argv, [str(found[name]), *argv]
        try:
            runpy.run_path(str(found[name]), run_name="__main__")
        finally:
            sys.argv = before
        return
    if not checkout().is_dir():
        print(ABSENT)
    width = max(map(len, found), default=0)
    for key, path in found.items():
        print(f"{key:{width}}  {summary(path)}")


ABSENT = "the benchmarks of the library as a whole are in a checkout (benchmarks/), not in a wheel"


def benchmarks():
    """``{name: file}``: benchmarks/NAME.py of the checkout, kernels/OP/bench.py as kernels/OP."""
    found = {p.stem: p for p in sorted(checkout().glob("*.py")) if p.stem[0] != "_"}
    kernels = Path(importlib.util.find_spec("tinker.kernels").origin).parent
    return found | {f"kernels/{p.parent.name}": p for p in sorted(kernels.glob("*/bench.py"))}


def checkout():
    """The folder of benchmarks beside the library, if this is a checkout."""
    return Path(__file__).resolve().parents[2] / "benchmarks"


def summary(path):
    """The first line of a file's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
