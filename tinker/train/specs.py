"""Specs: ``dict(fn="package.module:name", **keywords)``, resolved, checked, built and overridden.

Any keyword of a spec may itself be a spec: it is built first, and with ``partial=True`` passed as a
function. The keys ``fn``, ``inputs``, ``scale``, ``name`` and ``partial`` are reserved.
"""

import functools
import importlib
import inspect
from collections.abc import Mapping

import flax.linen as nn
import ml_collections

from tinker.numerics import UserError, nearest

RESERVED = ("fn", "inputs", "scale", "name", "partial")


class Config(ml_collections.ConfigDict):
    """A ConfigDict whose keys may hold dots, and whose types :func:`override` checks.

    An arm of a study is a dict of changes by dotted key, which a plain ConfigDict refuses.
    """

    def __init__(self, initial=(), type_safe=False):
        super().__init__(type_safe=False, allow_dotted_keys=True)
        for key, value in dict(initial).items():
            self[key] = value

    def __setitem__(self, key, value):
        super().__setitem__(key, Config(value) if isinstance(value, dict) else value)


def is_mapping(value):
    return isinstance(value, Mapping | ml_collections.ConfigDict)


def resolve(path, where="fn"):
    """Imports the function that ``"package.module:name"`` names.

    Args:
      path: An import path; the name may be dotted (``"optax:contrib.schedule_free"``).
      where: The config key, for the error.

    Returns:
      The function or class.

    Raises:
      UserError: Nothing is there; names the nearest that is.
    """
    module_name, colon, name = str(path).partition(":")
    if not colon or not name:
        raise UserError(f"{where}={path!r} is not of the form 'package.module:name'")
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not (module_name + ".").startswith(error.name + "."):
            raise UserError(f"{where}: importing {module_name} failed: {error}") from error
        hint = nearest(module_name, _modules_beside(module_name))
        raise UserError(f"{where}: there is no module {module_name!r}{hint}") from None
    for part in name.split("."):
        if not hasattr(found, part):
            names = [n for n in dir(found) if not n.startswith("_")]
            raise UserError(f"{where}: {module_name} has no {name!r}{nearest(part, names)}")
        found = getattr(found, part)
    return found


def _modules_beside(name):
    import tinker

    return [f"tinker.{room}" for room in dir(tinker)] + [name.partition(".")[0]]


def signature_of(fn):
    """The parameters of a function, or the fields of a flax module."""
    parameters = dict(inspect.signature(fn).parameters)
    if inspect.isclass(fn) and issubclass(fn, nn.Module):
        parameters.pop("parent", None)
        parameters.pop("name", None)
    return parameters


def check_call(fn, path, keywords, where, positional=0):
    """Raises a UserError if ``fn(*positional, **keywords)`` cannot be called."""
    try:
        parameters = signature_of(fn)
    except ValueError:  # a builtin without a signature
        return
    free = [
        p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    if positional > len(free) and not takes_any:
        raise UserError(
            f"{where}: {path} takes {len(free)} inputs ({', '.join(p.name for p in free)}), "
            f"{positional} are given"
        )
    filled = {p.name for p in free[:positional]}
    accepted = [
        p.name
        for p in parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in filled
    ]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in keywords:
            if name not in accepted:
                takes = f"it takes {', '.join(accepted)}" if accepted else "it takes none"
                raise UserError(
                    f"{where}: {path} has no keyword {name!r}; {takes}{nearest(name, accepted)}"
                )
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and p.name not in filled
        and p.name not in keywords
    ]
    if missing:
        raise UserError(f"{where}: {path} needs {', '.join(missing)}")


def instantiate(value, where):
    """Builds a value of a config: a spec by calling its function, its keywords built first."""
    if is_mapping(value):
        if "fn" not in value:
            return {k: instantiate(v, f"{where}.{k}") for k, v in value.items()}
        fn, path, keywords = parts(value, where)
        if value.get("partial", False):
            return functools.partial(fn, **keywords)
        check_call(fn, path, keywords, where)
        return called(fn, path, keywords, where)
    if isinstance(value, list | tuple):
        return type(value)(instantiate(v, f"{where}.{i}") for i, v in enumerate(value))
    return value


def parts(spec, where):
    fn = resolve(spec["fn"], f"{where}.fn")
    if not callable(fn):
        raise UserError(f"{where}.fn: {spec['fn']} is not a function")
    keywords = {k: instantiate(v, f"{where}.{k}") for k, v in spec.items() if k not in RESERVED}
    try:
        parameters = signature_of(fn)
    except ValueError:  # a builtin without a signature
        parameters = {}
    for key in ("scale", "name", "partial"):
        if key in spec and key in parameters:
            raise UserError(
                f"{where}: {key!r} is a key of the config's own, so that {spec['fn']} cannot be "
                "given the keyword of that name; wrap it in a function with another"
            )
    return fn, spec["fn"], keywords


def called(fn, path, keywords, where):
    try:
        return fn(**keywords)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {path} refused its keywords: {error}") from error


def override(config, changes):
    """Applies changes by dotted key, with the meaning of ``--config.KEY=VALUE``.

    Setting ``X.fn`` drops X's other keywords, but for its reserved ones and for ``inputs`` where
    the new signature has room for them; keywords given with it are then set, in any order.

    Args:
      config: A ConfigDict; it is not changed.
      changes: ``{"loss.fn": "tinker.losses:focal", "loss.gamma": 1.0}``; ``loss.0.scale`` reaches
        into a list.

    Returns:
      A new ConfigDict.

    Raises:
      UserError: An unknown key, or a value of another type than the present one.
    """
    plain = as_plain(config)
    order = sorted(changes, key=lambda k: (not k.endswith(".fn"), k.count(".")))
    for key in order:
        _set(plain, key, changes[key])
    return Config(plain)


def as_plain(value):
    if is_mapping(value):
        return {k: as_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(as_plain(v) for v in value)
    return value


def _set(config, dotted, value):
    *parents, last = dotted.split(".")
    node, path = config, "config"
    for i, part in enumerate(parents):
        child = _get(node, part, path)
        if not isinstance(child, dict | list | tuple):
            if child is None or last == "fn" or "fn" in node:
                child = {}
            else:
                raise UserError(
                    f"{path}.{part} is {child!r}, it has no {'.'.join(parents[i + 1 :] + [last])!r}"
                )
            _put(node, part, child)
        elif isinstance(child, tuple):  # a list inside is edited in place
            child = list(child)
            _put(node, part, child)
        node, path = child, f"{path}.{part}"
    if last == "fn" and isinstance(node, dict):
        _swap(node, value, path)
        return
    if isinstance(node, dict) and last not in node and not _open(node, path):
        raise UserError(f"there is no {path}.{last}{nearest(last, node)}")
    present = _get(node, last, path) if isinstance(node, list) or last in node else None
    _put(node, last, as_type(value, present, f"{path}.{last}"))


# Below these keys the names are the user's (or a source's options).
_FREE = ("config.data", "config.nets", "config.metrics", "config.arms", "config.tune")
_FREE += ("config.launch.env",)


def _open(node, path):
    return "fn" in node or not node or path.startswith(_FREE)


def _get(node, part, path):
    if isinstance(node, list):
        if not part.isdigit() or int(part) >= len(node):
            raise UserError(f"{path} is a list of {len(node)}; {part!r} is not one of its places")
        return node[int(part)]
    if part not in node and not _open(node, path):
        raise UserError(f"there is no {path}.{part}{nearest(part, node)}")
    return node.get(part)


def _put(node, part, value):
    node[int(part) if isinstance(node, list) else part] = value


def _swap(node, fn, path):
    found = resolve(fn, f"{path}.fn")
    kept = {k: v for k, v in node.items() if k in ("scale", "name", "partial", "frozen", "split")}
    inputs = node.get("inputs")
    if inputs is not None:
        try:
            parameters = signature_of(found)
            if inspect.isclass(found) or isinstance(inputs, dict):
                fits = inspect.isclass(found) or set(inputs) <= set(parameters)
            else:
                free = [p for p in parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD]
                needed = sum(p.default is p.empty for p in free)
                fits = needed <= len(inputs) <= len(free)
        except ValueError:
            fits = True
        if fits:
            kept["inputs"] = inputs
    node.clear()
    node.update({"fn": fn, **kept})


def as_type(value, present, where):
    """The value in the type of the present one, or a UserError."""
    if present is None or is_mapping(present) or is_mapping(value) or value is None:
        return value
    if isinstance(present, bool) or isinstance(value, bool):
        good = isinstance(present, bool) and isinstance(value, bool)
    elif isinstance(present, float) and isinstance(value, int):
        return float(value)
    elif isinstance(present, list | tuple):
        if isinstance(value, list | tuple):
            return type(present)(value)
        good = False
    else:
        good = isinstance(value, type(present))
    if not good:
        kinds = type(present).__name__, type(value).__name__
        raise UserError(f"{where} is {present!r} ({kinds[0]}); {value!r} is of type {kinds[1]}")
    return value
