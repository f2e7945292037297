"""``tinker study`` and ``tinker papers``."""

import json
import sys
from pathlib import Path

from tinker.cli.printing import console, table
from tinker.numerics.errors import UserError, nearest


def study(args, overrides):
    """Runs studies and shows their verdicts."""
    from tinker import papers
    from tinker.study import load_study, staleness

    # How it is run is no part of what it is.
    settings = {k.partition(".")[2]: v for k, v in overrides.items() if k.startswith("launch.")}
    overrides = {k: v for k, v in overrides.items() if not k.startswith("launch.")}
    if settings and not args.on:
        raise UserError(f"--config.launch.{next(iter(settings))} is for a study --on=ray")
    if args.publish and overrides:
        raise UserError("a study with --config changes is not published: edit its config")
    if args.all or args.stale:
        names = list(papers.rows(args.room))
        if args.stale:
            names = [n for n in names if staleness(n, load_study(n)[2]) != "fresh"]
            if not names:
                console().print("every report is of the present code and config")
    else:
        names = [args.id]
    if args.on:
        on_ray(names, args, overrides, settings)
        return
    for name in names:
        with bar() as progress:
            found = measure(name, args, overrides, progress)
        finish(found, args)


def on_ray(names, args, overrides, settings):
    """Runs studies at the same time, every run of theirs a task of Ray."""
    from concurrent import futures

    from tinker.launch.ray import tasks

    compute, failed = tasks(settings), []
    print(f"tinker: as tasks of Ray: {', '.join(names)}", file=sys.stderr, flush=True)

    def one(name):
        def progress(done, total, label):
            print(f"{name}  {done}/{total}  {label}", file=sys.stderr, flush=True)

        return measure(name, args, overrides, progress, compute)

    with futures.ThreadPoolExecutor(16) as pool:
        begun = {pool.submit(one, name): name for name in names}
        for done in futures.as_completed(begun):
            try:
                finish(done.result(), args)
            except UserError as error:  # the others go on
                failed.append(f"{begun[done]}: {error}")
    if failed:
        raise UserError("; ".join(failed))


def measure(name, args, overrides, progress, compute=None):
    """Runs a study: (its paper, where its config is, the config, the workdir, what was found)."""
    from tinker.study import load_study, run_study
    from tinker.train import override
    from tinker.train.compiling import use_compilation_cache
    from tinker.train.workdir import folder

    use_compilation_cache()
    paper, place, config = load_study(name)
    config = override(config, overrides) if overrides else config
    workdir = folder(args.workdir or Path("runs") / name.replace("/", "-").replace(":", "-"))
    found = run_study(config, workdir, name=paper, progress=progress, compute=compute)
    return paper, place, config, workdir, found


def finish(measured, args):
    """Reports a study, and publishes it where that was asked for."""
    from tinker.study import draw, make_report, publish
    from tinker.train.workdir import write_whole

    *study, workdir, found = measured
    report = make_report(*study, found)
    write_whole(workdir / "report.json", json.dumps(report, indent=1, sort_keys=True) + "\n")
    write_whole(workdir / "figure.png", draw(report))
    show(report)
    console().print(f"report and figure in {workdir}")
    if args.publish:
        if "," in report["study"]:
            raise UserError("only a study without options is published as its paper's report")
        console().print(f"published: {publish(report)}")


class bar:
    """A progress bar on a terminal, else a line per run."""

    def __enter__(self):
        import rich.console
        import rich.progress as p

        self.lines, self.bar = not sys.stderr.isatty(), None
        if not self.lines:
            columns = [p.TextColumn("{task.description}"), p.BarColumn(), p.MofNCompleteColumn()]
            columns.append(p.TimeRemainingColumn())
            self.bar = p.Progress(*columns, console=rich.console.Console(stderr=True))
            self.bar.add_task("", total=None)
            self.bar.start()
        return self

    def __call__(self, done, total, label):
        if self.bar:
            task = self.bar.task_ids[0]
            self.bar.update(task, completed=done, total=total, description=label)
        elif done in (0, total) or done % max(1, total // 20) == 0:
            print(f"{done}/{total}  {label}", file=sys.stderr, flush=True)

    def __exit__(self, *error):
        if self.bar:
            self.bar.stop()


def show(report):
    """Prints a report: the claim, its arms, its verdicts."""
    from tinker.study.figures import interval

    out = console()
    primary = next(c for c in report["claims"] if c.get("primary"))
    out.print(f"\n[bold]{report['id']}[/bold]  {report.get('title') or ''}")
    if report.get("claim"):
        out.print(f"claim: {report['claim']}")
    metrics = [c["metric"] for c in report["claims"] if "metric" in c]
    values = report["values"]
    every = {name: x for found in values.values() for name, x in found.items()}
    shown = [m for m in dict.fromkeys(metrics) if m in every and _is_scalar(every[m])]
    rows = []
    for arm, found in values.items():
        cells = [arm]
        for metric in shown:
            if metric not in found:
                cells.append("–")
                continue
            mean, half = interval([float("nan") if x is None else x for x in found[metric]])
            cells.append(f"{mean:.4g} ± {half:.2g}")
        chosen = report["tuned"]["chosen"].get(arm, {})
        cells.append(" ".join(f"{k.rpartition('.')[2]}={v}" for k, v in chosen.items()))
        edge = report["tuned"]["edge"].get(arm)
        cells[-1] += f"  (edge of the grid: {', '.join(edge)})" if edge else ""
        rows.append(tuple(cells))
    out.print(table("arm", *shown, "tuned", rows=rows, right=shown, title="at this scale"))
    rows = []
    for claim in report["claims"]:
        low, high = claim["low"], claim["high"]
        rows.append(
            (
                "primary" if claim.get("primary") else "",
                describe(claim),
                number(claim["estimate"]),
                f"[{number(low)}, {number(high)}]",
                claim["verdict"],
                number(claim["detectable"]),
            )
        )
    columns = ("", "claim", "estimate", "95 %", "verdict", "detectable")
    out.print(table(*columns, rows=rows, right=("estimate",)))
    out.print(f"[bold]{report['verdict']}[/bold] at this scale, {primary['n']} seeds")
    for past in report.get("earlier", ()):
        changed = any(primary.get(k) != v for k, v in past["claim"].items())
        why = "under another claim" if changed else "under the same claim"
        out.print(f"earlier: {past['verdict']} {why}, commit {past['commit'] or 'unknown'}")


def _is_scalar(values):
    return not isinstance(values[0], list)


def number(x):
    return "–" if x is None else f"{x:.4g}"


def describe(claim):
    """A claim in words."""
    if claim.get("text"):
        return claim["text"]
    what = f"{claim['fn']} of " if claim.get("fn") else ""
    what += str(claim.get("metric", ""))
    what += f", {claim['arm']}" if claim.get("arm") else ""
    what += f" over {claim['over']}" if claim.get("over") else ""
    for key, word in (("at_least", "≥"), ("at_most", "≤"), ("within", "within")):
        if key in claim:
            what += f" {word} {claim[key]}"
    return what


def list_papers(args):
    """Lists the papers that work here, with their verdicts."""
    from tinker import papers
    from tinker.study import overview

    if args.room is not None and args.room not in {r["room"] for r in papers.rows().values()}:
        rooms = sorted({r["room"] for r in papers.rows().values()})
        raise UserError(f"no paper is of room {args.room!r}{nearest(args.room, rooms)}")
    if args.markdown:
        print(overview(markdown=True, room=args.room), end="")
        return
    rows = [
        (x["room"], x["id"], f"{x['verdict'] or '–'}{' ⟳' if x['stale'] else ''}", x["title"])
        for x in overview(room=args.room)
    ]
    console().print(table("room", "id", "verdict at this scale", "title", rows=rows))


def show_paper(name):
    """Shows a paper's row and its report."""
    from tinker import papers
    from tinker.study import read_report

    rows = papers.rows()
    if name not in rows:
        raise UserError(f"there is no paper {name!r}{nearest(name, rows)}")
    row = rows[name]
    out = console()
    for key in ("title", "source", "claim", "study", "checked"):
        out.print(f"{key}: {row[key]}", highlight=False)
    for function in row["functions"]:
        out.print(f"  {function}", highlight=False)
    try:
        show(read_report(name))
    except UserError as error:
        out.print(str(error))
