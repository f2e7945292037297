"""From words to a command: flags, their values, and the nearest match of a mistyped one."""

import argparse
import ast
import difflib
import functools
import re

from tinker import __version__
from tinker.launch.engines import ENGINES
from tinker.numerics.errors import UserError, nearest

EXAMPLES = {
    "": """
  tinker train --config=train/vit_digits --workdir=runs/vit
  tinker eval --workdir=runs/vit
  tinker plan --config=train/byte_lm --mesh=data=4,fsdp=2
  tinker data show digits --figure=digits.png
  tinker bench
""",
    "train": """
  tinker train --config=train/vit_digits --workdir=runs/vit
      the same command resumes a run that was stopped
  tinker train --config=my_job.py:large --workdir=runs/mine
      my_job.py defines get_config(arg), or a function large(config) over base()
  tinker train --config=train/vit_digits --workdir=runs/focal \\
      --config.loss.fn=tinker.losses:focal --config.loss.gamma=1.0 --config.steps=2000
  tinker train --config=train/vit_digits --config.optimizer.learning_rate=3e-4 --print_config
  tinker train --config=train/vit_digits --workdir=runs/traced --profile=10:15
  tinker train --config=train/vit_digits --workdir=runs/rates \
      --sweep.optimizer.learning_rate=3e-4,1e-3,3e-3 --sweep.seed=0,1
""",
    "plan": """
  tinker plan --config=train/byte_lm --mesh=data=4,fsdp=2
  tinker plan --config=my_job.py --mesh=data=64,fsdp=4 --device=v5e
  tinker plan --config=my_job.py --mesh=fsdp=8 --hbm=16GiB --config.model.remat=full
  tinker plan --config=my_job.py --mesh=data=2,fsdp=2,tensor=2 --json
""",
    "eval": """
  tinker eval --workdir=runs/vit
  tinker eval --workdir=runs/vit --split=validation,test
  tinker eval --workdir=runs/vit --step=400
  tinker eval --workdir=gs://bucket/runs/vit --follow --output=evals/vit --timeout=3600
""",
    "launch": """
  tinker launch --on=local --config=train/vit_digits --workdir=runs/vit \\
      --config.launch.processes=2 --config.launch.devices=4
  tinker launch --on=slurm --config=my_job.py --workdir=/shared/runs/vit --dry_run \\
      --config.launch.nodes=4 --config.launch.devices=8 --config.launch.time=12:00:00
  tinker launch --on=slurm --config=my_job.py --workdir=/shared/runs/rates \\
      --sweep.optimizer.learning_rate=3e-4,1e-3,3e-3 --config.launch.parallel=2
      an array job, a task for each point
  tinker launch --on=tpu-vm --config=my_job.py --workdir=gs://bucket/runs/vit \\
      --config.launch.tpu=my-tpu --config.launch.zone=us-central2-b
  tinker launch --on=xpk --config=my_job.py --workdir=gs://bucket/runs/vit \\
      --config.launch.cluster=my-cluster --config.launch.tpu=v5litepod-256 \\
      --config.launch.image=gcr.io/my-project/tinker:1
  tinker launch --on=ray --config=my_job.py --workdir=/shared/runs/vit --config.launch.nodes=4
""",
    "data": """
  tinker data
  tinker data show digits
  tinker data show glyphs --classes=62 --size=1000 --figure=glyphs.png
  tinker data prepare tfds:mnist --data_dir=~/tensorflow_datasets
""",
    "data show": """
  tinker data show digits
  tinker data show glyphs --classes=62 --size=1000 --split=test --figure=glyphs.png
""",
    "data prepare": """
  tinker data prepare tfds:mnist
  tinker data prepare tfds:cifar10 --data_dir=gs://bucket/tensorflow_datasets
""",
    "study": """
  tinker study polyloss
      the same command goes on with a study that was stopped
  tinker study polyloss --publish
  tinker study losses/classification:polyloss,data=fashion_mnist --workdir=runs/polyloss-fashion
  tinker study polyloss --config.seeds=3 --workdir=runs/quick
  tinker study --all --room=losses
  tinker study --stale --publish
  tinker study --all --on=ray --config.launch.address=auto
""",
    "papers": """
  tinker papers
  tinker papers --room=losses
  tinker papers show polyloss
  tinker papers --markdown
""",
    "papers show": """
  tinker papers show polyloss
""",
    "bench": """
  tinker bench
  tinker bench loop
  tinker bench loop --steps=500
""",
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are UserErrors, with the nearest match."""

    def __init__(self, path="", **kwargs):
        self.path = path
        super().__init__(
            prog=kwargs.pop("prog", "tinker"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=f"examples:{EXAMPLES[path].rstrip()}",
            allow_abbrev=False,
            **kwargs,
        )
        self.add_argument("--debug", action="store_true", help="show the traceback of any error")

    def error(self, message):
        raise UserError(f"{message}; see {self.prog} --help")

    def _check_value(self, action, value):
        if action.choices is None or value in action.choices:
            return
        asked = f"{action.option_strings[0]}={value}" if action.option_strings else None
        asked = asked or f"command `{self.prog} {value}`"
        choices = ", ".join(action.choices)
        raise UserError(f"there is no {asked}{nearest(value, action.choices)}; it takes {choices}")

    @property
    def flags(self):
        return list(self._option_string_actions)


def parse(argv):
    """Turns words into a command, without running it.

    Args:
      argv: The words after ``tinker``.

    Returns:
      A function without arguments that runs the command.

    Raises:
      UserError: A word that no command takes, a missing flag, a value of the wrong form.
    """
    parsers = make_parsers()
    argv, overrides, missing = split_overrides(argv)
    argv, sweep, unswept = split_overrides(argv, "--sweep.", listed)
    args, extra = parsers[""].parse_known_args(argv)
    path = " ".join(filter(None, [args.command, getattr(args, "action", None)]))
    parser = parsers[path]
    options = {}
    if path == "data show":
        options, extra = source_options(extra, parser)
    given = [f"--config.{key}" for key in [*overrides, *missing]]
    given += [f"--sweep.{key}" for key in [*sweep, *unswept]]
    if path != "bench" and (extra or (path not in ("train", "plan", "launch", "study") and given)):
        raise UserError(complaint([*extra, *given][0], parser, args))
    if path == "study" and (sweep or unswept):
        raise UserError("a study is not swept: its config.tune tries values for each arm alike")
    if path == "plan" and (sweep or unswept):
        raise UserError("a plan is of one run: give --config.KEY=VALUE, not --sweep.KEY")
    if missing or unswept:
        flag = f"--config.{missing[0]}" if missing else f"--sweep.{unswept[0]}"
        raise UserError(f"{flag} needs a value: {flag}=VALUE{'' if missing else ',…'}")
    if sweep:
        overrides["sweep"] = sweep
    if path == "":
        return functools.partial(parser.print_help)
    return bind(path, args, overrides, options, extra)


def make_parsers():
    """The parser of each command by its words; that of ``""`` holds the others."""
    parsers = {
        "": Parser(description="Machine-learning papers as pure JAX functions that compose.")
    }
    parsers[""].add_argument("--version", action="version", version=f"tinker {__version__}")
    commands = parsers[""].add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def add(path, summary, to=commands):
        name = path.split()[-1]
        parsers[path] = to.add_parser(name, path=path, help=summary, description=summary)
        return parsers[path].add_argument

    flag = add("train", "Train what a config describes, or go on with it where it was stopped.")
    flag("--config", metavar="NAME|FILE[:ARG]", help="a config of tinker.configs, or a file")
    flag("--workdir", metavar="DIR", help="where checkpoints, metrics and curves go; may be gs://")
    parsers["train"].add_argument_group(
        "--config.KEY=VALUE",
        "Sets a key of the config. KEY is dotted (optimizer.learning_rate), VALUE a Python\n"
        "literal or else a string. Setting X.fn drops X's other keywords.",
    )
    sweeps = parsers["train"].add_argument_group(
        "--sweep.KEY=VALUE,VALUE,…",
        "Runs every combination of the values, each in its own folder of the workdir, as\n"
        "config.sweep does. --config.sweep_by=zip takes them side by side, and\n"
        "--config.sweep_by=random:20 draws 20 points from lists and from ranges, such as\n"
        "--sweep.optimizer.learning_rate=\"{'loguniform': [1e-5, 1e-2]}\".",
    )
    sweeps.add_argument(
        "--sweep_index", type=int, metavar="K", help="only the K-th point, from 0, for array jobs"
    )
    flag(
        "--print_config",
        nargs="?",
        const="python",
        choices=("python", "flags"),
        metavar="flags",
        help="print the config with all that is set, as assignments or as flags, and stop",
    )
    flag("--profile", metavar="FROM:TO", help="write a profiler trace of these steps")
    flag = (
        parsers["train"]
        .add_argument_group(
            "several processes",
            "On a TPU pod, under srun or mpirun, and in Kubernetes they find each other.\n"
            "Elsewhere each process is told:",
        )
        .add_argument
    )
    flag("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    flag("--processes", type=int, metavar="N", help="how many; 1 looks for no cluster")
    flag("--process_id", type=int, metavar="I", help="which this one is, from 0")

    flag = add("plan", "Say what a training step needs of each device, before it runs anywhere.")
    flag("--config", metavar="NAME|FILE[:ARG]", help="a config of tinker.configs, or a file")
    flag(
        "--mesh",
        metavar="AXIS=N,…",
        help="devices along data, fsdp and tensor, which are virtual here; config.mesh by default",
    )
    flag("--device", metavar="NAME", help="say whether it fits: v5e, v5p, v6e, h100, h200, …")
    flag("--hbm", metavar="SIZE", help="the same of a device with so much memory, such as 16GiB")
    flag("--json", action="store_true", help="print all of it as JSON")
    parsers["plan"].add_argument_group(
        "--config.KEY=VALUE",
        "As of `tinker train`. The step is compiled and its state never allocated: a plan takes\n"
        "minutes at most, and no accelerator. The exit status is 1 if it does not fit.",
    )

    flag = add("launch", "Run a config on an engine: several processes here, Slurm, Ray, TPUs.")
    flag("--on", choices=ENGINES, metavar="ENGINE", help=", ".join(ENGINES))
    flag("--config", metavar="NAME|FILE[:ARG]", help="its launch block says how to run it")
    flag("--workdir", metavar="DIR", help="of the run, where every machine sees it; may be gs://")
    flag("--dry_run", action="store_true", help="print what would run, have the engine check it")
    parsers["launch"].add_argument_group(
        "--config.KEY=VALUE, --sweep.KEY=VALUE,…", "As of `tinker train`."
    )

    flag = add("eval", "Evaluate a checkpoint of a run on whole splits.")
    flag("--workdir", metavar="DIR", help="the folder of the run")
    flag(
        "--split", default="test", metavar="NAME,…", help="such as validation,test; test by default"
    )
    flag("--step", type=int, metavar="N", help="which checkpoint; the last good one by default")
    flag("--follow", action="store_true", help="every checkpoint as it comes, up to the run's last")
    flag("--output", metavar="DIR", help="with --follow: where metrics go; WORKDIR/eval by default")
    flag(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="with --follow: give up when no new checkpoint came for so long",
    )

    add("data", "List the sources of data, show one, or prepare one for reading.")
    actions = parsers["data"].add_subparsers(dest="action", metavar="ACTION", parser_class=Parser)
    flag = add("data show", "Show a source: its splits, shapes, classes and examples.", actions)
    flag("source", nargs="?", metavar="SOURCE", help="as in `tinker data`, e.g. digits")
    flag("--split", default="train", metavar="NAME", help="of which the examples are (train)")
    flag("--figure", metavar="FILE.png", help="draw examples into a picture")
    parsers["data show"].add_argument_group(
        "--OPTION=VALUE", "Any other flag is an option of the source, as in config.data."
    )
    flag = add("data prepare", "Download and write a TFDS set, for reading later.", actions)
    flag("source", nargs="?", metavar="tfds:NAME", help="a set of tensorflow-datasets")
    flag("--data_dir", metavar="DIR", help="where to; ~/tensorflow_datasets by default")

    flag = add("study", "Measure whether a paper's claim holds at this scale.")
    flag("id", nargs="?", metavar="ID", help="a paper, or ROOM/THEME:function")
    flag("--workdir", metavar="DIR", help="where runs, report and figure go; runs/ID by default")
    flag("--publish", action="store_true", help="write the report into experiments/results")
    flag("--all", action="store_true", help="every paper's study")
    flag("--stale", action="store_true", help="those whose code or config changed since")
    flag("--room", metavar="ROOM", help="with --all or --stale: only this room's")
    flag("--on", choices=("ray",), metavar="ray", help="each run as a task of a Ray cluster")

    flag = add("papers", "List the papers that work here, with their verdicts.")
    parsers["papers"].add_argument("--room", metavar="ROOM", help="only this room's")
    flag("--markdown", action="store_true", help="print docs/papers.md")
    actions = parsers["papers"].add_subparsers(dest="action", metavar="ACTION", parser_class=Parser)
    flag = add("papers show", "Show a paper's row and its report.", actions)
    flag("id", metavar="ID", help="as in `tinker papers`")

    flag = add("bench", "List the benchmarks, or run one; further flags are its own.")
    flag("name", nargs="?", metavar="NAME", help="as in `tinker bench`")
    return parsers


def split_overrides(argv, prefix="--config.", read=None):
    """Takes ``--config.KEY=VALUE`` and ``--config.KEY VALUE`` out of the words.

    Args:
      argv: The words.
      prefix: What such a flag begins with.
      read: From the text of a value to the value; :func:`literal` by default.

    Returns:
      The other words, ``{key: value}``, and the keys that came without a value.
    """
    rest, overrides, missing, words = [], {}, [], iter(argv)
    for word in words:
        if not word.startswith(prefix):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix(prefix).partition("=")
        if not equals:
            value = next(words, None)
            if value is None or value.startswith("--"):
                missing.append(key)
                rest += [] if value is None else [value]
                continue
        overrides[key] = (read or literal)(value)
    return rest, overrides, missing


def literal(text):
    """The Python literal that a text spells, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def listed(text):
    """The values of a sweep's flag: ``1e-4,3e-4``, ``optax:adam,optax:sgd``, or a list or dict."""
    found = literal(text)
    if isinstance(found, dict):
        return found
    if isinstance(found, list | tuple):
        return list(found)
    if found != text:
        return [found]
    outside = r",(?![^([{]*[)\]}])"  # commas that stand in no bracket
    return [literal(part) for part in re.split(outside, text)] if text else []


def source_options(words, parser):
    """Splits ``--OPTION=VALUE`` words off: ({option: value}, the others)."""
    given = [re.fullmatch(r"--(\w+)=(.*)", word, re.DOTALL) for word in words]
    for m in filter(None, given):  # a source's option is checked by the source, but not a slip
        if difflib.get_close_matches(f"--{m[1]}", parser.flags, cutoff=0.85):
            raise UserError(f"there is no flag --{m[1]}{nearest(f'--{m[1]}', parser.flags)}")
    options = {m[1]: literal(m[2]) for m in given if m}
    return options, [word for word, m in zip(words, given, strict=True) if not m]


def complaint(word, parser, args):
    """One line about a word that the command does not take."""
    if not word.startswith("-"):
        return f"`{parser.prog}` has no use for {word!r}; see {parser.prog} --help"
    name = word.partition("=")[0]
    flags = parser.flags
    if parser.path in ("train", "plan", "launch") and args.config:
        flags += [f"--config.{key}" for key in config_keys(args.config)]
    if parser.path == "data show":
        return f"an option of a source is given as --OPTION=VALUE, not {word!r}"
    if name in flags:
        return f"{name} needs a value: {name}=VALUE"
    return f"`{parser.prog}` has no flag {name}{nearest(name, flags)}; see {parser.prog} --help"


def config_keys(spec):
    """The dotted keys of a config, to suggest; none where it cannot be loaded."""
    from tinker.cli import jobs
    from tinker.train import locating

    try:
        return list(jobs.flattened(locating.load_config(spec)))
    except Exception:
        return []


def bind(path, args, overrides, options, extra):
    """The function that runs a parsed command; imports its module, which stays light."""
    if path == "train":
        require(args, "config", "a name such as train/vit_digits, or a file")
        if not args.print_config:
            require(args, "workdir", "the folder of the run")
        if args.profile is not None and not re.fullmatch(r"\d+:\d+", args.profile):
            raise UserError(f"--profile={args.profile} is not of the form FROM:TO, as in 10:15")
        from tinker.cli.jobs import train

        return functools.partial(train, args, overrides)
    if path == "plan":
        require(args, "config", "a name such as train/vit_digits, or a file")
        from tinker.cli.plan import plan

        return functools.partial(plan, args, overrides)
    if path == "launch":
        require(args, "on", f"one of {', '.join(ENGINES)}")
        require(args, "config", "a name such as train/vit_digits, or a file")
        require(args, "workdir", "the folder of the run")
        from tinker.cli.jobs import launch

        return functools.partial(launch, args, overrides)
    if path == "eval":
        require(args, "workdir", "the folder of a run")
        if args.follow and args.step is not None:
            raise UserError("--follow evaluates every checkpoint: leave out --step")
        for flag in () if args.follow else ("output", "timeout"):
            if getattr(args, flag) is not None:
                raise UserError(f"--{flag} is for --follow")
        from tinker.cli.jobs import evaluate

        return functools.partial(evaluate, args)
    if path in ("study", "papers", "papers show"):
        from tinker.cli import studies

        if path == "papers":
            return functools.partial(studies.list_papers, args)
        if path == "papers show":
            return functools.partial(studies.show_paper, args.id)
        if bool(args.id) == (args.all or args.stale):
            raise UserError("`tinker study` needs an ID, or else --all or --stale")
        if args.workdir and not args.id:
            raise UserError("--workdir is for one study; --all and --stale use runs/ID")
        return functools.partial(studies.study, args, overrides)
    if path == "bench":
        from tinker.cli.benchmarks import bench

        return functools.partial(bench, args.name, extra)
    from tinker.cli import sources

    if path == "data":
        return sources.show_sources
    if args.source is None:
        raise UserError(f"`tinker {path}` needs a source; `tinker data` lists them")
    if path == "data show":
        return functools.partial(
            sources.show, args.source, split=args.split, figure=args.figure, options=options
        )
    return functools.partial(sources.prepare, args.source, args.data_dir)


def require(args, flag, what):
    if getattr(args, flag) is None:
        raise UserError(f"`tinker {args.command}` needs --{flag}={flag.upper()}, {what}")
