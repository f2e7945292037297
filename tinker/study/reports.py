"""Reports: what a study found, with all that is needed to argue with it."""

import functools
import importlib.util
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import numpy as np

from tinker import papers
from tinker.numerics import UserError, nearest
from tinker.study.running import code_hash, config_hash
from tinker.train.workdir import plain, write_whole


def make_report(name, study, config, found):
    """Makes the report of a study, plain data for JSON.

    Args:
      name: The paper's id.
      study: Where its config is, ``"losses/classification:polyloss"``.
      config: The study's config.
      found: What :func:`tinker.study.run_study` returned.

    Returns:
      A dict; see :func:`load` for its table. Non-finite numbers are None.
    """
    import jax

    row = papers.rows().get(name, {})
    earlier = _published(name)
    past = list(earlier.get("earlier", ())) if earlier else []
    if earlier:
        claim = next(c for c in earlier["claims"] if c.get("primary"))
        stated = {k: v for k, v in claim.items() if k not in ("values", *_JUDGED)}
        entry = {k: earlier[k] for k in ("verdict", "config_hash", "code_hash", "commit")}
        if earlier["config_hash"] != config_hash(config) or earlier["verdict"] != found["verdict"]:
            past.append(entry | {"claim": stated})
    device = jax.devices()[0]
    return _finite(
        {
            "id": name,
            "title": row.get("title"),
            "claim": row.get("claim"),
            "study": study,
            "note": config.get("note"),
            "verdict": found["verdict"],
            "claims": found["claims"],
            "values": found["values"],
            "tuned": found["tuned"],
            "config": plain(config),
            "config_hash": config_hash(config),
            "code_hash": code_hash(name, config),
            "commit": commit(),
            "versions": {p: metadata.version(p) for p in ("jax", "flax", "optax", "numpy")},
            "device": f"{device.platform} {device.device_kind}",
            "python": platform.python_version(),
            "seconds": round(found["seconds"], 1),
            "earlier": past,
        }
    )


_JUDGED = ("verdict", "estimate", "low", "high", "p", "detectable", "n")


def _finite(value):
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def commit():
    """The checkout's commit, with a plus where files differ from it; None outside of one."""
    root = Path(__file__).parents[2]
    run = functools.partial(
        subprocess.run, cwd=root, capture_output=True, text=True, check=False, timeout=20
    )
    try:
        head = run(["git", "rev-parse", "--short=12", "HEAD"])
        if head.returncode:
            return None
        code = ("tinker", "kernels", "experiments", "configs", ":(exclude)experiments/results")
        dirty = run(["git", "status", "--porcelain", "--", *code])
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


# Where reports are.


def results_folder():
    """experiments/results, as installed."""
    return Path(importlib.util.find_spec("tinker.experiments").origin).parent / "results"


def _published(name):
    found = sorted(results_folder().glob(f"*/{name}.json"))
    return json.loads(found[0].read_text()) if found else None


def publish(report):
    """Writes a report into experiments/results/ROOM/ID.json; returns the path."""
    room = report["study"].partition("/")[0]
    path = results_folder() / room / f"{report['id']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(report, indent=1, sort_keys=True) + "\n")
    return path


def read_report(name):
    """A published report, or that of a workdir or file.

    Args:
      name: A paper's id, a folder with a ``report.json``, or a JSON file.

    Returns:
      The report as a dict.

    Raises:
      UserError: There is none.
    """
    path = Path(name)
    for candidate in (path, path / "report.json"):
        if candidate.is_file():
            return json.loads(candidate.read_text())
    report = _published(str(name))
    if report is None:
        ids = [p.stem for p in results_folder().glob("*/*.json")]
        raise UserError(f"there is no report of {name!r}{nearest(name, ids)}")
    return report


def load(name):
    """A report's values as a table.

    Args:
      name: As for :func:`read_report`.

    Returns:
      A pandas DataFrame with a row for each arm and seed, and a column for each metric; arrays stay
      lists.
    """
    try:
        import pandas
    except ModuleNotFoundError:
        raise UserError("study.load needs pandas: pip install 'tinker-jax[notebooks]'") from None
    report = read_report(name)
    rows = [
        {"arm": arm, "seed": seed, **{m: values[m][seed] for m in values}}
        for arm, values in report["values"].items()
        for seed in range(len(next(iter(values.values()))))
    ]
    return pandas.DataFrame(rows)


def overview(markdown=False, room=None):
    """Every paper with its verdict.

    Args:
      markdown: Whether to give docs/papers.md instead.
      room: Only this room's.

    Returns:
      A list of dicts (id, room, title, functions, verdict, detectable, n, checked, stale), or the
      page as text.
    """
    from tinker.study.finding import load_study

    lines = []
    for name, row in papers.rows(room).items():
        report = _published(name)
        line = {**row, "verdict": None, "detectable": None, "n": None, "stale": False}
        if report is not None:
            primary = next(c for c in report["claims"] if c.get("primary"))
            line |= {k: primary[k] for k in ("verdict", "detectable", "n")}
            line["stale"] = staleness(name, load_study(name)[2]) != "fresh"
        lines.append(line)
    return _page(lines) if markdown else lines


def _page(lines):
    page = [
        "# Papers",
        "",
        "Made by `tinker papers --markdown` from the published reports. A verdict is of the",
        "study's primary claim *at this scale*; the detectable effect is the smallest that the",
        "study would have found with probability 0.8, in the claim's units. ⟳: the code has",
        "changed since.",
    ]
    rooms = sorted({line["room"] for line in lines})
    for name in rooms:
        page += ["", f"## {name}", "", "| paper | functions | verdict | detectable | checked |"]
        page.append("|---|---|---|---|---|")
        for line in (x for x in lines if x["room"] == name):
            functions = ", ".join(f"`{f.partition(':')[2]}`" for f in line["functions"])
            verdict = f"{line['verdict'] or 'no report'}{' ⟳' if line['stale'] else ''}"
            size = line["detectable"]
            size = "" if size is None else f"{size:.2g} (n={line['n']})"
            title = f"{line['title']} (`{line['id']}`)"
            page.append(f"| {title} | {functions} | {verdict} | {size} | {line['checked']} |")
    return "\n".join(page) + "\n"


def staleness(name, config):
    """Whether a published report is still that of this config and code.

    Returns:
      "fresh", "config" (the study was changed), "code" (its functions were), or "absent".
    """
    report = _published(name)
    if report is None:
        return "absent"
    if report["config_hash"] != config_hash(config):
        return "config"
    return "fresh" if report["code_hash"] == code_hash(name, config) else "code"
