"""``tinker train``, ``tinker launch`` and ``tinker eval``."""

import shlex

from tinker.cli.printing import console, table
from tinker.numerics.errors import UserError
from tinker.train.locating import load_config


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
    if args.sweep_index is not None and not config.get("sweep"):
        raise UserError("--sweep_index is of a sweep: set config.sweep, or --sweep.KEY=VALUE,…")
    config = job_of(config)
    from tinker.train.processes import fail, join_processes

    join_processes(args.coordinator, args.processes, args.process_id)
    try:
        _train(config, args)
    except UserError as error:
        fail(error, 2)
        raise


def _train(config, args):
    if args.config.endswith("/launch/config.json"):
        from tinker.launch.jobs import other_version
        from tinker.train.reporting import say

        changed = other_version(args.config)
        if changed:
            say(changed)
    if config.get("sweep"):
        sweep(config, args.workdir, args.sweep_index)
        return
    import jax

    from tinker.train import fit

    _, results = fit(config, args.workdir)
    if jax.process_index() == 0:
        show_results(results, args.workdir)


def job_of(config):
    """The config itself; of a study, one run of its base."""
    if not config.get("arms"):
        return config
    if config.get("sweep"):
        raise UserError("a study is not swept: its config.tune tries values for each arm alike")
    from tinker.study.running import arm_config

    return arm_config(config, {})


def launch(args, overrides):
    """Runs a config on an engine."""
    from tinker.launch import launch
    from tinker.train import override

    config = job_of(override(load_config(args.config), overrides))
    return launch(config, args.workdir, args.on, dry_run=args.dry_run)


def sweep(config, workdir, index):
    """Runs the points of a sweep, or one, and shows what came of them."""
    import jax

    from tinker.train import run_sweep
    from tinker.train.sweeps import best_point, chosen_metric, label, sweep_table

    rows = run_sweep(config, workdir, index)
    if jax.process_index():
        return
    if index is not None:
        waiting = sum(row["status"] == "waiting" for row in rows)
        show_results(rows[index]["results"], f"{workdir}, point {index}: {rows[index]['status']}")
        left = f"{waiting} of {len(rows)} points are left" if waiting else "all points are finished"
        console().print(f"{left}; the command without --sweep_index gathers them")
        return
    headings, cells = sweep_table(rows)
    title = f"{workdir}: {len(rows)} points"
    numbers = [h for h in headings if h != "status"]
    texts = [tuple(_cell(value) for value in row) for row in cells]
    out = console()
    out.print(table(*headings, rows=texts, right=numbers, title=title))
    best = best_point(config, rows)
    if best:
        out.print(f"best {chosen_metric(config, rows)}: {best[1]:.6g}  {label(best[0])}")
    out.print(f"results.csv, sweep.json and sweep.png in {workdir}")


def _cell(value):
    return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def evaluate(args):
    """Evaluates a checkpoint of a workdir on whole splits, or each as it comes."""
    from tinker.train import evaluate, restore

    if args.follow:
        from tinker.train import follow

        rows = follow(args.workdir, args.output, splits=args.split.split(","), timeout=args.timeout)
        show_results({k: v for k, v in rows[-1].items() if "/" in k}, f"{args.workdir}, last step")
        return
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


def config_lines(config, as_flags=False):
    """A line for each key: ``config.loss.fn = '…'``, or ``--config.loss.fn=…`` for the shell."""
    for key, value in flattened(config).items():
        if as_flags:
            yield shlex.quote(f"--config.{key}={value if isinstance(value, str) else repr(value)}")
        else:
            yield f"config.{key} = {value!r}"


def flattened(config):
    """``{dotted key: value}`` of a config; an empty dict stays, as does one with dotted keys."""
    from tinker.train.specs import as_plain

    def walk(node, prefix):
        for key, value in node.items():
            if isinstance(value, dict) and value and not any("." in k for k in value):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(walk(as_plain(config), ""))
