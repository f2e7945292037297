"""Locating: configs by name or file."""

import importlib
import importlib.util
import inspect
import json
from pathlib import Path

from tinker.numerics.errors import UserError, nearest


def load_config(spec):
    """Loads a config by name or file.

    Args:
      spec: ``NAME[:ARG]`` inside tinker.configs (``train/vit_digits``) or ``FILE.py[:ARG]``. The
        file defines ``get_config(arg)``, or ``base()`` and functions over it: ARG is then the
        name of one, which edits the config it is given or returns another. ``,KEY=VALUE`` and
        ``,KEY`` (for True) after the name are its keyword arguments. Or ``FILE.json``, as a run
        and a launch keep theirs; may be ``gs://``.

    Returns:
      The ConfigDict.

    Raises:
      UserError: No such file, name or function.
    """
    if spec.endswith(".json"):
        return _read_json(spec)
    name, _, arg = spec.partition(":")
    module = import_config(name)
    if hasattr(module, "get_config"):
        return call_get_config(module.get_config, name, arg)
    choices = [
        n
        for n, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__ == module.__name__ and n[0] != "_" and n != "base"
    ]
    if not hasattr(module, "base") or not choices:
        raise UserError(
            f"config {name} defines neither get_config() nor base() and functions of it"
        )
    arg, *words = arg.split(",")
    arg = arg if arg in choices else arg.replace("-", "_")
    if arg not in choices:
        asked = f"has no {arg!r}{nearest(arg, choices)}; it has" if arg else "needs one of its"
        raise UserError(f"config {name} {asked} functions: {', '.join(choices)}, as {name}:NAME")
    function, options = getattr(module, arg), dict(_option(word) for word in words)
    accepted = list(inspect.signature(function).parameters)[1:]
    for option in options:
        if option not in accepted:
            takes = f"it takes {', '.join(accepted)}" if accepted else "it takes none"
            raise UserError(
                f"config {name}:{arg} has no option {option!r}; {takes}{nearest(option, accepted)}"
            )
    config = module.base()
    edited = function(config, **options)
    return config if edited is None else edited


def _read_json(path):
    from etils import epath

    from tinker.train.building import default_config
    from tinker.train.specs import Config

    file = epath.Path(path).expanduser()
    if not file.exists():
        raise UserError(f"there is no file {path}")
    try:  # a key that is newer than the file has its default
        return Config({**default_config().to_dict(), **json.loads(file.read_text())})
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} holds no config: {error}") from None


def _option(word):
    key, equals, value = word.partition("=")
    return key, value if equals else True


def call_get_config(function, name, arg):
    parameters = inspect.signature(function).parameters.values()
    if arg and not parameters:
        raise UserError(f"config {name} takes no argument, so leave out :{arg}")
    if not arg and any(p.default is p.empty for p in parameters):
        raise UserError(f"config {name} needs an argument: --config={name}:ARG")
    return function(arg) if arg else function()


def import_config(name):
    """The module of a config: of a file that exists, or a name inside tinker.configs."""
    path, names = Path(name).expanduser(), config_names()
    short = name.removesuffix(".py").removeprefix("configs/")
    if path.is_file():
        spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
        if spec is None:
            raise UserError(f"config {name} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    if short in names:
        return importlib.import_module(f"tinker.configs.{short.replace('/', '.')}")
    beside = [str(p) for p in path.parent.glob("*.py")] if path.suffix == ".py" else []
    kind = "file" if path.suffix == ".py" else "config"
    raise UserError(
        f"there is no {kind} {name}{nearest(name, beside) or nearest(short, names)}; "
        f"there are {', '.join(names)}, and files"
    )


def config_names():
    """The names inside tinker.configs: ``train/vit_digits``, …"""
    root = Path(importlib.util.find_spec("tinker.configs").origin).parent
    found = (p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.py"))
    return sorted(name for name in found if not name.endswith("__init__"))
