"""Running a study: every arm, seed and grid point, each kept as it ends, then the verdicts.

A study's config names an ``experiment``, ``run(config, key) -> {name: scalar or array}``, and what
is done with it:

- ``seeds``: how many; a seed gives every arm the same key, hence split, order and start.
- ``arms``: ``{name: {dotted key: value}}``, changes to the config.
- ``tune``: ``{dotted key: values}``, the same grid for every arm; ``tune_by`` is ``dict(metric=…,
  minimize=…, seeds=…)`` on the validation split, with seeds that the claims do not use.
- ``claims``: dicts, see :mod:`tinker.study.claims`; just one has ``primary=True``.
"""

import ast
import functools
import hashlib
import importlib
import inspect
import itertools
import json
import math
import textwrap
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tinker import papers
from tinker.numerics import UserError, fold_in, nearest
from tinker.study import claims as claim_functions
from tinker.study import verdicts
from tinker.train.specs import Config, as_plain, override, resolve
from tinker.train.workdir import STARTS, claim_config, folder, plain, write_whole

KEYS = ("experiment", "seeds", "arms", "tune", "tune_by", "claims", "figure", "note")
TOLD = ("figure", "note")  # of no consequence for a verdict
OWN = ("metric", "arm", "over", "fn", "primary", "at_least", "at_most", "within", "margin")
OWN += ("deterministic", "text")


def experiment_of(config):
    """The function of ``config.experiment``: a name in tinker.experiments, or ``"module:fn"``."""
    name = config.experiment
    if ":" in name:
        return resolve(name, "experiment")
    try:
        return importlib.import_module(f"tinker.experiments.{name}").run
    except ModuleNotFoundError as error:
        if error.name != f"tinker.experiments.{name}":
            raise
        raise UserError(f"config.experiment: there is no tinker.experiments.{name}") from None


def check_study(config):
    """Raises a UserError for a study that cannot be run or judged."""
    for key in ("experiment", "seeds", "arms", "claims"):
        if not config.get(key):
            raise UserError(f"this config is no study: config.{key} is not set")
    primary = [c for c in config.claims if c.get("primary")]
    if len(primary) != 1:
        raise UserError(f"exactly one claim must be primary, {len(primary)} are")
    if config.seeds < 3 and not primary[0].get("deterministic"):
        raise UserError(f"config.seeds={config.seeds}: a claim over seeds needs at least 3")
    for claim in config.claims:
        for arm in [claim.get("arm"), claim.get("over"), *(claim.get("arms") or ())]:
            if arm is not None and arm not in config.arms:
                arms = list(config.arms)
                raise UserError(f"claim: there is no arm {arm!r}: {arms}{nearest(arm, arms)}")
    if config.get("tune") and not config.get("tune_by"):
        raise UserError("config.tune needs config.tune_by, dict(metric='validation/…', minimize=…)")


def arm_config(config, changes):
    """The config of one run: the study's, with an arm's changes, without the study's own keys."""
    base = override(config, {k: v for k, v in changes.items()})
    return Config({k: v for k, v in base.items() if k not in KEYS})


class Run(NamedTuple):
    """A run of a study: an arm at one point of the grid, with one key."""

    part: str  # "tune" or "runs"
    label: str
    changes: dict  # of the study's config, by dotted key
    key: str  # of which the random key is derived


def compute_run(config, run):
    """The values of a run, ``{metric: number or nested lists}``, plain data.

    Args:
      config: The study's config, as plain dicts.
      run: A :class:`Run`.
    """
    import jax

    config = Config(config)
    made, experiment = arm_config(config, run.changes), experiment_of(config)
    if run.part == "tune" and "eval_splits" in made:
        made.eval_splits = ("validation",)
    start = time.perf_counter()
    try:
        found = experiment(made, fold_in(jax.random.key(0), run.key))
    except UserError as error:
        if type(error).__name__ != "NotFinite":
            raise
        found = {"diverged": 1.0}
    values = {k: np.asarray(v, np.float64).tolist() for k, v in found.items()}
    return {**values, "seconds": time.perf_counter() - start}


def run_study(config, workdir, *, name, progress=None, compute=None):
    """Runs what is missing of a study, and judges it.

    Args:
      config: The study's config.
      workdir: Where each run's values are kept; the same call goes on where it was killed.
      name: Of which the keys are derived, the paper's id.
      progress: ``progress(done, total, label)``, called before each run and at the end.
      compute: ``compute(function, runs)`` yields ``(run, function(run))`` in any order, by other
        processes; by default the runs are done here, one after another.

    Returns:
      A dict: ``values`` ``{arm: {metric: [seeds, …]}}``, ``tuned`` (grid, scores, chosen, edge),
      ``claims`` (each with its verdict), ``verdict``, and ``seconds`` of computing.
    """
    check_study(config)
    workdir = folder(workdir)
    # A claim may be judged anew, a figure drawn anew and a note reworded on the runs there are.
    said = ("claims", *TOLD)
    claim_config(workdir, Config({k: v for k, v in config.items() if k not in said}), defaults={})
    experiment_of(config)
    tune, arms = as_plain(config.get("tune") or {}), as_plain(config.arms)
    tune_by = as_plain(config.get("tune_by") or {})
    grid = [dict(zip(tune, point)) for point in itertools.product(*tune.values())]
    tune_seeds = tune_by.get("seeds", 1) if tune else 0
    searched = len(grid) * tune_seeds if len(grid) > 1 else 0
    total = len(arms) * (searched + config.seeds)
    progress = progress or (lambda done, total, label: None)
    done, function = 0, functools.partial(compute_run, as_plain(config))
    code = code_hash(name, config)

    def one_by_one(function, runs):
        for run in runs:
            progress(done, total, f"{run.part} {run.label}")
            yield run, function(run)

    def values_of(runs):
        """The values of runs, computed where they were not before."""
        nonlocal done
        paths = {run.label: workdir / run.part / f"{run.label}.json" for run in runs}
        found = {label: json.loads(p.read_text()) for label, p in paths.items() if p.exists()}
        # A report names one code: what other code found is computed again.
        found = {label: kept["values"] for label, kept in found.items() if kept.get("code") == code}
        missing = [run for run in runs if run.label not in found]
        done += len(runs) - len(missing)
        for run, values in (compute or one_by_one)(function, missing):
            paths[run.label].parent.mkdir(parents=True, exist_ok=True)
            write_whole(paths[run.label], json.dumps({"code": code, "values": values}))
            found[run.label] = json.loads(json.dumps(values))
            done += 1
            if compute:
                progress(done, total, f"{run.part} {run.label}")
        return [found[run.label] for run in runs]

    tuned = {"grid": tune, "scores": {}, "chosen": {}, "edge": {}}
    runs = [
        Run("tune", f"{arm}-{i}-{seed}", {**changes, **point}, f"{name}/tune/{seed}")
        for arm, changes in arms.items()
        for i, point in enumerate(grid)
        for seed in range(tune_seeds)
    ]
    found = iter(values_of(runs) if searched else ())
    for arm in arms if searched else ():
        scores = [
            float(np.mean([_score(next(found), tune_by) for _ in range(tune_seeds)])) for _ in grid
        ]
        best = int(np.argmin(scores) if tune_by.get("minimize", True) else np.argmax(scores))
        tuned["scores"][arm], tuned["chosen"][arm] = scores, grid[best]
        tuned["edge"][arm] = [
            k for k, v in tune.items() if len(v) > 1 and grid[best][k] in (v[0], v[-1])
        ]
    if len(grid) == 1 and tune:
        tuned["chosen"] = {arm: grid[0] for arm in arms}

    arms = {arm: {**changes, **tuned["chosen"].get(arm, {})} for arm, changes in arms.items()}
    runs = [  # seed by seed, so that what is done is paired
        Run("runs", f"{arm}-{seed}", changes, f"{name}/seed/{seed}")
        for seed in range(config.seeds)
        for arm, changes in arms.items()
    ]
    found = values_of(runs)
    progress(total, total, "judging")
    values = {arm: _stacked(found[i :: len(arms)]) for i, arm in enumerate(arms)}
    judged = judge_claims(as_plain(config.claims), values)
    return {
        "values": values,
        "tuned": tuned,
        "claims": judged,
        "verdict": next(c["verdict"] for c in judged if c.get("primary")),
        "seconds": sum(sum(v["seconds"]) for v in values.values()),
    }


def _score(found, tune_by):
    metric, worst = tune_by["metric"], math.inf if tune_by.get("minimize", True) else -math.inf
    if "diverged" in found:
        return worst
    if metric not in found:
        names = list(found)
        raise UserError(
            f"tune_by: no metric {metric!r}: {', '.join(names)}{nearest(metric, names)}"
        )
    return found[metric] if math.isfinite(found[metric]) else worst


def _stacked(found):
    """``{metric: [seeds, …]}``; a run that diverged has NaN where the others have a value."""
    names = list(dict.fromkeys(k for values in found for k in values))
    like = {n: next(v[n] for v in found if n in v) for n in names}
    missing = {n: np.full(np.shape(x), np.nan).tolist() for n, x in like.items()}
    missing["diverged"] = 0.0
    return {n: [v.get(n, missing[n]) for v in found] for n in names}


def judge_claims(claims, values):
    """Judges claims from the values of all arms; the secondary ones are Holm-adjusted.

    Args:
      claims: Dicts, as in a study's config.
      values: ``{arm: {metric: [seeds, …]}}``.

    Returns:
      The claims as dicts, with the fields of :class:`tinker.study.verdicts.Verdict` and ``values``.
    """
    numbers = [_per_seed(claim, values) for claim in claims]
    terms = ("at_least", "at_most", "within", "margin", "deterministic")
    found = [
        verdicts.judge(x, **{t: claim[t] for t in terms if t in claim})
        for claim, x in zip(claims, numbers, strict=True)
    ]
    others = [i for i, claim in enumerate(claims) if not claim.get("primary")]
    for i, verdict in zip(others, verdicts.adjust([found[i] for i in others]), strict=True):
        found[i] = verdict
    return [
        {**claim, **verdict._asdict(), "values": np.asarray(x, np.float64).tolist()}
        for claim, verdict, x in zip(claims, found, numbers, strict=True)
    ]


def _per_seed(claim, values):
    """One number per seed of a claim."""
    fn = claim.get("fn")
    if fn is None:
        keywords = {k: claim[k] for k in ("metric", "arm", "over") if k in claim}
        if "arm" not in keywords or "metric" not in keywords:
            raise UserError(f"a claim needs metric and arm, or fn: {claim}")
        fn = claim_functions.difference if "over" in keywords else claim_functions.value
        return fn(values, **keywords)
    if ":" in fn:
        function = resolve(fn, "claims.fn")
    else:
        names = [n for n in vars(claim_functions) if not n.startswith("_")]
        function = vars(claim_functions).get(fn) if fn in names else None
        if function is None:
            raise UserError(f"there is no claim function {fn!r}{nearest(fn, names)}")
    free = {k: v for k, v in claim.items() if k not in OWN or k in ("metric", "arm", "over")}
    found = function(values, **{k: _plain(v) for k, v in free.items()})
    return np.asarray(found, np.float64)


def _plain(value):
    return as_plain(value) if isinstance(value, Mapping) else value


def config_hash(config):
    """A hash of a study's resolved config, hexadecimal; figure and note do not count."""
    counted = {k: v for k, v in plain(config).items() if k not in (*TOLD, *STARTS)}
    text = json.dumps(counted, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_hash(name, config):
    """A hash of the code a study measures: its paper's functions and its experiment.

    Comments, docstrings and formatting do not count.

    Args:
      name: The paper's id; without a row, the experiment alone counts.
      config: The study's config.

    Returns:
      16 hexadecimal digits.
    """
    found = [
        resolve(path, "functions") for path in papers.rows().get(name, {}).get("functions", ())
    ]
    found.append(inspect.getmodule(inspect.unwrap(experiment_of(config))))
    digest = hashlib.sha256()
    for thing in found:
        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(
                node, clean=False
            ):
                node.body = node.body[1:] or [ast.Pass()]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]
