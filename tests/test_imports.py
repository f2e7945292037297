"""Modules import without a backend, rooms are lazy, and every name they promise is there."""

import json

import pytest

from tests.test_layers import files
from tests.test_names import STUBS, exports

HEAVY = ["flax", "grain", "jax", "matplotlib", "numpy", "optax", "orbax", "rich", "sklearn"]
LOADED = f"import sys, json; print(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))))"

EVERYTHING = """
import importlib, json, sys, traceback
modules, names, failed = *json.loads(sys.argv[1]), {}
for module in modules:
    try:
        importlib.import_module(module)
    except BaseException:
        failed[module] = traceback.format_exc(limit=-3)
for room, name in names:
    try:
        found = getattr(importlib.import_module(room), name)
        if callable(found) and not (found.__doc__ or "").strip():
            failed[f"{room}.{name}"] = "no docstring"
    except BaseException:
        failed[f"{room}.{name}"] = traceback.format_exc(limit=-3)
print(json.dumps(failed))
"""


def room_name(stub):
    return f"tinker.{stub.parent.name}"


def test_every_module_imports_and_every_name_resolves_without_a_backend(python):
    modules = [name for name, _ in files()]
    names = [(room_name(stub), name) for stub in STUBS for _, _, name in exports(stub)]
    done = python(EVERYTHING, json.dumps([modules, names]), JAX_PLATFORMS="nonsense")
    failed = json.loads(done.stdout.splitlines()[-1])
    assert not failed, "\n".join(f"{name}: {why}" for name, why in failed.items())


def test_a_module_that_starts_a_backend_is_noticed(python, tmp_path):
    (tmp_path / "guilty.py").write_text("import jax.numpy as jnp\nONE = jnp.ones(())\n")
    done = python(EVERYTHING, json.dumps([["guilty"], []]), JAX_PLATFORMS="nonsense")
    assert "guilty" in json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "code",
    [
        "import tinker",
        "import tinker; [getattr(tinker, room) for room in tinker.__all__]",
        "from tinker.numerics.errors import UserError",
        "import tinker.cli",
    ],
)
def test_importing_loads_nothing_heavy(python, code):
    assert json.loads(python(f"{code}\n{LOADED}").stdout) == []


@pytest.mark.parametrize(
    "argv", ["--help", "--version", "train --help", "plan --help", "data --help"]
)
def test_help_loads_nothing_heavy(python, argv):
    code = f"import tinker.cli\nassert tinker.cli.main({argv.split()!r}) == 0\n{LOADED}"
    out = python(code).stdout
    assert "tinker" in out
    assert json.loads(out.splitlines()[-1]) == []
