"""A room imports only from lower layers: never from above, never sideways."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

LAYERS = [
    {"numerics"},
    {"kernels"},
    {"data", "metrics", "ot"},
    {"losses", "nn"},
    {"models", "graph", "search", "optim"},
    {"compress", "generative", "rl", "trust", "theory"},
    {"train"},
    {"papers"},
    {"study"},
    {"experiments"},
    {"launch"},
    {"cli"},
]
FREE = {"configs"}  # may import anything, and is loaded by name
HEIGHT = {room: height for height, layer in enumerate(LAYERS) for room in layer}
MAPPED = ("kernels", "experiments", "configs")  # they stand at the top of the tree


def files():
    """(module name, file) of every module of the library."""
    for top in ("tinker", *MAPPED):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if top == "tinker" else ("tinker", *parts)
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(source, module, is_package):
    """Dotted names of all that a file imports of tinker, wherever in it the import stands."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "tinker":  # `import tinker`, then `tinker.losses.…`
                yield f"tinker.{node.attr}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield node.args[0].value


def violations(source, module, is_package=False):
    """Imports of the file that its room's layer does not allow."""
    room = module.split(".")[1] if "." in module else None
    if room is None or room in FREE:
        return []
    wrong = []
    for name in imported(source, module, is_package):
        head, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if head != "tinker" or other == room or other not in HEIGHT | dict.fromkeys(FREE):
            continue  # outside tinker, the room itself, or an attribute such as __version__
        if other in FREE or HEIGHT[other] >= HEIGHT[room]:
            wrong.append(f"{module} imports {name}")
    return wrong


def test_every_room_has_a_layer():
    rooms = {name.split(".")[1] for name, _ in files() if "." in name}
    assert rooms - FREE <= set(HEIGHT), "give the new room a layer"


def test_rooms_import_only_from_below():
    wrong = []
    for module, path in files():
        wrong += violations(path.read_text(), module, path.name == "__init__.py")
    assert not wrong


@pytest.mark.parametrize(
    "source",
    [
        "import tinker.train",
        "from tinker import train",
        "from tinker.train import compose",
        "def f():\n  from tinker import models as m",
        "from ..train.loop import fit",
        "from .. import nn",
        "import tinker\ndef f(x): return tinker.train.compose(x)",
        "import importlib\nimportlib.import_module('tinker.study')",
        "from tinker.nn.axes import matrix_axes",
        "from tinker import configs",
    ],
)
def test_every_form_of_import_is_seen(source):
    assert violations(source, "tinker.losses.contrastive")


@pytest.mark.parametrize(
    "source",
    [
        "import jax",
        "from tinker.numerics import fold_in",
        "from tinker import __version__",
        "from .classification import cross_entropy",
        "from . import classification",
        "from tinker.losses import classification",
        "x = dict(fn='tinker.train:compose')",
    ],
)
def test_what_is_allowed_passes(source):
    assert not violations(source, "tinker.losses.contrastive")


def test_files_are_found():
    names = [name for name, _ in files()]
    assert {"tinker", "tinker.losses", "tinker.configs.train", "tinker.kernels"} <= set(names)
    assert all(isinstance(path, Path) for _, path in files())
