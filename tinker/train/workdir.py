"""The folder of a run: its config, its lock, and files that are whole or not there."""

import contextlib
import functools
import json
import os
import platform

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


def folder(path):
    """A workdir as an absolute ``epath.Path``, which Orbax asks for; ``~`` is the user's home."""
    path = epath.Path(path).expanduser()
    return path if "://" in str(path) else epath.Path(os.path.abspath(path))


STARTS = ("launch", "sweep", "sweep_by")  # how runs are started, of no consequence for one
MAY_DIFFER = ("mesh", "profile", *STARTS)


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
    if path.exists():
        # A key that is newer than the run had its default.
        defaults = plain(default_config()) if defaults is None else defaults
        found = differences(defaults | _read_config(path), here)
        if found:
            shown = "; ".join(f"{key} is {a!r} there, {b!r} here" for key, a, b in found[:10])
            more = f"; and {len(found) - 10} more" if len(found) > 10 else ""
            raise UserError(
                f"{workdir} holds a run of another config: {shown}{more}. Take another workdir"
            )
    else:
        _start_workdir(workdir, here)
    if jax.process_index() == 0:
        wait_for_all("config")


def _start_workdir(workdir, config):
    for name in ("checkpoints", "metrics.jsonl", "curves.png", "sweep.json"):
        if (workdir / name).exists():
            raise UserError(f"{workdir} has {name} but no config.json: take another workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(workdir / "config.json", json.dumps(config, indent=2) + "\n")


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
    if "://" in str(path):  # an object store shows a file when it is complete
        path.write_bytes(content)
        return
    temporary = path.parent / f".{path.name}.part"
    temporary.write_bytes(content)
    temporary.replace(path)


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
    if "://" in str(workdir) or jax.process_index():
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
