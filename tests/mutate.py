"""Breaks functions on purpose and runs their tests: a mutant that survives is a missing test.

python -m tests.mutate losses -n 20                      # 20 mutants of a room
python -m tests.mutate --all -n 40                       # 40 of the whole library
python -m tests.mutate --theme losses/classification     # one file
python -m tests.mutate losses --seed 3 --list            # which would be run

A mutant is one change of one function: a sign, an axis, an epsilon, a reduction, a comparison, a
dropped stop_gradient, exp or branch. It runs against tests/ROOM/test_THEME.py, or the tests in
tests/ROOM that name the function, then against the others that might see it. Nothing is written
into the tree: an import hook hands the mutant to a forked process. A change that no test can see is
marked where it stands, with the reason: ``x + 1e-30  # mutate: equivalent, below float32``.
"""

import argparse
import ast
import contextlib
import copy
import ctypes
import functools
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MAPPED = ("kernels", "experiments", "configs")  # they stand at the top of the tree
PARDON = "# mutate: equivalent"

# ---- mutations: from an expression to what it may be replaced by

BINARY = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
COMPARE = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
SWAPPED = {  # calls, as functions or methods
    "sum": "mean",
    "mean": "sum",
    "min": "max",
    "max": "min",
    "minimum": "maximum",
    "maximum": "minimum",
    "argmin": "argmax",
    "argmax": "argmin",
    "any": "all",
    "all": "any",
    "prod": "sum",
    "zeros": "ones",
    "ones": "zeros",
    "zeros_like": "ones_like",
    "ones_like": "zeros_like",
    "sin": "cos",
    "cos": "sin",
    "floor": "ceil",
    "ceil": "floor",
    "exp": "expm1",
    "expm1": "exp",
    "log": "log1p",
    "log1p": "log",
    "rsqrt": "sqrt",
    "softmax": "log_softmax",
    "log_softmax": "softmax",
}
DROPPED = set(  # calls that may be replaced by their first argument
    "stop_gradient exp log expm1 log1p sqrt rsqrt square abs tanh sigmoid relu softplus softmax "
    "log_softmax sign round floor ceil cumsum sort flip roll clip nan_to_num normalize".split()
)
REDUCING = set(
    "sum mean min max prod any all argmin argmax var std norm logsumexp softmax log_softmax cumsum "
    "sort argsort median take_along_axis concatenate stack".split()
)
QUIET_CALLS = ("assert_", "fold_in", "isinstance", "issubclass", "hasattr", "warn", "print", "log_")
RANDOM = ("key", "split", "PRNGKey")


def called(node):
    """The last part of the name of what a call calls, or ''."""
    if not isinstance(node, ast.Call):
        return ""
    fn = node.func
    return fn.attr if isinstance(fn, ast.Attribute) else getattr(fn, "id", "")


def is_number(node, *kinds):
    return isinstance(node, ast.Constant) and type(node.value) in (kinds or (int, float))


def signed(node):
    """The value of an integer literal, with its sign, or None."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -node.operand.value if is_number(node.operand, int) else None
    return node.value if is_number(node, int) else None


def other_axis(axis):
    return {-1: 0, 0: -1, 1: 0, -2: -1, 2: 1}.get(axis, axis - 1)


def other_number(value, parent):
    """A number that a test should tell from this one."""
    if value == 1 and called(parent) in ("where", "maximum", "minimum", "clip"):
        return type(value)(0)  # it guards a division, a root or a logarithm
    if type(value) is int:
        return value + 1 if value < 3 else 1
    if value == 0:
        return 1.0
    return 0.0 if abs(value) < 1e-5 or abs(value) >= 1e6 else 2.0 * value


def textual(node):
    """Whether an operand makes an operation one of strings or shapes, which fail by themselves."""
    kinds = ast.JoinedStr | ast.Tuple | ast.List | ast.ListComp | ast.Dict
    return isinstance(node, kinds) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )


def replacements(node, parents):
    """What an expression may be replaced by, each a node."""
    parent = parents[-1] if parents else None
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        if not textual(node.left) and not textual(node.right):
            yield ast.BinOp(node.left, BINARY[type(node.op)](), node.right)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARE:
        yield ast.Compare(node.left, [COMPARE[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.BoolOp):
        swapped = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        yield ast.BoolOp(swapped, node.values)
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
        if signed(node) is None or not (_is_axis(node, parents) or _in_index(parents)):
            yield node.operand
    elif isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        if isinstance(parent, ast.keyword | ast.arguments | ast.AnnAssign):
            yield ast.Constant(not node.value)
    elif is_number(node) and not _in_index(parents) and not _is_axis(node, parents):
        yield ast.Constant(other_number(node.value, parent))
    elif isinstance(node, ast.Call):
        yield from _other_calls(node)
    whole = not isinstance(parent, ast.UnaryOp)
    if signed(node) is not None and whole and _is_axis(node, parents):
        yield ast.Constant(other_axis(signed(node)))
    elif signed(node) is not None and isinstance(parent, ast.Subscript):
        yield ast.Constant(-1 if signed(node) == 0 else signed(node) - 1 if signed(node) > 0 else 0)


def _is_axis(node, parents):
    """Whether an integer literal says which axis: ``axis=-1``, ``x.sum(-1)``, ``x.shape[0]``."""
    inner = [p for p in parents if not isinstance(p, ast.UnaryOp | ast.Tuple)]
    parent = inner[-1] if inner else None
    if isinstance(parent, ast.keyword):
        return parent.arg in ("axis", "axes", "axis_a", "axis_b")
    if isinstance(parent, ast.Subscript):
        return ast.unparse(parent.value).endswith(".shape")
    if isinstance(parent, ast.Call) and called(parent) in REDUCING:
        method = isinstance(parent.func, ast.Attribute) and parent.func.attr in REDUCING
        plain = method and not isinstance(parent.func.value, ast.Name | ast.Attribute)
        inside = [n for a in parent.args for n in ast.walk(a)]
        return any(n is node for n in inside) and (plain or len(parent.args) != 1 or _alone(parent))
    return False


def _alone(call):
    """Whether a method's only argument is an integer: ``x.mean(-1)``, ``value.sum(0)``."""
    return isinstance(call.func, ast.Attribute) and signed(call.args[0]) is not None


def _in_index(parents):
    """Whether a literal is an index; in ``x[..., 0]`` another may be clipped to the same."""
    inner = [p for p in parents if not isinstance(p, ast.UnaryOp | ast.Tuple)]
    return bool(inner) and isinstance(inner[-1], ast.Subscript)


def _other_calls(node):
    name = called(node)
    if name == "where" and len(node.args) == 3:
        yield node.args[1]
        yield node.args[2]
    if name in SWAPPED and not (name in ("sum", "any", "all") and isinstance(node.func, ast.Name)):
        swapped = copy.copy(node)
        new = SWAPPED[name]
        if isinstance(node.func, ast.Attribute):
            swapped.func = ast.Attribute(node.func.value, new, ast.Load())
        else:
            swapped.func = ast.Name(new, ast.Load())
        yield swapped
    if name in DROPPED:
        module = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in (
            "jnp", "np", "jax.nn", "nn", "lax", "jax.lax", "jax", "math", "jax.numpy", "numpy"
        )  # fmt: skip
        if (module or isinstance(node.func, ast.Name)) and node.args:
            yield node.args[0]
        elif isinstance(node.func, ast.Attribute) and not module:
            yield node.func.value


class Mutant(NamedTuple):
    """One change of one function."""

    module: str  # tinker.losses.classification
    file: str  # tinker/losses/classification.py
    line: int
    function: str
    before: str
    after: str
    source: str  # of the whole file


def _quiet(node):
    """What no mutant touches: docstrings, refusals, checks of types and shapes, drawn keys."""
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    name = called(node)
    return name.startswith(QUIET_CALLS) or name in RANDOM and "random" in ast.unparse(node.func)


def _sites(node, parents=()):
    """(expression, its parents) below a node, in order."""
    if _quiet(node):
        return
    if isinstance(node, ast.expr):
        yield node, parents
    for field, value in ast.iter_fields(node):
        if field in ("decorator_list", "annotation", "returns", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _sites(child, (*parents, node))


def _changes(function):
    """(node, replacement, before, after) of all single changes of a function."""
    for node, parents in _sites(function):
        for new in replacements(node, parents):
            yield node, new, ast.unparse(node), ast.unparse(new)
    inner = {n.name for n in ast.walk(function) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and node.value is not None:
            value = node.value
            kinds = ast.Tuple | ast.Constant | ast.Lambda | ast.Dict | ast.Compare | ast.BoolOp
            structure = isinstance(value, kinds) or textual(value) or called(value)[:1].isupper()
            if not structure and getattr(value, "id", "") not in inner:
                old, new = ast.unparse(value), ast.UnaryOp(ast.USub(), value)
                yield value, new, f"return {old}", f"return {ast.unparse(new)}"
        elif isinstance(node, ast.If | ast.While):
            negated = isinstance(node.test, ast.Compare | ast.UnaryOp) and any(
                replacements(node.test, (node,))
            )
            if not negated and not any(_quiet(n) for n in ast.walk(node.test)):
                new = ast.UnaryOp(ast.Not(), node.test)
                yield node.test, new, ast.unparse(node.test), ast.unparse(new)
        elif isinstance(node, ast.AugAssign) and type(node.op) in BINARY:
            new = ast.AugAssign(node.target, BINARY[type(node.op)](), node.value)
            yield node, new, ast.unparse(node), ast.unparse(new)


def _functions(tree):
    """(name, node) of each function of a module, and of each method of its classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield f"{node.name}.{inner.name}", inner
                elif isinstance(inner, ast.AnnAssign) and inner.value is not None:
                    yield f"{node.name}.{ast.unparse(inner.target)}", inner


def _changed(tree, node, replacement):
    """The source of a tree with one node replaced, which is put back."""
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if value is node:
                setattr(parent, field, replacement)
                try:
                    return ast.unparse(ast.fix_missing_locations(tree))
                finally:
                    setattr(parent, field, node)
            if isinstance(value, list) and any(v is node for v in value):
                index = next(i for i, v in enumerate(value) if v is node)
                value[index] = replacement
                try:
                    return ast.unparse(ast.fix_missing_locations(tree))
                finally:
                    value[index] = node
    raise LookupError(ast.unparse(node))


def mutants_of(source, module="", file=""):
    """All mutants of a file's source, as ``{function: [Mutant, ...]}``."""
    tree, lines, found = ast.parse(source), source.splitlines(), {}
    seen = {ast.unparse(tree)}
    for name, function in _functions(tree):
        for node, new, before, after in _changes(function):
            if PARDON in lines[node.lineno - 1] or PARDON in lines[node.end_lineno - 1]:
                continue
            text = _changed(tree, node, new)
            if text not in seen:
                seen.add(text)
                mutant = Mutant(module, file, node.lineno, name, before, after, text)
                found.setdefault(name, []).append(mutant)
    return found


# ---- which files and tests


def room_folder(room):
    return ROOT / room if room in MAPPED else ROOT / "tinker" / room


def all_rooms():
    rooms = [p.parent.name for p in sorted((ROOT / "tinker").glob("*/__init__.py"))]
    return [*rooms, *(r for r in ("kernels", "experiments") if _files(r))]


def _files(room):
    return [p for p in sorted(room_folder(room).rglob("*.py")) if p.stem[:1] != "_"]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "tinker" else ("tinker", *parts))


def room_of(mutant):
    return mutant.module.split(".")[1]


def theme_tests(mutant):
    """The test file of the theme, or of its folder; None if there is none."""
    room, *parts = mutant.module.split(".")[1:]
    files = (ROOT / "tests" / room / f"test_{part}.py" for part in (parts[-1], *parts[:-1]))
    return next((path for path in files if path.exists()), None)


def room_tests(mutant):
    return sorted((ROOT / "tests" / room_of(mutant)).glob("test_*.py"))


def first_tests(mutant):
    """The theme's test file; without one, those of the room that name the function; or all."""
    own = theme_tests(mutant)
    if own:
        return [own]
    named = _with_callers(mutant)
    files = room_tests(mutant)
    return [path for path in files if _names_read(path) & named] or files


@functools.cache
def _names_read(path):
    """All names, attributes and words of strings of a test file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.startswith("tinker."):
                names.add(node.value.rpartition(":")[2])
    return names


def _with_callers(mutant):
    """The function's name, and those of its file's functions that call it."""
    tree = ast.parse((ROOT / mutant.file).read_text())
    named = {mutant.function.partition(".")[0]}
    bodies = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    reads = {f: {n.id for n in ast.walk(b) if isinstance(n, ast.Name)} for f, b in bodies.items()}
    while more := {f for f, names in reads.items() if names & named} - named:
        named |= more
    return named


def other_tests(mutant, first):
    """Other tests that name the function; of a theme without a test file, the room's rest too."""
    named, room, found = _with_callers(mutant), room_of(mutant), []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        names = _names_read(path)
        if names & named and room in names | {path.parent.name}:
            found.append(path)
    if not theme_tests(mutant):
        found += [path for path in room_tests(mutant) if path not in found]
    return [path for path in found if path not in first]


# ---- running: a parent that has imported all but tinker forks a process for each mutant

HOOK = """
import importlib.abc, importlib.machinery, importlib.util, json, os, sys

class Mutated(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname):
        return compile(self.text, self.path, "exec", dont_inherit=True)

class Finder(importlib.abc.MetaPathFinder):
    def __init__(self, module, path, text):
        self.module, self.path, self.text = module, path, text

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.module:
            return None
        loader = Mutated(fullname, self.path)
        loader.text = self.text
        return importlib.util.spec_from_file_location(fullname, self.path, loader=loader)

if "TINKER_MUTANT" in os.environ:
    with open(os.environ["TINKER_MUTANT"]) as file:
        sys.meta_path.insert(0, Finder(*json.load(file)))
"""


class Run(NamedTuple):
    """A forked pytest: its process, its folder, when it must end."""

    pid: int
    folder: Path
    began: float
    deadline: float


def start(tests, folder, timeout, mutant=None):
    """Forks a pytest of the test files with the mutant in place of its module."""
    folder.mkdir(parents=True)
    pid = os.fork()
    if pid:
        now = time.monotonic()
        return Run(pid, folder, now, now + timeout)
    code = 3
    try:
        os.setsid()
        with contextlib.suppress(Exception):  # on Linux, it dies with its parent
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        with open(os.devnull) as null, open(folder / "output", "w") as output:
            os.dup2(null.fileno(), 0)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(fd), "w", buffering=1) for fd in (1, 2))
        sys.dont_write_bytecode = True
        os.environ |= {"TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        tempfile.tempdir = None
        if mutant is not None:
            # The hook is sitecustomize too: processes that the tests start see the mutant as well.
            (folder / "sitecustomize.py").write_text(HOOK)
            (folder / "mutant").write_text(
                json.dumps([mutant.module, str(ROOT / mutant.file), mutant.source])
            )
            os.environ["TINKER_MUTANT"] = str(folder / "mutant")
            path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
            os.environ["PYTHONPATH"] = os.pathsep.join(path)
            exec(compile(HOOK, "sitecustomize", "exec"), {})
        import pytest

        plain = ["-p", "no:xdist", "-p", "no:cacheprovider", "-o", "addopts=", "-m", "not deep"]
        code = pytest.main([*plain, "-x", "-q", "--tb=short", *map(str, tests)])
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(int(code))


def poll(run):
    """None while it runs, else (exit code or 'timeout', seconds); nothing of it is left then."""
    seconds = time.monotonic() - run.began
    pid, status = os.waitpid(run.pid, os.WNOHANG)
    if pid:
        code = os.waitstatus_to_exitcode(status)
    elif time.monotonic() > run.deadline:
        kill(run)
        os.waitpid(run.pid, 0)
        code = "timeout"
    else:
        return None
    kill(run)  # what it may have started
    return code, seconds


def kill(run):
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(run.pid, signal.SIGKILL)


def import_ahead(paths):
    """Imports what the files import from elsewhere, so that each fork need not."""
    names = {"pytest", "_pytest.assertion.rewrite", "chex", "optax", "lazy_loader"}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names |= {node.module}
    ours = ("tinker", "tests", "torch", "tensorflow")  # torch and tensorflow start threads
    for name in sorted(names):
        if name.partition(".")[0] not in ours:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    from jax._src import xla_bridge

    assert not xla_bridge.backends_are_initialized(), (
        "an import started a backend: forks would hang"
    )


class Bench:
    """Runs mutants, two at a time, and keeps how long the tests take without one."""

    def __init__(self, jobs, timeout, scratch):
        self.jobs, self.timeout, self.scratch = jobs, timeout, scratch
        self.seconds, self.count = {}, 0

    def folder(self):
        self.count += 1
        return self.scratch / str(self.count)

    def baseline(self, tests):
        """Seconds that the tests take unchanged; None, with their output printed, if they fail."""
        for path in tests:
            if path not in self.seconds:
                run = start([path], self.folder(), 3600)
                done = self._wait(run)
                passed = done[0] in (0, 5)  # 5: all of its tests are deep
                self.seconds[path] = done[1] if passed else None
                if not passed:
                    print((run.folder / "output").read_text()[-3000:])
        seconds = [self.seconds[path] for path in tests]
        return None if None in seconds else sum(seconds)

    def _wait(self, run):
        try:
            while (done := poll(run)) is None:
                time.sleep(0.02)
        except BaseException:
            kill(run)
            raise
        return done

    def limit(self, tests):
        return self.timeout or 30 + 5 * self.baseline(tests)

    def run(self, jobs, on_done):
        """Runs (mutant, tests) pairs; ``on_done(mutant, tests, code, seconds)`` hears of each."""
        waiting, running = list(reversed(jobs)), {}
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    mutant, tests = waiting.pop()
                    running[start(tests, self.folder(), self.limit(tests), mutant)] = mutant, tests
                for run in list(running):
                    done = poll(run)
                    if done is not None:
                        mutant, tests = running.pop(run)
                        shutil.rmtree(run.folder, ignore_errors=True)
                        on_done(mutant, tests, *done)
                time.sleep(0.02)
        finally:
            for run in running:
                kill(run)


def draw(files, number, seed):
    """Mutants of the files: one of each function in random order, then another of each, …"""
    rng, functions = random.Random(seed), []
    for path in files:
        file = path.relative_to(ROOT).as_posix()
        found = mutants_of(path.read_text(), module_name(path), file)
        functions += [rng.sample(m, len(m)) for _, m in sorted(found.items())]
    rng.shuffle(functions)
    drawn = []
    while any(functions) and len(drawn) < number:
        drawn += [m.pop() for m in functions if m]
    return drawn[:number]


UNTESTED = ("untested", [], 0.0)


def verdict(code):
    if code == 0:
        return "survived"
    return {"timeout": "killed: timeout", 5: "untested"}.get(code, "killed")


def parse(argv):
    parser = argparse.ArgumentParser(
        "python -m tests.mutate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("room", nargs="*", help="rooms of tinker, kernels or experiments")
    parser.add_argument(
        "-n", type=int, default=20, help="mutants of each room, with --all of the whole (20)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="every room")
    parser.add_argument("--theme", action="append", default=[], help="ROOM/THEME, a single file")
    parser.add_argument("--function", help="only of this function")
    parser.add_argument("--timeout", type=float, help="seconds (30 and five times the tests' own)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (2)")
    parser.add_argument("--list", action="store_true", help="only print the mutants")
    args = parser.parse_args(argv)
    rooms = all_rooms() if args.all else args.room
    for room in rooms:
        if not room_folder(room).is_dir():
            parser.error(f"no room {room!r}; there are {', '.join(all_rooms())}")
    for theme in args.theme:
        if not _theme_file(theme).is_file():
            parser.error(f"no file {_theme_file(theme).relative_to(ROOT)}")
    if not rooms and not args.theme:
        parser.error("name a room, or --theme, or --all")
    groups = [_files(room) for room in rooms] + [[_theme_file(theme)] for theme in args.theme]
    if args.all:
        groups = [[file for files in groups for file in files]]
    return args, groups


def _theme_file(theme):
    room, _, rest = theme.partition("/")
    return room_folder(room) / f"{rest}.py"


def short(text, width=60):
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def main(argv=None):
    args, groups = parse(argv)
    os.chdir(ROOT)
    sys.path[:0] = [] if str(ROOT) in sys.path else [str(ROOT)]
    drawn = []
    for files in groups:
        found = draw(files, 10**9 if args.function else args.n, args.seed)
        if args.function:
            found = [m for m in found if args.function in (m.function, m.function.split(".")[0])]
        drawn += found[: args.n]
    if not drawn:
        print("nothing to mutate")
        return 0
    if args.list:
        for m in drawn:
            print(f"{m.file}:{m.line} {m.function}: {short(m.before)} → {short(m.after)}")
        return 0

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
    from rich.text import Text

    # A signal ends main through its finally clauses, which leave no process and no folder.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    warnings.filterwarnings("ignore", ".*fork.*")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("MPLBACKEND", "Agg")
    tests = {m: first_tests(m) for m in drawn}
    import_ahead({ROOT / m.file for m in drawn} | {p for t in tests.values() for p in t})
    results = {}
    console = Console(width=None if sys.stdout.isatty() else 200)
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="tinker-mutants-", ignore_cleanup_errors=True)
        )
        bench = Bench(args.jobs, args.timeout, Path(scratch))
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        # No thread of its own: forks would inherit its locks.
        progress = stack.enter_context(
            Progress(*columns, TimeElapsedColumn(), console=console, auto_refresh=False)
        )
        first = sorted({path for files in tests.values() for path in files})
        bar = progress.add_task("unchanged tests", total=len(first))
        for path in first:
            if bench.baseline([path]) is None:
                console.print("these tests fail without any mutant; mend them first")
                return 2
            progress.update(bar, advance=1, refresh=True)

        def done(mutant, files, code, seconds):
            before = results.get(mutant, UNTESTED)
            results[mutant] = verdict(code), [*before[1], *files], before[2] + seconds
            if code == 0:  # told at once: the whole takes a while, and may be stopped
                where = f"{mutant.file}:{mutant.line} {mutant.function}"
                change = f"{short(mutant.before)} → {short(mutant.after)}"
                names = " ".join(path.name for path in files)
                progress.console.print(Text(f"{names} does not see {where}: {change}"))
            progress.update(bar, advance=1, refresh=True)

        progress.update(bar, description="mutants", completed=0, total=len(drawn), refresh=True)
        bench.run([(m, tests[m]) for m in drawn if tests[m]], done)
        # The survivors against the other tests that name them.
        left = [m for m in drawn if results.get(m, UNTESTED)[0][0] != "k"]
        again = {m: files for m in left if (files := other_tests(m, tests[m]))}
        progress.update(bar, description="other tests", completed=0, total=len(again), refresh=True)
        again = [(m, files) for m, files in again.items() if bench.baseline(files) is not None]
        bench.run(again, done)

    table = Table("", "where", "function", "before → after", "tests", "s", box=None, pad_edge=False)
    unlucky = lambda m: results.get(m, UNTESTED)[0][0] != "k"  # noqa: E731
    for m in sorted(drawn, key=lambda m: (unlucky(m), m.file, m.line)):
        outcome, files, seconds = results.get(m, UNTESTED)
        names = " ".join(p.relative_to(ROOT / "tests").as_posix() for p in files)
        change = f"{short(m.before)} → {short(m.after)}"
        cells = (f"{m.file}:{m.line}", m.function, change, names, f"{seconds:.0f}")
        table.add_row(Text(outcome, "bold red" if unlucky(m) else "green"), *map(Text, cells))
    console.print(table)
    left = [m for m in drawn if unlucky(m)]
    killed = len(drawn) - len(left)
    console.print(f"{killed} of {len(drawn)} mutants killed, {len(left)} left (seed {args.seed})")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
