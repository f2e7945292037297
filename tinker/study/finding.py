"""Finding a study: by paper, or by where its config is."""

import ast
import importlib.util
import inspect
from pathlib import Path

from tinker import papers
from tinker.numerics import UserError, nearest
from tinker.train.locating import import_config, load_config


def find(name):
    """Where a study's config is.

    Args:
      name: A paper's id (``"polyloss"``), or a config and a function in it
        (``"losses/classification:polyloss"``), with options after commas (``"polyloss,full"``).

    Returns:
      ``(id, study)``: the paper's id and ``"ROOM/THEME:function"``, options included.

    Raises:
      UserError: There is none; names the nearest.
    """
    head, comma, options = str(name).partition(",")
    if ":" in head:
        place, _, function = head.removeprefix("configs/").partition(":")
        return function.replace("_", "-"), f"{place.removesuffix('.py')}:{function}{comma}{options}"
    rows = papers.rows()
    if head in rows:
        return head, rows[head]["study"] + comma + options
    defined = {function.replace("_", "-"): place for place, function in _functions()}
    if head not in defined:
        known = sorted({*rows, *defined})
        raise UserError(
            f"there is no study {head!r}{nearest(head, known)}; `tinker papers` lists them"
        )
    return head, f"{defined[head]}:{head.replace('-', '_')}{comma}{options}"


def _functions():
    """(config, function) of every study in tinker.configs, without importing any."""
    root = Path(importlib.util.find_spec("tinker.configs").origin).parent
    for path in sorted(root.rglob("*.py")):
        names = [n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)]
        if "base" in names:
            place = path.relative_to(root).with_suffix("").as_posix()
            yield from ((place, n) for n in names if n != "base" and not n.startswith("_"))


def load_study(name):
    """Loads a study's config.

    Args:
      name: As for :func:`find`.

    Returns:
      ``(id, study, config)``; the study's docstring is ``config.note``.
    """
    paper, study = find(name)
    config = load_config(study)
    place, _, function = study.partition(",")[0].partition(":")
    function = getattr(import_config(place), function.replace("-", "_"))
    config.note = inspect.getdoc(function)
    return paper, study, config
