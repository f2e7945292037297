"""The folder of a run: its config, its lock, and files that are whole or not there."""

import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import platform
import socket
import tempfile
import time

import jax
import numpy as np
from etils import epath

from tinker.numerics import UserError
from tinker.train import sharding
from tinker.train.building import default_config
from tinker.train.specs import Config


def plain(config):
    """A config as JSON has it: dicts, lists, numbers, strings."""

    def other(value):
        if isinstance(value, np.generic):
            return value.item()
        raise UserError(f"config holds {value!r}, which is not plain data; name it by import path")

    data = config.to_dict() if hasattr(config, "to_dict") else config
    return json.loads(json.dumps(data, default=other))


def folder(path, reachable=True):
    """A workdir as an absolute ``epath.Path``, which Orbax asks for; ``~`` is the user's home.

    Raises:
      UserError: It is in an object store that is not supported, or whose client is not installed,
        unless it need not be ``reachable`` from here.
    """
    if not is_remote(path):
        return epath.Path(os.path.abspath(epath.Path(path).expanduser()))
    if not str(path).startswith("gs://"):
        raise UserError(f"{path}: a workdir is a folder, or gs://BUCKET/FOLDER")
    if reachable and not any(map(importlib.util.find_spec, ("gcsfs", "tensorflow"))):
        raise UserError(f"{path} needs gcsfs: pip install 'tinker-jax[gcs]'")
    from fsspec.config import conf

    # Its client would remember what a folder held, and miss what other processes write there.
    conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return epath.Path(path)


# How runs are started and measured, of no consequence for one.
STARTS = ("launch", "sweep", "sweep_by", "peak_flops")
MAY_DIFFER = ("mesh", "sharding_rules", "profile", *STARTS)


def differences(there, here, free=MAY_DIFFER):
    """The keys in which two plain configs differ, ``[(key, there, here)]``; None where absent."""
    there, here = dict(_dotted(there)), dict(_dotted(here))
    keys = [k for k in {**there, **here} if k.partition(".")[0] not in free]
    return [(k, there.get(k), here.get(k)) for k in keys if there.get(k) != here.get(k)]


def _dotted(value, prefix=""):
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _dotted(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def claim_config(workdir, config, defaults=None):
    """Writes the config into a fresh workdir, or holds it to the one that is there.

    Process 0 does so first; the others find its config and hold theirs to it. ``defaults`` are of
    keys that may be newer than the run, by default a training job's.

    Raises:
      UserError: The workdir belongs to another config, with the differences; or to no run at all.
    """
    path, here = workdir / "config.json", plain(config)
    if jax.process_index() > 0:
        wait_for_all("config")
        _see(path)
    try:
        if path.exists():
            hold_config(workdir, config, defaults)
        else:
            _start_workdir(workdir, here)
    except Exception as error:  # of a client: no such bucket, no credentials, no network, …
        if isinstance(error, UserError) or not is_remote(workdir):
            raise
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{workdir} cannot be used: {why}") from error
    if jax.process_index() == 0:
        wait_for_all("config")


def hold_config(workdir, config, defaults=None):
    """Raises a UserError, with the differences, unless a workdir's run is of this config."""
    # A key that is newer than the run had its default.
    defaults = plain(default_config()) if defaults is None else defaults
    found = differences(defaults | _read_config(workdir / "config.json"), plain(config))
    if found:
        shown = "; ".join(f"{key} is {a!r} there, {b!r} here" for key, a, b in found[:10])
        more = f"; and {len(found) - 10} more" if len(found) > 10 else ""
        raise UserError(
            f"{workdir} holds a run of another config: {shown}{more}. Take another workdir"
        )


def _start_workdir(workdir, config):
    for name in ("checkpoints", "metrics.jsonl", "curves.png", "sweep.json"):
        if (workdir / name).exists():
            raise UserError(f"{workdir} has {name} but no config.json: take another workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(workdir / "config.json", json.dumps(config, indent=2) + "\n")


def _see(path):
    """Waits a little for a file that process 0 has written: a network's folder may show it late."""
    until = time.monotonic() + 30
    while not path.exists():
        if time.monotonic() > until:
            me = f"process {jax.process_index()} on {socket.gethostname()}"
            raise UserError(f"{me} does not see {path}: a job's workdir must be the same for all")
        time.sleep(0.5)


def wait_for_all(name):
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"tinker {name}")


def _read_config(path):
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not a run's config: {error}") from None


def read_config(workdir):
    """The config of a workdir, as a ConfigDict."""
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise UserError(f"there is no run in {workdir}: it has no config.json")
    return Config(_read_config(path))


def write_whole(path, content):
    """Writes a file so that a reader, or a kill, never sees a part of it."""
    content = content.encode() if isinstance(content, str) else content
    if is_remote(path):  # there a file is shown when it is complete
        path.write_bytes(content)
        return
    temporary = path.parent / f".{path.name}.part"
    temporary.write_bytes(content)
    temporary.replace(path)


def move_folder(folder, target):
    """Moves a folder; in an object store, which cannot, object by object.

    A kill on the way leaves what is not yet moved where it is, and there is no name twice.
    """
    if not is_remote(folder):
        folder.rename(target)
        return
    for path in [*folder.iterdir()]:
        if path.is_dir():
            move_folder(path, target / path.name)
        else:
            (target / path.name).write_bytes(path.read_bytes())
            path.unlink()
    with contextlib.suppress(OSError):  # there is no folder without files, save for a marker of it
        folder.rmtree()


def upload(local, folder):
    """Writes the files of a local folder, and those below it, into another."""
    for path in sorted(pathlib.Path(local).rglob("*")):
        if path.is_file():
            target = folder / path.relative_to(local)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, path.read_bytes())


@contextlib.contextmanager
def local_folder(folder):
    """A local path for what can write to no other; its files go to an object store at the end."""
    if not is_remote(folder):
        yield str(folder)
        return
    with tempfile.TemporaryDirectory(prefix="tinker-") as local:
        yield local
        upload(local, folder)


def is_remote(path):
    """Whether a path is of an object store: no rename, no append, no locks, no empty folders."""
    return "://" in str(path)


def record_start(workdir, step):
    """Adds a line to ``starts.jsonl``: when a run of the workdir started, and at which step.

    Process 0 does so; the others read what is there.

    Returns:
      When the first one started, in seconds since 1970.
    """
    path, lines = workdir / "starts.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):  # a line that was edited
            lines.append(json.loads(line))
    if jax.process_index() == 0:
        lines.append({"time": round(time.time(), 3), "step": step})
        write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))
    return lines[0]["time"] if lines else time.time()


def environment(mesh):
    """What the last bits of a result depend on."""
    import flax
    import jaxlib
    import optax

    device = mesh.devices.flat[0]
    kind = _processor() if device.platform == "cpu" else device.device_kind
    versions = {m.__name__: m.__version__ for m in (jax, jaxlib, flax, optax)}
    return {
        "device": f"{device.platform} {kind}",
        "mesh": sharding.describe(mesh),
        "processes": jax.process_count(),
        "versions": versions,
    }


@functools.cache
def _processor():
    try:
        with open("/proc/cpuinfo") as file:
            named = [line for line in file if line.startswith("model name")]
        return named[0].partition(":")[2].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


@contextlib.contextmanager
def sole_user(workdir):
    """Holds a local workdir for this process; a kill lets go of it.

    Raises:
      UserError: Another process is training there.
    """
    if is_remote(workdir) or jax.process_index():
        yield
        return
    import fcntl

    with open(workdir / ".lock", "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {workdir}") from None
        except OSError:  # a file system without locks
            pass
        yield
