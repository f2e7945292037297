"""A job: a config and the version of the code in a workdir, and what an engine is told to run."""

import hashlib
import importlib
import importlib.util
import json
import platform
import re
import shlex
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from tinker.launch.engines import ENGINES, TOOLS
from tinker.numerics import UserError, check_choice, nearest
from tinker.study.reports import commit
from tinker.train.building import check_keys, default_config
from tinker.train.specs import as_plain, as_type
from tinker.train.sweeps import sweep_points
from tinker.train.workdir import differences, folder, is_remote, plain, write_whole


class Job(NamedTuple):
    """What an engine is asked for."""

    name: str
    workdir: str  # an absolute path, or the address of a folder in an object store
    settings: dict  # config.launch
    points: int = 0  # of the config's sweep; 0 for a single run

    @property
    def words(self):
        """What follows ``tinker`` on the command line of every process."""
        return ["train", f"--config={self.workdir}/launch/config.json", f"--workdir={self.workdir}"]


class Plan(NamedTuple):
    """What an engine will do."""

    commands: list  # each a list of words
    files: dict = {}  # further files of WORKDIR/launch, {name: text}
    stdin: str | None = None  # the one of these files that the commands read
    checks: tuple = ()  # the commands of the engine's own dry run
    note: str = ""  # to tell beside them


def launch(config, workdir, on, *, dry_run=False):
    """Runs a config on an engine, as its ``launch`` block says.

    The resolved config and the version of the code are kept in ``WORKDIR/launch``, where the job
    reads them: editing the config's file later does not change a job that waits.

    Args:
      config: A training config, see :func:`tinker.train.default_config`. With a ``sweep``, every
        point is a run.
      workdir: The folder of the run, a path or ``gs://…``; every machine of the job must see it.
      on: ``"local"``, ``"slurm"``, ``"ray"``, ``"tpu-vm"`` or ``"xpk"``.
      dry_run: Only prints what would run, and lets the engine's own tool check it where that is
        installed; writes nothing.

    Returns:
      The exit status: of the run where the engine waits for it, else of its submission.

    Raises:
      UserError: An engine or a config that cannot work, a tool that is not installed, a workdir
        that holds another job.
    """
    check_choice("--on", on, ENGINES)
    job = make_job(config, workdir)
    engine = importlib.import_module(f"tinker.launch.{on.replace('-', '_')}")
    plan = engine.plan(job)
    tools = ["ray"] if on == "ray" else [words[0] for words in (*plan.checks, *plan.commands)]
    missing = [tool for tool in tools if tool in TOOLS and not found(tool)]
    if missing and not dry_run:
        raise UserError(f"--on={on} needs {missing[0]}: {TOOLS[missing[0]]}")
    files = {"config.json": _lines(plain(config)), "version.json": _lines(version()), **plan.files}
    if not dry_run:
        keep(job, files)
    show(job, plan)
    if not dry_run:
        return engine.run(job, plan)
    if missing:
        print(f"# not checked: {missing[0]} is not installed ({TOOLS[missing[0]]})")
        return 0
    return run_all(plan.checks, plan)


def make_job(config, workdir):
    """The job of a config; raises a UserError for one that cannot be launched."""
    check_keys(config)
    settings = checked(config.launch)
    workdir = str(folder(workdir, reachable=False))
    if "\n" in workdir:
        raise UserError("a workdir with a line break in its name cannot be launched")
    points = len(sweep_points(config.sweep, config.sweep_by)) if config.sweep else 0
    name = settings["name"] or re.sub(r"[^\w.-]+", "-", workdir.rpartition("/")[2]) or "tinker"
    return Job(name, workdir, settings, points)


def checked(settings):
    """The settings of ``config.launch`` with their defaults, as plain data, or a UserError."""
    known = default_config().launch
    for key, value in settings.items():
        if key not in known:
            raise UserError(f"there is no config.launch.{key}{nearest(key, known)}")
        as_type(value, known[key], f"config.launch.{key}")
    settings = {**as_plain(known), **as_plain(settings)}
    least = {"nodes": 1, "processes": 1, "devices": 1, "parallel": 1, "restarts": 0}
    for key, value in ((k, settings[k]) for k in least):
        if value is not None and (type(value) is not int or value < least[key]):
            raise UserError(f"config.launch.{key}={value!r} is not a number from {least[key]} on")
    for name in settings["env"]:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UserError(f"config.launch.env: {name!r} cannot name an environment variable")
    return settings


def need(job, engine, **what):
    """The values of settings that an engine cannot do without, or a UserError."""
    for key, meaning in what.items():
        if job.settings[key] is None:
            raise UserError(f"{engine} needs {meaning}: --config.launch.{key}=…")
    return [job.settings[key] for key in what]


# What is kept.


def _lines(data):
    return json.dumps(data, indent=2) + "\n"


def version():
    """The version of the code: commit (with a plus where files differ from it), and packages."""
    packages = ("jax", "jaxlib", "flax", "optax", "tinker-jax")
    changes = _changes()
    digest = hashlib.blake2b(changes, digest_size=8).hexdigest() if changes else None
    versions = {name: metadata.version(name) for name in packages}
    return {"commit": commit(), "changes": digest, "python": platform.python_version(), **versions}


def _changes():
    """What differs from the commit, as a patch."""
    root, code = Path(__file__).parents[2], ("tinker", "kernels", "experiments", "configs")
    command = ["git", "diff", "HEAD", "--", *code, ":(exclude)experiments/results"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return b"" if done.returncode else done.stdout


def other_version(config):
    """How this code differs from what a job was launched from, in words; None where it does not.

    Args:
      config: ``WORKDIR/launch/config.json``, or any other config, of which nothing is known.
    """
    if not config.endswith("/launch/config.json"):
        return None
    path = folder(config).parent / "version.json"
    if not path.exists():
        return None
    there, here = json.loads(path.read_text()), version()
    changed = [f"{k} was {v}, is {here.get(k)}" for k, v in there.items() if v != here.get(k)]
    return f"this is not the code that was launched: {'; '.join(changed)}" if changed else None


def keep(job, files):
    """Writes the files of a job into its workdir.

    Raises:
      UserError: A job of another config is there: it may be waiting, and would read this one.
    """
    place = folder(job.workdir) / "launch"
    if (place / "config.json").exists():
        there = json.loads((place / "config.json").read_text())
        found = differences(there, json.loads(files["config.json"]), free=("launch",))
        if found:
            shown = "; ".join(f"{key} is {a!r} there, {b!r} here" for key, a, b in found[:10])
            raise UserError(
                f"{job.workdir} holds a job of another config: {shown}. Take another workdir, or "
                f"remove {place} if that job neither runs nor waits"
            )
    place.mkdir(parents=True, exist_ok=True)
    if not is_remote(job.workdir):
        (folder(job.workdir) / "logs").mkdir(exist_ok=True)
    for name, text in files.items():
        write_whole(place / name, text)
    changes = _changes()
    if changes:
        write_whole(place / "changes.patch", changes)


# What is run.


def show(job, plan):
    """Prints what will run."""
    for name, text in plan.files.items():
        print(f"# {job.workdir}/launch/{name}\n{text}")
    for line in plan.note.splitlines():
        print(f"# {line}")
    reads = f" < {shlex.quote(f'{job.workdir}/launch/{plan.stdin}')}" if plan.stdin else ""
    for words in plan.commands:
        print(f"$ {shlex.join(words)}{reads}", flush=True)


def found(tool):
    """Whether a tool can be run, or Ray imported."""
    if tool == "ray":
        return importlib.util.find_spec(tool) is not None
    return shutil.which(tool) is not None


def run_all(commands, plan):
    """Runs commands of a plan until one fails; returns the last exit status."""
    for words in commands:
        stdin = plan.files[plan.stdin] if plan.stdin else None
        code = subprocess.run(words, input=stdin, text=True, check=False).returncode
        if code:
            return code if code > 0 else 128 - code
    return 0


def exports(settings):
    """Lines of shell that set the environment and whatever else comes before a run."""
    values = settings["env"].items()
    return [*(f"export {k}={shlex.quote(str(v))}" for k, v in values), *settings["setup"]]
