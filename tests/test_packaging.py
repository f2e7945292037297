"""What is installed is the tree: packages, data files, dependencies; and the wheel runs."""

import ast
import configparser
import functools
import importlib.metadata
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import tinker
from tests.conftest import ROOT
from tests.test_layers import MAPPED, files

TOPS = ("tinker", *MAPPED)
DATA = (".pyi", ".toml", ".json")
SKIP = shutil.ignore_patterns("__pycache__", "*.egg-info")


@functools.cache
def setup_cfg():
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg")
    return parsed


def listed(text):
    return [line.strip() for line in text.strip().splitlines()]


def shipped():
    """Files that a wheel must hold, by their place in it."""
    for top in TOPS:
        for path in (ROOT / top).rglob("*"):
            if path.suffix in (".py", *DATA) and "__pycache__" not in path.parts:
                inside = path.relative_to(ROOT).as_posix()
                yield inside if top == "tinker" else f"tinker/{inside}"


def build_wheel(folder, *flags):
    """Builds a wheel from a copy of the tree: (file, what was printed)."""
    source = folder / "source"
    source.mkdir()
    for top in TOPS:
        shutil.copytree(ROOT / top, source / top, ignore=SKIP)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", *flags, "-w", folder, "."]
    done = subprocess.run(
        command, cwd=source, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl")), done.stdout + done.stderr


def test_packages_listed_are_the_tree():
    """An unlisted package imports from a checkout and is missing from the wheel."""
    packages = {m if p.name == "__init__.py" else m.rpartition(".")[0] for m, p in files()}
    assert listed(setup_cfg()["options"]["packages"]) == sorted(packages)
    for top in TOPS:
        for folder in {p.parent for p in (ROOT / top).rglob("*.py")}:
            assert (folder / "__init__.py").exists(), f"{folder} has no __init__.py"


def test_a_wheel_holds_the_tree_and_building_it_warns_of_nothing(tmp_path):
    """Without network: with the setuptools of this environment, which the test extra brings."""
    pytest.importorskip("setuptools", minversion="77")
    wheel, printed = build_wheel(tmp_path, "--no-build-isolation")
    names = set(zipfile.ZipFile(wheel).namelist())
    info = next(n for n in names if n.endswith("METADATA")).removesuffix("METADATA")
    assert {n for n in names if not n.startswith(info)} == set(shipped())
    assert f"{info}licenses/LICENSE" in names
    assert not re.findall(r".*(?:Deprecat|deprecat).*", printed)

    text = zipfile.ZipFile(wheel).read(f"{info}METADATA").decode()
    assert f"\nVersion: {tinker.__version__}\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text
    extras = set(re.findall(r"^Provides-Extra: (.*)$", text, re.MULTILINE))
    wanted = {
        "cuda",
        "gcs",
        "tpu",
        "timeseries",
        "peers",
        "notebooks",
        "ray",
        "tfds-prepare",
        "test",
    }
    assert extras == wanted


@pytest.mark.deep
def test_the_wheel_trains_in_a_clean_venv(tmp_path):
    wheel, _ = build_wheel(tmp_path)
    venv.create(tmp_path / "venv", with_pip=True)
    run = functools.partial(
        subprocess.run, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    python = tmp_path / "venv" / "bin" / "python"
    done = run([python, "-m", "pip", "install", "-q", wheel])
    assert done.returncode == 0, done.stderr
    modules = [name for name, _ in files()]
    done = run([python, "-c", f"import importlib\nfor m in {modules}: importlib.import_module(m)"])
    assert done.returncode == 0, done.stderr
    job = ["train", "--config=train/vit_digits", "--workdir=run", "--config.steps=20"]
    done = run([python.with_name("tinker"), *job])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test/accuracy" in done.stdout
    done = run([python.with_name("tinker"), "bench"])
    assert done.returncode == 0, done.stderr
    assert "checkout" in done.stdout


# Distributions whose import name is not their own.
IMPORTED_AS = {
    "ott-jax": "ott",
    "pot": "ot",
    "importlib-resources": None,  # of tensorflow-datasets, which does not declare it
    "mnist1d": "mnist1d",
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "tensorboardx": "tensorboardX",
    "tensorflow-cpu": "tensorflow",
}


def top_level_name(requirement):
    name = re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")
    return IMPORTED_AS.get(name, name.replace("-", "_"))


def third_party(path):
    """(name, whether at import of the module) of all that a file imports from elsewhere."""
    tree = ast.parse(path.read_text())
    inner = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.Lambda)
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for name in names:
            top = name.partition(".")[0]
            if top != "tinker" and top not in sys.stdlib_module_names:
                yield top, id(node) not in inner


def test_what_is_imported_is_required():
    """At import only what a plain install brings; inside functions an extra's as well."""
    options = setup_cfg()["options"]
    required = {top_level_name(r) for r in listed(options["install_requires"])} | {"jaxlib"}
    extras = setup_cfg()["options.extras_require"].values()
    optional = required | {top_level_name(r) for extra in extras for r in listed(extra)}
    for module, path in files():
        for name, at_import in third_party(path):
            assert name in (required if at_import else optional), f"{module} imports {name}"


def test_every_requirement_is_installed():
    for requirement in listed(setup_cfg()["options"]["install_requires"]):
        importlib.metadata.version(re.match(r"[\w.-]+", requirement)[0])


COMMANDS = (
    "pip install -e . && tinker train --config=train/vit_digits --workdir=runs/vit",
    "pip install -e '.[test]' && pytest",
)


def test_readme_and_ci_give_the_same_commands():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    for command in COMMANDS:
        assert command in readme
        for part in command.split(" && "):
            assert re.search(rf"^{re.escape(part)}$", ci, re.MULTILINE), f"{part} is not in .ci/run"


def test_readme_example_runs(python):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        assert len(block.strip().splitlines()) <= 20
        assert python(block).stdout.strip()


def test_readme_names_every_room():
    readme = (ROOT / "README.md").read_text()
    for folder in Path(ROOT / "tinker").glob("*/__init__.py"):
        assert f"`{folder.parent.name}`" in readme, f"{folder.parent.name} is not in the README"
