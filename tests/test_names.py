"""A public name is defined once in the whole library, and is what its room says it is."""

import ast
import collections

import pytest

from tests.conftest import ROOT

STUBS = sorted(
    path
    for top in ("tinker", "kernels", "experiments")
    for path in (ROOT / top).rglob("__init__.pyi")
    if path.parent != ROOT / "tinker"
)


def exports(stub):
    """(theme, name in the theme, public name) of each line of a room's stub."""
    for node in ast.parse(stub.read_text()).body:
        assert isinstance(node, ast.ImportFrom), f"{stub}: only `from .theme import x as x`"
        assert node.level == 1, f"{stub}: a room exports what is its own"
        for alias in node.names:
            yield node.module, alias.name, alias.asname


def definitions(path):
    """Names that a module defines itself, rather than imports."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (t.id for t in targets if isinstance(t, ast.Name))


def theme_file(stub, theme):
    return stub.parent.joinpath(*theme.split(".")).with_suffix(".py")


def test_a_public_name_is_defined_once():
    homes = collections.defaultdict(list)
    for stub in STUBS:
        for _, _, name in exports(stub):
            homes[name].append(stub.parent.name)
    # A dataset and a report are both loaded; nothing else shares its name with anything.
    assert homes.pop("load") == ["data", "study"]
    assert not {name: rooms for name, rooms in homes.items() if len(rooms) > 1}


@pytest.mark.parametrize("stub", STUBS, ids=lambda s: s.parent.name)
def test_a_room_exports_what_its_themes_define(stub):
    for theme, inner, name in exports(stub):
        assert theme is not None, f"{stub}: say which theme {inner} is from"
        assert name == inner, f"{stub}: write `from .{theme} import {inner} as {inner}`"
        assert not name.startswith("_"), f"{stub}: {name} is private"
        assert name in set(definitions(theme_file(stub, theme))), (
            f"{stub.parent.name}/{theme} imports {name}: export it from where it is defined"
        )


@pytest.mark.parametrize("stub", STUBS, ids=lambda s: s.parent.name)
def test_no_theme_is_named_like_a_public_function(stub):
    """Importing the theme would put the module in the function's place."""
    themes = {path.stem for path in stub.parent.glob("*.py")}
    themes |= {path.parent.name for path in stub.parent.glob("*/__init__.py")}
    assert not themes & {name for _, _, name in exports(stub)}


def test_every_room_has_a_stub_and_is_listed():
    rooms = {p.parent.name for p in (ROOT / "tinker").glob("*/__init__.py")} - {"cli", "papers"}
    assert rooms == {s.parent.name for s in STUBS if s.parent.parent == ROOT / "tinker"}
    listed = set()
    for node in ast.parse((ROOT / "tinker" / "__init__.pyi").read_text()).body:
        listed |= {alias.name for alias in node.names}
    assert listed == rooms | {"kernels", "experiments", "configs", "papers"}
