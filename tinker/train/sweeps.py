"""Sweeps: a config at many points, each a run of its own in a folder of the sweep's workdir."""

import csv
import datetime
import hashlib
import io
import itertools
import json
import re
import signal
import time

import jax
import numpy as np

from tinker.numerics import UserError, nearest
from tinker.train.building import build
from tinker.train.checkpoints import NotFinite
from tinker.train.compiling import program_facts
from tinker.train.interrupts import Interrupted, Signals
from tinker.train.loop import best_of, fit
from tinker.train.processes import from_first
from tinker.train.reporting import say
from tinker.train.sharding import make_mesh
from tinker.train.specs import as_plain, override
from tinker.train.sweep_figure import draw_sweep, is_seed
from tinker.train.workdir import folder, hold_config, write_whole

# The points.


def sweep_points(sweep, by="product"):
    """Lists the points of a sweep.

    Args:
      sweep: ``{dotted key: values}``, the values a list, or a range to draw from:
        ``{"uniform": [low, high]}``, ``{"loguniform": [low, high]}``. Or the points themselves, a
        list of ``{dotted key: value}``.
      by: How values become points. ``"product"``: every combination; keys are in the order of the
        alphabet, as a config has them, and the last changes fastest.
        ``"zip"``: the lists side by side. ``"random:20"`` or ``"random:20,seed=7"``: that many
        distinct points, each value drawn from its list or range (rounded to 4 digits); a larger
        number keeps the points of a smaller one.

    Returns:
      A list of ``{dotted key: value}``.

    Raises:
      UserError: An empty list, lists of unequal length to zip, a point that comes twice, a range
        that is none.
    """
    sweep = as_plain(sweep)
    if not isinstance(sweep, dict | list | tuple):
        raise UserError(f"config.sweep is {sweep!r}; it takes {{dotted key: values}}, or points")
    sweep = _listed(sweep)
    if isinstance(sweep, list):
        if by != "product":
            raise UserError(f"config.sweep lists its points: config.sweep_by={by!r} has no use")
        points = sweep
    else:
        random = re.fullmatch(r"random:([1-9]\d*)(?:,seed=(\d+))?", str(by))
        for key, values in sweep.items():
            _check_values(key, values, may_draw=random is not None)
        if random:
            points = _random_points(sweep, int(random[1]), int(random[2] or 0))
        elif by == "product":
            points = [dict(zip(sweep, values)) for values in itertools.product(*sweep.values())]
        elif by == "zip":
            lengths = {key: len(values) for key, values in sweep.items()}
            if len(set(lengths.values())) > 1:
                told = ", ".join(f"{key} has {n}" for key, n in lengths.items())
                raise UserError(f"config.sweep_by='zip' needs lists of one length: {told} values")
            points = [dict(zip(sweep, values)) for values in zip(*sweep.values())]
        else:
            accepted = ["product", "zip", "random:N", "random:N,seed=S"]
            hint = nearest(by, accepted)
            raise UserError(f"config.sweep_by={by!r}: it takes {', '.join(accepted)}{hint}")
    if not points:
        raise UserError("config.sweep has no points")
    seen = set()
    for point in points:
        if not isinstance(point, dict) or not point:
            raise UserError(f"config.sweep: {point!r} is no point, {{dotted key: value}}")
        if point_name(point) in seen:
            raise UserError(f"config.sweep has the point {label(point)} twice")
        seen.add(point_name(point))
    return points


def _listed(value):
    """Arrays, tuples and ranges of values as lists, NumPy's numbers as Python's."""
    if isinstance(value, dict):
        items = sorted(value.items())
        return {k: _listed(v) if isinstance(v, dict) else _values(v) for k, v in items}
    return [_listed(v) if isinstance(v, dict) else v for v in _values(value)]


def _values(value):
    if not isinstance(value, list | tuple | range | np.ndarray):
        return value
    return [x.item() if isinstance(x, np.generic) else x for x in value]


def _check_values(key, values, may_draw):
    if isinstance(values, list):
        if not values:
            raise UserError(f"config.sweep: {key} has no values")
        return
    if not isinstance(values, dict):
        raise UserError(f"config.sweep: {key} is {values!r}; it takes a list of values")
    kind, bounds = next(iter(values.items()), (None, None))
    if len(values) != 1 or kind not in RANGES:
        hint = nearest(kind, RANGES)
        raise UserError(
            f"config.sweep: {key} is {values!r}; it takes a list of values, or "
            f"{{'uniform': [low, high]}}, {{'loguniform': [low, high]}}{hint}"
        )
    if not may_draw:
        raise UserError(f"config.sweep: {key} is a range, which needs config.sweep_by='random:N'")
    good = isinstance(bounds, list) and len(bounds) == 2
    good = good and all(isinstance(x, int | float) for x in bounds) and bounds[0] < bounds[1]
    if not good or (kind == "loguniform" and bounds[0] <= 0):
        above = " above 0" if kind == "loguniform" else ""
        raise UserError(f"config.sweep: {key} is {values!r}; a range is two numbers{above}, rising")


RANGES = ("uniform", "loguniform")


def _random_points(sweep, number, seed):
    generator, points = np.random.default_rng(seed), {}
    for _ in range(100 * number):
        point = {key: _drawn(values, generator) for key, values in sweep.items()}
        points.setdefault(point_name(point), point)
        if len(points) == number:
            return list(points.values())
    raise UserError(f"config.sweep has {len(points)} distinct points; {number} are asked for")


def _drawn(values, generator):
    if isinstance(values, list):
        return values[generator.integers(len(values))]
    (kind, (low, high)), share = next(iter(values.items())), generator.random()
    drawn = low + (high - low) * share if kind == "uniform" else low * (high / low) ** share
    return float(f"{drawn:.4g}")


def point_name(point):
    """The folder of a point: ``"optimizer.learning_rate=0.001,seed=0"``.

    Values that cannot stand in a path, and very long ones, are abridged, with a hash of the point.
    """
    point = json.loads(json.dumps(point))  # the same name for a config that was read from a file
    text = ",".join(f"{key}={value}" for key, value in point.items())
    name = re.sub(r"[^\w.=,+-]+", "-", text)
    if name == text and len(name) <= 120:
        return name
    digest = hashlib.blake2b(json.dumps(point, sort_keys=True).encode(), digest_size=4)
    return f"{name[:100].rstrip('-')}-{digest.hexdigest()}"


def label(point):
    """A point in words."""
    return ", ".join(f"{key}={value}" for key, value in point.items())


# Running them.


def run_sweep(config, workdir, index=None, *, progress=True):
    """Runs the points of ``config.sweep`` that are not finished, and gathers the results.

    Each point is a run of :func:`tinker.train.fit` in ``WORKDIR/NAME``, named for its values. The
    same call skips what is finished and goes on with what was killed; a point that diverged counts
    as finished. Points that share a program run one after another, so that it is compiled once.
    ``sweep.json``, ``results.csv`` and ``sweep.png`` in the workdir hold the results.

    Args:
      config: A training config with ``sweep`` and ``sweep_by``, see :func:`sweep_points`.
      workdir: A folder for the sweep alone; a path, which may be ``gs://``.
      index: Runs this point only, and gathers nothing: for jobs that run at the same time.
      progress: Whether to show progress.

    Returns:
      A list with a dict for every point: its ``name``, ``point``, ``status`` ("finished",
      "diverged" or "waiting"), ``results``, and ``seconds`` of the call that finished it.

    Raises:
      UserError: A config or point that cannot work; a workdir that holds another run.
      Interrupted: A SIGTERM or SIGINT came; the same call goes on from there.
    """
    workdir = folder(workdir)
    if config.get("arms"):
        raise UserError("a study is not swept: its config.tune tries values for each arm alike")
    if (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds a single run; take another workdir for a sweep")
    points = sweep_points(config.sweep, config.sweep_by)
    configs = [_point_config(config, point) for point in points]
    if index is not None and not 0 <= index < len(points):
        raise UserError(f"--sweep_index={index}: the points are 0 to {len(points) - 1}")
    rows = from_first(lambda: [_row(workdir, *each) for each in zip(points, configs)])

    wanted = range(len(points)) if index is None else [index]
    todo = [i for i in wanted if rows[i]["status"] == "waiting"]
    first = {}  # of each program, the point that has it first
    program = {i: json.dumps(program_facts(configs[i]), sort_keys=True) for i in todo}
    for i in todo:
        if first.setdefault(program[i], i) == i and len(todo) > 1:
            _checked(configs[i], points[i])  # a mistake is told before hours have gone
    writes = jax.process_index() == 0
    skipped = len(wanted) - len(todo)
    if skipped and todo:
        say(f"{skipped} of {len(wanted)} points are finished")
    start = time.perf_counter()
    with Signals() as signals:
        for done, i in enumerate(sorted(todo, key=lambda i: (first[program[i]], i))):
            if signals.number:  # it came when the last point was at its end
                name = signal.Signals(signals.number).name
                say(f"{name}: {done} points are finished; the same command goes on from there")
                raise Interrupted(signals.number, 0)
            if progress:
                spent = time.perf_counter() - start
                seconds = round(spent / max(done, 1) * (len(todo) - done))
                left = f"; about {datetime.timedelta(seconds=seconds)} left" if done else ""
                say(f"point {skipped + done + 1} of {len(wanted)}: {label(points[i])}{left}")
            rows[i] |= _run(configs[i], workdir / rows[i]["name"], writes, progress)
            if writes and index is None:
                _write_tables(workdir, rows)
    if writes and index is None:
        _write_tables(workdir, rows)
        title, metric = workdir.name, chosen_metric(config, rows)
        write_whole(workdir / "sweep.png", draw_sweep(rows, metric, title))
    return rows


def _point_config(config, point):
    return override(config, {**point, "sweep": None, "sweep_by": "product"})


def _checked(config, point):
    try:
        build(config, mesh=make_mesh(config.mesh))
    except UserError as error:
        raise UserError(f"at {label(point)}: {error}") from error


def _row(workdir, point, config):
    """A point and what is known of it."""
    name = point_name(point)
    row = {"name": name, "point": point, "status": "waiting", "results": {}, "seconds": None}
    path = workdir / name / "result.json"
    if path.exists():
        hold_config(workdir / name, config)  # finished, but of this config?
        row |= json.loads(path.read_text())
    return row


def _run(config, workdir, writes, progress):
    """Trains at a point, and keeps what came of it."""
    start, status, why, results = time.perf_counter(), "finished", {}, {}
    try:
        results = fit(config, workdir, progress=progress)[1]
    except NotFinite as error:
        status, why = "diverged", {"why": str(error).partition(";")[0]}
        say(f"diverged, {why['why']}; the other points go on")
    results = {k: np.asarray(v).tolist() for k, v in results.items()}
    seconds = round(time.perf_counter() - start, 3)
    found = {"status": status, **why, "results": results, "seconds": seconds}
    if writes:
        write_whole(workdir / "result.json", json.dumps(found, indent=1) + "\n")
    return found


# What came of them.


def chosen_metric(config, rows):
    """The metric that a sweep is about: ``config.keep_best``, else the first; None without any."""
    if config.keep_best:
        return best_of(config.keep_best)[0]
    return next(iter(_columns(rows)[1]), None)


def best_point(config, rows):
    """The best by :func:`chosen_metric`, mean over seeds: (point without seeds, mean), or None.

    A point of which a seed diverged is not the best.
    """
    metric, found = chosen_metric(config, rows), {}
    for row in rows:
        if row["status"] != "waiting":
            point = {k: v for k, v in row["point"].items() if not is_seed(k)}
            values = found.setdefault(point_name(point), (point, []))[1]
            values.append(row["results"].get(metric, np.nan))
    means = [(point, float(np.mean(values))) for point, values in found.values()]
    means = [(point, mean) for point, mean in means if np.isfinite(mean)]
    if not means:
        return None
    sign = best_of(config.keep_best or metric)[1]
    return max(means, key=lambda pair: sign * pair[1])


def _columns(rows):
    """(the swept keys, the metrics that are numbers), each in order."""
    keys = dict.fromkeys(k for row in rows for k in row["point"])
    found = ((k, v) for row in rows for k, v in row["results"].items())
    return list(keys), list(dict.fromkeys(k for k, v in found if np.ndim(v) == 0))


def sweep_table(rows):
    """The results of a sweep as a table: (headings, rows of values, None where there is none)."""
    keys, metrics = _columns(rows)
    table = [
        [
            i,
            *(row["point"].get(k) for k in keys),
            row["status"],
            *(row["results"].get(m) for m in metrics),
            row["seconds"],
        ]
        for i, row in enumerate(rows)
    ]
    return ["index", *keys, "status", *metrics, "seconds"], table


def _write_tables(workdir, rows):
    write_whole(workdir / "sweep.json", json.dumps({"points": rows}, indent=1) + "\n")
    headings, table = sweep_table(rows)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([headings, *table])
    write_whole(workdir / "results.csv", text.getvalue())
