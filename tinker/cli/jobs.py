"""``tinker train`` and ``tinker eval``, and how a config is found."""

import importlib
import importlib.util
import inspect
import shlex
from pathlib import Path

from tinker.cli.printing import console, table
from tinker.numerics.errors import UserError, nearest


def train(args, overrides):
    """Trains a config in a workdir, or prints it."""
    config = load_config(args.config)
    from tinker.train import override

    config = override(config, overrides)
    if args.profile is not None:
        config.profile = args.profile
    if args.print_config:
        for line in config_lines(config, as_flags=args.print_config == "flags"):
            print(line)
        return
    from tinker.train import fit

    _, results = fit(config, args.workdir)
    show_results(results, args.workdir)


def evaluate(args):
    """Evaluates a checkpoint of a workdir on whole splits."""
    from tinker.train import evaluate, restore

    program, state, config = restore(args.workdir, step=args.step)
    results = evaluate(program, state, config, splits=args.split.split(","))
    show_results(results, f"{args.workdir}, step {int(state.step)}")


def show_results(results, title):
    """Prints metrics as a table; of an array its shape."""
    import numpy as np

    shown = [
        (name, f"{float(x):.6g}" if np.ndim(x) == 0 else f"array {np.shape(x)}")
        for name, x in results.items()
    ]
    console().print(table("metric", "value", rows=shown, right=["value"], title=title))


def load_config(spec):
    """Loads a config by name or file.

    Args:
      spec: ``NAME[:ARG]`` inside tinker.configs (``train/vit_digits``) or ``FILE.py[:ARG]``. The
        file defines ``get_config(arg)``, or ``base()`` and functions over it: ARG is then the
        name of one, which edits the config it is given or returns another.

    Returns:
      The ConfigDict.

    Raises:
      UserError: No such file, name or function.
    """
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
    if arg not in choices:
        asked = f"has no {arg!r}{nearest(arg, choices)}; it has" if arg else "needs one of its"
        raise UserError(f"config {name} {asked} functions: {', '.join(choices)}, as {name}:NAME")
    config = module.base()
    edited = getattr(module, arg)(config)
    return config if edited is None else edited


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


def config_lines(config, as_flags=False):
    """A line for each key: ``config.loss.fn = '…'``, or ``--config.loss.fn=…`` for the shell."""
    for key, value in flattened(config).items():
        if as_flags:
            yield shlex.quote(f"--config.{key}={value if isinstance(value, str) else repr(value)}")
        else:
            yield f"config.{key} = {value!r}"


def flattened(config):
    """``{dotted key: value}`` of a config; an empty dict stays, as a value."""
    from tinker.train.specs import as_plain

    def walk(node, prefix):
        for key, value in node.items():
            if isinstance(value, dict) and value:
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(walk(as_plain(config), ""))
